"""`Scan` nodes as `Loop` nodes that compute the same: a `Loop` can carry more along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["obstacle", "replace"]

_BEFORE_ALL = -(2**63) + 1
"""Where a slice backwards ends."""


def replace(graph: onnx.GraphProto, wanted: Callable[[onnx.GraphProto], bool], unused: Callable[[], str]) -> None:
    """Makes each `Scan` whose body is `wanted` a `Loop`, in the graph and its subgraphs, from opset 13 on.

    One with an :func:`obstacle` stays. `unused` gives names that no value has.
    """
    made: list[onnx.NodeProto] = []
    changed = False
    for node in graph.node:
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                if subgraph.node:
                    replace(subgraph, wanted, unused)
        is_scan = node.op_type == "Scan" and node.domain in ("", "ai.onnx")
        if is_scan and wanted(_attribute(node, "body")) and not obstacle(node):
            made += _loop(node, unused)
            changed = True
        else:
            made.append(node)
    if changed:
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in made]
        del graph.node[:]
        graph.node.extend(copies)


def obstacle(node: onnx.NodeProto) -> str:
    """Why a `Scan` cannot become a `Loop`; an empty string where it can."""
    for value, axis in _stacked(node):
        if axis and not value.type.tensor_type.HasField("shape"):
            return f"which stacks {value.name!r} along axis {axis}, and nobody says how many dimensions it has"
    return ""


def _loop(node: onnx.NodeProto, unused: Callable[[], str]) -> list[onnx.NodeProto]:
    """The `Loop` for a `Scan`, with what goes before and after it."""
    body, stacked = _attribute(node, "body"), _stacked(node)
    count = _attribute(node, "num_scan_inputs")
    carried = len(node.input) - count
    scanned = list(zip(node.input[carried:], body.input[carried:], strict=True))
    axes = _attribute(node, "scan_input_axes") or [0] * count
    directions = _attribute(node, "scan_input_directions") or [0] * count
    iteration, going, still, first, last = (unused() for _ in range(5))

    shape, axis, trips, one = (unused() for _ in range(4))
    before = [
        helper.make_node("Shape", [scanned[0][0]], [shape]),
        _constant(axis, np.int64(axes[0])),
        helper.make_node("Gather", [shape, axis], [trips]),
        _constant(one, np.int64(1)),
        helper.make_node("Sub", [trips, one], [last]),
    ]
    slices = [
        helper.make_node("Identity", [going], [still]),
        helper.make_node("Sub", [last, iteration], [first]),
        *(
            helper.make_node("Gather", [name, first if direction else iteration], [value.name], axis=along)
            for (name, value), along, direction in zip(scanned, axes, directions, strict=True)
        ),
    ]
    inner = onnx.GraphProto()
    inner.CopyFrom(body)
    del inner.node[:], inner.input[:], inner.output[:]
    inner.node.extend([*slices, *body.node])
    inner.input.extend(
        [
            helper.make_tensor_value_info(iteration, onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info(going, onnx.TensorProto.BOOL, []),
            *body.input[:carried],
        ]
    )
    inner.output.extend([helper.make_tensor_value_info(still, onnx.TensorProto.BOOL, []), *body.output])

    results, after = list(node.output), []
    backwards = _attribute(node, "scan_output_directions") or [0] * len(stacked)
    for place, ((value, along), backward) in enumerate(zip(stacked, backwards, strict=True), start=carried):
        if along or backward:
            result, results[place] = results[place], unused()
            source = results[place]
            if backward:
                turned = unused() if along else result
                after += _backwards(source, turned, unused)
                source = turned
            if along:
                order = list(range(1, len(value.type.tensor_type.shape.dim) + 1))
                order.insert(along if along > 0 else len(order) + 1 + along, 0)
                after.append(helper.make_node("Transpose", [source], [result], perm=order))
    loop = helper.make_node("Loop", [trips, "", *node.input[:carried]], results, name=node.name, body=inner)
    return [*before, loop, *after]


def _backwards(source: str, result: str, unused: Callable[[], str]) -> list[onnx.NodeProto]:
    """Nodes that turn the first dimension round."""
    names = [unused() for _ in range(4)]
    bounds = [_constant(name, np.array([at])) for name, at in zip(names, (-1, _BEFORE_ALL, 0, -1), strict=True)]
    return [*bounds, helper.make_node("Slice", [source, *names], [result])]


def _constant(name: str, value: NDArray[np.int64] | np.int64) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value)))


def _stacked(node: onnx.NodeProto) -> list[tuple[onnx.ValueInfoProto, int]]:
    """The results of the body that a `Scan` stacks, and along which axis of what it gives."""
    outputs = list(_attribute(node, "body").output)
    outputs = outputs[len(node.input) - _attribute(node, "num_scan_inputs") :]
    return list(zip(outputs, _attribute(node, "scan_output_axes") or [0] * len(outputs), strict=True))


def _attribute(node: onnx.NodeProto, name: str) -> Any:
    """An attribute's value; None where the node leaves it out."""
    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), None)
