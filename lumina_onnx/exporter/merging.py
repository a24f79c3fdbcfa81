"""Merges two files with optical layers into one; outputs of the first become inputs of the second.

`onnx.compose` works on onnx's messages, so both models stay messages until they are merged.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import onnx
import onnx.compose

from lumina_onnx.schema import DOMAIN, OPERATOR

from . import files, inspection, nodes, writing
from .loading import deserialized
from .passes import run
from .passes.attach_body import AttachBody
from .passes.order_attributes import OrderAttributes
from .passes.separate_seeds import SeparateSeeds
from .passes.stamp_metadata import StampMetadata
from .passes.state_defaults import StateDefaults
from .report import InspectReport

__all__ = ["merge"]


def merge(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    path: str | os.PathLike[str],
    io_map: Sequence[tuple[str, str]],
    *,
    prefix1: str = "",
    prefix2: str = "",
) -> InspectReport:
    """Writes one file that runs a second model on a first one's outputs, as `onnx.compose.merge_models` does.

    `merge_models` refuses two files that both carry the operator's body, since the functions have the same name; with
    prefixes it renames the operator itself, so that its library is never called. Here one body serves all layers.
    Layers of the two files that share a noise seed get separate seeds, since they would otherwise share their noise.

    Args:
        first: a .onnx file.
        second: another, of the same opset; the two need not both have optical layers.
        path: the file to write, ``*.onnx``; its folder must exist, a file there is replaced.
        io_map: pairs of an output of the first and the input of the second that it becomes, without prefixes.
        prefix1: put before every name in the first, inputs and outputs included.
        prefix2: the same for the second; use prefixes if the models' names overlap.

    Returns:
        What the file holds. Its notes say which seeds were changed and which metadata were left out.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: a file is not an ONNX model, the models do not fit together, their names overlap, or neither has an
            optical layer.
    """
    file = writing.destination(path)
    sources = {"first": first, "second": second}
    # onnx.compose takes messages; the checks below need onnx_ir models.
    messages = [files.load(source, weights=False, argument=argument) for argument, source in sources.items()]
    models = [
        deserialized(message, f"{argument} = {str(source)!r}")
        for message, (argument, source) in zip(messages, sources.items(), strict=True)
    ]
    for model, (argument, source) in zip(models, sources.items(), strict=True):
        if file.exists() and file.samefile(source):
            raise ValueError(f"path = {str(file)!r} is {argument} itself; allowed is another file")
        if nodes.renamed(model):
            raise ValueError(f"{argument} = {str(source)!r} calls {nodes.RENAMED}")
    if not any(nodes.optical_nodes(model) for model in models):
        raise ValueError("first and second hold no lumina::OpticalLinear; allowed is at least one: exporter.export")
    stored = [files.stored(source, message) for source, message in zip(sources.values(), messages, strict=True)]
    with_body = any(nodes.body_bytes(model) for model in models)
    del models
    message = _merged(messages, io_map, (prefix1, prefix2))
    notes = _merge_metadata(message, messages)
    model, made = run(
        deserialized(message, "the merged model"),
        StateDefaults(),
        SeparateSeeds(),
        OrderAttributes(),
        StampMetadata(),
        *([AttachBody()] if with_body else []),
    )
    _, written = writing.save(model, file, sources=stored, check=False)
    report = inspection.inspect(path)
    return dataclasses.replace(report, notes=[*report.notes, *notes, *made, *written])


def _merged(
    models: list[onnx.ModelProto], io_map: Sequence[tuple[str, str]], prefixes: tuple[str, str]
) -> onnx.ModelProto:
    """The two models as one, without the operator's body and without metadata."""
    imports: dict[str, int] = {}
    for model in models:
        for entry in model.opset_import:
            version = imports.setdefault("" if entry.domain == "ai.onnx" else entry.domain, entry.version)
            if version != entry.version:
                raise ValueError(
                    f"first has version {version} of the operators of {entry.domain or 'ai.onnx'!r}, second "
                    f"{entry.version}; allowed are equal ones: export both for the same target"
                )
    others = [f for model in models for f in model.functions if (f.domain, f.name) != (DOMAIN, OPERATOR)]
    names = [(function.domain, function.name, function.overload) for function in others]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"first and second have a function {name[0]}::{name[1]} each; allowed are names of its own"
            )
    for model, prefix in zip(models, prefixes, strict=True):
        if prefix:
            onnx.compose.add_prefix(model, prefix, rename_functions=False, inplace=True)
    pairs = [(prefixes[0] + output, prefixes[1] + name) for output, name in io_map]
    try:
        graph = onnx.compose.merge_graphs(models[0].graph, models[1].graph, pairs)
    except ValueError as error:
        message = str(error).partition("\n")[0]
        advice = "; allowed are names of their own: give prefix1 or prefix2" if "overlapping" in message else ""
        raise ValueError(f"first and second, io_map = {list(io_map)}: {message}{advice}") from error
    return onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid(domain, version) for domain, version in imports.items()],
        ir_version=max(model.ir_version for model in models),
        functions=others,
    )


def _merge_metadata(merged: onnx.ModelProto, models: list[onnx.ModelProto]) -> list[str]:
    """Copies the models' metadata, except the exporter's own, to the merged model; returns a note for each conflict."""
    kept: dict[str, str] = {}
    notes = []
    for model in models:
        for entry in model.metadata_props:
            if entry.key.startswith(f"{DOMAIN}."):
                continue
            if kept.setdefault(entry.key, entry.value) != entry.value:
                notes.append(f"metadata {entry.key!r} of the second is left out: the first has another value")
    onnx.helper.set_model_props(merged, kept)
    return notes
