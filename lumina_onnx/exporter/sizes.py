"""The sizes of a model's inputs that its own operators determine, found by shape inference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import onnx_ir as ir

from .loading import unlogged
from .nodes import is_optical
from .onnx_schema import register

__all__ = ["inferred", "required"]

Size = int | str
"""A number, or the name of a symbolic size."""

_Pairs = Iterator[tuple[Size | None, Size | None]]
"""Sizes that must be equal; None if one is not known."""


def inferred(model: ir.Model) -> ir.Model:
    """A copy of a model with the shapes that can be inferred."""
    register()
    copy = model.clone()
    # Each time more is known about the operators that onnx has no rule for.
    while _infer(copy) and _keep_shapes(copy):
        pass
    return copy


def _infer(model: ir.Model) -> bool:
    """Adds the shapes that onnx infers; returns whether it could."""
    with unlogged():
        try:
            # Neither refuses a model that onnx takes for wrong, which ONNX Runtime may run all the same.
            ir.passes.common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
        except Exception:  # onnx_ir cannot read maps.
            return False
    return True


def _keep_shapes(model: ir.Model) -> bool:
    """Gives the results of operators that keep the shape of their input that shape; returns whether any is new."""
    found = False
    for node in model.graph.all_nodes():
        if node.domain == "ai.onnx.ml" and node.op_type in _KEEPING and node.outputs[0].shape is None:
            source = node.inputs[0]
            if source is not None and source.shape is not None:
                node.outputs[0].shape, found = source.shape.copy(), True
    return found


_KEEPING = ("Binarizer", "Imputer", "Normalizer", "Scaler")
"""Operators of ai.onnx.ml whose result has the shape of their input."""


def required(model: ir.Model) -> dict[str, int]:
    """The symbolic sizes for which the graph leaves one number, by name.

    Only what follows from shapes alone is found. A size that passes through a convolution, for example, is not.
    """
    nodes = list(inferred(model).graph.all_nodes())
    known = _Equal()
    for node in nodes:
        rule = _RULES.get(node.op_type) if not node.domain else (_last_is_columns if is_optical(node) else None)
        for first, second in rule(node) if rule else ():
            known.join(first, second)
    for node in nodes:
        if node.op_type == "Reshape" and not node.domain:
            _fill(node, known)
    return known.numbers()


class _Equal:
    """Which sizes are equal."""

    def __init__(self) -> None:
        self._next: dict[Size, Size] = {}

    def number(self, size: Size | None) -> Size | None:
        """The number that a size is equal to, or the name of one that it is equal to."""
        while size in self._next:
            size = self._next[size]
        return size

    def join(self, first: Size | None, second: Size | None) -> None:
        """Notes that two sizes are equal, unless one is not known or they are two different numbers."""
        first, second = self.number(first), self.number(second)
        if isinstance(first, int):
            first, second = second, first
        if first is not None and second is not None and first != second and not isinstance(first, int):
            self._next[first] = second

    def numbers(self) -> dict[str, int]:
        """The names that are equal to a number."""
        found = {name: self.number(name) for name in self._next}
        return {str(name): number for name, number in found.items() if isinstance(number, int)}


def _size(value: ir.Value | None, axis: int) -> Size | None:
    """One size of a value; None if it is not known, or the value has no such axis."""
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    size = value.shape[axis]
    return size.value if isinstance(size, ir.SymbolicDim) else int(size)


def _inputs(node: ir.Node, count: int) -> list[ir.Value | None]:
    return [*node.inputs, *[None] * count][:count]


def _attribute(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _product(node: ir.Node) -> _Pairs:
    x, w = _inputs(node, 2)
    if w is not None and w.shape is not None:
        yield _size(x, -1), _size(w, -2 if len(w.shape) > 1 else -1)


def _gemm(node: ir.Node) -> _Pairs:
    x, w = _inputs(node, 2)
    yield _size(x, 0 if _attribute(node, "transA", 0) else 1), _size(w, 1 if _attribute(node, "transB", 0) else 0)


def _last_is_columns(node: ir.Node) -> _Pairs:
    x, w = _inputs(node, 2)
    yield _size(x, -1), _attribute(node, "in_features", 0) or _size(w, -1)


def _convolution(node: ir.Node) -> _Pairs:
    x, w = _inputs(node, 2)
    channels = _size(w, 0 if node.op_type == "ConvTranspose" else 1)
    if isinstance(channels, int):
        yield _size(x, 1), channels * (1 if node.op_type == "ConvTranspose" else _attribute(node, "group", 1))


def _channels(node: ir.Node) -> _Pairs:
    x, scale = _inputs(node, 2)
    yield _size(x, 1), _size(scale, 0)


def _last(node: ir.Node) -> _Pairs:
    x, scale = _inputs(node, 2)
    yield _size(x, -1), _size(scale, -1)


def _recurrent(node: ir.Node) -> _Pairs:
    x, w, r, _, _, *states = _inputs(node, 7)
    yield _size(x, 2), _size(w, 2)
    for state in states:
        yield _size(state, 0), _size(w, 0)
        yield _size(state, 1), _size(x, 1)
        yield _size(state, 2), _size(r, 2)


def _broadcast(node: ir.Node) -> _Pairs:
    """A size meets a larger one than 1: it might also be 1, but is meant to be equal more often."""
    for first in node.inputs:
        for second in node.inputs:
            if first is not None and second is not None and first.shape is not None and second.shape is not None:
                for axis in range(1, min(len(first.shape), len(second.shape)) + 1):
                    number = _size(second, -axis)
                    if isinstance(number, int) and number > 1:
                        yield _size(first, -axis), number


def _concatenation(node: ir.Node) -> _Pairs:
    first, *others = node.inputs
    if first is None or first.shape is None:
        return
    axis = _attribute(node, "axis", 0) % max(len(first.shape), 1)
    for other in others:
        for place in range(len(first.shape)):
            if place != axis:
                yield _size(first, place), _size(other, place)


_RULES: dict[str, Callable[[ir.Node], _Pairs]] = {
    **dict.fromkeys(("MatMul", "MatMulInteger"), _product),
    "Gemm": _gemm,
    **dict.fromkeys(("Conv", "ConvInteger", "ConvTranspose"), _convolution),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _channels),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _last),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "PRelu", "Min", "Max", "Where", "And", "Or"), _broadcast),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Sum", "Mean"), _broadcast),
    "Concat": _concatenation,
}
"""Which sizes of its inputs a standard operator requires to be equal."""


def _fill(node: ir.Node, known: _Equal) -> None:
    """The only size of a reshaped tensor that is not known, from the number of elements of the result."""
    x, target = _inputs(node, 2)
    stored = None if target is None else ir.convenience.get_const_tensor(target)
    if x is None or x.shape is None or stored is None:
        return
    wanted: list[Any] = stored.numpy().reshape(-1).tolist()
    sizes = [known.number(_size(x, axis)) for axis in range(len(x.shape))]
    others = [size for size in sizes if isinstance(size, int)]
    if len(others) != len(sizes) - 1 or 0 in wanted or 0 in others:
        return
    total, rest = math.prod(each for each in wanted if each > 0), math.prod(others)
    # With a -1 it is any multiple: of 1, which says nothing, or of a number, which is then the likeliest size.
    number = total // math.gcd(total, rest)
    if number > 1 if -1 in wanted else total % rest == 0:
        known.join(next(size for size in sizes if not isinstance(size, int)), number)
