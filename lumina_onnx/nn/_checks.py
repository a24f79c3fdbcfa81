"""Checks of a call's arguments, and the error messages for what is not allowed."""

from __future__ import annotations

import torch
from torch import Tensor

from lumina_onnx.profile import OpticalProfile

#: Seeds and streams are 63-bit.
COUNTERS = 2**63


def check_tensor(name: str, tensor: object) -> None:
    """Raises unless `tensor` is a dense float32 tensor on the CPU (or on "meta")."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {type(tensor).__name__}: allowed is a torch.Tensor of float32 on the CPU")
    if tensor.device.type not in ("cpu", "meta"):
        raise TypeError(
            f"{name} is on {tensor.device}: allowed is the CPU, where the kernel runs; move it there with .cpu()"
        )
    if tensor.dtype != torch.float32:
        raise TypeError(f"{name} is {tensor.dtype}: allowed is torch.float32; convert it with .float()")
    if tensor.is_nested or tensor.layout != torch.strided:
        kind = "nested" if tensor.is_nested else str(tensor.layout)
        raise TypeError(f"{name} is a {kind} tensor: allowed is a dense (strided) one")


def check_devices(**tensors: Tensor | None) -> None:
    """Raises if some tensors are on the CPU and others on "meta"."""
    (first, device), *others = ((name, tensor.device) for name, tensor in tensors.items() if tensor is not None)
    for name, other in others:
        if other != device:
            raise TypeError(f"{name} is on {other} and {first} on {device}: allowed is one device for all")


def check_input(x: Tensor, k: int) -> None:
    """Raises unless x is a dense float32 CPU tensor ``[..., k]``."""
    check_tensor("x", x)
    if x.dim() == 0 or x.shape[-1] != k:
        raise ValueError(f"x has shape {list(x.shape)}: allowed is [..., {k}], as weight has {k} columns")


def check_weight(weight: Tensor, bias: Tensor | None) -> None:
    """Raises unless weight is ``[N, K]`` and bias ``[N]`` or None, both dense float32 CPU tensors."""
    check_tensor("weight", weight)
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"weight has shape {list(weight.shape)}: allowed is [N, K], N and K at least 1")
    if bias is not None:
        check_tensor("bias", bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(
                f"bias has shape {list(bias.shape)}: allowed is [{weight.shape[0]}], as weight has "
                f"{weight.shape[0]} rows"
            )


def check_call(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raises unless the tensors are valid operands of the operator."""
    check_weight(weight, bias)
    check_input(x, weight.shape[1])
    check_devices(x=x, weight=weight, bias=bias)


def check_profile(profile: OpticalProfile, n: int) -> None:
    """Raises unless the profile fits a layer of n outputs."""
    check_is_profile(profile)
    ranges = profile.output_range
    if isinstance(ranges, tuple) and len(ranges) not in (1, n):
        raise ValueError(
            f"profile.output_range has {len(ranges)} elements: allowed is 1, or one for each of the N = {n} outputs"
        )


def check_is_profile(profile: object, name: str = "profile") -> None:
    """Raises unless `profile` is an OpticalProfile."""
    if not isinstance(profile, OpticalProfile):
        raise TypeError(f"{name} is {type(profile).__name__}: allowed is a lumina_onnx.OpticalProfile")


def check_counter(name: str, value: object) -> None:
    """Raises unless `value`, a seed or stream, is a 63-bit integer."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {type(value).__name__} {value!r}: allowed is an int, 0..2^63-1")
    if not 0 <= value < COUNTERS:
        raise ValueError(f"{name} = {value}: allowed is 0..2^63-1")


def check_gradient_bits(bits: object) -> None:
    """Raises unless `bits` is 8 or None."""
    if bits is not None and (not isinstance(bits, int) or isinstance(bits, bool)):
        told = f" {bits!r}" if isinstance(bits, (bool, float, str)) else ""
        raise TypeError(f"gradient_bits is {type(bits).__name__}{told}: allowed is 8, or None")
    if bits not in (None, 8):
        raise ValueError(f"gradient_bits = {bits}: allowed is 8, or None")


def named(error: ValueError, layer: str) -> ValueError:
    """`error` with the layer's name in front, or unchanged where `layer` is empty."""
    return ValueError(f"{layer}: {error}") if layer else error
