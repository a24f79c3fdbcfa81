"""The float32 twin of a file: the same graph with plain float layers, to measure optical ones against."""

from __future__ import annotations

import os

import onnx_ir as ir

from .loading import load
from .nodes import optical_nodes
from .passes import run
from .passes.float_layers import FloatLayers

__all__ = ["float_twin"]


def float_twin(path: str | os.PathLike[str]) -> ir.Model:
    """A model in which a `MatMul` of the dequantised weights, and an `Add` of the bias, stand for each `OpticalLinear`.

    It has neither converters nor noise. Weights that layers share are shared; the function body is left out. What else
    lies beside the file stays there.

    Raises:
        FileNotFoundError, ValueError: no such file, no ONNX model, no `OpticalLinear` in it, or one whose weights are
            computed in the graph.
    """
    model = load(path, maps=True, sparse="dense").model
    if not optical_nodes(model):
        raise ValueError(f"path = {str(path)!r}: the model has no lumina::OpticalLinear node")
    twin, _ = run(model, FloatLayers())
    return twin
