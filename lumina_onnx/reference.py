"""`lumina::OpticalLinear` in plain numpy: to read, and to check every other implementation against.

``y = ADC(DAC(x) . W + b + noise)``. It has both versions: version 1 is version 2 with the arguments that the latter
added at their defaults. All arithmetic is IEEE 754 float32, rounded to nearest even, subnormals kept (so
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
from ._reference_converters import NAN, Inputs, dac, full_scale
from ._reference_fma import fma32
from ._reference_gradient import block_of, product
from ._reference_light import Light, Pass, sigma
from ._reference_noise import input_noise, noise, noise_of_rows
from ._reference_quantizer import largest_code, quantize
from ._reference_weights import pack_weight, quantize_weight, unpack_weight, weight_values

__all__ = [
    "fma32",
    "input_noise",
    "noise",
    "optical_linear",
    "optical_linear_backward",
    "pack_weight",
    "quantize_weight",
    "unpack_weight",
]


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
    tile_features: int = 0,
    output_bound: float = 0.0,
    noise_read: float = 0.0,
    photons: float = 0.0,
    detection: str = "offset",
    photon_reference: str = "full_scale",
    input_noise_relative: float = 0.0,
    input_noise_additive: float = 0.0,
    weight_levels: int = 0,
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
        tile_features: inputs that one pass of the core takes, 1..131072. A longer row is split into tiles; each has
            noise and an ADC of its own, and the results are added digitally. 0 = the whole row.
        output_bound: ADC full scale in products of two full-scale operands, in place of `output_range`. 0 = off.
        noise_read: sigma of each weight, drawn anew in each use, as a fraction of the weight's full scale.
        photons: photons that one product of two full-scale operands puts on the detector, at least 1e-6. 0 = off.
        detection: the light that the detector sees: weights shifted into 0..1 ("offset"), or both complementary ports
            ("balanced").
        photon_reference: "mean": `photons` is the mean over the row's inputs of what enters a product.
        input_noise_relative: sigma on the inputs behind the DAC as a fraction of the value, 0..1.
        input_noise_additive: the same as a fraction of the DAC's full scale, 0..1.
        weight_levels: the code that is a weight's full scale. 0 = the largest code.
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
        input_bits=input_bits, weight_bits=weight_bits, output_bits=output_bits, input_range=input_range,
        output_range=output_range, noise_relative=noise_relative, noise_additive=noise_additive, noise_shot=noise_shot,
        bias_stage=bias_stage, tile_features=tile_features, output_bound=output_bound, noise_read=noise_read,
        photons=photons, detection=detection, photon_reference=photon_reference,
        input_noise_relative=input_noise_relative, input_noise_additive=input_noise_additive,
        weight_levels=weight_levels, seed=seed, stream=stream,
    )  # fmt: skip
    w, scale = weight_values(weight, weight_bits, weight_scale, in_features)
    x, b = _check_arrays(params, input, w, bias)
    params.check_bound(scale)
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
    tile_features: int = 0,
    output_bound: float = 0.0,
    noise_read: float = 0.0,
    photons: float = 0.0,
    detection: str = "offset",
    photon_reference: str = "full_scale",
    input_noise_relative: float = 0.0,
    input_noise_additive: float = 0.0,
    weight_levels: int = 0,
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
        input_bits=input_bits, weight_bits=weight_bits, output_bits=output_bits, input_range=input_range,
        output_range=output_range, noise_relative=noise_relative, noise_additive=noise_additive, noise_shot=noise_shot,
        bias_stage=bias_stage, tile_features=tile_features, output_bound=output_bound, noise_read=noise_read,
        photons=photons, detection=detection, photon_reference=photon_reference,
        input_noise_relative=input_noise_relative, input_noise_additive=input_noise_additive,
        weight_levels=weight_levels, seed=seed, stream=stream,
    )  # fmt: skip
    block = block_of(precision)
    w, scale = weight_values(weight, weight_bits, weight_scale, None)
    x, b = _check_arrays(params, input, w, bias)
    params.check_bound(scale)
    check_dtype("grad_output", grad_output)
    if grad_output.shape != (*input.shape[:-1], w.shape[0]):
        raise ValueError(f"grad_output has shape {grad_output.shape}: allowed is {(*input.shape[:-1], w.shape[0])}")
    forward = _forward(params, x, w, scale, b, np.arange(len(x)))
    a, x_step = forward.inputs.values, forward.inputs.step
    dy = grad_output.reshape(-1, w.shape[0])
    dx, dw = np.empty(x.shape, dtype=np.float32), np.empty(w.shape, dtype=np.float32)
    with np.errstate(all="ignore"):
        for tile, saturated in zip(params.tiles(x.shape[1]), forward.adc_saturated, strict=True):
            g = np.where(saturated, np.float32(0), dy)
            dx[:, tile] = product(g * scale, w[:, tile], weight_bits, block)
            dw[:, tile] = product((g * x_step[:, None]).T, a[:, tile], input_bits, block)
        dx = np.where(forward.inputs.saturated, np.float32(0), _canonical(dx))

        # An analog bias enters with the first tile.
        db = np.zeros(w.shape[0], dtype=np.float32)
        for row in np.where(forward.adc_saturated[0], np.float32(0), dy) if bias_stage == "analog" else dy:
            db = db + row
    return dx.reshape(input.shape), _canonical(dw), _canonical(db)


@dataclass(frozen=True)
class _Forward:
    y: Floats
    """[M, N]"""
    inputs: Inputs
    adc_saturated: list[NDArray[np.bool_]]
    """[M, N] for each tile."""


def _forward(
    params: Params, x: Floats, w: Floats, scale: Floats, bias: Floats | None, rows: NDArray[np.int64]
) -> _Forward:
    shape, k = (len(x), len(w)), x.shape[1]
    levels = largest_code(params.output_bits)
    with np.errstate(all="ignore"):
        inputs = dac(params, x, rows)
        nan_row = inputs.nan_row
        product_step = inputs.step[:, None] * scale[None, :]
        fixed = full_scale(params, inputs.step, scale)

        y, total = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.int64)
        undefined, adc_saturated = np.zeros(shape, dtype=bool), list[NDArray[np.bool_]]()
        for u, tile in enumerate(params.tiles(k)):
            acc = _product(params, inputs.values[:, tile], w[:, tile])
            enters = bias is not None and params.bias_stage == "analog" and u == 0
            analog_bias = bias if bias is not None and enters else np.zeros(1, dtype=np.float32)
            z = fma32(acc, product_step, analog_bias)

            v = z
            if params.noisy_outputs:
                noise_range, light = None, Light.of(inputs.values, tile) if params.reads_light else None
                if params.reads_range:
                    noise_range, nan_row = (fixed.range, nan_row) if fixed else _largest(z, nan_row)
                core = Pass(z, analog_bias, product_step, noise_range, light, k)
                v = fma32(sigma(params, core), noise_of_rows(params.seed, params.stream, rows, shape[1], u), z)
            undefined |= np.isnan(v)

            saturated = np.zeros(shape, dtype=bool)
            if params.output_bits == 0:
                y = y + v if u else v
            elif fixed:
                saturated = np.abs(v) > fixed.range
                total = total + fixed.codes(v, levels)
            else:
                largest, nan_row = _largest(v, nan_row)
                codes, step = quantize(v, levels, largest)
                y = fma32(step, codes, y)
            adc_saturated.append(saturated)

        if params.output_bits and fixed:
            # Below 2^31, and converted to float32 once.
            y = fixed.step * total.astype(np.float32)
        if bias is not None and params.bias_stage == "digital":
            y = y + bias
        y = np.where(nan_row[:, None] | undefined, NAN, _canonical(y))
    return _Forward(np.asarray(y), inputs, adc_saturated)


def _largest(values: Floats, nan_row: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.bool_]]:
    """The largest magnitude of each row ``[M, 1]``, and the rows that are NaN throughout, with those it makes so."""
    largest = np.abs(values).max(axis=1, keepdims=True)
    return largest, nan_row | ~np.isfinite(largest[:, 0])


def _product(params: Params, a: Floats, w: Floats) -> Floats:
    if params.integer:
        # Sums below 2^31 are exact in float64 in any order.
        return np.asarray((a.astype(np.float64) @ w.T.astype(np.float64)).astype(np.float32))
    acc = np.zeros((a.shape[0], w.shape[0]), dtype=np.float32)
    for k in range(a.shape[1]):
        acc = fma32(a[:, k][:, None], w[:, k][None, :], acc)
    return acc


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
    params.check_shape(n, k)
    return input.reshape(-1, k), bias
