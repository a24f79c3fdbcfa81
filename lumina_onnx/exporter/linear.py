"""A linear layer that was found in a float or quantised model, as the optical layer that it will become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .constants import ConstantError, Constants

__all__ = ["FLOATS", "Bias", "Linear", "Step", "bias_after", "casts", "float32", "lazy", "only_reader", "widened"]

FLOATS = tuple(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)))
"""Types of the matrices of layers. Layers compute in float32."""


@dataclass(frozen=True)
class Step:
    """A standard operator beside a layer. Its first input is the value on the way to or from the layer."""

    kind: str
    others: tuple[ir.Value | ir.TensorProtocol, ...] = ()
    """Its other inputs."""
    attributes: tuple[ir.Attr, ...] = ()


@dataclass(frozen=True)
class Linear:
    """A product with a stored matrix."""

    name: str
    node: ir.Node
    """The product."""
    source: ir.Node
    """The node whose first input is what the layer reads: the product, or what quantises its input."""
    matrix: ir.TensorProtocol
    """``[N, K]``: floats, which are read anew each time that they are asked for, or codes of 8 bits."""
    bias: NDArray[np.float32] | None
    rest: tuple[ir.Node, ...] = ()
    """The nodes after the product that are part of the layer, in their order, such as the `Add` of its bias."""
    step: NDArray[np.float32] | None = None
    """``[N]``: the step of one code, if the matrix holds codes."""
    rank: int = 0
    """The number of dimensions that the result has at least, if something with as many is multiplied with it."""
    coded: bool = False
    """Whether the file holds its weights in codes."""
    before: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()
    note: str = ""
    """What to tell the user about it."""
    fixed: tuple[str, ...] = ()
    """Stored tensors that it reads and that callers could replace."""

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        n, k = self.matrix.shape.numpy()
        return n, k

    @property
    def x(self) -> ir.Value:
        """What the layer reads, which is another value once the layer before it is replaced."""
        return cast("ir.Value", self.source.inputs[0])

    def weight(self) -> NDArray[np.float32]:
        """W in float32, ``[N, K]``."""
        floats = float32(self.matrix.numpy())
        return floats if self.step is None else floats * self.step[:, None]


@dataclass(frozen=True)
class Bias:
    """A row that is added to a product."""

    add: ir.Node
    row: NDArray[np.float32]
    rank: int
    """The number of dimensions that the sum has at least."""
    fixed: tuple[str, ...]


def lazy(load: Callable[[], NDArray[Any]], like: NDArray[Any]) -> ir.TensorProtocol:
    """A tensor that is loaded when it is needed: holding all weights would take as much memory as the file."""
    kind, shape = ir.DataType.from_numpy(like.dtype), ir.Shape(like.shape)
    return ir.LazyTensor(lambda: ir.tensor(load()), kind, shape)


def casts(dtype: np.dtype[Any]) -> dict[str, Any]:
    """What a layer of a model has beside it if the model computes in another type of floats."""
    if dtype == np.float32:
        return {}
    return {
        "before": (_cast(ir.DataType.FLOAT),),
        "after": (_cast(ir.DataType.from_numpy(dtype)),),
        "note": f"computed in float32, between Casts, since the file's is {dtype}",
    }


def _cast(kind: ir.DataType) -> Step:
    return Step("Cast", attributes=(ir.AttrInt64("to", kind.value),))


def float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """An array in float32; numbers that are too large for it become infinite, which is refused later."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def only_reader(value: ir.Value, kind: str) -> ir.Node | None:
    """The standard operator of this kind that alone reads a value, in the value's own graph."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = uses[0].node
    producer = value.producer()
    beside = producer is not None and node.graph is producer.graph
    return node if beside and node.op_type == kind and node.domain in ("", "ai.onnx") else None


def bias_after(y: ir.Value, n: int, known: Constants) -> Bias | None:
    """The row that the only reader of a product adds to it."""
    add = only_reader(y, "Add")
    if add is None:
        return None
    other = add.inputs[1] if add.inputs[0] is y else add.inputs[0]
    if other is None or other is y or known.is_reached(other):
        return None
    try:
        row = known.array(other)
    except ConstantError:
        return None
    if row.dtype not in FLOATS or row.size != n or row.ndim < 1 or row.shape[-1] != n:
        return None
    return Bias(add, float32(row.reshape(-1)), row.ndim, known.replaceable(other))


def widened(rank: int, of: Callable[[], int | None]) -> tuple[Step, ...]:
    """What gives a sum at least `rank` dimensions if the product, whose rank `of` tells, may have fewer."""
    if rank < 2 or ((known := of()) is not None and rank <= known):
        return ()
    return (Step("Expand", (ir.tensor(np.ones(rank, np.int64)),)),)
