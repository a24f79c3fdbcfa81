"""P17: what layers receive and return are outputs of the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import cast

import onnx_ir as ir

from lumina_onnx.exporter.nodes import is_optical, subgraphs

from . import Pass, PassResult
from .scans_to_loops import obstacle

__all__ = ["SEQUENCES", "Place", "ShowLayers", "Shown", "Step", "places"]

SEQUENCES = 13
"""The first opset in which `If` and `Loop` accept sequences."""

_FLOATS = ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))


@dataclass(frozen=True)
class Step:
    """A node with subgraphs on the way to an optical node."""

    node: ir.Node
    attribute: str
    """The attribute of the node that holds the next graph."""
    graph: ir.Graph
    """The graph in that attribute."""


@dataclass(frozen=True)
class Place:
    """An optical node and where it is."""

    node: ir.Node
    graph: ir.Graph
    """The graph that contains the node."""
    steps: tuple[Step, ...]
    """The path to the node from the main graph."""


@dataclass(frozen=True)
class Shown:
    """The outputs that show what a layer receives and returns."""

    outputs: tuple[str, ...] = ()
    """X and Y; if the layer is `nested`, one sequence with the X and Y of each execution in turn."""
    nested: bool = False


class ShowLayers(Pass):
    """P17: what layers receive and return, X and Y in float32, are outputs of the model.

    A value of the main graph becomes an output directly. A value inside a subgraph exists once per execution, perhaps
    never and perhaps a thousand times, so a sequence of tensors collects it: the sequence starts empty in the main
    graph, is passed down to the value, grows with each execution, and is passed back up to an output. An `If` passes
    it on as a result of both branches, a `Loop` as a carried variable. A `Scan` can only carry tensors of a fixed
    shape, so P16 turns it into a `Loop`.
    """

    number = "P17"

    def __init__(self, wanted: Collection[int], unused: Callable[[], str]) -> None:
        """`wanted` are the indices of layers in the model's order; `unused` returns names that no value has."""
        self._wanted = wanted
        self._unused = unused
        self._outputs: dict[ir.Value, str] = {}
        self.shown: list[Shown] = []
        """The outputs that show each layer of the model; empty for a layer that is not wanted."""
        self.reasons: dict[int, str] = {}
        """Why a layer cannot be shown, by its index."""

    def call(self, model: ir.Model) -> PassResult:
        """Adds outputs, those of subgraphs first: carrying one more variable shifts the later results of a `Loop`."""
        opset = model.opset_imports.get("", 0)
        found = list(places(model.graph))
        shown = dict.fromkeys(range(len(found)), Shown())
        for number, place in enumerate(found):
            if reason := _reason(place.steps, opset):
                self.reasons[number] = reason
            elif number in self._wanted and place.steps:
                shown[number] = self._collected(model.graph, place)
        for number, place in enumerate(found):
            if number in self._wanted and not place.steps:
                values = (cast("ir.Value", place.node.inputs[0]), place.node.outputs[0])
                shown[number] = Shown(tuple(self._output(model.graph, value) for value in values))
        self.shown = list(shown.values())
        return PassResult(model, any(each.outputs for each in self.shown))

    def _collected(self, graph: ir.Graph, place: Place) -> Shown:
        empty = self._node("SequenceEmpty", [], ir.AttrInt64("dtype", ir.DataType.FLOAT.value))
        graph.insert_before(graph[0], empty)
        collected = self._collect(place, place.steps, empty.outputs[0])
        graph.outputs.append(collected)
        return Shown((str(collected.name),), nested=True)

    def _output(self, graph: ir.Graph, value: ir.Value) -> str:
        """The output that shows a value of the main graph; the value may be an input or an initializer."""
        if value not in self._outputs:
            node = self._node("Identity", [value])
            graph.append(node)
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            graph.outputs.append(node.outputs[0])
            self._outputs[value] = str(node.outputs[0].name)
        return self._outputs[value]

    def _collect(self, place: Place, steps: tuple[Step, ...], sequence: ir.Value) -> ir.Value:
        """Appends a layer's X and Y to a sequence each time its graph runs; returns the longer sequence.

        Both sequences are values of the graph that contains the first step, or the layer's own graph without steps.
        """
        if not steps:
            for value in (place.node.inputs[0], place.node.outputs[0]):
                longer = self._node("SequenceInsert", [sequence, value])
                place.graph.append(longer)
                sequence = _typed(longer.outputs[0])
            return sequence
        step, *further = steps
        if step.node.op_type == "If":
            result = self._added_output(step.node, len(step.node.outputs))
            for _, branch in subgraphs(step.node):
                inside = branch is step.graph
                inner = self._collect(place, tuple(further), sequence) if inside else self._unchanged(branch, sequence)
                branch.outputs.append(inner)
            return result
        carried = _typed(ir.Value(name=self._unused()))
        body = step.graph
        # Two of the body's inputs are the iteration and the condition; one of its outputs is the condition.
        count = len(body.inputs) - 2
        inner = self._collect(place, tuple(further), carried)
        step.node.resize_inputs(count + 3)
        step.node.replace_input_with(count + 2, sequence)
        body.inputs.append(carried)
        body.outputs.insert(count + 1, inner)
        return self._added_output(step.node, count)

    def _added_output(self, node: ir.Node, index: int) -> ir.Value:
        """Inserts a new output of a node at an index; the outputs from there on move one place back."""
        node.resize_outputs(len(node.outputs) + 1)
        for place in reversed(range(index + 1, len(node.outputs))):
            before, after = node.outputs[place - 1], node.outputs[place]
            name, before.name = before.name, self._unused()
            after.name, after.type, after.shape = name, before.type, before.shape
            ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
        added = node.outputs[index]
        added.name, added.shape = self._unused(), None
        return _typed(added)

    def _unchanged(self, branch: ir.Graph, sequence: ir.Value) -> ir.Value:
        """An outer sequence as a branch's result; it cannot be one directly, nor via `Identity` up to opset 13."""
        one = self._node("Constant", [], ir.AttrFloat32("value_float", 1.0))
        longer = self._node("SequenceInsert", [sequence, one.outputs[0]])
        same = self._node("SequenceErase", [longer.outputs[0]])
        branch.extend([one, longer, same])
        return _typed(same.outputs[0])

    def _node(self, kind: str, inputs: list[ir.Value | None], *attributes: ir.Attr) -> ir.Node:
        name = self._unused()
        node = ir.Node("", kind, inputs, attributes, name=name)
        node.outputs[0].name = name
        return node


def places(graph: ir.Graph, steps: tuple[Step, ...] = ()) -> Iterator[Place]:
    """The optical nodes of a graph and its subgraphs, in the order of :func:`.nodes.optical_nodes`."""
    for node in graph:
        if is_optical(node):
            yield Place(node, graph, steps)
        for name, subgraph in subgraphs(node):
            yield from places(subgraph, (*steps, Step(node, name, subgraph)))


def _typed(value: ir.Value) -> ir.Value:
    value.type = _FLOATS
    return value


def _reason(steps: tuple[Step, ...], opset: int) -> str:
    """Why a value inside these nodes cannot be shown."""
    for step in steps:
        standard = not step.node.domain
        if standard and step.node.op_type == "Scan" and opset >= SEQUENCES:
            return f"it lies in a Scan, {obstacle(step.node)}"
        if not standard or step.node.op_type not in ("If", "Loop", "Scan"):
            kind = step.node.op_type if standard else f"{step.node.domain}::{step.node.op_type}"
            return f"it lies in a subgraph of {kind}"
    if steps and opset < SEQUENCES:
        return f"it lies in a subgraph, which can be looked into from opset {SEQUENCES} on; the file has {opset}"
    return ""
