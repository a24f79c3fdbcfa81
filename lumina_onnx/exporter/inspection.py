"""Reading what a .onnx file holds, without running it."""

from __future__ import annotations

import os
from pathlib import Path

import onnx

from . import nodes
from .report import InspectReport

__all__ = ["inspect"]


def inspect(path: str | os.PathLike[str]) -> InspectReport:
    """Lists the `OpticalLinear` layers of a .onnx file, its other operators, inputs, outputs and metadata.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is not an ONNX model.
    """
    model = nodes.load(path, weights=False)
    initializers = {tensor.name for tensor in model.graph.initializer}
    return InspectReport(
        path=str(path),
        file_bytes=stored_bytes(path, model),
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0),
        ir_version=model.ir_version,
        inputs={value.name: _kind(value) for value in model.graph.input if value.name not in initializers},
        outputs={value.name: _kind(value) for value in model.graph.output},
        body_bytes=nodes.body_bytes(model),
        layers=nodes.layers(model),
        other_operators=nodes.operators(model),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def stored_bytes(path: str | os.PathLike[str], model: onnx.ModelProto) -> int:
    """The bytes of a model's file and of the files that its initializers lie in."""
    file = Path(path)
    files = {file}
    for tensor in model.graph.initializer:
        files.update(file.parent / entry.value for entry in tensor.external_data if entry.key == "location")
    return sum(each.stat().st_size for each in files if each.is_file())


def _kind(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    shape = [dim.dim_param or (str(dim.dim_value) if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim]
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type).lower()}[{', '.join(shape)}]"
