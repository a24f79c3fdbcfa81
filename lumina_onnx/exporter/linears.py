"""Finds the linear layers of a float model: which products are layers, and why the others are not."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .constants import ConstantError, Constants
from .names import Names
from .products import LEARNED, multiplies_by_stored
from .report import Left

__all__ = ["Linear", "linears"]


@dataclass(frozen=True)
class Linear:
    """A product with a stored matrix, as the layer that it will become."""

    name: str
    node: ir.Node
    """The `MatMul` or `Gemm`."""
    add: ir.Node | None
    """The `Add` of its bias, if the bias is a separate node."""
    weight: NDArray[np.float32]
    """``[N, K]``."""
    bias: NDArray[np.float32] | None


def linears(graph: ir.Model) -> tuple[list[Linear], list[Left]]:
    """The layers to convert, and the products with stored weights that are not layers, with the reasons."""
    found: list[Linear] = []
    left: list[Left] = []
    names = Names()
    known = Constants(graph)
    for node in graph.graph.all_nodes():
        name = node.name or str(node.outputs[0].name)
        if node.domain in ("", "ai.onnx") and node.op_type in ("MatMul", "Gemm"):
            result = _linear(node, name, known)
            if isinstance(result, Linear):
                found.append(dataclasses.replace(result, name=names.unused(name)))
            elif result:
                left.append(Left(names.unused(name), node.op_type, result))
        elif multiplies_by_stored(node, known):
            learned = node.domain == "ai.onnx.ml" and node.op_type in LEARNED
            reason = "its weights are attributes of the node" if learned else "neither a MatMul nor a Gemm of floats"
            left.append(Left(names.unused(name), node.op_type, reason))
    return found, left


def _linear(node: ir.Node, name: str, known: Constants) -> Linear | str:
    """The product as a layer, or the reason why it is not one; an empty string if there is nothing to report."""
    x, weight = (*node.inputs, None, None)[:2]
    if x is None or weight is None:
        return "an input of it is absent"
    if known.is_constant(x):
        return "" if known.is_constant(weight) else "its stored matrix is on the left of the product"
    if known.is_reached(weight):
        return ""
    if known.is_replaceable(weight):
        return "its matrix is also an input of the model, so that callers may replace it"
    try:
        matrix = known.array(weight)
    except ConstantError as error:
        return f"its matrix is {error}"
    if matrix.dtype != np.float32:
        return f"its matrix is {matrix.dtype}; the operator takes float32"
    if matrix.ndim != 2 or 0 in matrix.shape:
        return f"its stored side has shape {list(matrix.shape)}; a layer's is a matrix"
    if node.op_type == "MatMul":
        add, bias = _bias_after(node, matrix.shape[1], known)
        return Linear(name, node, add, matrix.T, bias)
    attributes = {key: attribute.value for key, attribute in node.attributes.items()}
    if attributes.get("transA", 0):
        return "transA: its input is transposed"
    if not attributes.get("transB", 0):
        matrix = matrix.T
    if attributes.get("alpha", 1.0) != 1.0:
        matrix = matrix * np.float32(attributes["alpha"])
    bias = None
    if len(node.inputs) > 2 and (c := node.inputs[2]) is not None:
        if known.is_reached(c) or known.is_replaceable(c):
            return "its C is computed, or an input of the model"
        try:
            bias = known.array(c)
        except ConstantError as error:
            return f"its C is {error}"
        if bias.dtype != np.float32 or (bias.ndim > 1 and bias.shape[0] != 1):
            return "its C is no float32 row"
        if bias.size not in (1, len(matrix)):
            return f"its C has shape {list(bias.shape)}"
        bias = np.broadcast_to(bias.reshape(-1) * np.float32(attributes.get("beta", 1.0)), len(matrix))
    return Linear(name, node, None, matrix, bias)


def _bias_after(node: ir.Node, n: int, known: Constants) -> tuple[ir.Node | None, NDArray[np.float32] | None]:
    """The `Add` of a stored row that is the product's only reader, and that row."""
    y = node.outputs[0]
    uses = list(y.uses())
    if len(uses) != 1 or y.is_graph_output():
        return None, None
    add = uses[0].node
    if add.op_type != "Add" or add.domain not in ("", "ai.onnx") or add.graph is not node.graph:
        return None, None
    other = add.inputs[1 - uses[0].idx]
    if other is None or other is y or not known.is_constant(other) or known.is_replaceable(other):
        return None, None
    try:
        row = known.array(other)
    except ConstantError:
        return None, None
    # A row with more dimensions than the product would add dimensions to the result.
    x = cast("ir.Value", node.inputs[0])
    rank = 1 if x.shape is None else len(x.shape)
    if row.dtype != np.float32 or row.size != n or not 1 <= row.ndim <= rank or row.shape[-1] != n:
        return None, None
    return add, row.reshape(-1)
