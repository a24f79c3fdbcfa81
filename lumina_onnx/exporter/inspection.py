"""Lists what a .onnx file holds, without running it."""

from __future__ import annotations

import os

from . import nodes
from .loading import load
from .report import InspectReport

__all__ = ["inspect"]


def inspect(path: str | os.PathLike[str]) -> InspectReport:
    """Lists the `OpticalLinear` layers of a .onnx file, its other operators, inputs, outputs and metadata.

    Weights stored beside the file are not read; only their presence is checked.

    Raises:
        OSError: the file does not exist, or a file with its external data is missing.
        ValueError: it is not an ONNX model, or its external data do not match its description of them.
    """
    loaded = load(path, maps=True, sparse="left out")
    model = loaded.model
    return InspectReport(
        path=str(path),
        file_bytes=loaded.stored.bytes,
        opset=model.opset_imports.get("", 0),
        ir_version=model.ir_version,
        inputs=loaded.inputs,
        outputs=loaded.outputs,
        body_bytes=nodes.body_bytes(model),
        layers=nodes.layers(model),
        other_operators=nodes.operators(model),
        metadata=dict(model.metadata_props),
        notes=[
            f"{node.name or node.outputs[0].name} ({node.op_type}): {nodes.RENAMED}" for node in nodes.renamed(model)
        ],
    )
