"""The bits of the products in a call's gradient: 8, or None, which stands for the precision that torch asks for.

They are read in the forward pass and kept for the gradient: the layer's own, unless a block of ``gradient_bits`` sets
others (see :mod:`._scope`). Code that Dynamo traces can neither read nor guard the blocks that a call is in. So a
compiled graph calls ``lumina::gradient_bits_of_block``, which reads them when it runs. Graphs of a process that never
entered a block do without it: Dynamo guards :attr:`Traced.any_block`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from lumina_onnx.nn import _recomputation, _registry, _scope, _torch_state


class Traced:
    """What Dynamo reads, and guards, in place of the blocks.

    Attributes:
        any_block: whether this process has ever entered a block of ``gradient_bits``.
        bits: what a block inside the traced function sets, as a tuple of one; None where the function has no block.
    """

    any_block = False
    bits: tuple[int | None] | None = None


traced = Traced()
_NO_BLOCK = -1
_HERE = _scope.number_tensor(0)


def of_call(own: int | None = None) -> int | None:
    """The bits for a call of a layer whose own bits these are. In a compiled graph, :func:`of_block` goes before it."""
    if is_dynamo_compiling():
        if traced.bits is not None:
            return traced.bits[0]
        return _scope.gradient_bits_of_call(own) if _torch_state.is_exporting() else own
    return _scope.gradient_bits_of_call(own) if _scope.current() else own


@_registry.define("gradient_bits_of_block(Tensor here) -> Tensor")
def gradient_bits_of_block(here: Tensor) -> Tensor:
    bits = _scope.settings_of(_scope.EACH).get(_scope.GRADIENT_BITS, _NO_BLOCK)
    return torch.tensor(bits or 0, dtype=torch.int64, device="cpu")


@_registry.shaped(gradient_bits_of_block)
def _(here: Tensor) -> Tensor:
    return here.new_empty((), dtype=torch.int64)


_recomputation.never(
    gradient_bits_of_block,
    "outside the block of lumina_onnx.nn.gradient_bits: allowed in a process that has used such blocks is more than 0",
)


def of_block() -> Tensor | None:
    """For code that Dynamo traces: the bits that a block around the graph sets when it runs. None: no block can be."""
    if not is_dynamo_compiling() or not traced.any_block or traced.bits is not None:
        return None
    bits: Tensor = torch.ops.lumina.gradient_bits_of_block(_HERE)
    return bits


def chosen(bits: int, of_block: Tensor | None) -> int | None:
    """The bits to compute with, from those of :func:`of_call` (0 for None) and of :func:`of_block`."""
    if of_block is not None and (set_by_block := int(of_block)) != _NO_BLOCK:
        bits = set_by_block
    return bits or None
