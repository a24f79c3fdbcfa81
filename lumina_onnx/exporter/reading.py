"""Reads an existing .onnx file whose layers are to become optical."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from . import files, nodes, raising
from .body import OPSETS
from .loading import deserialized, load, root
from .passes import run
from .passes.close_initializers import CloseInitializers

__all__ = ["RAISED", "Source", "read"]

RAISED = 20
"""The opset to which an older file is raised for the function body; ONNX Runtime 1.17 reads it."""


@dataclass
class Source:
    """A file that was read."""

    graph: ir.Model
    """The model, its functions inlined. External data, and large tensors in the file, are mapped when needed."""
    stored: files.Stored
    """The file and its external data."""
    notes: list[str] = field(default_factory=list)


def read(source: str | os.PathLike[str], fallback: bool, example: Any = None) -> Source:
    """The model; with `fallback`, at an opset that the function body supports.

    Args:
        source: the file.
        fallback: whether the model is to have a function body.
        example: inputs on which a raised model is compared with the file, in addition to random ones.

    Raises:
        OSError, ValueError: the file cannot be read, or cannot be raised to such an opset without a change in meaning.
    """
    named = f"source = {str(source)!r}"
    loaded = load(source, argument="source")
    if nodes.optical_nodes(loaded.model) or nodes.renamed(loaded.model):
        raise ValueError(f"{named} has OpticalLinear nodes already; allowed is a file without")
    found = Source(_inlined(loaded.model, named), loaded.stored)
    if loaded.message.training_info:
        found.notes.append("training_info is left out: it trains the model as it was")
    opset = _opset(found.graph, named)
    advice = "allowed is fallback=False, which leaves the function body out"
    if fallback and opset >= OPSETS.stop:
        needed = f"{OPSETS[0]}..{OPSETS[-1]}"
        raise ValueError(f"{named} has opset {opset}, and the function body needs {needed}; {advice}")
    if fallback and opset < OPSETS.start:
        # The converter takes onnx's message, but inlining changed only the onnx_ir model.
        old = ir.to_proto(found.graph) if loaded.message.functions else loaded.message
        try:
            raised, notes = raising.raised(found.graph, old, RAISED, example)
        except raising.RaisingError as error:
            raise ValueError(
                f"{named} has opset {opset}, the function body needs {OPSETS[0]} or newer, and {error}; {advice}"
            ) from error
        found.graph = deserialized(raised, named)
        found.notes.append(f"opset {opset} was raised to {RAISED}, which the function body needs")
        found.notes += notes
    run(found.graph, CloseInitializers())
    return found


def _inlined(model: ir.Model, named: str) -> ir.Model:
    """The model with its functions inlined."""
    try:
        ir.passes.common.InlinePass()(model)
    except Exception as error:
        raise ValueError(f"{named}: its functions cannot be put in the place of their calls: {root(error)}") from error
    return model


def _opset(graph: ir.Model, named: str) -> int:
    """The version of the standard operators that a model imports."""
    imports = graph.opset_imports
    if "" not in imports:
        standard = next((node for node in graph.graph.all_nodes() if not node.domain), None)
        if standard is not None and graph.ir_version >= 3:
            raise ValueError(
                f"{named}: opset_import names no version of the standard operators, and {standard.name!r} "
                f"({standard.op_type}) is one"
            )
        # Before IR 3 there was only one opset. If nothing is of the standard domain, any opset will do.
        imports[""] = RAISED if standard is None else 1
    return imports[""]
