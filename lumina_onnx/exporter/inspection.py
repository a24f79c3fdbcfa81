"""Reading what a .onnx file holds, without running it."""

from __future__ import annotations

import os

import onnx

from . import files, nodes
from .report import InspectReport

__all__ = ["inspect"]


def inspect(path: str | os.PathLike[str]) -> InspectReport:
    """Lists the `OpticalLinear` layers of a .onnx file, its other operators, inputs, outputs and metadata.

    Weights are not read, wherever they lie; that they are there is checked.

    Raises:
        OSError: nothing is there, or a file that it keeps its data in is missing.
        ValueError: it is no ONNX model, or its data are not as it says.
    """
    model = nodes.inlined(files.load(path, weights=False))
    initializers = {tensor.name for tensor in model.graph.initializer}
    return InspectReport(
        path=str(path),
        file_bytes=files.stored_bytes(path, model),
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0),
        ir_version=model.ir_version,
        inputs={value.name: _type(value.type) for value in model.graph.input if value.name not in initializers},
        outputs={value.name: _type(value.type) for value in model.graph.output},
        body_bytes=nodes.body_bytes(model),
        layers=nodes.layers(model),
        other_operators=nodes.operators(model),
        metadata={entry.key: entry.value for entry in model.metadata_props},
        notes=[f"{node.name or node.output[0]} ({node.op_type}): {nodes.RENAMED}" for node in nodes.renamed(model)],
    )


def _type(kind: onnx.TypeProto) -> str:
    if kind.HasField("sequence_type"):
        return f"sequence({_type(kind.sequence_type.elem_type)})"
    if kind.HasField("optional_type"):
        return f"optional({_type(kind.optional_type.elem_type)})"
    if kind.HasField("map_type"):
        return f"map({_element(kind.map_type.key_type)}, {_type(kind.map_type.value_type)})"
    tensor = kind.sparse_tensor_type if kind.HasField("sparse_tensor_type") else kind.tensor_type
    shape = [dim.dim_param or (str(dim.dim_value) if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim]
    return f"{_element(tensor.elem_type)}[{', '.join(shape)}]"


def _element(kind: int) -> str:
    return onnx.TensorProto.DataType.Name(kind).lower()
