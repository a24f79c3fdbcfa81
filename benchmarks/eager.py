"""The optical linear layer in eager PyTorch, as a user who knows PyTorch would write it, to compare the kernel with.

The full scale is the largest magnitude of each row (of inputs, weights or outputs); inputs and outputs may instead have
a fixed range, beyond which a value saturates. Bits are 2..16, or 0 for a side that stays analog. Quantisers pass
gradients straight through except where a value saturated; the noise is a constant for the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-30


def _levels(bits: int) -> int:
    return (1 << (bits - 1)) - 1


def full_scale(v: Tensor) -> Tensor:
    """max|v| of each row, [..., 1]."""
    return v.abs().amax(-1, keepdim=True)  # a fifth of the time of vector_norm or aminmax, copy included


class Quantize(torch.autograd.Function):
    """Rounds each row to the codes of a symmetric quantiser whose full scale is the row's largest magnitude."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, bits: int) -> Tensor:
        """`v` rounded."""
        step = full_scale(v).clamp_min_(TINY).div_(_levels(bits))
        return torch.mul(v, step.reciprocal()).round_().mul_(step)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Straight through."""
        return grad, None


def quantize(v: Tensor, bits: int, limit: float = 0.0) -> Tensor:
    """:class:`Quantize`, or with a `limit` PyTorch's own quantiser of that range; `v` itself if `bits` is 0."""
    if not bits:
        return v
    if limit:
        levels = _levels(bits)
        return torch.fake_quantize_per_tensor_affine(v, limit / levels, 0, -levels, levels)
    return Quantize.apply(v, bits)


def add_noise(z: Tensor, relative: float, additive: float, limit: float = 0.0) -> Tensor:
    """`z` with Gaussian noise of sigma `relative * |z|`, or `additive` times the `limit` or else max|z| of the row."""
    if relative and additive:
        raise ValueError(f"relative = {relative} and additive = {additive}: allowed is one law at a time")
    if relative:
        return torch.addcmul(z, torch.randn_like(z), z.detach(), value=relative)
    if additive and limit:
        return torch.add(z, torch.randn_like(z), alpha=additive * limit)
    if additive:
        return torch.addcmul(z, torch.randn_like(z), full_scale(z.detach()), value=additive)
    return z


def optical_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    input_bits: int = 8,
    weight_bits: int = 8,
    output_bits: int = 8,
    input_range: float = 0.0,
    output_range: float = 0.0,
    noise_relative: float = 0.0,
    noise_additive: float = 0.0,
) -> Tensor:
    """DAC, weight quantiser, product, noise, ADC: one after another. X [..., K], W [N, K] -> [..., N]."""
    z = F.linear(quantize(x, input_bits, input_range), quantize(weight, weight_bits), bias)
    return quantize(add_noise(z, noise_relative, noise_additive, output_range), output_bits, output_range)


def codes(v: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit codes of each row as int8, and the row's step, [..., 1]."""
    step = full_scale(v).clamp_min_(TINY).div_(_levels(8))
    return torch.mul(v, step.reciprocal()).round_().to(torch.int8), step


def optical_linear_int_mm(
    x: Tensor, weight: Tensor, bias: Tensor, *, noise_relative: float = 0.0, noise_additive: float = 0.0
) -> Tensor:
    """:func:`optical_linear` at 8/8/8 bits with an exact integer product: PyTorch's fastest way for inference."""
    return _from_codes(*codes(x), *codes(weight), bias, noise_relative, noise_additive)


def _from_codes(
    x_codes: Tensor,
    x_step: Tensor,
    w_codes: Tensor,
    w_step: Tensor,
    bias: Tensor,
    noise_relative: float,
    noise_additive: float,
) -> Tensor:
    product = torch._int_mm(x_codes, w_codes.t())
    z = torch.addcmul(bias, torch.mul(product, x_step), w_step.t())
    return quantize(add_noise(z, noise_relative, noise_additive), 8)


class OpticalLinearIntMm(torch.autograd.Function):
    """:func:`optical_linear_int_mm` with a straight-through gradient, from the codes. X [M, K], W [N, K] -> [M, N]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, noise_relative: float) -> Tensor:
        """The forward pass; saves codes and steps."""
        (x_codes, x_step), (w_codes, w_step) = codes(x), codes(weight)
        ctx.save_for_backward(x_codes, x_step, w_codes, w_step)
        return _from_codes(x_codes, x_step, w_codes, w_step, bias, noise_relative, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Straight through."""
        x_codes, x_step, w_codes, w_step = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        dx = grad @ (w_codes * w_step) if need_x else None
        dw = grad.t() @ (x_codes * x_step) if need_weight else None
        return dx, dw, grad.sum(0) if need_bias else None, None


def three_lines(x: Tensor, weight: Tensor, bias: Tensor, noise_std: float, bits: int) -> Tensor:
    """What `lumina_kernel.optical_linear_forward(x, weight, bias, noise_std, bits)` replaces in a model."""
    out = F.linear(x, weight, bias)
    out = out + torch.randn_like(out) * noise_std * out
    return quantize(out, bits)
