"""What `OpticalLinear` nodes get and give when a model runs, in the graph and inside `If`, `Loop` and `Scan`.

A value of the main graph becomes an output. One inside a subgraph is there in each execution, perhaps never and perhaps
a thousand times, so that a sequence of tensors collects it: empty in the main graph, handed down to where the value is,
longer after each execution, and handed back up to an output. An `If` hands it on as a result of both branches, a `Loop`
as a variable that it carries. A `Scan` carries tensors of one shape alone and is made a `Loop` before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper

from lumina_onnx.schema import DOMAIN, OPERATOR

from . import files, nodes, scans
from .feeds import Arrays

__all__ = ["Executions", "Place", "Step", "Watched", "places"]

Executions = list[tuple[NDArray[Any], ...]]
"""What the values asked for were, each time that a node ran."""

_SEQUENCES = 13
"""The first opset whose `If` and `Loop` pass sequences on."""

_FLOATS = helper.make_sequence_type_proto(helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None))


@dataclass(frozen=True)
class Step:
    """A node with subgraphs on the way to an optical node."""

    node: onnx.NodeProto
    attribute: str
    """The one of the node that holds the next graph."""
    graph: onnx.GraphProto
    """That graph."""


@dataclass(frozen=True)
class Place:
    """An optical node and where it is."""

    node: onnx.NodeProto
    graph: onnx.GraphProto
    """The graph that it lies in."""
    steps: tuple[Step, ...]
    """The way there from the main graph."""


@dataclass(frozen=True)
class _Shown:
    """The outputs that tell what values are."""

    outputs: list[str]
    """One for each value; where `count` is not 0 one for all, a sequence of the values of each execution in turn."""
    count: int = 0


class Watched:
    """A copy of a model that shows values of its optical nodes' graphs."""

    def __init__(self, model: onnx.ModelProto, wanted: Sequence[Sequence[str]]) -> None:
        """`wanted` names, for each optical node in the model's order, float32 values of the node's own graph."""
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.reasons: dict[int, str] = {}
        """Why the values of an optical node, by its number, cannot be shown."""
        self._unused = _unused_names(model)
        self._outputs: dict[str, str] = {}
        opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
        if opset >= _SEQUENCES:
            scans.replace(self.model.graph, _has_layers, self._unused)
        self._shown: list[_Shown] = []
        # Listed first: the graphs grow below.
        for number, (place, names) in enumerate(zip(list(places(self.model.graph)), wanted, strict=True)):
            reason = _reason(place.steps, opset)
            if reason:
                self.reasons[number] = reason
            self._shown.append(_Shown([]) if reason or not names else self._show(place, names))

    def session(self, *, library: bool = True) -> Callable[[Arrays], list[Executions]]:
        """A fresh session, as a function: inputs -> the executions of each optical node in one run."""
        asked = list(dict.fromkeys(itertools.chain.from_iterable(shown.outputs for shown in self._shown)))
        copy = onnx.ModelProto()
        copy.CopyFrom(self.model)
        session = files.session(copy, library=library)

        def run(feeds: Arrays) -> list[Executions]:
            # No names at all would ask for every output.
            values = dict(zip(asked, session.run(asked, feeds), strict=True)) if asked else {}
            return [_executions(shown, values) for shown in self._shown]

        return run

    def _show(self, place: Place, names: Sequence[str]) -> _Shown:
        """Makes values outputs of the model."""
        if not place.steps:
            return _Shown([self._output(name) for name in names])
        empty = self._unused()
        self.model.graph.node.insert(
            0, helper.make_node("SequenceEmpty", [], [empty], dtype=onnx.TensorProto.FLOAT, name=empty)
        )
        collected = self._collect(place.graph, place.steps, names, empty)
        self.model.graph.output.append(helper.make_value_info(collected, _FLOATS))
        return _Shown([collected], len(names))

    def _output(self, name: str) -> str:
        """The output that shows a value of the main graph, which may be an input or stored."""
        if name not in self._outputs:
            self._outputs[name] = shown = self._unused()
            self.model.graph.node.append(helper.make_node("Identity", [name], [shown], name=shown))
            self.model.graph.output.append(helper.make_tensor_value_info(shown, onnx.TensorProto.FLOAT, None))
        return self._outputs[name]

    def _collect(self, graph: onnx.GraphProto, steps: tuple[Step, ...], names: Sequence[str], sequence: str) -> str:
        """Adds the values of a graph to a sequence, each time that the graph runs; returns the longer sequence.

        Both are values of the graph around the first step; of `graph` itself where there is none.
        """
        if not steps:
            for name in names:
                longer = self._unused()
                graph.node.append(helper.make_node("SequenceInsert", [sequence, name], [longer], name=longer))
                sequence = longer
            return sequence
        step, *further = steps
        result = self._unused()
        if step.node.op_type == "If":
            step.node.output.append(result)
            for attribute in step.node.attribute:
                if attribute.name == step.attribute:
                    inner = self._collect(graph, tuple(further), names, sequence)
                else:
                    inner = self._unchanged(attribute.g, sequence)
                attribute.g.output.append(helper.make_value_info(inner, _FLOATS))
            return result
        carried = self._unused()
        body = step.graph
        # Of the body's inputs two are the iteration and the condition; of its outputs one is the condition.
        count = len(body.input) - 2
        inner = self._collect(graph, tuple(further), names, carried)
        step.node.input.extend([""] * (2 - len(step.node.input)))
        step.node.input.append(sequence)
        step.node.output.insert(count, result)
        body.input.append(helper.make_value_info(carried, _FLOATS))
        body.output.insert(count + 1, helper.make_value_info(inner, _FLOATS))
        return result

    def _unchanged(self, branch: onnx.GraphProto, sequence: str) -> str:
        """A sequence as a result of a branch: one that lies around it cannot be, and `Identity` took none up to 13."""
        one, longer, same = (self._unused() for _ in range(3))
        branch.node.extend(
            [
                helper.make_node("Constant", [], [one], value_float=1.0, name=one),
                helper.make_node("SequenceInsert", [sequence, one], [longer], name=longer),
                helper.make_node("SequenceErase", [longer], [same], name=same),
            ]
        )
        return same


