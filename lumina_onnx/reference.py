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

from ._reference_fma import fma32
from ._reference_noise import check_keys, noise

__all__ = [
    "fma32",
    "noise",
    "optical_linear",
    "optical_linear_backward",
    "pack_weight",
    "quantize_weight",
    "unpack_weight",
]

Floats = NDArray[np.float32]
Range = float | Sequence[float] | Floats

MAX_INTEGER_K = 131072
"""Largest K of an exact integer product: 127 * 127 * 131072 < 2^31."""
NAN = np.uint32(0x7FC00000).view(np.float32)
"""The NaN of every NaN result."""


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

    Raises:
        TypeError: an array of another dtype.
        ValueError: a shape or value that is not allowed, naming it.
    """
    params = _Params.check(
        input_bits, weight_bits, output_bits, input_range, output_range, noise_relative, noise_additive, noise_shot,
        bias_stage, seed, stream,
    )  # fmt: skip
    w, scale = _weight_values(weight, weight_bits, weight_scale, in_features)
    x, b = _check_arrays(params, input, w, bias)
    return _forward(params, x, w, scale, b).y.reshape(*input.shape[:-1], w.shape[0])


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
) -> tuple[Floats, Floats, Floats]:
    """The straight-through gradient of :func:`optical_linear`: ``(grad_input, grad_weight, grad_bias)``.

    ``grad_output`` is float32 ``[..., N]``; the results have the shapes of X ``[..., K]``, W ``[N, K]`` and ``[N]``.
    Every other argument is that of the forward call. The gradient passes where ADC and DAC did not saturate (they can
    only under a static range); the weight quantiser is never masked; the noise is a constant. Each product is one
    chain of fused multiply-adds from 0, n ascending for X and m ascending for W.
    """
    params = _Params.check(
        input_bits, weight_bits, output_bits, input_range, output_range, noise_relative, noise_additive, noise_shot,
        bias_stage, seed, stream,
    )  # fmt: skip
    w, scale = _weight_values(weight, weight_bits, weight_scale, None)
    x, b = _check_arrays(params, input, w, bias)
    _check_dtype("grad_output", grad_output)
    if grad_output.shape != (*input.shape[:-1], w.shape[0]):
        raise ValueError(f"grad_output has shape {grad_output.shape}: allowed is {(*input.shape[:-1], w.shape[0])}")
    forward = _forward(params, x, w, scale, b)
    dy = grad_output.reshape(-1, w.shape[0])
    with np.errstate(all="ignore"):
        g = np.where(forward.adc_saturated, np.float32(0), dy)

        dx = np.zeros(x.shape, dtype=np.float32)
        for n in range(w.shape[0]):
            dx = fma32((g[:, n] * scale[n])[:, None], w[n][None, :], dx)
        dx = np.where(forward.dac_saturated, np.float32(0), _canonical(dx))

        dw = np.zeros(w.shape, dtype=np.float32)
        for m in range(x.shape[0]):
            dw = fma32((g[m] * forward.x_step[m])[:, None], forward.x_values[m][None, :], dw)

        db = np.zeros(w.shape[0], dtype=np.float32)
        for row in g if bias_stage == "analog" else dy:
            db = db + row
    return dx.reshape(input.shape), _canonical(dw), _canonical(db)


def quantize_weight(
    weight: NDArray[Any], bits: int, weight_scale: Range | None = None
) -> tuple[NDArray[np.int8] | NDArray[np.int16], Floats]:
    """Codes of W float32 ``[N, K]`` and the step of one code, float32 ``[N]``.

    ``bits`` is 1..16; codes are int8 up to 8 bits, int16 above. The default step of output n is max|w_n| / L with
    L = 2^(bits-1) - 1; with one bit it is mean|w_n|, summed in 16 lanes.
    """
    _check_bits("weight_bits", bits, 1, "1..16")
    _check_weight_shape(weight)
    _check_dtype("weight", weight)
    _check_finite("weight", weight)
    levels = _levels(bits)
    scale = _default_scale(weight, bits) if weight_scale is None else _spread("weight_scale", weight_scale, len(weight))
    with np.errstate(over="ignore"):
        full_scale = scale * np.float32(levels)
    for n, step in enumerate(scale):
        if not (step >= 0 and np.isfinite(full_scale[n])):
            raise ValueError(
                f"weight_scale[{n}] = {step}: allowed is a finite number >= 0 whose full scale (weight_scale * L) is "
                "finite in 32 bits"
            )
    if bits == 1:
        codes = np.where(weight >= 0, 1, -1)
    else:
        codes, _ = _quantize(weight, levels, full_scale[:, None])
    return codes.astype(np.int8 if bits <= 8 else np.int16), scale


def pack_weight(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Packs codes int8 ``[N, K]`` of 1, 2 or 4 bits into uint8 ``[N, ceil(K*bits/8)]``.

    A code c is stored as c + 2^(bits-1) (one bit: 0 for -1, 1 for +1), low bits first; rows end in zero bits.
    """
    _check_packed_bits(bits)
    _check_codes(codes, bits)
    stored = (codes > 0).astype(np.uint8) if bits == 1 else (codes + 2 ** (bits - 1)).astype(np.uint8)
    per_byte = 8 // bits
    n, k = stored.shape
    stored = np.pad(stored, ((0, 0), (0, -k % per_byte))).reshape(n, -1, per_byte)
    shifts = (bits * np.arange(per_byte)).astype(np.uint8)
    return np.bitwise_or.reduce(stored << shifts, axis=-1)


