"""Settings for all tests: no deadlines, and a header line with the kernel's version, tiers and threads."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest

import lumina_kernel

# What tests of several folders share.
sys.path.insert(0, str(Path(__file__).parent))

hypothesis.settings.register_profile(
    "lumina", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("lumina")
# A quarter of the usual examples, for an emulated processor: --hypothesis-profile=few.
hypothesis.settings.register_profile("few", hypothesis.settings.get_profile("lumina"), max_examples=25)


# pytest-xdist gives its workers the width of the terminal, but captured output must not depend on that width.
os.environ.pop("COLUMNS", None)


def pytest_report_header(config: pytest.Config) -> str:
    tiers = ", ".join(lumina_kernel.available_isas())
    return (
        f"lumina_kernel {lumina_kernel.__version__}: tier {lumina_kernel.isa()} of {tiers}, "
        f"{lumina_kernel.num_threads()} threads"
    )


@pytest.fixture
def conv1d(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class `Conv1D` of the transformers package, or one like it where that is not installed."""
    try:
        from transformers.pytorch_utils import Conv1D as theirs
    except ImportError:
        import torch
        from torch import nn

        class Conv1D(nn.Module):
            def __init__(self, nf: int, nx: int) -> None:
                super().__init__()
                self.nf, self.nx = nf, nx
                self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

            def __repr__(self) -> str:
                return f"Conv1D(nf={self.nf}, nx={self.nx})"

            def forward(self, x: Any) -> Any:
                rows = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
                return rows.view(*x.shape[:-1], self.nf)

        module: Any = ModuleType("transformers.pytorch_utils")
        module.Conv1D = Conv1D
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return Conv1D
    return theirs