def _executions(shown: _Shown, values: dict[str, Any]) -> Executions:
    results = [values[name] for name in shown.outputs]
    if not shown.count:
        return [tuple(results)] if results else []
    (collected,) = results
    return [tuple(collected[i : i + shown.count]) for i in range(0, len(collected), shown.count)]


def places(graph: onnx.GraphProto, steps: tuple[Step, ...] = ()) -> Iterator[Place]:
    """The optical nodes of a graph and its subgraphs, in the order of :func:`.nodes.walk`."""
    for node in graph.node:
        if (node.domain, node.op_type) == (DOMAIN, OPERATOR):
            yield Place(node, graph, steps)
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                if subgraph.node:
                    yield from places(subgraph, (*steps, Step(node, attribute.name, subgraph)))


def _reason(steps: tuple[Step, ...], opset: int) -> str:
    """Why a value inside these nodes cannot be shown."""
    for step in steps:
        standard = step.node.domain in ("", "ai.onnx")
        if standard and step.node.op_type == "Scan" and opset >= _SEQUENCES:
            return f"it lies in a Scan, {scans.obstacle(step.node)}"
        if not standard or step.node.op_type not in ("If", "Loop", "Scan"):
            kind = step.node.op_type if standard else f"{step.node.domain}::{step.node.op_type}"
            return f"it lies in a subgraph of {kind}"
    if steps and opset < _SEQUENCES:
        return f"it lies in a subgraph, which can be looked into from opset {_SEQUENCES} on; the file has {opset}"
    return ""


def _has_layers(graph: onnx.GraphProto) -> bool:
    return next(places(graph), None) is not None


def _unused_names(model: onnx.ModelProto) -> Callable[[], str]:
    """Gives names that no value of a model has."""
    taken = {name for node, _ in nodes.walk(model.graph) for name in (*node.input, *node.output)}
    taken.update(value.name for value in (*model.graph.input, *model.graph.initializer))
    count = itertools.count()
    return lambda: next(name for name in (f"watched_{number}" for number in count) if name not in taken)