def unpack_weight(packed: NDArray[np.uint8], bits: int, in_features: int) -> NDArray[np.int8]:
    """The inverse of :func:`pack_weight`: int8 ``[N, in_features]``."""
    _check_packed_bits(bits)
    if in_features < 1:
        raise ValueError(f"in_features = {in_features}: allowed is at least 1")
    row_bytes = -(-in_features * bits // 8)
    if packed.dtype != np.uint8:
        raise TypeError(f"weight has dtype {packed.dtype}: allowed is uint8")
    if packed.ndim != 2 or packed.shape[1] != row_bytes:
        raise ValueError(f"weight has shape {packed.shape}: allowed is [N, {row_bytes}] for in_features {in_features}")
    per_byte = 8 // bits
    shifts = (bits * np.arange(per_byte)).astype(np.uint8)
    stored = ((packed[:, :, None] >> shifts) & np.uint8(2**bits - 1)).reshape(len(packed), -1)
    codes, padding = stored[:, :in_features], stored[:, in_features:]
    if padding.any() or (bits > 1 and (codes == 0).any()):
        raise ValueError(
            f"weight holds a code -{2 ** (bits - 1)} or a padding bit that is not 0: allowed is a stored code of "
            "1..2^weight_bits-1 (any with weight_bits 1), padding bits 0"
        )
    return 2 * codes.astype(np.int8) - 1 if bits == 1 else (codes.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8)


@dataclass(frozen=True)
class _Params:
    input_bits: int
    weight_bits: int
    output_bits: int
    input_range: np.float32
    """0 = dynamic."""
    output_range: Floats
    """[1] or [N]; a single 0 = dynamic."""
    relative: np.float32
    additive: np.float32
    shot: np.float32
    bias_stage: str
    seed: int
    stream: int

    @staticmethod
    def check(
        input_bits: int,
        weight_bits: int,
        output_bits: int,
        input_range: float,
        output_range: Range,
        noise_relative: float,
        noise_additive: float,
        noise_shot: float,
        bias_stage: str,
        seed: int,
        stream: int,
    ) -> _Params:
        _check_bits("input_bits", input_bits, 2, "0 (analog), 2..16")
        _check_bits("weight_bits", weight_bits, 1, "0 (analog), 1..16")
        _check_bits("output_bits", output_bits, 2, "0 (no ADC), 2..16")
        if input_bits == 0 and input_range != 0:
            raise ValueError(f"input_range = {input_range} would be ignored: with input_bits 0 there is no DAC")
        if bias_stage not in ("analog", "digital"):
            raise ValueError(f'bias_stage = {bias_stage!r}: allowed is "analog", "digital"')
        check_keys(seed, stream)
        ranges = _float32(output_range).reshape(-1)
        allowed = "a single 0 (dynamic), or 1 or N finite numbers > 0"
        if len(ranges) == 0:
            raise ValueError(f"output_range has 0 elements: allowed is {allowed}")
        dynamic = np.ndim(output_range) <= 1 and np.array_equal(np.reshape(output_range, -1), [0])
        if not dynamic and not (np.isfinite(ranges) & (ranges > 0)).all():
            raise ValueError(f"output_range = {output_range}: allowed is {allowed}")
        return _Params(
            input_bits,
            weight_bits,
            output_bits,
            _level("input_range", input_range),
            ranges,
            _level("noise_relative", noise_relative),
            _level("noise_additive", noise_additive),
            _level("noise_shot", noise_shot),
            bias_stage,
            seed,
            stream,
        )

    @property
    def dynamic_output(self) -> bool:
        return bool(self.output_range[0] == 0)

    @property
    def integer(self) -> bool:
        """Whether the product is an exact integer one."""
        return 1 <= self.input_bits <= 8 and 1 <= self.weight_bits <= 8


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


def _forward(params: _Params, x: Floats, w: Floats, scale: Floats, bias: Floats | None) -> _Forward:
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
            eps = noise(params.seed, params.stream, *z.shape)
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
            codes, step = _quantize(v, _levels(params.output_bits), full_scale)
            y = np.where(np.isnan(v), NAN, step * codes.astype(np.float32))

        if bias is not None and params.bias_stage == "digital":
            y = y + bias
        y = np.where(nan_row[:, None], NAN, _canonical(y))
    return _Forward(y, a, x_step, dac_saturated, adc_saturated)


def _dac(params: _Params, x: Floats) -> tuple[Floats, Floats, NDArray[np.bool_], NDArray[np.bool_]]:
    """Codes (or values) ``[M, K]``, s_x ``[M]``, saturation ``[M, K]`` and whether a row is NaN ``[M]``."""
    static = params.input_range > 0
    nan_row = np.isnan(x).any(axis=1) | (np.isinf(x).any(axis=1) & ~static)
    x = np.where(nan_row[:, None], np.float32(0), x)
    saturated = (np.abs(x) > params.input_range) if static else np.zeros(x.shape, dtype=bool)
    if params.input_bits == 0:
        values, step = x, np.ones(len(x), dtype=np.float32)
    else:
        full_scale = np.full(len(x), params.input_range) if static else np.abs(x).max(axis=1)
        codes, step = _quantize(x, _levels(params.input_bits), full_scale[:, None])
        values, step = codes.astype(np.float32), step[:, 0]
    return values, np.where(nan_row, NAN, step), saturated, nan_row


def _product(params: _Params, a: Floats, w: Floats) -> Floats:
    if params.integer:
        # Sums below 2^31 are exact in float64 in any order.
        return np.asarray((a.astype(np.float64) @ w.T.astype(np.float64)).astype(np.float32))
    acc = np.zeros((a.shape[0], w.shape[0]), dtype=np.float32)
    for k in range(a.shape[1]):
        acc = fma32(a[:, k][:, None], w[:, k][None, :], acc)
    return acc


def _sigma(params: _Params, z: Floats, full_scale: Floats) -> Floats:
    laws = []
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


def _levels(bits: int) -> int:
    return 1 if bits == 1 else 2 ** (bits - 1) - 1


def _quantize(v: Floats, levels: int, full_scale: Floats) -> tuple[NDArray[np.int32], Floats]:
    """Codes of ``v`` and the signal of one code; ``full_scale`` broadcasts against ``v``. NaN gives 0."""
    limit = np.float32(levels)
    with np.errstate(all="ignore"):
        inv = limit / full_scale
        codes = np.rint(np.clip(v * inv, -limit, limit))
    codes = np.where(np.isfinite(inv) & ~np.isnan(codes), codes, np.float32(0))
    return codes.astype(np.int32), full_scale / limit


def _default_scale(weight: Floats, bits: int) -> Floats:
    magnitude = np.abs(weight)
    if bits > 1:
        return np.asarray(magnitude.max(axis=1) / np.float32(_levels(bits)))
    n, k = weight.shape
    chunks = np.pad(magnitude, ((0, 0), (0, -k % 16))).reshape(n, -1, 16)
    lanes = np.zeros((n, 16), dtype=np.float32)
    with np.errstate(over="ignore"):
        for index in range(chunks.shape[1]):
            lanes = lanes + chunks[:, index]
        for half in (8, 4, 2, 1):
            lanes = lanes[:, :half] + lanes[:, half : 2 * half]
    return np.asarray(lanes[:, 0] / np.float32(k))


def _canonical(values: Floats) -> Floats:
    return np.where(np.isnan(values), NAN, values)


def _weight_values(
    weight: NDArray[Any], bits: int, weight_scale: Range | None, in_features: int | None
) -> tuple[Floats, Floats]:
    """W as the product sees it ``[N, K]``, and the step of one code ``[N]``."""
    if in_features is not None and weight.dtype != np.uint8:
        raise ValueError(f"in_features = {in_features} would be ignored: the weight is not packed in uint8")
    if bits == 0:
        if weight_scale is not None:
            raise ValueError(f"weight_scale = {weight_scale} would be ignored: with weight_bits 0 the weights are analog")
        _check_weight_shape(weight)
        _check_dtype("weight", weight)
        _check_finite("weight", weight)
        return weight, np.ones(len(weight), dtype=np.float32)
    if weight.dtype not in (np.int8, np.uint8):
        codes, scale = quantize_weight(weight, bits, weight_scale)
        return codes.astype(np.float32), scale
    if weight.dtype == np.uint8:
        if in_features is None:
            raise ValueError("in_features is missing: it is required where weight is packed in uint8")
        weight = unpack_weight(weight, bits, in_features)
    if weight_scale is None:
        raise ValueError("weight_scale is missing: allowed is 1 or N numbers where the weights are codes")
    _check_codes(weight, bits)
    scale = _spread("weight_scale", weight_scale, len(weight))
    with np.errstate(over="ignore"):
        if not ((scale >= 0) & np.isfinite(scale * np.float32(_levels(bits)))).all():
            raise ValueError(
                f"weight_scale = {weight_scale}: allowed is finite numbers >= 0 whose full scale (weight_scale * L) is "
                "finite in 32 bits"
            )
    return weight.astype(np.float32), scale


def _float32(value: Any) -> Floats:
    with np.errstate(over="ignore"):
        return np.asarray(value, dtype=np.float64).astype(np.float32)


def _spread(name: str, value: Any, n: int) -> Floats:
    values = _float32(value).reshape(-1)
    if len(values) not in (1, n):
        raise ValueError(f"{name} has {len(values)} elements: allowed is 1, or one for each of the N = {n} outputs")
    return np.broadcast_to(values, (n,)).copy()


def _level(name: str, value: float) -> np.float32:
    level = _float32(value)
    if not (np.isfinite(level) and level >= 0) or (value != 0 and level == 0):
        raise ValueError(f"{name} = {value}: allowed is a finite number >= 0 (in 32 bits)")
    return np.float32(level)


def _check_bits(name: str, bits: int, lowest: int, allowed: str) -> None:
    analog = bits == 0 and not allowed.startswith("1")
    if not (analog or lowest <= bits <= 16):
        raise ValueError(f"{name} = {bits}: allowed is {allowed}")


def _check_packed_bits(bits: int) -> None:
    if bits not in (1, 2, 4):
        raise ValueError(f"weight_bits = {bits}: allowed is 1, 2 or 4 where the weights are packed in uint8")


def _check_codes(codes: NDArray[Any], bits: int) -> None:
    _check_weight_shape(codes)
    if not 1 <= bits <= 8:
        raise ValueError(f"weight_bits = {bits}: allowed is 1..8 where the weights are int8 codes")
    if codes.dtype != np.int8:
        raise TypeError(f"weight has dtype {codes.dtype}: allowed is int8 for codes")
    levels = _levels(bits)
    inside = np.abs(codes.astype(np.int16)) == 1 if bits == 1 else np.abs(codes.astype(np.int16)) <= levels
    if not inside.all():
        row, column = np.argwhere(~inside)[0]
        raise ValueError(
            f"weight[{row}, {column}] = {codes[row, column]}: allowed is a code -L..L with L = 2^(weight_bits-1)-1 "
            "(-1 or +1 with weight_bits 1)"
        )


def _check_weight_shape(weight: NDArray[Any]) -> None:
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"weight has shape {weight.shape}: allowed is [N, K] with N and K at least 1")


