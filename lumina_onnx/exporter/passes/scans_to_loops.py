"""P16: a `Scan` with layers inside becomes a `Loop`, which can carry more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lumina_onnx.exporter.nodes import is_optical

from . import Pass, PassResult

__all__ = ["ScansToLoops", "obstacle"]

_BEFORE_ALL = -(2**63) + 1
"""The end of a backward slice that includes element 0."""


class ScansToLoops(Pass):
    """P16: a `Scan` with layers inside becomes a `Loop` that computes the same and can carry more.

    For opset 13 and later. A `Scan` with an :func:`obstacle` stays as it is.
    """

    number = "P16"

    def __init__(self, unused: Callable[[], str]) -> None:
        """`unused` returns names that no value has."""
        self._unused = unused

    def call(self, model: ir.Model) -> PassResult:
        """Replaces the `Scan` nodes, innermost first."""
        scans = [node for node in model.graph.all_nodes() if node.op_type == "Scan" and not node.domain]
        # A `Scan` is listed before those inside it.
        wanted = [node for node in reversed(scans) if _has_layers(_body(node)) and not obstacle(node)]
        for node in wanted:
            _replace(node, self._unused)
        return PassResult(model, bool(wanted))


def obstacle(node: ir.Node) -> str:
    """Why a `Scan` cannot become a `Loop`; an empty string if it can."""
    for value, axis in _stacked(node):
        if axis and value.shape is None:
            return f"which stacks {value.name!r} along axis {axis}, and nobody says how many dimensions it has"
    return ""


def _has_layers(graph: ir.Graph) -> bool:
    return any(map(is_optical, graph.all_nodes()))


def _replace(node: ir.Node, unused: Callable[[], str]) -> None:
    """Replaces a `Scan` by a `Loop`, with the nodes needed before and after it. The body stays the same graph."""
    body, stacked = _body(node), _stacked(node)
    count = node.attributes["num_scan_inputs"].as_int()
    carried = len(node.inputs) - count
    scanned = list(zip(node.inputs[carried:], list(body.inputs)[carried:], strict=True))
    axes = _list(node, "scan_input_axes", count)
    directions = _list(node, "scan_input_directions", count)

    shape = _node("Shape", [scanned[0][0]], unused)
    axis, one = _constant(np.int64(axes[0]), unused), _constant(np.int64(1), unused)
    trips = _node("Gather", [shape.outputs[0], axis.outputs[0]], unused)
    last = _node("Sub", [trips.outputs[0], one.outputs[0]], unused)

    iteration = ir.Value(name=unused(), type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    going = ir.Value(name=unused(), type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    still = _node("Identity", [going], unused)
    still.outputs[0].type, still.outputs[0].shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([])
    first = _node("Sub", [last.outputs[0], iteration], unused)
    slices = [still, first]
    for _ in scanned:
        body.inputs.pop()
    for (source, value), along, direction in zip(scanned, axes, directions, strict=True):
        attributes = [ir.AttrInt64("axis", along)]
        which = first.outputs[0] if direction else iteration
        slices.append(ir.Node("", "Gather", [source, which], attributes, outputs=[value], name=""))
    body.insert_before(body[0], slices)
    body.inputs.insert(0, iteration)
    body.inputs.insert(1, going)
    body.outputs.insert(0, still.outputs[0])

    inputs = [trips.outputs[0], None, *node.inputs[:carried]]
    attributes = [ir.AttrGraph("body", body)]
    loop = ir.Node("", "Loop", inputs, attributes, num_outputs=len(node.outputs), name=node.name)
    results, after = list(loop.outputs), []
    backwards = _list(node, "scan_output_directions", len(stacked))
    for place, ((value, along), backward) in enumerate(zip(stacked, backwards, strict=True), start=carried):
        if along or backward:
            loop.outputs[place].name = unused()
        if backward:
            after += _backwards(results[place], unused)
            results[place] = after[-1].outputs[0]
        if along:
            order = list(range(1, len(cast("ir.Shape", value.shape)) + 1))
            order.insert(along if along > 0 else len(order) + 1 + along, 0)
            after.append(_node("Transpose", [results[place]], unused, ir.AttrInt64s("perm", order)))
            results[place] = after[-1].outputs[0]
    graph = cast("ir.Graph", node.graph)
    new = [shape, axis, trips, one, last, loop, *after]
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, results)


def _backwards(source: ir.Value, unused: Callable[[], str]) -> list[ir.Node]:
    """Nodes that reverse the first dimension; the last one gives the result."""
    bounds = [_constant(np.array([at]), unused) for at in (-1, _BEFORE_ALL, 0, -1)]
    return [*bounds, _node("Slice", [source, *(bound.outputs[0] for bound in bounds)], unused)]


def _constant(value: NDArray[np.int64] | np.int64, unused: Callable[[], str]) -> ir.Node:
    return _node("Constant", [], unused, ir.AttrTensor("value", ir.tensor(np.asarray(value, np.int64))))


def _node(kind: str, inputs: list[ir.Value | None], unused: Callable[[], str], *attributes: ir.Attr) -> ir.Node:
    node = ir.Node("", kind, inputs, attributes, name="")
    node.outputs[0].name = unused()
    return node


def _body(node: ir.Node) -> ir.Graph:
    return node.attributes["body"].as_graph()


def _stacked(node: ir.Node) -> list[tuple[ir.Value, int]]:
    """The results of the body that a `Scan` stacks, each with the axis of the stacked output."""
    outputs = list(_body(node).outputs)[len(node.inputs) - node.attributes["num_scan_inputs"].as_int() :]
    return list(zip(outputs, _list(node, "scan_output_axes", len(outputs)), strict=True))


def _list(node: ir.Node, name: str, count: int) -> Any:
    """An attribute that is a list of integers; zeros if the node omits it."""
    return list(node.attributes[name].as_ints()) if name in node.attributes else [0] * count
