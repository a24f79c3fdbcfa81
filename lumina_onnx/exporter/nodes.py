"""Reading `OpticalLinear` nodes out of an ONNX model: what inspection, export's report and verification share."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import onnx.inliner
from onnx import helper

from lumina_onnx.schema import DOMAIN, OPERATOR, PARAMETERS, VERSION, VERSION_ATTRIBUTE

from .onnx_schema import defaults
from .report import Layer

__all__ = [
    "NOISE",
    "RENAMED",
    "OpticalNode",
    "body_bytes",
    "graphs",
    "inlined",
    "layers",
    "operators",
    "optical_nodes",
    "renamed",
    "spelled",
    "walk",
    "without_noise",
]

NOISE = ("noise_relative", "noise_additive", "noise_shot")


@dataclass(frozen=True)
class OpticalNode:
    """A node with everything that its layer is made of."""

    proto: onnx.NodeProto
    attributes: dict[str, Any]
    """All attributes, those that the node omits at their default."""
    weight: onnx.TensorProto | None
    """None where W is not an initializer; so with the other two, or where the node has none."""
    weight_scale: onnx.TensorProto | None
    bias: onnx.TensorProto | None
    nested: bool
    """Whether it lies in a subgraph."""

    @property
    def name(self) -> str:
        """The node's name, or its output's where it has none."""
        return _name(self.proto)

    @property
    def computed(self) -> list[str]:
        """Which of W, W_scale and B the node has and the file does not hold: what computes them is a matter of runs."""
        stored = {"W": self.weight, "W_scale": self.weight_scale, "B": self.bias}
        return [name for name, given in zip(stored, self.proto.input[1:], strict=False) if given and not stored[name]]

    @property
    def in_features(self) -> int:
        """K; 0 where the file does not say."""
        stored = self.attributes.get("in_features")
        if stored or self.weight is None:
            return int(stored or 0)
        return int(self.weight.dims[-1]) if self.weight.dims else 0

    @property
    def out_features(self) -> int:
        """N; 0 where the file does not say."""
        return int(self.weight.dims[0]) if self.weight is not None and self.weight.dims else 0


def walk(graph: onnx.GraphProto | onnx.FunctionProto, *, nested: bool = False) -> Iterator[tuple[onnx.NodeProto, bool]]:
    """Every node of a graph or function and of its subgraphs, and whether it lies in a subgraph."""
    for node in graph.node:
        yield node, nested
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from walk(subgraph, nested=True)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, and those in its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for subgraph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from graphs(subgraph)


_Scope = ChainMap[str, onnx.TensorProto]


def _scoped(
    graph: onnx.GraphProto, outer: _Scope, *, nested: bool = False
) -> Iterator[tuple[onnx.NodeProto, bool, _Scope]]:
    """As :func:`walk`, with the initializers that a node's inputs may name: its graph's own hide those around it."""
    scope = outer.new_child({tensor.name: tensor for tensor in graph.initializer})
    for node in graph.node:
        yield node, nested, scope
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _scoped(subgraph, scope, nested=True)


def optical_nodes(model: onnx.ModelProto) -> list[OpticalNode]:
    """The `OpticalLinear` nodes of a model, in its order.

    Raises:
        ValueError: a node is of a later version of the operator, or an attribute is not of its type.
    """
    found = []
    for node, nested, tensors in _scoped(model.graph, ChainMap()):
        if (node.domain, node.op_type) == (DOMAIN, OPERATOR):
            attributes = defaults() | {attribute.name: _value(node, attribute) for attribute in node.attribute}
            version = attributes.pop(VERSION_ATTRIBUTE, VERSION)
            if version != VERSION:
                raise ValueError(
                    f"node {_name(node)!r}: {VERSION_ATTRIBUTE} = {version}: this lumina_onnx has "
                    f"version {VERSION} of the operator; a file of a later version needs a newer one"
                )
            weight, scale, bias = (tensors.get(name) for name in [*node.input[1:], "", "", ""][:3])
            found.append(OpticalNode(node, attributes, weight, scale, bias, nested))
    return found


def renamed(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that call a copy of the operator's function under another name, and so never the library.

    `onnx.compose.add_prefix` renames a file's functions with all else.
    """
    copies = {body.name for body in model.functions if body.domain == DOMAIN and body.name != OPERATOR}
    return [node for node, _ in walk(model.graph) if node.domain == DOMAIN and node.op_type in copies]


