"""Reading a ready .onnx file whose layers are to become optical."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_ir as ir

from . import files, nodes, raising
from .body import OPSETS

__all__ = ["RAISED", "Source", "read"]

RAISED = 20
"""The opset that an older file gets with a function body: what ONNX Runtime 1.17 reads."""


@dataclass
class Source:
    """A file that was read."""

    graph: ir.Model
    """Its functions inlined. What lies beside the file stays there and is mapped when it is needed."""
    bytes: int
    """What it takes, with what it keeps beside itself."""
    notes: list[str] = field(default_factory=list)


def read(source: str | os.PathLike[str], fallback: bool, example: Any = None) -> Source:
    """The model, at an opset that the function body can have where `fallback` asks for it.

    Args:
        source: the file.
        fallback: whether it is to have a function body.
        example: inputs on which a raised model is compared with the file, beside random ones.

    Raises:
        OSError, ValueError: it cannot be read, or not be raised to such an opset and mean the same.
    """
    named = f"source = {str(source)!r}"
    model = files.load(source, weights=False, argument="source")
    if nodes.optical_nodes(nodes.inlined(model)) or nodes.renamed(model):
        raise ValueError(f"{named} has OpticalLinear nodes already; allowed is a file without")
    _check(model, named)
    found = Source(_inlined(model, named), files.stored_bytes(source, model))
    if model.training_info:
        found.notes.append("training_info is left out: it trains the model as it was")
    opset = _opset(found.graph, named)
    advice = "allowed is fallback=False, which leaves the function body out"
    if fallback and opset >= OPSETS.stop:
        needed = f"{OPSETS[0]}..{OPSETS[-1]}"
        raise ValueError(f"{named} has opset {opset}, and the function body needs {needed}; {advice}")
    if fallback and opset < OPSETS.start:
        old = ir.to_proto(found.graph) if model.functions else model
        try:
            raised, notes = raising.raised(old, RAISED, example)
        except raising.RaisingError as error:
            raise ValueError(
                f"{named} has opset {opset}, the function body needs {OPSETS[0]} or newer, and {error}; {advice}"
            ) from error
        found.graph = _deserialized(raised, named)
        found.notes.append(f"opset {opset} was raised to {RAISED}, which the function body needs")
        found.notes += notes
    _close_initializers(found.graph)
    return found


def _check(model: onnx.ModelProto, named: str) -> None:
    """Refuses what onnx_ir, which changes the model, drops or does not know."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if _has_map(value.type):
            raise ValueError(
                f"{named}: {value.name!r} is a map, or a sequence of maps, which onnx_ir, the library that changes the "
                'model, does not support; allowed are tensors: skl2onnx gives them with options={"zipmap": False}'
            )
    for graph in nodes.graphs(model.graph):
        for sparse in graph.sparse_initializer:
            raise ValueError(f"{named}: its tensor {sparse.values.name!r} is sparse; allowed are dense tensors")


def _has_map(kind: onnx.TypeProto) -> bool:
    if kind.HasField("sequence_type"):
        return _has_map(kind.sequence_type.elem_type)
    if kind.HasField("optional_type"):
        return _has_map(kind.optional_type.elem_type)
    return kind.HasField("map_type")


def _deserialized(model: onnx.ModelProto, named: str) -> ir.Model:
    try:
        return ir.serde.deserialize_model(model)
    except Exception as error:
        raise ValueError(
            f"{named}: onnx_ir, the library that changes the model, cannot read it: {_root(error)}"
        ) from error


def _inlined(model: onnx.ModelProto, named: str) -> ir.Model:
    """The model with its functions put in the place of their calls."""
    graph = _deserialized(model, named)
    try:
        ir.passes.common.InlinePass()(graph)
    except Exception as error:
        raise ValueError(f"{named}: its functions cannot be put in the place of their calls: {_root(error)}") from error
    return graph


def _root(error: BaseException) -> str:
    """What an error was caused by: readers wrap it in one for each part of the model that they were in."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


def _opset(graph: ir.Model, named: str) -> int:
    """The version of the standard operators that a model imports."""
    imports = graph.opset_imports
    if "ai.onnx" in imports:
        imports.setdefault("", imports.pop("ai.onnx"))
    if "" not in imports:
        standard = next((node for node in graph.graph.all_nodes() if not node.domain), None)
        if standard is not None and graph.ir_version >= 3:
            raise ValueError(
                f"{named}: opset_import names no version of the standard operators, and {standard.name!r} "
                f"({standard.op_type}) is one"
            )
        # Before IR 3 there was but one version. Where nothing is of the standard domain any is as good.
        imports[""] = RAISED if standard is None else 1
    return imports[""]


def _close_initializers(graph: ir.Model) -> None:
    """Up to IR 3 every initializer had to be an input of the model as well; since then that lets callers replace it."""
    if graph.ir_version < 4:
        inputs = [value for value in graph.graph.inputs if value.const_value is None]
        graph.graph.inputs.clear()
        graph.graph.inputs.extend(inputs)
