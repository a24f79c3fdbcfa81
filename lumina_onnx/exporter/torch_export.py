"""Exports torch models to .onnx: torch's own exporter with one added translation, then the passes of :mod:`.passes`."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import onnx_ir as ir
import torch

from lumina_onnx import nn as optical
from lumina_onnx.nn._wrappers import check_is_whole, unwrapped
from lumina_onnx.nn.convert import NOT_CONVERTED

from . import calls, nodes, writing
from .capture import Captured, ExportError, capture
from .constants import Constants
from .passes import run
from .passes.attach_body import AttachBody
from .passes.name_layers import NameLayers
from .passes.optimize import Optimize
from .passes.order_attributes import OrderAttributes
from .passes.remove_unused import RemoveUnused
from .passes.restore_calls import MODULE, RestoreCalls
from .passes.separate_seeds import SeparateSeeds
from .passes.silence_noise import SilenceNoise
from .passes.stamp_metadata import StampMetadata
from .passes.store_weights import StoreWeights
from .products import multiplies_by_stored, obstacle
from .report import ExportReport, Left
from .targets import Target, resolve

__all__ = ["ExportError", "export"]


def export(
    model: torch.nn.Module,
    args: torch.Tensor | Sequence[Any],
    path: str | os.PathLike[str],
    *,
    dynamic_shapes: Any = None,
    dynamic_batch: bool = True,
    noise: Literal["keep", "off"] = "keep",
    fallback: bool = True,
    target: str = "1.17",
) -> ExportReport:
    """Writes a torch model as one .onnx file in which every optical layer is a `lumina::OpticalLinear` node.

    The model is captured in eval mode; its modes are restored afterwards. W is stored at its bits: packed uint8 for 1,
    2 and 4, int8 for 3 and 5..8, float32 for analog and 9..16, each with its scales. Shared weights are stored once,
    and computed weights as torch computes them. Every node has its module's name and noise seed. Everything else in
    the model becomes standard ONNX operators.

    Args:
        model: has optical layers (see :func:`lumina_onnx.nn.convert`) or calls
            :func:`lumina_onnx.nn.functional.optical_linear`.
        args: example inputs: one tensor, or a sequence of forward's arguments; a dict at its end holds keyword
            arguments. Only the shapes and dtypes of tensors matter; other values become constants of the file.
        path: the file to write, ``*.onnx``; its folder must exist, and an existing file is replaced.
        dynamic_shapes: as for ``torch.onnx.export``; overrides ``dynamic_batch``.
        dynamic_batch: dimension 0 of every input is the symbolic "batch".
        noise: "keep", or "off" for a file without noise.
        fallback: attach the operator's body in standard operators (some 7 KiB, see :mod:`.body`), so that the file
            also runs, more slowly, where the operator's library is not registered.
        target: the oldest ONNX Runtime release that the file must load in, see
            :data:`lumina_onnx.exporter.targets.TARGETS`.

    Returns:
        What was written: layers with their storage, and what was left with the reason. ``print`` shows tables.

    Raises:
        TypeError: ``model`` is not a module or is one whose layers cannot be reached, or ``args`` is neither a tensor
            nor a sequence.
        ValueError: an argument is not allowed, the model has no optical layers, or a layer's weight changes from call
            to call.
        FileNotFoundError, IsADirectoryError: ``path`` cannot be written.
        ExportError: torch cannot export the model's forward.
    """
    check_is_whole(model)
    model = unwrapped(model)
    if noise not in ("keep", "off"):
        raise ValueError(f'noise = {noise!r}: allowed is "keep", "off"')
    runtime = resolve(target)
    file = writing.destination(path)
    arguments = _arguments(args)
    captured = capture(
        model, arguments, dynamic_shapes=dynamic_shapes, dynamic_batch=dynamic_batch, opset=runtime.opset
    )
    graph, _ = run(captured.graph, ir.passes.common.InlinePass(), RestoreCalls(captured.calls))
    layers = nodes.optical_nodes(graph)
    if not layers:
        raise ValueError(
            f"model has no OpticalLinear: call lumina_onnx.nn.convert(model, profile) first ({_what_there_is(model)})"
        )
    reached = {layer.node.meta[MODULE] for layer in layers}
    modules = dict(model.named_modules(remove_duplicate=False))
    _, notes = run(
        graph,
        NameLayers(modules),
        *([SilenceNoise()] if noise == "off" else []),
        SeparateSeeds(),
        Optimize(),
    )
    left = _left(model, graph, reached, modules)
    run(graph, StoreWeights(), RemoveUnused(), ir.passes.common.ClearMetadataAndDocStringPass())
    _name_interface(model, captured, runtime)
    run(graph, OrderAttributes(), StampMetadata(), *([AttachBody()] if fallback else []))
    file_bytes, written = writing.save(graph, file)
    return ExportReport(
        path=str(path),
        file_bytes=file_bytes,
        target=runtime.onnxruntime,
        opset=runtime.opset,
        ir_version=graph.ir_version,
        body_bytes=nodes.body_bytes(graph),
        layers=nodes.layers(graph),
        other_operators=nodes.operators(graph),
        left=left,
        notes=[*notes, *written],
    )


def _arguments(args: torch.Tensor | Sequence[Any]) -> tuple[Any, ...]:
    if isinstance(args, torch.Tensor):
        return (args,)
    if not isinstance(args, (tuple, list)):
        raise TypeError(
            f"args is a {type(args).__name__}; allowed is a torch.Tensor, or a tuple or list of forward's arguments; "
            "a dict at its end holds keyword arguments"
        )
    return tuple(args)


def _caller(node: ir.Node, modules: Mapping[str, torch.nn.Module]) -> str:
    """The path of the module that called a node; "" if torch recorded none, as in a branch."""
    text = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    scopes: list[str] = ast.literal_eval(text) if text else []
    return calls.module_path(scopes[-2], modules) if len(scopes) > 1 else ""


def _what_there_is(model: torch.nn.Module) -> str:
    reached = sum(isinstance(module, optical.OpticalLayer) for module in model.modules())
    if reached:
        return f"it holds {reached} OpticalLinear modules, but its forward calls none of them"
    rows = [row for row in optical.report(model).left if row.in_features]
    count = sum(row.reason == NOT_CONVERTED for row in rows)
    if count:
        return f"it holds {count} linear layers"
    reasons = "; ".join(f"{row.name}: {row.reason}" for row in rows)
    return f"of linear layers it holds what convert leaves: {reasons}" if rows else "it holds no linear layer either"


def _left(
    model: torch.nn.Module, graph: ir.Model, reached: set[str], modules: Mapping[str, torch.nn.Module]
) -> list[Left]:
    """Products with constant weights that stay ordinary operators, and optical layers that are not in the file."""
    reasons = {name: row.reason for row in optical.report(model).left for name in (row.name, *row.aliases)}
    for name, reason in list(reasons.items()):  # an attention module computes its projections itself
        if isinstance(modules.get(holder := name.rpartition(".")[0]), torch.nn.MultiheadAttention):
            reasons.setdefault(holder, reason)
    left: dict[Left, None] = {}
    known = Constants(graph)
    for node in graph.graph.all_nodes():
        if not multiplies_by_stored(node, known):
            continue
        path = _caller(node, modules) or _holder(node, known, modules)
        if isinstance(modules.get(path), optical.OpticalLayer):
            reason = "the model reads this layer's weight without calling the layer"
        else:
            default = "a product with a constant that belongs to no Linear"
            reason = obstacle(node, known) or reasons.get(path, default)
        left[Left(path or str(node.name), node.op_type, reason)] = None
    seen = {id(modules[path]) for path in reached if path in modules}
    for path, module in model.named_modules():
        if isinstance(module, optical.OpticalLayer) and id(module) not in seen:
            left[Left(path, "OpticalLinear", "not in the file: the model's forward does not call it")] = None
    return list(left)


def _holder(node: ir.Node, known: Constants, modules: Mapping[str, torch.nn.Module]) -> str:
    """The path of the module that owns the parameter from which a node's weights are computed."""
    paths = {nodes.spelled(path): path for path in modules}
    waiting = [value for value in node.inputs if value is not None and not known.is_reached(value)]
    seen = set(waiting)
    while waiting:
        value = waiting.pop()
        path = str(value.name).rpartition(".")[0]
        if value.is_initializer() and path in paths:
            return paths[path]
        producer = value.producer()
        sources = {source for source in (producer.inputs if producer is not None else ()) if source is not None}
        waiting.extend(sources - seen)
        seen |= sources
    return ""


def _name_interface(model: torch.nn.Module, captured: Captured, runtime: Target) -> None:
    """Names the inputs and outputs, and sets the file's IR version and the record of how forward is called."""
    graph = captured.graph
    outputs = [value for value in graph.graph.outputs if not value.is_graph_input() and not value.is_initializer()]
    for value, name in zip(graph.graph.inputs, captured.inputs, strict=True):
        value.name = name  # The optimiser renames an input that is also an output.
    taken = {value.name for value in graph.graph.inputs} | set(graph.graph.initializers)
    for index, value in enumerate(outputs):
        name = "output" if len(graph.graph.outputs) == 1 else f"output_{index}"
        if name not in taken:
            value.name = name
    graph.graph.name = type(model).__name__
    graph.ir_version = runtime.ir_version
    # Clears torch's entry: the content of the file is ours.
    graph.producer_name = ""
    graph.metadata_props.update(captured.binding.metadata())