RENAMED = (
    "a renamed copy of the operator's function, as onnx.compose.add_prefix makes it: it runs without the operator's "
    "library; exporter.merge, or rename_functions=False, leaves the name"
)


def without_noise(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose optical layers have no noise."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in optical_nodes(copy):
        kept = [attribute for attribute in node.proto.attribute if attribute.name not in NOISE]
        del node.proto.attribute[:]
        node.proto.attribute.extend(kept)
    return copy


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the functions in place that have optical layers inside; itself where there are none."""
    inside = [
        (each.domain, each.name)
        for each in model.functions
        if any((node.domain, node.op_type) == (DOMAIN, OPERATOR) for node, _ in walk(each))
    ]
    return onnx.inliner.inline_selected_functions(model, [(DOMAIN, OPERATOR)], exclude=True) if inside else model


def spelled(name: str) -> str:
    """A name as a file can hold it: Python's strings may have characters that UTF-8 or C has not."""
    return name.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """How often each operator but `OpticalLinear` occurs, the most frequent first."""
    counts: dict[str, int] = {}
    for node, _ in walk(model.graph):
        if (node.domain, node.op_type) != (DOMAIN, OPERATOR):
            name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def body_bytes(model: onnx.ModelProto) -> int:
    """What the operator's function body takes in the file; 0 where there is none."""
    return sum(body.ByteSize() for body in model.functions if (body.domain, body.name) == (DOMAIN, OPERATOR))


def layers(model: onnx.ModelProto) -> list[Layer]:
    """What each `OpticalLinear` node of a model is."""
    first_user: dict[int, str] = {}
    rows = []
    for node in optical_nodes(model):
        shared_with = first_user.setdefault(id(node.weight), node.name) if node.weight is not None else node.name
        stored = 0 if shared_with != node.name else _bytes(node.weight) + _bytes(node.weight_scale)
        rows.append(
            Layer(
                name=node.name,
                in_features=node.in_features,
                out_features=node.out_features,
                output_range=tuple(float(value) for value in node.attributes["output_range"]),
                bias=str(node.attributes["bias_stage"]) if len(node.proto.input) > 3 and node.proto.input[3] else "",
                float_bytes=4 * node.in_features * node.out_features,
                stored_bytes=stored,
                shared_with="" if shared_with == node.name else shared_with,
                **{name: node.attributes[name] for name in _COPIED},
            )
        )
    return rows


_COPIED = (
    "input_bits",
    "weight_bits",
    "output_bits",
    "input_range",
    "noise_relative",
    "noise_additive",
    "noise_shot",
    "seed",
)


_TYPES = {row.name: row.type for row in PARAMETERS if row.place == "attribute"} | {VERSION_ATTRIBUTE: "INT"}


def _name(node: onnx.NodeProto) -> str:
    return node.name or next(iter(node.output), "")


def _value(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> Any:
    kind = _TYPES.get(attribute.name)
    if kind is not None and attribute.type != onnx.AttributeProto.AttributeType.Value(kind):
        raise ValueError(f"node {_name(node)!r}: attribute {attribute.name} is not of type {kind}")
    value = helper.get_attribute_value(attribute)
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def _bytes(tensor: onnx.TensorProto | None) -> int:
    if tensor is None:
        return 0
    count = 1
    for size in tensor.dims:
        count *= size
    try:
        return count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except KeyError:
        raise ValueError(f"tensor {tensor.name!r} has data type {tensor.data_type}, which onnx does not know") from None
