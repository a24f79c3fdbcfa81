"""A model and data for the tests with the tools that PyTorch users have around their models."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from lumina_onnx.nn import OpticalLinear, convert  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

CLEAN = OpticalProfile()
NOISY = OpticalProfile(noise_additive=0.1)


def model(profile: OpticalProfile = NOISY) -> Any:
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), profile, inplace=True)


def batch() -> Any:
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(1))


def all_equal(a: Any, b: Any) -> Any:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Doubled(OpticalLinear):
    def forward(self, input: Any) -> Any:
        return 2 * super().forward(input)
