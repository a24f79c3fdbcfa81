"""Calls of the kernel on torch's tensors.

`lumina_kernel._Tensors` asks torch's table of C functions what each tensor is and where it lies, and has torch make the
results: a numpy view of each, or reading its attributes one by one, would cost as much as the arithmetic of a small
layer (and does where torch lacks the table). If it cannot take a tensor (elements out of order, another dtype), it says
so before it has done anything, and the case is handled here. Callers have checked the tensors, with
:func:`._dispatch.is_plain` or :mod:`._checks`.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, get_num_threads
from torch.nn import Parameter

import lumina_kernel
from lumina_onnx.nn import _torch_state

_float32 = torch.float32
_uint8 = torch.uint8
_classes_and_makers = (Tensor, Parameter, _torch_state.empty_on_cpu, _float32, _uint8)
try:
    _tensors = lumina_kernel._Tensors(*_classes_and_makers)
except ValueError:  # torch has no table of C functions, as before 2.10, or one of another version of DLPack
    _tensors = lumina_kernel._Tensors(*_classes_and_makers, _torch_state.describe)
#: Whether three tensors are an input [..., K], a weight [N, K] and a bias [N] (or None) that the passes take.
are_call = _tensors.are_call
#: Whether a tensor is float32 in the CPU's memory, and neither of a subclass nor a wrapper.
is_float = _tensors.is_float
#: The number of bytes that a forward pass saves for its gradient, and how many more for each row of X.
saved_bytes = lumina_kernel._saved_bytes


class Kept(NamedTuple):
    """The gradients for which a forward pass keeps something: X's needs W and its scale, W's needs X's codes."""

    for_x: bool = True
    for_weight: bool = True


def nothing() -> Tensor:
    """A tensor without elements, for operators of torch's registry, which cannot return None."""
    empty: Tensor = _torch_state.empty_on_cpu((0,), (1,), _float32)
    return empty


def prepare(params: lumina_kernel.Params, weight: Tensor, bias: Tensor | None) -> lumina_kernel.PreparedLayer:
    """Quantises and packs weights."""
    weight, bias = _dense(weight), None if bias is None else _dense(bias)
    if not _has_memory(weight) or (bias is not None and not _has_memory(bias)):
        raise _unreadable(weight=weight, bias=bias)
    return _tensors.prepare(params, weight, bias, get_num_threads())


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    params: lumina_kernel.Params,
    seed: int,
    stream: int,
    prepared: lumina_kernel.PreparedLayer | None,
    kept: tuple[bool, bool] | None,
) -> tuple[Tensor, Tensor | None]:
    """The forward pass: y and, unless `kept` is None, the bytes that the gradients need besides x and weight."""
    threads = get_num_threads()
    made = _tensors.forward(params, prepared, x, weight, bias, seed, stream, kept, threads)
    if made is None:
        x, bias = _dense(x), None if bias is None else _dense(bias)
        # Prepared weights are not read, only asked for their shape: a transposed one need not be put in order.
        n, k = weight.shape
        weight = _dense(weight) if prepared is None else _torch_state.empty_on_cpu((n, k), (k, 1), _float32)
        made = _tensors.forward(params, prepared, x, weight, bias, seed, stream, kept, threads)
    if made is None:
        raise _unreadable(x=x, weight=weight, bias=bias)
    return made


def backward(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    saved: Tensor,
    k: int,
    needs: tuple[bool, bool, bool],
    kept: tuple[bool, bool],
    params: lumina_kernel.Params,
    bits: int | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias (None where not needed), from what the forward pass kept.

    `bits` are those of the products: 8, or None for the precision that torch asks for.
    """
    threads, precision = get_num_threads(), "8 bits" if bits else _torch_state.gradient_precision()
    made = _tensors.backward(params, k, grad, x, weight, saved, needs, kept, precision, threads)
    if made is None:
        *leading, n = grad.shape
        if x is not None:
            _check_saved("x", x, (*leading, k))
        if weight is not None:
            _check_saved("weight", weight, (n, k))
        call_bytes, row_bytes = saved_bytes(params, n, k, *kept)
        _check_saved_bytes(saved, call_bytes + grad.numel() // n * row_bytes)
        grad, x, weight = _dense(grad), None if x is None else _dense(x), None if weight is None else _dense(weight)
        saved = _aligned(saved)
        made = _tensors.backward(params, k, grad, x, weight, saved, needs, kept, precision, threads)
    if made is None:
        raise _unreadable(grad=grad, x=x, weight=weight, saved=saved)
    return made


def _dense(tensor: Tensor) -> Tensor:
    """The tensor with its elements in order and without a lazy negation."""
    return tensor if tensor.is_contiguous() and not tensor.is_neg() else tensor.contiguous().resolve_neg()


def view(tensor: Tensor) -> np.ndarray:
    """The memory of a CPU tensor as a C-ordered array (a copy only where the tensor is not contiguous)."""
    array: np.ndarray = _dense(tensor.detach()).numpy()
    return array


def _unreadable(**tensors: Tensor | None) -> ValueError:
    """The error of a pass that the kernel refused although its operands are dense: one of them has no memory."""
    names = [name for name, tensor in tensors.items() if tensor is not None and not _has_memory(tensor)]
    told = " and ".join(f"{name} {[*tensors[name].shape]}" for name in names)  # type: ignore[union-attr]
    return ValueError(
        f"{told or 'an operand'} cannot be read: allowed is a tensor with its elements in the CPU's memory (one whose "
        "storage was freed has none, nor has a subclass that only stands for others)"
    )


def _has_memory(tensor: Tensor) -> bool:
    try:
        # A view into a freed storage reports its offset as its address.
        return tensor.numel() == 0 or (tensor.data_ptr() != 0 and tensor.untyped_storage().nbytes() != 0)
    except RuntimeError:  # of a wrapper
        return False


def _aligned(saved: Tensor) -> Tensor:
    """Saved bytes at an address where the kernel can read numbers.

    torch.vmap stacks the bytes of its samples, and a hook may pool those of several tensors. A tensor without memory is
    returned as it is and refused later: a wrapper, or a tensor whose storage was freed and whose address is its offset.
    """
    try:
        if saved.data_ptr() % _ALIGNMENT == 0:
            return saved
        end = (saved.storage_offset() + saved.numel()) * saved.element_size()
        return saved.clone() if saved.is_contiguous() and end <= saved.untyped_storage().nbytes() else saved
    except RuntimeError:
        return saved


# The alignment of the float32 scales, which come first.
_ALIGNMENT = 4


def _check_saved(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raises if autograd hands an operand back with another dtype, shape or device."""
    if tensor.dtype is not _float32 or tensor.shape != shape or not tensor.is_cpu:
        allowed = f"float32 {[*shape]} {_UNCHANGED}"
        raise ValueError(f"{name} saved for the gradient is {_told(tensor)}: allowed is {allowed}")


_UNCHANGED = "on the CPU, as the forward pass saved it (torch.autograd.graph.saved_tensors_hooks may change it)"


def _told(tensor: Tensor) -> str:
    return f"{tensor.dtype} {[*tensor.shape]} on {tensor.device}"


def _check_saved_bytes(saved: Tensor, count: int) -> None:
    """Raises if autograd hands the saved bytes back with another dtype, size, device or layout."""
    if saved.dtype is not _uint8 or saved.numel() != count or not saved.is_cpu or not saved.is_contiguous():
        layout = "" if saved.is_contiguous() else f" ({saved.layout}, its elements out of order)"
        raise ValueError(
            f"what was saved for the gradient is {_told(saved)}{layout}: allowed is uint8 [{count}] {_UNCHANGED}"
        )
