"""Reads the `OpticalLinear` nodes of a model, for inspection, reports, verification and the passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from lumina_onnx.schema import DOMAIN, LAYER, NOISE, OPERATOR, PARAMETERS, VERSION_ATTRIBUTE

from .onnx_schema import completed
from .report import Layer

__all__ = [
    "RENAMED",
    "OpticalNode",
    "body_bytes",
    "is_optical",
    "layers",
    "operators",
    "optical_nodes",
    "renamed",
    "set_attributes",
    "spelled",
    "subgraphs",
]


RENAMED = (
    "a renamed copy of the operator's function, as onnx.compose.add_prefix makes it: it runs without the operator's "
    "library; exporter.merge, or rename_functions=False, leaves the name"
)


@dataclass(frozen=True, eq=False)
class OpticalNode:
    """An `OpticalLinear` node with its attributes and stored inputs."""

    node: ir.Node
    attributes: dict[str, Any]
    """All attributes; those that the node omits have their defaults."""
    nested: bool
    """Whether it lies in a subgraph."""

    @property
    def name(self) -> str:
        """The node's name, or its output's name if it has none."""
        return _name(self.node)

    @property
    def weight(self) -> ir.TensorProtocol | None:
        """W; None if it is absent or not an initializer. The same holds for `weight_scale` and `bias`."""
        return self._stored(1)

    @property
    def weight_scale(self) -> ir.TensorProtocol | None:
        """W_scale."""
        return self._stored(2)

    @property
    def bias(self) -> ir.TensorProtocol | None:
        """B."""
        return self._stored(3)

    @property
    def is_noisy(self) -> bool:
        """Whether any noise law is on."""
        return any(self.attributes[name] for name in NOISE)

    @property
    def computed(self) -> list[str]:
        """Which of W, W_scale and B the node has but the file does not store: they are computed or fed in each run."""
        names = enumerate(("W", "W_scale", "B"), start=1)
        return [name for index, name in names if self.input(index) is not None and self._stored(index) is None]

    @property
    def in_features(self) -> int:
        """K; 0 if the file does not say."""
        stored = self.attributes.get("in_features")
        if stored or self.weight is None:
            return int(stored or 0)
        dims = _dims(self.weight)
        return dims[-1] if dims else 0

    @property
    def out_features(self) -> int:
        """N; 0 if the file does not say."""
        dims = () if self.weight is None else _dims(self.weight)
        return dims[0] if dims else 0

    def input(self, index: int) -> ir.Value | None:
        """X, W, W_scale or B by index; None if the node omits it."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def _stored(self, index: int) -> ir.TensorProtocol | None:
        value = self.input(index)
        return value.const_value if value is not None and value.is_initializer() else None


def is_optical(node: ir.Node) -> bool:
    """Whether a node is an `OpticalLinear`."""
    return (node.domain, node.op_type) == (DOMAIN, OPERATOR)


def optical_nodes(model: ir.Model) -> list[OpticalNode]:
    """The `OpticalLinear` nodes of a model's graph and its subgraphs, in the model's order.

    Raises:
        ValueError: a node is of a later version of the operator, or an attribute is not of its type.
    """
    found = []
    for node in model.graph.all_nodes():
        if is_optical(node):
            given = {name: _value(node, each) for name, each in node.attributes.items()}
            try:
                attributes = completed(given)
            except ValueError as error:
                raise ValueError(f"node {_name(node)!r}: {error}") from None
            found.append(OpticalNode(node, attributes, node.graph is not model.graph))
    return found


def set_attributes(node: ir.Node, **values: Any) -> None:
    """Sets attributes of an optical node, each with its type from the operator's table."""
    for name, value in values.items():
        node.attributes[name] = ir.Attr(name, ir.AttributeType[_TYPES[name]], value)


def subgraphs(node: ir.Node) -> list[tuple[str, ir.Graph]]:
    """The graphs in a node's attributes, each with the name of its attribute."""
    found = []
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append((name, attribute.as_graph()))
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += [(name, graph) for graph in attribute.as_graphs()]
    return found


def renamed(model: ir.Model) -> list[ir.Node]:
    """The nodes that call a copy of the operator's function under another name and so never reach the library.

    `onnx.compose.add_prefix` renames a file's functions along with everything else.
    """
    copies = {body.name for body in model.functions.values() if body.domain == DOMAIN and body.name != OPERATOR}
    return [node for node in model.graph.all_nodes() if node.domain == DOMAIN and node.op_type in copies]


def spelled(name: str) -> str:
    """A name as a file can hold it: Python strings may contain characters that UTF-8 or C strings cannot."""
    return name.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def operators(model: ir.Model) -> dict[str, int]:
    """How often each operator other than `OpticalLinear` occurs, the most frequent first."""
    counts: dict[str, int] = {}
    for node in model.graph.all_nodes():
        if not is_optical(node):
            name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def body_bytes(model: ir.Model) -> int:
    """The size of the operator's function body in the file; 0 if there is none."""
    bodies = [each for each in model.functions.values() if (each.domain, each.name) == (DOMAIN, OPERATOR)]
    return sum(ir.to_proto(body).ByteSize() for body in bodies)


def layers(model: ir.Model) -> list[Layer]:
    """A description of each `OpticalLinear` node of a model, with its numbers as a file holds them."""
    first_user: dict[ir.TensorProtocol, str] = {}
    rows = []
    for node in optical_nodes(model):
        shared_with = first_user.setdefault(node.weight, node.name) if node.weight is not None else node.name
        stored = 0 if shared_with != node.name else _bytes(node.weight) + _bytes(node.weight_scale)
        rows.append(
            Layer(
                name=node.name,
                in_features=node.in_features,
                out_features=node.out_features,
                output_range=tuple(_in_file(value) for value in node.attributes["output_range"]),
                bias=str(node.attributes["bias_stage"]) if node.input(3) is not None else "",
                float_bytes=4 * node.in_features * node.out_features,
                stored_bytes=stored,
                shared_with="" if shared_with == node.name else shared_with,
                **{name: _in_file(node.attributes[name]) for name in _COPIED},
            )
        )
    return rows


_COPIED = (*(row.name for row in LAYER if row.name not in ("output_range", "bias_stage")), "seed")

_TYPES = {row.name: row.type for row in PARAMETERS if row.place == "attribute"} | {VERSION_ATTRIBUTE: "INT"}


def _name(node: ir.Node) -> str:
    return node.name or next((str(value.name) for value in node.outputs), "")


def _value(node: ir.Node, attribute: ir.Attr) -> Any:
    kind = _TYPES.get(attribute.name)
    if kind is not None and attribute.type.name != kind:
        raise ValueError(f"node {_name(node)!r}: attribute {attribute.name} is not of type {kind}")
    value = attribute.value
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return list(value) if isinstance(value, tuple) else value


def _in_file(value: Any) -> Any:
    """A number as a file holds it: floats rounded to float32."""
    with np.errstate(over="ignore"):
        return float(np.float32(value)) if isinstance(value, float) else value


def _dims(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    return tuple(int(size) for size in tensor.shape.numpy())


def _bytes(tensor: ir.TensorProtocol | None) -> int:
    return 0 if tensor is None else int(np.prod(_dims(tensor), dtype=np.int64)) * tensor.dtype.numpy().itemsize
