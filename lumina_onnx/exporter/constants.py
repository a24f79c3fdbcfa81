"""What the values of a graph depend on, and the contents of those that depend on stored tensors alone.

Graphs may be thousands of nodes deep, and many layers may read one node's result. So nothing here recurses along a
graph, and each node is examined and evaluated only once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
from numpy.typing import NDArray

from .nodes import subgraphs

__all__ = ["DRAWING", "ConstantError", "Constants"]

DRAWING = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)
"""Operators that draw new numbers in each run, even with a seed: a session continues its random sequence."""
_STANDARD = ("", "ai.onnx")
_EVALUATED = (*_STANDARD, "ai.onnx.ml")
"""Domains that onnx's reference evaluator implements. What operators of other domains compute is unknown."""


class ConstantError(ValueError):
    """A value cannot be computed here; the message continues a sentence after "it is"."""


@dataclass(frozen=True)
class _Origin:
    """The origin of a value that does not depend on the model's inputs."""

    replaceable: tuple[str, ...] = ()
    """The initializers that it depends on and that are also inputs of the model."""
    obstacle: str = ""
    """What prevents computing the value here, worded as in :class:`ConstantError`."""


class Constants:
    """The values of a model that are the same in each run. Valid only as long as the graph is not changed."""

    def __init__(self, model: ir.Model) -> None:
        self._opsets = dict(model.opset_imports)
        self._origins: dict[ir.Value, _Origin | None] = {}
        self._arrays: dict[ir.Value, Any] = {}
        self._readers: dict[ir.Value, int] = {}

    def is_constant(self, value: ir.Value | None) -> bool:
        """Whether a value depends on stored tensors alone, through operators that give the same result in each run."""
        return value is None or ((origin := self._origin(value)) is not None and not origin.obstacle)

    def is_reached(self, value: ir.Value) -> bool:
        """Whether a value depends on an input of the model or on an input of a subgraph, such as a loop's variable."""
        return self._origin(value) is None

    def replaceable(self, value: ir.Value) -> tuple[str, ...]:
        """The initializers that a value that is not reached by inputs depends on and that callers may replace."""
        origin = self._origin(value)
        return () if origin is None else origin.replaceable

    def array(self, value: ir.Value) -> NDArray[Any]:
        """The value of a constant, computed by onnx's reference evaluator.

        Raises:
            ConstantError: the value is not a constant, or an operator that it depends on cannot be evaluated.
            OSError: its data are in a separate file that cannot be read.
        """
        origin = self._origin(value)
        if origin is None:
            raise ConstantError("computed from the model's inputs")
        if origin.obstacle:
            raise ConstantError(origin.obstacle)
        result = self._evaluated(value)
        if not isinstance(result, (np.ndarray, np.generic)):
            raise ConstantError("no tensor")
        return np.asarray(result)

    def obstacle(self, value: ir.Value) -> str:
        """Why a value that no input reaches is not a constant, to follow "it is"; an empty string if it is one."""
        origin = self._origin(value)
        return "" if origin is None else origin.obstacle

    def draws(self, node: ir.Node) -> bool:
        """Whether a node draws new random numbers in each run."""
        if node.domain not in _STANDARD:
            return False
        if node.op_type == "Dropout":
            return self._drops(node)
        return node.op_type in DRAWING

    def _origin(self, value: ir.Value) -> _Origin | None:
        """The origin of a value; None if an input of the model reaches it."""

        def settle(value: ir.Value, node: ir.Node | None) -> None:
            if node is None:
                names = (str(value.name),) if value.is_graph_input() else ()
                self._origins[value] = None if value.const_value is None else _Origin(names)
            else:
                origin = self._origin_of_results(node)
                self._origins.update(dict.fromkeys(node.outputs, origin))

        _depth_first(value, self._origins, settle)
        return self._origins[value]

    def _origin_of_results(self, node: ir.Node) -> _Origin | None:
        # A value that is missing here depends on itself, which no runtime accepts.
        origins = [self._origins.get(source) for source in _sources(node)]
        # Only the data input of a `Dropout` counts here; whether it drops anything is decided in `_obstacle`.
        decisive = origins[:1] if node.op_type == "Dropout" and node.domain in _STANDARD else origins
        if any(origin is None for origin in decisive):
            return None
        known = [origin for origin in origins if origin is not None]
        obstacle = next((origin.obstacle for origin in known if origin.obstacle), "")
        replaceable = tuple(dict.fromkeys(name for origin in known for name in origin.replaceable))
        return _Origin(replaceable, obstacle or self._obstacle(node))

    def _obstacle(self, node: ir.Node) -> str:
        name = node.op_type if node.domain in _STANDARD else f"{node.domain}::{node.op_type}"
        if self.draws(node):
            return f"drawn anew in each run, by {name}"
        if node.domain not in _EVALUATED or subgraphs(node):
            return f"computed by {name}, which cannot be evaluated here"
        return ""

    def _drops(self, node: ir.Node) -> bool:
        """Whether a `Dropout` runs in training mode."""
        opset = self._opset(node)
        if opset < 7:
            return "is_test" not in node.attributes or not node.attributes["is_test"].as_int()
        if opset < 12 or len(node.inputs) < 3 or node.inputs[2] is None:
            return False
        try:
            return bool(self.array(node.inputs[2]).any())
        except ConstantError:
            return True

    def _opset(self, node: ir.Node) -> int:
        names = _STANDARD if node.domain in _STANDARD else (node.domain,)
        return next((self._opsets[name] for name in names if name in self._opsets), 1)

    def _evaluated(self, value: ir.Value) -> Any:
        """The value of a constant: an array, a list of arrays, or None for an empty optional."""

        def settle(value: ir.Value, node: ir.Node | None) -> None:
            if node is not None:
                self._evaluate(node)

        _depth_first(value, self._arrays, settle)
        return value.const_value.numpy() if value.const_value is not None else self._arrays[value]

    def _evaluate(self, node: ir.Node) -> None:
        sources = {source: f"source_{i}" for i, source in enumerate(node.inputs) if source is not None}
        results = {f"result_{i}": output for i, output in enumerate(node.outputs) if output.name}
        feeds = {name: self._evaluated(source) for source, name in sources.items()}
        proto = ir.serde.serialize_node(node)
        # "ai.onnx" is another name of the standard domain, which the evaluator does not know.
        proto.domain = "" if node.domain in _STANDARD else node.domain
        proto.input[:] = ["" if source is None else sources[source] for source in node.inputs]
        proto.output[:] = [f"result_{i}" if output.name else "" for i, output in enumerate(node.outputs)]
        graph = onnx.helper.make_graph(
            [proto],
            "constant",
            [onnx.helper.make_value_info(name, _type(content)) for name, content in feeds.items()],
            [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in results],
        )
        opset = onnx.helper.make_opsetid(proto.domain, self._opset(node))
        try:
            evaluator = onnx.reference.ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=[opset]))
            made = evaluator.run(None, feeds)
        except Exception as error:  # Whatever the evaluator raises for a missing operator or inputs that do not fit.
            reason = " ".join(str(error).split())[:200]
            raise ConstantError(f"computed by {node.op_type}, which cannot be evaluated here ({reason})") from error
        self._arrays.update(zip(results.values(), made, strict=True))
        for source in sources:
            self._release(source)

    def _release(self, source: ir.Value) -> None:
        """Drops an array once its last reader has been evaluated."""
        readers = self._readers.get(source) or len({use.node for use in source.uses()}) + source.is_graph_output()
        self._readers[source] = readers - 1
        if readers == 1:
            self._arrays.pop(source, None)