def _check_dtype(name: str, array: NDArray[Any]) -> None:
    if array.dtype != np.float32:
        raise TypeError(f"{name} has dtype {array.dtype}: allowed is float32")


def _check_finite(name: str, array: NDArray[Any]) -> None:
    if not np.isfinite(array).all():
        index = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(f"{name}{index.tolist()} = {array[tuple(index)]}: allowed is a finite number")


def _check_arrays(
    params: _Params, input: NDArray[Any], w: Floats, bias: NDArray[Any] | None
) -> tuple[Floats, Floats | None]:
    """X as ``[M, K]`` and the bias, checked against W and the parameters."""
    n, k = w.shape
    _check_dtype("input", input)
    if input.ndim == 0 or input.shape[-1] != k:
        raise ValueError(f"input has shape {input.shape}: allowed is [..., K] with K = {k} of the weight")
    if bias is not None:
        _check_dtype("bias", bias)
        if bias.shape != (n,):
            raise ValueError(f"bias has shape {bias.shape}: allowed is [N] with N = {n} of the weight")
        _check_finite("bias", bias)
    if len(params.output_range) not in (1, n):
        raise ValueError(
            f"output_range has {len(params.output_range)} elements: allowed is 1, or one for each of the N = {n} outputs"
        )
    if params.integer and k > MAX_INTEGER_K:
        raise ValueError(
            f"K (columns of weight) = {k}: allowed is at most {MAX_INTEGER_K} where input_bits ({params.input_bits}) and "
            f"weight_bits ({params.weight_bits}) are both 1..8, so that the sum is exact in 32 bits"
        )
    return input.reshape(-1, k), bias
