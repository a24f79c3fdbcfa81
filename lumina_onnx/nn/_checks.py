"""What a call takes, and the words in which anything else is refused."""

from __future__ import annotations

import torch
from torch import Tensor

from lumina_onnx.profile import OpticalProfile

#: Seeds and streams are 63-bit.
COUNTERS = 2**63


def check_tensor(name: str, tensor: object) -> None:
    """Refuses what is no dense float32 CPU tensor."""
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
    """Refuses tensors that are partly on the CPU and partly on "meta"."""
    (first, device), *others = ((name, tensor.device) for name, tensor in tensors.items() if tensor is not None)
    for name, other in others:
        if other != device:
            raise TypeError(f"{name} is on {other} and {first} on {device}: allowed is one device for all")


def check_input(x: Tensor, k: int) -> None:
    """Refuses an x that is no dense float32 CPU tensor ``[..., k]``."""
    check_tensor("x", x)
    if x.dim() == 0 or x.shape[-1] != k:
        raise ValueError(f"x has shape {list(x.shape)}: allowed is [..., {k}], as weight has {k} columns")


def check_weight(weight: Tensor, bias: Tensor | None) -> None:
    """Refuses a weight that is no ``[N, K]``, or a bias that is no ``[N]``, of dense float32 on the CPU."""
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
    """Refuses what is no call of the operator."""
    check_weight(weight, bias)
    check_input(x, weight.shape[1])
    check_devices(x=x, weight=weight, bias=bias)


def check_profile(profile: OpticalProfile, n: int) -> None:
    """Refuses a profile that does not fit a layer of n outputs."""
    check_is_profile(profile)
    ranges = profile.output_range
    if isinstance(ranges, tuple) and len(ranges) not in (1, n):
        raise ValueError(
            f"profile.output_range has {len(ranges)} elements: allowed is 1, or one for each of the N = {n} outputs"
        )


def check_is_profile(profile: object, name: str = "profile") -> None:
    """Refuses what is no OpticalProfile."""
    if not isinstance(profile, OpticalProfile):
        raise TypeError(f"{name} is {type(profile).__name__}: allowed is a lumina_onnx.OpticalProfile")


def check_counter(name: str, value: object) -> None:
    """Refuses a seed or stream that is no integer of 63 bits."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {type(value).__name__} {value!r}: allowed is an int, 0..2^63-1")
    if not 0 <= value < COUNTERS:
        raise ValueError(f"{name} = {value}: allowed is 0..2^63-1")


def named(error: ValueError, layer: str) -> ValueError:
    """`error`, saying which layer it is about."""
    return ValueError(f"{layer}: {error}") if layer else error
