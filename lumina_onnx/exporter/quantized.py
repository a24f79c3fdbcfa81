"""Products of quantised models, as layers: the weights are the file's, with its scales.

Layers whose input is quantised in each run read what is quantised. Between layers that exchange codes, the codes become
floats before a layer and are made anew after it, with the file's scales.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .constants import ConstantError, Constants
from .linear import Linear, Step, casts, only_reader

__all__ = ["REMEDY", "is_quantized", "quantized"]

MICROSOFT = "com.microsoft"

REMEDY = "give the file of floats that it was made from"
"""What to do about quantised weights that cannot be taken over."""


class _Places(NamedTuple):
    """The positions of a product's inputs; -1 if it has none of that kind."""

    x: int
    x_scale: int
    x_zero: int
    w: int
    w_scale: int
    w_zero: int
    bias: int = -1
    y_scale: int = -1
    y_zero: int = -1


KINDS = {
    ("", "MatMulInteger"): _Places(0, -1, 2, 1, -1, 3),
    ("", "QLinearMatMul"): _Places(0, 1, 2, 3, 4, 5, -1, 6, 7),
    (MICROSOFT, "MatMulIntegerToFloat"): _Places(0, 2, 4, 1, 3, 5, 6),
    (MICROSOFT, "DynamicQuantizeMatMul"): _Places(0, -1, -1, 1, 2, 3, 4),
    (MICROSOFT, "QGemm"): _Places(0, 1, 2, 3, 4, 5, 6, 7, 8),
}
"""Products of codes, by domain and operator."""

BLOCKS = (MICROSOFT, "MatMulNBits")
"""A product of floats with codes of 2, 4 or 8 bits, of which each block of a row has a scale."""


class _LeftError(Exception):
    """Why a product is no layer."""


@dataclass(frozen=True)
class _Product:
    """A product of codes in the terms of a layer."""

    source: ir.Node
    before: tuple[Step, ...]
    x_scale: float | None
    """The step of X, if it is the same in each run."""
    scale: NDArray[np.float32] | None
    """The step of W, if it is multiplied with the product later."""
    rest: tuple[ir.Node, ...] = ()
    rank: int = 0
    """The number of dimensions that the result has at least."""


def is_quantized(node: ir.Node) -> bool:
    """Whether a node is a product with codes that may become a layer."""
    return _kind(node) in KINDS or _kind(node) == BLOCKS


def quantized(node: ir.Node, name: str, known: Constants) -> Linear | str:
    """Such a product as a layer, without a bias that is added later, or the reason why it is not one."""
    try:
        if _kind(node) == BLOCKS:
            return _blocks(node, name, known)
        places = KINDS[_kind(node)]
        if (w := _input(node, places.w)) is not None and known.is_reached(w):
            return "its stored matrix is on the left of the product"
        return _linear(node, name, known, places)
    except _LeftError as error:
        return f"{error}; {REMEDY}"


def dequantised(weight: ir.Value, known: Constants, columns: int) -> dict[str, Any]:
    """The codes of a matrix that the model makes floats of, as fields of a :class:`.Linear`; {} if it holds floats.

    `columns` is the dimension of the matrix along which the outputs of the layer lie.
    """
    node = weight.producer()
    if node is not None and _kind(node) == ("", "Transpose") and node.inputs[0] is not None:
        if "perm" in node.attributes and list(node.attributes["perm"].as_ints()) != [1, 0]:
            return {}
        node, columns = node.inputs[0].producer(), 1 - columns
    if node is None or _kind(node) != ("", "DequantizeLinear"):
        return {}
    if _attribute(node, "block_size", 0):
        return {"coded": True}
    try:
        matrix, scale = _stored(node, 0, known, "matrix"), _row(node, 1, known, "scale of its weight")
        has_zero = _input(node, 2) is not None
        zero = _row(node, 2, known, "zero of its weight") if has_zero else np.zeros(1, np.int8)
        by_column = max(scale.size, zero.size) == 1 or _attribute(node, "axis", 1) % 2 == columns
        if matrix.dtype in (np.int8, np.uint8) and matrix.ndim == 2 and scale.dtype == np.float32 and by_column:
            found = _weight(matrix if columns else matrix.T, scale, zero)
            return found if "step" in found else {"coded": True}
    except _LeftError:  # The matrix is taken as floats.
        pass
    return {"coded": True}


def _weight(matrix: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any]) -> dict[str, Any]:
    """Codes ``[K, N]`` as fields of a :class:`.Linear`: kept if the operator can hold them, else in floats."""
    for row, what in ((scale, "scale"), (zero, "zero")):
        if row.size not in (1, matrix.shape[1]):
            raise _LeftError(f"the {what} of its weight has shape {list(row.shape)}")
    codes = (matrix.astype(np.int16) - zero.astype(np.int16)).T
    step = np.ascontiguousarray(np.broadcast_to(scale.astype(np.float32), len(codes)))
    with np.errstate(over="ignore"):
        if not np.isfinite(step * np.float32(255)).all():
            raise _LeftError("the scale of its weight is not finite")
    if (np.abs(codes) <= 127).all() and (step >= 0).all():
        return {"matrix": ir.tensor(codes.astype(np.int8)), "step": step, "coded": True}
    return {"matrix": ir.tensor(codes.astype(np.float32) * step[:, None]), "coded": True}


