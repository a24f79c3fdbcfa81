"""Exported torch models with their expected results, for `tests/runtime/version_matrix.py`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lumina_onnx import nn as optical
from lumina_onnx.exporter import export
from lumina_onnx.profile import OpticalProfile


@dataclass(frozen=True)
class Case:
    name: str
    model: bytes
    feeds: dict[str, np.ndarray]
    outputs: list[list[np.ndarray]]
    """torch's outputs for each run, with the noise of streams 0, 1, ..."""
    shape: list[str | int]
    """The shape of the first output."""
    tolerance: float
    """0 if every release must give the same bits."""


class Residual(nn.Module):
    """Layers with every kind of weight storage, a sum, and an output that is reshaped."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(24, 24, bias=bits % 2 == 0) for bits in range(17))
        self.head = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.head(x).flatten(1)


def exported_models(runs: int) -> Iterator[Case]:
    torch.manual_seed(0)
    noise: dict[str, Any] = {"noise_relative": 0.05, "noise_additive": 0.02, "noise_shot": 0.01}
    each = {f"blocks.{bits}": OpticalProfile(weight_bits=bits, **noise) for bits in range(17)}
    head = OpticalProfile(weight_bits=4, input_range=9.0, output_range=tuple(range(3, 9)), **noise)
    residual = optical.convert(Residual(), head, overrides=each)
    yield _case("exported_residual", residual, torch.randn(5, 3, 24), ["batch", 18], 0.0, runs)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
    # Without an ADC, so that differences in the last bits of other operators stay that small.
    analog = OpticalProfile(input_bits=0, output_bits=0, weight_bits=4, noise_relative=0.1)
    yield _case(
        "exported_transformer", optical.convert(layer, analog), torch.randn(3, 5, 16), ["batch", 5, 16], 1e-4, runs
    )


def _case(name: str, model: nn.Module, x: Tensor, shape: list[str | int], tolerance: float, runs: int) -> Case:
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        (first, *_) = export(model, x[:2], path).layers
        assert first.noise != "none"
        content = path.read_bytes()
    outputs = []
    for stream in range(runs):
        with torch.no_grad(), optical.noise(model, True, stream=stream):
            outputs.append([model(x).numpy()])
    return Case(name, content, {"src" if tolerance else "x": x.numpy()}, outputs, shape, tolerance)
