"""Runs single layers by the function body, on what they received in a run with the library."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from lumina_onnx.schema import DOMAIN, DOMAIN_VERSION, NOISE, OPERATOR

from . import files, passes
from .comparing import compare_body, compare_noisy_body
from .nodes import OpticalNode
from .passes.silence_noise import SilenceNoise
from .report import Comparison
from .sessions import session
from .watching import Executions
from .writing import message

__all__ = ["noisy_bodies", "quiet_bodies", "size"]

_AT_ONCE = 2**24
"""The elements of the weights that a session has at most, unless a single layer has more."""

_Runs = list[tuple[OpticalNode, Executions]]


def quiet_bodies(
    model: ir.Model, layers: list[OpticalNode], executions: list[Executions], rows: int | None
) -> Iterator[Comparison]:
    """A comparison for each layer that was executed, with its noise off: its first execution."""
    group: _Runs = []
    for node, each in zip(layers, executions, strict=True):
        if each:
            if group and sum(size(other) for other, _ in group) + size(node) > _AT_ONCE:
                yield from (compare_body(*ran, rows) for ran in _ran(model, group, quiet=True))
                group = []
            group.append((node, each))
    yield from (compare_body(*ran, rows) for ran in _ran(model, group, quiet=True))


def noisy_bodies(
    model: ir.Model, layers: list[OpticalNode], executions: list[Executions], rows: int | None
) -> Iterator[Comparison]:
    """A comparison for one layer of each kind that draws noise: the smallest of those that differ in sizes, numbers of
    ranges and seed alone."""
    smallest: dict[Any, tuple[OpticalNode, Executions]] = {}
    for node, each in zip(layers, executions, strict=True):
        if each and node.is_noisy:
            known = smallest.get(key := _kind(node))
            if known is None or size(node) < size(known[0]):
                smallest[key] = (node, each)
    yield from (compare_noisy_body(*ran, rows) for ran in _ran(model, list(smallest.values()), quiet=False))


def size(node: OpticalNode) -> int:
    """The number of elements of a layer's W."""
    return node.in_features * node.out_features


def _ran(model: ir.Model, chosen: _Runs, *, quiet: bool) -> _Runs:
    """The layers with X of their first execution and with Y in one session without the library."""
    if not chosen:
        return []
    alone = _model(model, [node for node, _ in chosen])
    if quiet:
        alone, _ = passes.run(alone, SilenceNoise())
    inputs = [each[0][0] for _, each in chosen]
    with files.temporary(*message(alone)) as path:
        opened = session(path, library=False)
    results = opened.run(None, {f"X{number}": x for number, x in enumerate(inputs)})
    return [(node, [pair]) for (node, _), *pair in zip(chosen, inputs, results, strict=True)]  # type: ignore[list-item]


def _kind(node: OpticalNode) -> tuple[Any, ...]:
    """What decides which operators of the body run."""
    values = node.attributes
    static = values["input_range"] > 0, any(each > 0 for each in values["output_range"])
    levels = tuple(values[name] for name in NOISE)
    bits = tuple(values[f"{name}_bits"] for name in ("input", "weight", "output"))
    return (*bits, *static, *levels, values["bias_stage"], node.bias is None)


def _model(model: ir.Model, layers: list[OpticalNode]) -> ir.Model:
    """The layers side by side, each with an input and an output of its own."""
    inputs, outputs, copies, stored = [], [], [], []
    for number, layer in enumerate(layers):
        x = ir.Value(name=f"X{number}", type=ir.TensorType(ir.DataType.FLOAT))
        tensors = (layer.weight, layer.weight_scale, layer.bias)
        values = [
            None if tensor is None else ir.Value(name=f"{name}{number}", const_value=tensor)
            for name, tensor in zip(("W", "S", "B"), tensors, strict=True)
        ]
        copies.append(ir.Node(DOMAIN, OPERATOR, [x, *values], layer.node.attributes, version=DOMAIN_VERSION))
        y = copies[-1].outputs[0]
        y.name, y.type = f"Y{number}", ir.TensorType(ir.DataType.FLOAT)
        inputs.append(x)
        outputs.append(y)
        stored += [value for value in values if value is not None]
    opsets = {"": model.opset_imports[""], DOMAIN: DOMAIN_VERSION}
    graph = ir.Graph(inputs, outputs, nodes=copies, initializers=stored, opset_imports=opsets, name="layers")
    body = model.functions[DOMAIN, OPERATOR, ""]
    return ir.Model(graph, ir_version=model.ir_version, functions=[body])