def _kind(node: ir.Node) -> tuple[str, str]:
    return "" if node.domain == "ai.onnx" else node.domain, node.op_type


def _blocks(node: ir.Node, name: str, known: Constants) -> Linear:
    if _input(node, 0) is None:
        raise _LeftError("an input of it is absent")
    k, n, block = (_attribute(node, name) for name in ("K", "N", "block_size"))
    bits = _attribute(node, "bits", 4)
    if bits not in (2, 4, 8):
        raise _LeftError(f"its weight has {bits} bits; allowed are 2, 4 and 8")
    if _input(node, 4) is not None:
        raise _LeftError("its columns are reordered by g_idx")
    if min(k, n, block) < 1:
        raise _LeftError(f"its weight has K {k}, N {n} and blocks of {block}")
    count = -(-k // block)
    scales = _shaped(_stored(node, 2, known, "scale of its weight"), (n, count, 1), "scale of its weight")
    packed = _stored(node, 1, known, "matrix")
    codes = _fields(_shaped(packed, (n, count, block * bits // 8), "matrix"), bits)
    zeros: Any = np.float32(2 ** (bits - 1))
    if _input(node, 3) is not None:
        zeros = _stored(node, 3, known, "zero of its weight")
        if zeros.dtype == np.uint8:
            zeros = _fields(_shaped(zeros, (n, -(-count * bits // 8)), "zero of its weight"), bits)[:, :count]
        zeros = _shaped(zeros, (n, count, 1), "zero of its weight")
    weight = (codes.astype(np.float32) - zeros.astype(np.float32)) * scales.astype(np.float32)
    bias = None if _input(node, 5) is None else _stored(node, 5, known, "bias").reshape(-1).astype(np.float32)
    values = [value for value in node.inputs[1:] if value is not None]
    return Linear(
        name,
        node,
        node,
        ir.tensor(weight.reshape(n, -1)[:, :k]),
        bias,
        **casts(scales.dtype),
        coded=True,
        fixed=tuple(each for value in values for each in known.replaceable(value)),
    )


def _attribute(node: ir.Node, name: str, default: int | None = None) -> int:
    if name in node.attributes:
        return node.attributes[name].as_int()
    if default is None:
        raise _LeftError(f"its attribute {name} is absent")
    return default


def _shaped(array: NDArray[Any], shape: tuple[int, ...], what: str) -> NDArray[Any]:
    if array.size != math.prod(shape):
        raise _LeftError(f"the {what} has {array.size} elements in place of {math.prod(shape)}")
    return array.reshape(shape)


def _fields(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes that share bytes along the last dimension, low bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed[..., None] >> shifts) & np.uint8(2**bits - 1)).reshape(*packed.shape[:-1], -1)


def _stored(node: ir.Node, place: int, known: Constants, what: str) -> NDArray[Any]:
    value = _input(node, place)
    if value is None:
        raise _LeftError(f"the {what} is absent")
    return _array(value, known, what)


def _array(value: ir.Value, known: Constants, what: str) -> NDArray[Any]:
    if known.is_reached(value):
        raise _LeftError(f"the {what} is computed")
    try:
        return known.array(value)
    except ConstantError as error:
        raise _LeftError(f"the {what} is {error}") from error


def _linear(node: ir.Node, name: str, known: Constants, places: _Places) -> Linear:
    attributes = {key: attribute.value for key, attribute in node.attributes.items()}
    if attributes.get("transA", 0):
        raise _LeftError("transA: its input is transposed")
    matrix = _stored(node, places.w, known, "matrix")
    if matrix.dtype not in (np.int8, np.uint8) or matrix.ndim != 2 or 0 in matrix.shape:
        raise _LeftError(f"its matrix is {matrix.dtype}{list(matrix.shape)}; a layer's is a matrix of 8-bit codes")
    if attributes.get("transB", 0):
        matrix = matrix.T
    product = _product(node, known, places)
    scale = product.scale if product.scale is not None else _row(node, places.w_scale, known, "scale of its weight")
    has_zero = _input(node, places.w_zero) is not None
    zero = _row(node, places.w_zero, known, "zero of its weight") if has_zero else np.zeros(1, np.int8)
    scale = scale.astype(np.float32) * np.float32(attributes.get("alpha", 1.0))
    weight = _weight(matrix, scale, zero)
    bias = _bias(node, places, known, np.broadcast_to(scale, matrix.shape[1]), product.x_scale)
    after: tuple[Step, ...] = ()
    if (y_scale := _input(node, places.y_scale)) is not None:
        _number(node, places.y_scale, known, "scale of its result")
        y_zero = _input(node, places.y_zero)
        after = (Step("QuantizeLinear", (y_scale,) if y_zero is None else (y_scale, y_zero)),)
    values = [_input(node, place) for place in (places.w, places.w_scale, places.w_zero, places.bias)]
    return Linear(
        name,
        node,
        product.source,
        **weight,
        bias=bias,
        rest=product.rest,
        rank=product.rank,
        before=product.before,
        after=after,
        fixed=tuple(name for value in values if value is not None for name in known.replaceable(value)),
    )


def _product(node: ir.Node, known: Constants, places: _Places) -> _Product:
    x = _input(node, places.x)
    if x is None:
        raise _LeftError("an input of it is absent")
    if node.op_type == "DynamicQuantizeMatMul":
        return _Product(node, (), None, None)
    maker = x.producer()
    dynamic = maker is not None and maker.op_type == "DynamicQuantizeLinear" and maker.outputs[0] is x
    zero, scale = _input(node, places.x_zero), _input(node, places.x_scale)
    if dynamic and maker is not None and zero is maker.outputs[2] and maker.inputs[0] is not None:
        found = maker.outputs[1]
        if node.op_type == "MatMulInteger":
            rest, scales = _scaled(node, found, known)
            return _Product(maker, (), None, _checked_row(scales, "scale of its weight"), rest, scales.ndim)
        if scale is found:
            return _Product(maker, (), None, None)
    if scale is None:
        raise _LeftError("its input is not quantised by DynamicQuantizeLinear")
    number = _number(node, places.x_scale, known, "scale of its input")
    return _Product(node, (Step("DequantizeLinear", (scale,) if zero is None else (scale, zero)),), number, None)


def _scaled(node: ir.Node, x_scale: ir.Value, known: Constants) -> tuple[tuple[ir.Node, ...], NDArray[Any]]:
    """The `Cast` and the `Mul` nodes that make a product of integers one of floats, and the step of W."""
    y, rest = node.outputs[0], []
    scales: NDArray[Any] | None = None
    has_x_scale = False
    kind = "Cast"
    while (reader := only_reader(y, kind)) is not None and not (has_x_scale and scales is not None):
        if kind == "Cast" and _attribute(reader, "to") != ir.DataType.FLOAT:
            break
        for factor in [] if kind == "Cast" else _factors(reader, y, known):
            if factor is x_scale and not has_x_scale:
                has_x_scale = True
            elif scales is None and not known.is_reached(factor):
                scales = _array(factor, known, "scale of its weight")
            else:
                raise _LeftError("it is multiplied with something else than its scales")
        kind, y = "Mul", reader.outputs[0]
        rest.append(reader)
    if not has_x_scale or scales is None:
        raise _LeftError("its result is not multiplied with its scales")
    return tuple(rest), scales


def _factors(node: ir.Node, y: ir.Value, known: Constants) -> list[ir.Value]:
    """What a `Mul` multiplies y with: a value, or the two of another `Mul`."""
    other = node.inputs[1] if node.inputs[0] is y else node.inputs[0]
    if other is None or not known.is_reached(other):
        return [] if other is None else [other]
    maker = other.producer()
    found = maker.inputs if maker is not None and maker.op_type == "Mul" and not maker.domain else [other]
    return [value for value in found if value is not None]


def _bias(
    node: ir.Node, places: _Places, known: Constants, step: NDArray[np.float32], x_scale: float | None
) -> NDArray[np.float32] | None:
    if _input(node, places.bias) is None:
        return None
    row = _stored(node, places.bias, known, "bias")
    if row.size not in (1, len(step)) or (row.ndim > 1 and row.shape[0] != 1):
        raise _LeftError(f"its bias has shape {list(row.shape)}")
    row = np.broadcast_to(row.reshape(-1), len(step))
    if row.dtype == np.int32:
        if x_scale is None:
            raise _LeftError("its bias is int32 and the scale of its input is computed")
        return np.asarray(row.astype(np.float64) * step * x_scale, np.float32)
    return row.astype(np.float32)


def _input(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if 0 <= place < len(node.inputs) else None


def _row(node: ir.Node, place: int, known: Constants, what: str) -> NDArray[Any]:
    """One number, or one for each output."""
    return _checked_row(_stored(node, place, known, what), what)


def _checked_row(array: NDArray[Any], what: str) -> NDArray[Any]:
    if array.size != max(array.shape[-1:], default=1):
        raise _LeftError(f"the {what} has shape {list(array.shape)}")
    return array.reshape(-1)


def _number(node: ir.Node, place: int, known: Constants, what: str) -> float:
    row = _row(node, place, known, what)
    if row.size != 1:
        raise _LeftError(f"the {what} has shape {list(row.shape)}")
    return float(row[0])
