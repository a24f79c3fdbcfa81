"""The float32 twin of a file: the same graph with plain float layers, as a baseline for the optical ones."""

from __future__ import annotations

import os

import onnx_ir as ir

from .loading import load
from .nodes import optical_nodes
from .passes import run
from .passes.float_layers import FloatLayers
from .passes.own_tensors import OwnTensors

__all__ = ["float_twin"]


def float_twin(path: str | os.PathLike[str]) -> ir.Model:
    """A model in which a `MatMul` with the dequantised weights and an `Add` of the bias replace each `OpticalLinear`.

    The twin has neither converters nor noise. Weights shared between layers stay shared; the function body is left out.
    Other external data stay in their files. Of the file itself the twin is independent.

    Raises:
        FileNotFoundError, ValueError: the file does not exist, is not an ONNX model, or has no `OpticalLinear`, or one
            whose weights are computed in the graph.
    """
    model = load(path, maps=True, sparse="dense").model
    if not optical_nodes(model):
        raise ValueError(f"path = {str(path)!r}: the model has no lumina::OpticalLinear node")
    twin, _ = run(model, FloatLayers(), OwnTensors(path))
    return twin
