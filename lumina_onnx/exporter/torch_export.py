"""torch -> .onnx: torch's own exporter with one translation, then the passes of :mod:`.packing`."""

from __future__ import annotations

import ast
import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import onnx_ir as ir
import onnxscript
import torch

from lumina_onnx import nn as optical
from lumina_onnx.nn._wrappers import check_is_whole, unwrapped

from . import calls, files, nodes, packing, writing
from .capture import Captured, ExportError, capture
from .constants import Constants
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

    The model is captured in eval mode (its modes are restored). W is stored at its bits: packed uint8 for 1, 2 and 4,
    int8 for 3 and 5..8, float32 for analog and 9..16, each with its scales; shared weights once, and computed ones as
    torch computes them. Every node has its module's name and noise seed. Whatever else the model does becomes standard
    ONNX operators.

    Args:
        model: has :class:`lumina_onnx.nn.OpticalLinear` layers (see :func:`lumina_onnx.nn.convert`) or calls
            :func:`lumina_onnx.nn.functional.optical_linear`.
        args: example inputs: one tensor, or a sequence of forward's arguments; a dict at its end holds keyword
            arguments. Only shapes and dtypes of tensors count; other values are the file's for good.
        path: the file to write, ``*.onnx``; its folder must exist, a file there is replaced.
        dynamic_shapes: as for ``torch.onnx.export``; overrides ``dynamic_batch``.
        dynamic_batch: dimension 0 of every input is the symbolic "batch".
        noise: "keep", or "off" for a file without noise.
        fallback: attach the operator's body in standard operators (some 7 KiB, see :mod:`.body`), so that the file
            runs, slower, where the operator's library is not registered.
        target: the oldest ONNX Runtime release that the file must load in, see
            :data:`lumina_onnx.exporter.targets.TARGETS`.

    Returns:
        What was written: layers with their storage, what was left and why. ``print`` shows tables.

    Raises:
        TypeError: ``model`` is no module, or one whose layers cannot be reached, or ``args`` neither a tensor nor a
            sequence.
        ValueError: an argument that is not allowed, a model without optical layers, or a layer whose weight is another
            one in each call.
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
    graph = captured.graph
    ir.passes.common.InlinePass()(graph)
    reached = calls.restore(graph, captured.calls)
    if not reached:
        raise ValueError(
            f"model has no OpticalLinear: call lumina_onnx.nn.convert(model, profile) first ({_what_there_is(model)})"
        )
    modules = dict(model.named_modules(remove_duplicate=False))
    _name_nodes(graph, reached, modules)
    if noise == "off":
        packing.silence(graph)
    notes = packing.separate_seeds(graph)
    # Only now: the optimiser merges equal nodes, and two noisy calls are not equal.
    with _set_apart(graph):
        onnxscript.optimizer.optimize(graph)
    left = _left(model, graph, set(reached.values()), modules)
    packing.store_weights(graph)
    _finish(model, captured, runtime)
    if fallback:
        writing.attach_body(graph)
    notes += writing.save(graph, file)

    written = files.load(file, weights=False)
    return ExportReport(
        path=str(path),
        file_bytes=files.stored_bytes(file, written),
        target=runtime.onnxruntime,
        opset=runtime.opset,
        ir_version=written.ir_version,
        body_bytes=nodes.body_bytes(written),
        layers=nodes.layers(written),
        other_operators=nodes.operators(written),
        left=left,
        notes=notes,
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
    """The path of the module that called a node; "" where torch left no trace, as in a branch."""
    text = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    scopes: list[str] = ast.literal_eval(text) if text else []
    return calls.module_path(scopes[-2], modules) if len(scopes) > 1 else ""


def _name_nodes(graph: ir.Model, reached: Mapping[ir.Node, str], modules: Mapping[str, torch.nn.Module]) -> None:
    """Names each optical node after the module that called the operator, and no other node like one of them."""
    taken: set[str] = set()
    spelled = {nodes.spelled(path) for path in modules}
    for node, path in reached.items():
        base = nodes.spelled(path) or "optical_linear"
        candidates = (f"{base}_{index}" for index in range(2, 10**9))
        # The second call of "layer" is not "layer_2", where there is a module of that name.
        node.name = (
            base
            if base not in taken
            else next(name for name in candidates if name not in taken and name not in spelled)
        )
        taken.add(node.name)
    for other in graph.graph.all_nodes():
        if other not in reached and other.name in taken:
            other.name = next(name for index in range(1, 10**9) if (name := f"{other.name}__{index}") not in taken)


@contextlib.contextmanager
def _set_apart(graph: ir.Model) -> Iterator[None]:
    """Hides the nodes that draw from the optimiser: it takes a `Bernoulli` or a `Dropout` in training of a constant for
    a constant, and two of one input for one."""
    known = Constants(graph)
    drawing = [(node, node.domain) for node in graph.graph.all_nodes() if known.draws(node)]
    for number, (node, _) in enumerate(drawing):
        node.domain = f"drawing.{number}"
    try:
        yield
    finally:
        for node, domain in drawing:
            node.domain = domain


def _what_there_is(model: torch.nn.Module) -> str:
    count = sum(type(module) is torch.nn.Linear for module in model.modules())
    reached = sum(isinstance(module, optical.OpticalLinear) for module in model.modules())
    if reached:
        return f"it holds {reached} OpticalLinear modules, but its forward calls none of them"
    if count:
        return f"it holds {count} nn.Linear"
    rows = [row for row in optical.report(model).left if isinstance(model.get_submodule(row.name), torch.nn.Linear)]
    reasons = "; ".join(f"{row.name}: {row.reason}" for row in rows)
    return f"of nn.Linear it holds what convert leaves: {reasons}" if rows else "it holds no nn.Linear either"


def _left(
    model: torch.nn.Module, graph: ir.Model, reached: set[str], modules: Mapping[str, torch.nn.Module]
) -> list[Left]:
    """Products with constant weights that stay ordinary operators, and optical layers that are not in the file."""
    reasons = {name: row.reason for row in optical.report(model).left for name in (row.name, *row.aliases)}
    left: dict[Left, None] = {}
    known = Constants(graph)
    for node in graph.graph.all_nodes():
        if not multiplies_by_stored(node, known):
            continue
        path = _caller(node, modules) or _holder(node, known, modules)
        if isinstance(modules.get(path), optical.OpticalLinear):
            reason = "the model reads this layer's weight without calling the layer"
        else:
            default = "a product with a constant that belongs to no Linear"
            reason = obstacle(node, known) or reasons.get(path, default)
        left[Left(path or str(node.name), node.op_type, reason)] = None
    seen = {id(modules[path]) for path in reached if path in modules}
    for path, module in model.named_modules():
        if isinstance(module, optical.OpticalLinear) and id(module) not in seen:
            left[Left(path, "OpticalLinear", "not in the file: the model's forward does not call it")] = None
    return list(left)


def _holder(node: ir.Node, known: Constants, modules: Mapping[str, torch.nn.Module]) -> str:
    """The path of the module whose parameter the weights of a node are computed from."""
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


def _finish(model: torch.nn.Module, captured: Captured, runtime: Target) -> None:
    """Names, versions and metadata; nothing of the machine that exported stays in the file."""
    graph = captured.graph
    ir.passes.common.ClearMetadataAndDocStringPass()(graph)
    outputs = [value for value in graph.graph.outputs if not value.is_graph_input() and not value.is_initializer()]
    for value, name in zip(graph.graph.inputs, captured.inputs, strict=True):
        value.name = name  # which the optimiser takes from an input that is an output as well
    taken = {value.name for value in graph.graph.inputs} | set(graph.graph.initializers)
    for index, value in enumerate(outputs):
        name = "output" if len(graph.graph.outputs) == 1 else f"output_{index}"
        if name not in taken:
            value.name = name
    graph.graph.name = type(model).__name__
    graph.ir_version = runtime.ir_version
    # Not torch, which named itself: what stands in the file is ours.
    graph.producer_name = ""
    graph.metadata_props.update(captured.binding.metadata())
    writing.finish(graph)
