"""torch's own exporter: captures a model's forward as an ONNX graph, each optical layer one node with W in float32."""

from __future__ import annotations

import contextlib
import functools
import inspect
import keyword
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript
import torch
from torch import nn
from torch.export.graph_signature import ConstantArgument, SymIntArgument, TensorArgument
from torch.onnx._internal.exporter import _capture_strategies, _flags, _ir_passes
from torch.utils import _pytree as pytree

from lumina_onnx import nn as optical
from lumina_onnx.nn._modes import evaluating
from lumina_onnx.nn._scope import capturing
from lumina_onnx.schema import DOMAIN, DOMAIN_VERSION, LATER, LAYER, VERSION_ATTRIBUTE, version_of

from . import calls, nodes
from .binding import Binding
from .onnx_schema import register

__all__ = ["Captured", "ExportError", "capture"]


class ExportError(RuntimeError):
    """torch could not export the model; its error is the cause and ends the message."""


@dataclass(frozen=True)
class Captured:
    """A model as captured by torch's exporter."""

    graph: ir.Model
    """Not optimised yet; the seed of each optical node is the number of its call."""
    inputs: list[str]
    """The names of the graph's inputs."""
    calls: list[calls.Call]
    """The optical calls, indexed by number."""
    binding: Binding
    """How the graph's inputs and outputs map to forward's arguments and results."""


def capture(
    model: nn.Module, arguments: tuple[Any, ...], *, dynamic_shapes: Any, dynamic_batch: bool, opset: int
) -> Captured:
    """The model in eval mode, noise on, as an ONNX graph.

    Raises:
        ValueError: a batch dimension cannot be dynamic, or weights change from call to call.
        ExportError: torch cannot export the model's forward.
    """
    arguments, keywords = _split(_apart(arguments))
    batched = dynamic_shapes is None and dynamic_batch
    register()
    with evaluating(model), optical.noise(model, on=True), capturing(), _quiet(), _explicit_keywords(model, keywords):
        if batched:
            arguments, keywords, dynamic_shapes = _batched(model, arguments, keywords)
        try:
            program = _program(model, arguments, keywords, dynamic_shapes)
        except Exception as error:
            _check_forward(model, arguments, keywords)
            advice = (
                "; where a fixed size follows from dimension 0, give dynamic_batch=False or dynamic_shapes"
                if batched
                else ""
            )
            raise _cannot(model, advice, error) from error
        marked = calls.mark(program, model)
        binding = Binding.of(program, inspect.signature(model.forward))
        _results_as_tensors(program)
        names = _plain_names(program)
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                dynamic_shapes=None if batched else _by_input(model, arguments, keywords, dynamic_shapes),
                opset_version=opset,
                custom_translation_table={calls.OPERATOR: _translate},
                optimize=False,
                verbose=False,
            )
        except Exception as error:
            raise _cannot(model, "", error) from error
    if exported is None:
        raise ExportError(f"torch.onnx.export returned nothing for {type(model).__name__}")
    _own_names(exported.model, names)
    if batched:
        _name_batch(exported)
    else:
        _check_dynamic(exported, dynamic_shapes)
    inputs = [str(value.name) for value in exported.model.graph.inputs]
    return Captured(exported.model, inputs, marked, binding)


def _cannot(model: nn.Module, advice: str, error: Exception) -> ExportError:
    return ExportError(
        f"torch.onnx.export cannot capture {type(model).__name__}.forward{advice}. Its error: "
        + re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    )


