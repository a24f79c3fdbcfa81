"""torch's own exporter: a model's forward as an ONNX graph, each optical layer one node with W in float32."""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript
import torch
from torch.utils import _pytree as pytree

from lumina_onnx import nn as optical
from lumina_onnx.schema import DOMAIN, VERSION

from .onnx_schema import register

__all__ = ["ExportError", "capture", "evaluating"]


class ExportError(RuntimeError):
    """torch could not export the model; its own error is the cause, and follows in the text."""


def capture(
    model: torch.nn.Module, arguments: tuple[Any, ...], *, dynamic_shapes: Any, dynamic_batch: bool, opset: int
) -> ir.Model:
    """The model in eval mode, noise on, as an ONNX graph that nothing has optimised yet.

    Raises:
        ValueError: a batch dimension that cannot be dynamic.
        ExportError: torch cannot export the model's forward.
    """
    batched = dynamic_shapes is None and dynamic_batch
    if batched:
        arguments, dynamic_shapes = _batched(model, arguments)
    register()
    with evaluating(model), optical.noise(model, on=True), _quiet():
        try:
            program = torch.onnx.export(
                model,
                arguments,
                dynamo=True,
                dynamic_shapes=dynamic_shapes,
                opset_version=opset,
                custom_translation_table={torch.ops.lumina.optical_linear.default: _translate},
                optimize=False,
                verbose=False,
            )
        except Exception as error:
            _check_forward(model, arguments)
            advice = (
                "; where a fixed size follows from dimension 0, give dynamic_batch=False or dynamic_shapes"
                if batched
                else ""
            )
            raise ExportError(
                f"torch.onnx.export cannot capture {type(model).__name__}.forward{advice}. Its error: "
                + re.sub(r"\x1b\[[0-9;]*m", "", str(error))
            ) from error
    program = cast("torch.onnx.ONNXProgram", program)
    if batched:
        _name_batch(program)
    else:
        _check_dynamic(program, dynamic_shapes)
    return program.model


def _check_forward(model: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
    """Says in the model's own words what is wrong with the example inputs, where forward fails on them without torch's
    exporter too."""
    keywords = arguments[-1] if arguments and isinstance(arguments[-1], dict) else {}
    positional = arguments[:-1] if keywords else arguments
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(*positional, **keywords)
    except Exception as error:
        raise ExportError(f"{type(model).__name__}.forward fails on args: {type(error).__name__}: {error}") from error


def _batched(model: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
    """Example inputs and their dynamic shapes, dimension 0 of each tensor being the batch.

    torch takes a size of 0 or 1 for a constant, so that such an example becomes one of 2.
    """
    sizes = {leaf.shape[0] for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, torch.Tensor) and leaf.ndim}
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

    arguments = pytree.tree_map(widen, arguments)
    shapes = pytree.tree_map(
        lambda leaf: {0: batch} if isinstance(leaf, torch.Tensor) and leaf.ndim else None, arguments
    )
    if not (arguments and isinstance(arguments[-1], dict)):
        return arguments, shapes
    # With keyword arguments torch wants the shapes by name.
    names = list(inspect.signature(model.forward).parameters)
    return arguments, dict(zip(names, shapes[:-1], strict=False)) | shapes[-1]


def _name_batch(program: torch.onnx.ONNXProgram) -> None:
    """Calls dimension 0 of every input "batch", whatever symbol torch gave it.

    Where forward fixes a size, torch may export that size without a word.
    """
    symbols: dict[str | ir.SymbolicDim, str] = {}
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
    program.rename_axes(symbols)


def _check_dynamic(program: torch.onnx.ONNXProgram, dynamic_shapes: Any) -> None:
    """Refuses a graph with fewer dynamic dimensions than were asked for by name: torch drops some without a word."""
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
    x: Any,
    weight: Any,
    bias: Any,
    stream: Any,
    seed: int,
    input_bits: int,
    weight_bits: int,
    output_bits: int,
    input_range: float,
    output_range: Sequence[float],
    noise_relative: float,
    noise_additive: float,
    noise_shot: float,
    bias_stage: str,
) -> Any:
    """`lumina::optical_linear` of torch as a node with W in float32; `packing.store_weights` stores it.

    The stream stays behind: in ONNX Runtime it is the node's invocation counter.
    """
    opset = onnxscript.values.Opset(DOMAIN, VERSION)
    ones = onnx.numpy_helper.from_array(np.ones(weight.shape[0], dtype=np.float32))
    scale = onnxscript.opset18.Constant(value=ones)
    inputs = [x, weight, scale] + ([] if bias is None else [bias])
    return opset.OpticalLinear(
        *inputs,
        input_bits=input_bits,
        weight_bits=weight_bits,
        output_bits=output_bits,
        input_range=input_range,
        output_range=list(output_range),
        noise_relative=noise_relative,
        noise_additive=noise_additive,
        noise_shot=noise_shot,
        bias_stage=bias_stage,
        seed=seed,
    )


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Puts a model into eval mode and restores the mode of each module."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what torch's exporter tells its own developers."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=".*The dynamic axes will not be renamed")
            warnings.filterwarnings("ignore", message=".*The axis name: batch will not be used")
            yield
    finally:
        logger.setLevel(level)
