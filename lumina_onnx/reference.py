"""`lumina::OpticalLinear` version 1 in plain numpy: to read, and to check every other implementation against.

``y = ADC(DAC(x) . W + b + noise)``. All arithmetic is IEEE 754 float32, rounded to nearest even, subnormals kept (so
not under ``torch.set_flush_denormal(True)``); the kernel, the ONNX Runtime op and training give the same bits. It is
written to be read, not to be fast. Only numpy is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._reference_checks import Floats, Params, Range, check_dtype, check_finite
from ._reference_fma import fma32
from ._reference_gradient import block_of, product
from ._reference_noise import noise, noise_of_rows
from ._reference_weights import largest_code, pack_weight, quantize, quantize_weight, unpack_weight, weight_values

__all__ = [
    "fma32",
    "noise",
    "optical_linear",
    "optical_linear_backward",
    "pack_weight",
    "quantize_weight",
    "unpack_weight",
]

MAX_INTEGER_K = 131072
"""Largest K of an exact integer product: 127 * 127 * 131072 < 2^31."""
NAN = np.uint32(0x7FC00000).view(np.float32)
"""Every NaN result is this NaN."""


def optical_linear(
    input: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any] | None = None,
    *,
    input_bits: int = 0,
    weight_bits: int = 0,
    output_bits: int = 8,
    input_range: float = 0.0,
    output_range: Range = 0.0,
    weight_scale: Range | None = None,
    noise_relative: float = 0.0,
    noise_additive: float = 0.0,
    noise_shot: float = 0.0,
    bias_stage: str = "analog",
    seed: int = 0,
    stream: int = 0,
    in_features: int | None = None,
    rows: Sequence[int] | NDArray[np.int64] | None = None,
) -> Floats:
    """Runs `OpticalLinear` and returns Y float32 ``[..., N]``.

    Args:
        input: X float32 ``[..., K]`` or ``[K]``.
        weight: float32 ``[N, K]``; or its codes as a model stores them: int8 ``[N, K]`` for 1..8 bits, uint8
            ``[N, ceil(K*weight_bits/8)]`` for 1, 2 or 4 bits (see :func:`pack_weight`).
        bias: float32 ``[N]`` or None.
        input_bits: DAC resolution of X, 2..16. 0 = analog: X is used as it is.
        weight_bits: modulator resolution of W, 1..16. 0 = analog. 1 = {-1, +1}.
        output_bits: ADC resolution of Y, 2..16. 0 = no ADC.
        input_range: DAC full scale in units of X. 0 = max|x| of the row.
        output_range: ADC full scale in units of Y, one number or N of them. 0 = max|v| of the row.
        weight_scale: step of one weight code, one number or N of them. Default: :func:`quantize_weight`'s.
        noise_relative: sigma as a fraction of the signal |z|.
        noise_additive: sigma as a fraction of the full scale R.
        noise_shot: sigma = noise_shot * sqrt(|z| * R).
        bias_stage: "analog": the bias enters before noise and ADC; "digital": after them.
        seed: key of the noise, 0..2^63-1.
        stream: number of the draw under that seed, 0..2^63-1.
        in_features: K, required (and only read) where ``weight`` is packed in uint8.
        rows: M numbers from 0, of the rows of the call of which ``input`` holds only some: the noise depends on them.
            Default: 0 to M-1.

    Raises:
        TypeError: an array has the wrong dtype.
        ValueError: a shape or value is not allowed; the message names it.
    """
    params = Params.check(
        input_bits, weight_bits, output_bits, input_range, output_range, noise_relative, noise_additive, noise_shot,
        bias_stage, seed, stream,
    )  # fmt: skip
    w, scale = weight_values(weight, weight_bits, weight_scale, in_features)
    x, b = _check_arrays(params, input, w, bias)
    numbers = np.arange(len(x)) if rows is None else np.asarray(rows)
    if numbers.shape != (len(x),) or numbers.dtype.kind not in "iu" or (numbers < 0).any():
        raise ValueError(f"rows = {rows}: allowed is a number from 0 for each of the {len(x)} rows of input")
    return _forward(params, x, w, scale, b, numbers).y.reshape(*input.shape[:-1], w.shape[0])


def optical_linear_backward(
    grad_output: NDArray[Any],
    input: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any] | None = None,
    *,
    input_bits: int = 0,
    weight_bits: int = 0,
    output_bits: int = 8,
    input_range: float = 0.0,
    output_range: Range = 0.0,
    weight_scale: Range | None = None,
    noise_relative: float = 0.0,
    noise_additive: float = 0.0,
    noise_shot: float = 0.0,
    bias_stage: str = "analog",
    seed: int = 0,
    stream: int = 0,
    precision: str = "highest",
) -> tuple[Floats, Floats, Floats]:
    """The straight-through gradient of :func:`optical_linear`: ``(grad_input, grad_weight, grad_bias)``.

    ``grad_output`` is float32 ``[..., N]``; the results have the shapes of X ``[..., K]``, W ``[N, K]`` and ``[N]``.
    Every other argument but `precision` is that of the forward call. The gradient passes where ADC and DAC did not
    saturate (they can only under a static range); the weight quantiser is never masked; the noise is a constant.

    At `precision` "highest" each product is one chain of fused multiply-adds from 0, n ascending for X and m ascending
    for W. At "high" or "medium" and "8 bits" the gradient enters products with codes of up to 8 bits in a fixed point
    of 16 or 8 bits: docs/operator.md, "Block fixed point".
    """
    params = Params.check(
        input_bits, weight_bits, output_bits, input_range, output_range, noise_relative, noise_additive, noise_shot,
        bias_stage, seed, stream,
    )  # fmt: skip
    block = block_of(precision)
    w, scale = weight_values(weight, weight_bits, weight_scale, None)
    x, b = _check_arrays(params, input, w, bias)
    check_dtype("grad_output", grad_output)
    if grad_output.shape != (*input.shape[:-1], w.shape[0]):
        raise ValueError(f"grad_output has shape {grad_output.shape}: allowed is {(*input.shape[:-1], w.shape[0])}")
    forward = _forward(params, x, w, scale, b, np.arange(len(x)))
    dy = grad_output.reshape(-1, w.shape[0])
    with np.errstate(all="ignore"):
        g = np.where(forward.adc_saturated, np.float32(0), dy)

        dx = product(g * scale, w, weight_bits, block)
        dx = np.where(forward.dac_saturated, np.float32(0), _canonical(dx))

        dw = product((g * forward.x_step[:, None]).T, forward.x_values, input_bits, block)

        db = np.zeros(w.shape[0], dtype=np.float32)
        for row in g if bias_stage == "analog" else dy:
            db = db + row
    return dx.reshape(input.shape), _canonical(dw), _canonical(db)


@dataclass(frozen=True)
class _Forward:
    y: Floats
    """[M, N]"""
    x_values: Floats
    """[M, K]: DAC codes, or X where it is analog; 0 in rows that are NaN throughout."""
    x_step: Floats
    """[M]: s_x; NaN in rows that are NaN throughout."""
    dac_saturated: NDArray[np.bool_]
    """[M, K]"""
    adc_saturated: NDArray[np.bool_]
    """[M, N]"""


def _forward(
    params: Params, x: Floats, w: Floats, scale: Floats, bias: Floats | None, rows: NDArray[np.int64]
) -> _Forward:
    with np.errstate(all="ignore"):
        a, x_step, dac_saturated, nan_row = _dac(params, x)

        acc = _product(params, a, w)
        analog_bias = bias if bias is not None and params.bias_stage == "analog" else np.float32(0)
        z = fma32(acc, x_step[:, None] * scale[None, :], analog_bias)

        v = z
        if params.relative or params.additive or params.shot:
            full_scale = params.output_range[None, :]
            if params.dynamic_output and (params.additive or params.shot):
                full_scale = np.abs(z).max(axis=1, keepdims=True)
                nan_row = nan_row | ~np.isfinite(full_scale[:, 0])
            eps = noise_of_rows(params.seed, params.stream, rows, z.shape[1])
            v = fma32(_sigma(params, z, full_scale), eps, z)

        y = v
        adc_saturated = np.zeros(v.shape, dtype=bool)
        if params.output_bits:
            full_scale = params.output_range[None, :]
            if params.dynamic_output:
                full_scale = np.abs(v).max(axis=1, keepdims=True)
                nan_row = nan_row | ~np.isfinite(full_scale[:, 0])
            else:
                adc_saturated = (np.abs(v) > full_scale) & ~nan_row[:, None]
            codes, step = quantize(v, largest_code(params.output_bits), full_scale)
            y = np.where(np.isnan(v), NAN, step * codes.astype(np.float32))

        if bias is not None and params.bias_stage == "digital":
            y = y + bias
        y = np.where(nan_row[:, None], NAN, _canonical(y))
    return _Forward(np.asarray(y), a, x_step, dac_saturated, adc_saturated)


def _dac(params: Params, x: Floats) -> tuple[Floats, Floats, NDArray[np.bool_], NDArray[np.bool_]]:
    """Codes (or values) ``[M, K]``, s_x ``[M]``, saturation ``[M, K]`` and whether a row is NaN ``[M]``."""
    static = bool(params.input_range > 0)
    unbounded = np.isnan(x) if static else ~np.isfinite(x)
    nan_row = np.asarray(unbounded.any(axis=1))
    x = np.where(nan_row[:, None], np.float32(0), x)
    saturated = (np.abs(x) > params.input_range) & static
    if params.input_bits == 0:
        values, step = x, np.ones(len(x), dtype=np.float32)
    else:
        full_scale = np.full(len(x), params.input_range) if static else np.abs(x).max(axis=1)
        codes, step = quantize(x, largest_code(params.input_bits), full_scale[:, None])
        values, step = codes.astype(np.float32), step[:, 0]
    return values, np.where(nan_row, NAN, step), saturated, nan_row


def _product(params: Params, a: Floats, w: Floats) -> Floats:
    if params.integer:
        # Sums below 2^31 are exact in float64 in any order.
        return np.asarray((a.astype(np.float64) @ w.T.astype(np.float64)).astype(np.float32))
    acc = np.zeros((a.shape[0], w.shape[0]), dtype=np.float32)
    for k in range(a.shape[1]):
        acc = fma32(a[:, k][:, None], w[:, k][None, :], acc)
    return acc


def _sigma(params: Params, z: Floats, full_scale: Floats) -> Floats:
    laws: list[Floats] = []
    if params.relative:
        laws.append(params.relative * np.abs(z))
    if params.additive:
        laws.append(np.broadcast_to(params.additive * full_scale, z.shape))
    if params.shot:
        laws.append(params.shot * np.sqrt(np.abs(z) * full_scale))
    if len(laws) == 1:
        return laws[0]
    total = laws[0] * laws[0]
    for law in laws[1:]:
        total = total + law * law
    return np.asarray(np.sqrt(total))


def _canonical(values: Floats) -> Floats:
    return np.where(np.isnan(values), NAN, values)


def _check_arrays(
    params: Params, input: NDArray[Any], w: Floats, bias: NDArray[Any] | None
) -> tuple[Floats, Floats | None]:
    """X as ``[M, K]`` and the bias, checked against W and the parameters."""
    n, k = w.shape
    check_dtype("input", input)
    if input.ndim == 0 or input.shape[-1] != k:
        raise ValueError(f"input has shape {input.shape}: allowed is [..., K] with K = {k} of the weight")
    if bias is not None:
        check_dtype("bias", bias)
        if bias.shape != (n,):
            raise ValueError(f"bias has shape {bias.shape}: allowed is [N] with N = {n} of the weight")
        check_finite("bias", bias)
    if len(params.output_range) not in (1, n):
        raise ValueError(
            f"output_range has {len(params.output_range)} elements: "
            f"allowed is 1, or one for each of the N = {n} outputs"
        )
    if params.integer and k > MAX_INTEGER_K:
        raise ValueError(
            f"K (columns of weight) = {k}: allowed is at most {MAX_INTEGER_K} where input_bits ({params.input_bits}) "
            f"and weight_bits ({params.weight_bits}) are both 1..8, so that the sum is exact in 32 bits"
        )
    return input.reshape(-1, k), bias