def _apart(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, with repeated tensors cloned: torch's exporter would make all uses of a tensor a single input."""
    seen: set[int] = set()

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or id(leaf) not in seen:
            seen.add(id(leaf))
            return leaf
        return leaf.clone()

    apart: tuple[Any, ...] = pytree.tree_map(own, arguments)
    return apart


def _split(arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments; a dict at the end holds the keyword arguments."""
    if arguments and isinstance(arguments[-1], dict):
        return arguments[:-1], arguments[-1]
    return arguments, {}


@_flags.set_onnx_exporting_flag
def _program(
    model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    """The model as a graph of torch's operators, captured by the same strategies as in ``torch.onnx.export``.

    That function captures and translates in one step, but the calls have to be numbered in between.
    """
    # torch's own conversion mistakes a tuple of Nones, the shapes of a tuple of numbers, for axes and makes it a list.
    shapes = pytree.tree_map(lambda leaf: torch.export.Dim.DYNAMIC if isinstance(leaf, str) else leaf, dynamic_shapes)
    failures: list[Exception | None] = []
    for strategy in _capture_strategies.CAPTURE_STRATEGIES:
        result = strategy(verbose=False)(model, arguments, keywords, dynamic_shapes=shapes)
        if result.exported_program is not None:
            return result.exported_program
        failures.append(result.exception)
    raise failures[0] or ExportError("torch.export returned nothing")


def _check_forward(model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Raises the model's own error if forward fails on the example inputs even without torch's exporter."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(*arguments, **keywords)
    except Exception as error:
        raise ExportError(f"{type(model).__name__}.forward fails on args: {type(error).__name__}: {error}") from error


def _batched(
    model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Example inputs and their dynamic shapes, with dimension 0 of each tensor as the batch.

    torch treats a size of 0 or 1 as a constant, so an example with such a batch is widened to 2.
    """
    leaves = pytree.tree_leaves((arguments, keywords))
    sizes = {leaf.shape[0] for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.ndim}
    if len(sizes) > 1:
        raise ValueError(
            f"args: dimension 0 of the inputs has sizes {sorted(sizes)}, and dynamic_batch = True makes it one batch; "
            "allowed are equal sizes, dynamic_batch=False, or dynamic_shapes"
        )
    batch = torch.export.Dim("batch")

    def widen(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.ndim and leaf.shape[0] < 2:
            return leaf.new_zeros((2, *leaf.shape[1:])) if leaf.shape[0] == 0 else torch.cat([leaf, leaf])
        return leaf

    arguments, keywords = pytree.tree_map(widen, (arguments, keywords))
    try:
        bound = inspect.signature(model.forward).bind(*arguments, **keywords).arguments
    except TypeError as error:
        raise ExportError(f"{type(model).__name__}.forward fails on args: TypeError: {error}") from error
    # By name, because what forward collects in *args and **kwargs is nested there.
    shapes = pytree.tree_map(
        lambda leaf: {0: batch} if isinstance(leaf, torch.Tensor) and leaf.ndim else None, dict(bound)
    )
    return arguments, keywords, shapes


def _by_input(model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], shapes: Any) -> Any:
    """The dynamic shapes of the tensors alone, in their order: torch names no dimension if the shapes cover other
    arguments too."""
    if shapes is None:
        return None
    bound = inspect.signature(model.forward).bind(*arguments, **keywords).arguments
    named = shapes if isinstance(shapes, dict) else dict(zip(bound, shapes, strict=False))
    leaves, tree = pytree.tree_flatten(dict(bound))
    axes = {id(leaf): each for leaf, each in zip(leaves, tree.flatten_up_to(named), strict=True)}
    return [axes[id(leaf)] for leaf in pytree.tree_leaves((arguments, keywords)) if isinstance(leaf, torch.Tensor)]


def _results_as_tensors(program: torch.export.ExportedProgram) -> None:
    """Turns sizes among a program's results into tensors, and constants into None, which becomes no graph output."""
    (results,) = (node for node in program.graph.nodes if node.op == "output")
    values = list(results.args[0])
    for index, spec in enumerate(program.graph_signature.output_specs):
        if isinstance(spec.arg, ConstantArgument):
            values[index] = spec.arg.value = None
        elif isinstance(spec.arg, SymIntArgument) and isinstance(values[index], torch.fx.Node):
            with program.graph.inserting_before(results):
                size = program.graph.call_function(
                    torch.ops.aten.scalar_tensor.default, (values[index],), {"dtype": torch.int64}
                )
            size.meta = {**values[index].meta, "val": values[index].meta["val"]}
            values[index], spec.arg = size, TensorArgument(size.name)
    results.args = (tuple(values),)
    program.graph_module.recompile()


@contextlib.contextmanager
def _explicit_keywords(model: nn.Module, keywords: dict[str, Any]) -> Iterator[None]:
    """Adds what forward takes as ``**keywords`` to its signature by name: torch.export would mistake their shapes."""
    signature = inspect.signature(model.forward)
    named = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    more = [name for name in keywords if name not in signature.parameters]
    if len(named) == len(signature.parameters) or not more:
        yield
        return
    forward, own = model.forward, model.__dict__.get("forward")

    @functools.wraps(forward)
    def explicit(*arguments: Any, **others: Any) -> Any:
        return forward(*arguments, **others)

    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in more]
    explicit.__signature__ = signature.replace(parameters=[*named, *added])  # type: ignore[attr-defined]
    model.forward = explicit
    try:
        yield
    finally:
        del model.forward
        if own is not None:
            model.forward = own


def _plain_names(program: torch.export.ExportedProgram) -> dict[str, str]:
    """Gives parameters and buffers names that torch can write into a graph's code; returns new name -> original name.

    torch quotes module names in that code without escaping them: ``say "hi"`` would be a syntax error.
    """
    names: dict[str, str] = {}
    for spec in program.graph_signature.input_specs:
        name = spec.target
        if name is None or all(re.fullmatch(r"\w+", part) and not keyword.iskeyword(part) for part in name.split(".")):
            continue
        plain = f"lumina_stored_{len(names)}"
        names[plain] = name
        spec.target = plain
        for tensors in (program.state_dict, program.constants):
            if name in tensors:
                tensors[plain] = tensors.pop(name)
    return names


def _own_names(graph: ir.Model, names: dict[str, str]) -> None:
    for plain, name in names.items():
        if plain in graph.graph.initializers:
            value = graph.graph.initializers.pop(plain)
            value.name = nodes.spelled(name)
            if value.const_value is not None:
                value.const_value.name = value.name
            graph.graph.initializers[value.name] = value


def _name_batch(program: torch.onnx.ONNXProgram) -> None:
    """Names dimension 0 of every input "batch", whatever symbol torch gave it.

    Refuses a fixed size: if forward fixes one, torch may export it without a warning.
    """
    symbols: dict[Any, str] = {}
    for value in program.model.graph.inputs:
        if not value.shape:
            continue
        dimension = value.shape[0]
        if isinstance(dimension, ir.SymbolicDim):
            symbols[str(dimension.value)] = "batch"
        else:
            raise ValueError(
                f"dynamic_batch = True: forward works only where dimension 0 of input {value.name!r} is {dimension}; "
                "allowed are dynamic_batch=False and dynamic_shapes"
            )
    _ir_passes.rename_axis(program.model, symbols)  # torch 2.10 has no ONNXProgram.rename_axes


def _check_dynamic(program: torch.onnx.ONNXProgram, dynamic_shapes: Any) -> None:
    """Refuses a graph with fewer dynamic dimensions than were requested by name: torch drops some without a warning."""
    asked = sum(isinstance(leaf, (torch.export.Dim, str)) for leaf in pytree.tree_leaves(dynamic_shapes))
    shapes = {value.name: list(value.shape or ()) for value in program.model.graph.inputs}
    found = sum(isinstance(size, ir.SymbolicDim) for shape in shapes.values() for size in shape)
    if found < asked:
        inputs = ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in shapes.items())
        raise ValueError(
            f"dynamic_shapes names {asked} dimensions, but forward works with {found} dynamic ones alone: {inputs}; "
            "allowed are shapes that leave the others out"
        )


