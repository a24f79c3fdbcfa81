"""Layers and models whose states are saved, averaged and loaded."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from lumina_onnx.nn import OpticalLinear, convert  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

CLEAN = OpticalProfile()
NOISY = OpticalProfile(input_bits=4, weight_bits=4, output_bits=4, noise_additive=0.05)
STATIC = NOISY.replace(input_range=0.3, output_range=1.75)
EACH = NOISY.replace(input_range=0.1, output_range=(0.5, 1.1, 2.0, 1e-3))
ENTRIES = ("input_range", "output_range", "range_kind", "noise_seed")
RANGES = ENTRIES[:3]
STATES = Path(__file__).with_name("states")

positive = st.floats(2.0**-20, 1000.0, width=32) | st.floats(1e-30, 1e30)
ranges = st.just(0.0) | positive | st.tuples(*[positive] * 4)


def layer(profile: OpticalProfile = NOISY, seed: int = 0, k: int = 5, n: int = 4) -> Any:
    return OpticalLinear(k, n, profile=profile, seed=seed)


def model(profile: OpticalProfile = NOISY, seed: int = 0) -> Any:
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), profile, seed=seed, inplace=True)


def settings(net: Any) -> Any:
    """The profile and seed of each layer."""
    return [(module.profile, module.seed) for module in net.modules() if isinstance(module, OpticalLinear)]


def saved_and_loaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def average(*states: Any) -> Any:
    return {key: sum(state[key] for state in states) / len(states) for key in states[0]}


def encoded(state: Any) -> Any:
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
