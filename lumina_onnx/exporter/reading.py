"""Reading a ready .onnx file whose layers are to become optical."""

from __future__ import annotations

import os

import onnx
import onnx.version_converter
import onnx_ir as ir

from . import nodes
from .body import OPSETS

__all__ = ["read"]

RAISED = 20
"""The opset that an older file gets with a function body: what ONNX Runtime 1.17 reads."""


def read(source: str | os.PathLike[str], fallback: bool) -> tuple[ir.Model, list[str]]:
    """The model with its functions inlined, at an opset that the function body can have where it is asked for."""
    proto = nodes.load(source, weights=False)
    if nodes.optical_nodes(proto):
        raise ValueError(f"source = {str(source)!r} has OpticalLinear nodes already; allowed is a file without")
    imports = {entry.domain: entry.version for entry in proto.opset_import}
    opset = imports.get("", imports.get("ai.onnx", 0))
    notes = []
    advice = "allowed is fallback=False, which leaves the function body out"
    if not fallback or opset in OPSETS:
        graph = ir.load(os.fspath(source))
    elif opset >= OPSETS.stop:
        needed = f"{OPSETS[0]}..{OPSETS[-1]}"
        raise ValueError(f"source = {str(source)!r} has opset {opset}, and the function body needs {needed}; {advice}")
    else:
        try:
            raised = onnx.version_converter.convert_version(nodes.load(source), RAISED)
        except Exception as error:
            raise ValueError(
                f"source = {str(source)!r} has opset {opset}, the function body needs {OPSETS[0]} or newer, and "
                f"onnx cannot convert the file ({' '.join(str(error).split())}); {advice}"
            ) from error
        graph = ir.serde.deserialize_model(raised)
        notes.append(f"opset {opset} was raised to {RAISED}, which the function body needs")
    ir.passes.common.InlinePass()(graph)
    _close_initializers(graph)
    return graph, notes


def _close_initializers(graph: ir.Model) -> None:
    """Up to IR 3 every initializer had to be an input of the model as well; since then that lets callers replace it."""
    if graph.ir_version < 4:
        inputs = [value for value in graph.graph.inputs if value.const_value is None]
        graph.graph.inputs.clear()
        graph.graph.inputs.extend(inputs)
