"""Weights of `lumina::OpticalLinear` in plain numpy: codes, their scale and their storage."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._reference_checks import Floats, Range, check_bits, check_dtype, check_finite, spread
from ._reference_quantizer import largest_code, quantize


def quantize_weight(
    weight: NDArray[Any], bits: int, weight_scale: Range | None = None
) -> tuple[NDArray[np.int8] | NDArray[np.int16], Floats]:
    """Codes of W float32 ``[N, K]`` and the step of one code, float32 ``[N]``.

    ``bits`` is 1..16; codes are int8 up to 8 bits, int16 above. The default step of output n is max|w_n| / L with
    L = 2^(bits-1) - 1; with one bit it is mean|w_n|, summed in 16 lanes.
    """
    check_bits("weight_bits", bits, range(1, 17), "1..16")
    _check_weight_shape(weight)
    check_dtype("weight", weight)
    check_finite("weight", weight)
    levels = largest_code(bits)
    scale = _default_scale(weight, bits) if weight_scale is None else spread("weight_scale", weight_scale, len(weight))
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
        codes, _ = quantize(weight, levels, full_scale[:, None])
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
    return np.asarray(np.bitwise_or.reduce(stored << shifts, axis=-1))


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
    signed = codes.astype(np.int16)
    return np.asarray(2 * signed - 1 if bits == 1 else signed - 2 ** (bits - 1), dtype=np.int8)


def weight_values(
    weight: NDArray[Any], bits: int, weight_scale: Range | None, in_features: int | None
) -> tuple[Floats, Floats]:
    """W as the product sees it ``[N, K]``, and the step of one code ``[N]``."""
    if in_features is not None and weight.dtype != np.uint8:
        raise ValueError(f"in_features = {in_features} would be ignored: the weight is not packed in uint8")
    if bits == 0:
        if weight_scale is not None:
            raise ValueError(
                f"weight_scale = {weight_scale} would be ignored: with weight_bits 0 the weights are analog"
            )
        _check_weight_shape(weight)
        check_dtype("weight", weight)
        check_finite("weight", weight)
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
    scale = spread("weight_scale", weight_scale, len(weight))
    with np.errstate(over="ignore"):
        if not ((scale >= 0) & np.isfinite(scale * np.float32(largest_code(bits)))).all():
            raise ValueError(
                f"weight_scale = {weight_scale}: allowed is finite numbers >= 0 whose full scale (weight_scale * L) is "
                "finite in 32 bits"
            )
    return weight.astype(np.float32), scale


def _default_scale(weight: Floats, bits: int) -> Floats:
    magnitude = np.abs(weight)
    if bits > 1:
        return np.asarray(magnitude.max(axis=1) / np.float32(largest_code(bits)))
    n, k = weight.shape
    chunks = np.pad(magnitude, ((0, 0), (0, -k % 16))).reshape(n, -1, 16)
    lanes = np.zeros((n, 16), dtype=np.float32)
    with np.errstate(over="ignore"):
        for index in range(chunks.shape[1]):
            lanes = lanes + chunks[:, index]
        for half in (8, 4, 2, 1):
            lanes = lanes[:, :half] + lanes[:, half : 2 * half]
    return np.asarray(lanes[:, 0] / np.float32(k))


def _check_packed_bits(bits: int) -> None:
    if bits not in (1, 2, 4):
        raise ValueError(f"weight_bits = {bits}: allowed is 1, 2 or 4 where the weights are packed in uint8")


def _check_codes(codes: NDArray[Any], bits: int) -> None:
    _check_weight_shape(codes)
    if not 1 <= bits <= 8:
        raise ValueError(f"weight_bits = {bits}: allowed is 1..8 where the weights are int8 codes")
    if codes.dtype != np.int8:
        raise TypeError(f"weight has dtype {codes.dtype}: allowed is int8 for codes")
    levels = largest_code(bits)
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