def _translate(
    x: Any, weight: Any, bias: Any, stream: Any, seed: int, *values: Any, gradient_bits: int = 0, **options: Any
) -> Any:
    """torch's `lumina::optical_linear` as a node with W in float32; P08 of :mod:`.passes` stores W.

    The stream is dropped: in ONNX Runtime it is the node's invocation counter. So are the gradient's bits.
    """
    opset = onnxscript.values.Opset(DOMAIN, DOMAIN_VERSION)
    ones = onnx.numpy_helper.from_array(np.ones(weight.shape[0], dtype=np.float32))
    scale = onnxscript.opset18.Constant(value=ones)
    inputs = [x, weight, scale] + ([] if bias is None else [bias])
    attributes = {
        row.name: list(value) if row.type == "FLOATS" else value
        for row, value in zip(LAYER[: -len(LATER)], values, strict=True)
    }
    # Newer releases of torch pass options at their defaults, too.
    attributes |= {row.name: options[row.name] for row in LATER if options.get(row.name, row.default) != row.default}
    if (version := version_of(attributes)) > 1:
        attributes[VERSION_ATTRIBUTE] = version
    return opset.OpticalLinear(*inputs, **attributes, seed=seed)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses messages that torch's exporter means for its own developers."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            # Dynamo reads .grad of what loops and branches carry, and gives up if the warning is an error.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf Tensor")
            # Giving two dimensions one name is intended.
            warnings.filterwarnings("ignore", message=r".*The axis name: (.+) will not be used.*another axis: \1\.$")
            warnings.filterwarnings("ignore", message="(?s).*assigned during export")  # and restored
            yield
    finally:
        logger.setLevel(level)
