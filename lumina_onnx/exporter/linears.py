"""Finds the linear layers of a model: which products are layers, and why the others are not."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from . import quantized
from .constants import ConstantError, Constants
from .linear import FLOATS, Linear, bias_after, casts, float32, lazy, widened
from .names import Names
from .products import INTEGER, LEARNED, multiplies_by_stored
from .report import Left
from .sizes import inferred

__all__ = ["linears"]


def linears(graph: ir.Model) -> tuple[list[Linear], list[Left]]:
    """The layers to convert, and the products with stored weights that are not layers, with the reasons."""
    found: list[Linear] = []
    left: list[Left] = []
    names = Names()
    known, ranks = Constants(graph), _Ranks(graph)
    for node in graph.graph.all_nodes():
        name = node.name or str(node.outputs[0].name)
        result = _linear(node, name, known)
        if isinstance(result, Linear):
            found.append(dataclasses.replace(_with_bias(result, known, ranks), name=names.unused(name)))
        elif result:
            left.append(Left(names.unused(name), node.op_type, result))
    return found, left


class _Ranks:
    """How many dimensions values have. Where the file does not say, it is inferred."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._inferred: dict[str, int] | None = None

    def of(self, value: ir.Value) -> int | None:
        """The number of dimensions; None if it is not known."""
        if value.shape is not None:
            return len(value.shape)
        if self._inferred is None:
            nodes = inferred(self._model).graph.all_nodes()
            values = [each for node in nodes for each in node.outputs]
            self._inferred = {str(each.name): len(each.shape) for each in values if each.shape is not None}
        return self._inferred.get(str(value.name))


def _linear(node: ir.Node, name: str, known: Constants) -> Linear | str:
    """The product as a layer without the bias after it, or the reason why it is not one; "" if it is no product."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    if not domain and node.op_type in ("MatMul", "Gemm"):
        return _floats(node, name, known)
    if not multiplies_by_stored(node, known):
        return ""
    if quantized.is_quantized(node):
        return quantized.quantized(node, name, known)
    if domain == "ai.onnx.ml" and node.op_type in LEARNED:
        return "its weights are attributes of the node"
    reason = "neither a MatMul nor a Gemm"
    return f"{reason}, and quantised; {quantized.REMEDY}" if node.op_type in INTEGER else f"{reason} of floats"


def _floats(node: ir.Node, name: str, known: Constants) -> Linear | str:
    x, weight = (*node.inputs, None, None)[:2]
    if x is None or weight is None:
        return "an input of it is absent"
    if known.is_constant(x):
        return "" if known.is_constant(weight) else "its stored matrix is on the left of the product"
    if known.is_reached(weight):
        return ""
    try:
        matrix = known.array(weight)
    except ConstantError as error:
        return f"its matrix is {error}"
    if matrix.dtype not in FLOATS:
        return f"its matrix is {matrix.dtype}; allowed are {', '.join(map(str, FLOATS))}"
    if matrix.ndim != 2 or 0 in matrix.shape:
        return f"its stored side has shape {list(matrix.shape)}; a layer's is a matrix"
    beside = casts(matrix.dtype)
    fixed = known.replaceable(weight)
    if node.op_type == "MatMul":
        found = lazy(lambda: known.array(weight).T, matrix.T)
        coded = quantized.dequantised(weight, known, columns=1)
        return Linear(name, node, node, **{"matrix": found, **beside, **coded}, bias=None, fixed=fixed)
    attributes = {key: attribute.value for key, attribute in node.attributes.items()}
    if attributes.get("transA", 0):
        return "transA: its input is transposed"
    turned, alpha = bool(attributes.get("transB", 0)), np.float32(attributes.get("alpha", 1.0))

    def load() -> NDArray[Any]:
        array = known.array(weight) if turned else known.array(weight).T
        return array if alpha == 1 else float32(array) * alpha

    coded = {} if alpha != 1 else quantized.dequantised(weight, known, columns=0 if turned else 1)
    matrix = load()
    bias = None
    if len(node.inputs) > 2 and (c := node.inputs[2]) is not None:
        if known.is_reached(c):
            return "its C is computed, or an input of the model"
        try:
            bias = known.array(c)
        except ConstantError as error:
            return f"its C is {error}"
        if bias.dtype not in FLOATS or (bias.ndim > 1 and bias.shape[0] != 1):
            return "its C is no row of floats"
        if bias.size not in (1, len(matrix)):
            return f"its C has shape {list(bias.shape)}"
        row = float32(bias.reshape(-1)) * np.float32(attributes.get("beta", 1.0))
        bias, fixed = np.broadcast_to(row, len(matrix)), (*fixed, *known.replaceable(c))
    return Linear(name, node, node, **{"matrix": lazy(load, matrix), **beside, **coded}, bias=bias, fixed=fixed)


def _with_bias(linear: Linear, known: Constants, ranks: _Ranks) -> Linear:
    """The layer with the bias that is added to its product, if it has none of its own."""
    y = (linear.rest[-1] if linear.rest else linear.node).outputs[0]
    has_own = linear.bias is not None or any(step.kind == "QuantizeLinear" for step in linear.after)
    bias = None if has_own else bias_after(y, linear.shape[0], known)
    # A row with more dimensions than the product adds dimensions to the result.
    rank = max(linear.rank, 0 if bias is None else bias.rank)
    after = (*widened(rank, lambda: ranks.of(linear.x)), *linear.after)
    if bias is None:
        return dataclasses.replace(linear, after=after)
    rest, fixed = (*linear.rest, bias.add), (*linear.fixed, *bias.fixed)
    return dataclasses.replace(linear, bias=bias.row, rest=rest, after=after, fixed=fixed)