def _depth_first(
    value: ir.Value, settled: dict[ir.Value, Any], settle: Callable[[ir.Value, ir.Node | None], None]
) -> None:
    """Settles everything that a value depends on, sources first, then the value; skips what is settled already."""
    stack, opened = [value], set()
    while stack:
        top = stack[-1]
        node = None if top.const_value is not None else top.producer()
        missing = [] if node is None or top in opened else [each for each in _sources(node) if each not in settled]
        if top in settled or not missing:
            stack.pop()
            if top not in settled:
                settle(top, node)
        else:
            opened.add(top)
            stack.extend(missing)


def _sources(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads, including those read in its subgraphs."""
    yield from (source for source in node.inputs if source is not None)
    for _, graph in subgraphs(node):
        within: set[Any] = {graph}
        read = [*graph.outputs]
        for inner in ir.traversal.RecursiveGraphIterator(graph, enter_graph=within.add):
            read += [source for source in inner.inputs if source is not None]
        yield from (source for source in read if source.graph not in within)


def _type(content: Any) -> onnx.TypeProto:
    if isinstance(content, list):
        return onnx.helper.make_sequence_type_proto(_type(content[0] if content else np.zeros(0, np.float32)))
    array = np.asarray(content)
    return onnx.helper.make_tensor_type_proto(int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype)), array.shape)
