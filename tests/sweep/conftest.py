"""A small noisy network, as a module and as a file, and data for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lumina_onnx
from lumina_onnx import OpticalProfile, exporter
from lumina_onnx import nn as optical

PROFILE = OpticalProfile(4, 4, 8, input_range=3.0, output_range=4.0, noise_additive=0.1)
SEED = 5


@pytest.fixture(scope="session")
def network() -> nn.Sequential:
    """6-5-3 in float."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


@pytest.fixture
def module(network: nn.Sequential) -> nn.Module:
    """The network on the hardware of `PROFILE`; its layers are named 0 and 2."""
    return optical.convert(network, PROFILE, seed=SEED)


@pytest.fixture(scope="session")
def file(network: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a file."""
    path = tmp_path_factory.mktemp("sweep") / "small.onnx"
    exporter.export(optical.convert(network, PROFILE, seed=SEED), (torch.zeros(2, 6),), path)
    return path


@pytest.fixture(scope="session")
def data() -> dict[str, Any]:
    """50 samples."""
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(50, 6)).astype(np.float32), "labels": rng.integers(0, 3, 50)}


@pytest.fixture
def sweep(file: Path, data: dict[str, Any]) -> Callable[..., lumina_onnx.SweepResult]:
    """A sweep of the file in this process, silent."""

    def run(grid: dict[str, Any] | None = None, **options: Any) -> lumina_onnx.SweepResult:
        arguments = {"model": file, "data": data, "grid": grid or {}, "workers": 1, "progress": False, **options}
        return lumina_onnx.sweep(**arguments)

    return run
