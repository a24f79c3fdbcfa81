"""A second numpy implementation of docs/operator.md, written from that page alone: the fuzzer's reference.

It imports nothing from the package, so that it does not repeat a misreading of the page there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Array = NDArray[Any]

F = np.float32
QUIET_NAN = np.uint32(0x7FC00000)
LANES = 8
GROUP = 32
BLOCK = 1024


def optical_linear(
    x: Floats,
    w: Array,
    w_scale: Floats,
    b: Floats | None,
    *,
    stream: int,
    input_bits: int = 0,
    weight_bits: int = 0,
    output_bits: int = 8,
    input_range: float = 0.0,
    output_range: list[float] | tuple[float, ...] = (0.0,),
    noise_relative: float = 0.0,
    noise_additive: float = 0.0,
    noise_shot: float = 0.0,
    bias_stage: str = "analog",
    seed: int = 0,
    in_features: int | None = None,
) -> Floats:
    """Y of a node with these attributes and inputs, as stored in a file, in its run number `stream`."""
    with np.errstate(all="ignore"):
        rows = x.reshape(-1, x.shape[-1])
        ranges = np.array(output_range, F)
        static = bool(ranges[0] > 0)
        analog_bias = b if b is not None and bias_stage == "analog" else np.zeros(len(w), F)
        levels = [F(level) for level in (noise_relative, noise_additive, noise_shot)]

        # An infinity saturates if there is a full scale to saturate at.
        infinity_saturates = input_bits > 0 and input_range > 0
        lost: Any = np.isnan(rows).any(1) if infinity_saturates else ~np.isfinite(rows).all(1)

        a, step = dac(rows, input_bits, F(input_range))
        c = weight_codes(w, w_scale, weight_bits, in_features)
        if 1 <= input_bits <= 8 and 1 <= weight_bits <= 8:
            product = (a.astype(np.int64) @ c.astype(np.int64).T).astype(F)
        else:
            product = chain(a.astype(F), c.astype(F))
        z = fma(product, step * (w_scale if weight_bits else np.ones(len(w), F)), analog_bias)

        v = z
        if any(levels):
            full_scale = ranges
            if not static:
                full_scale = np.abs(z).max(1, keepdims=True)
                if levels[1] or levels[2]:
                    lost |= ~np.isfinite(z).all(1)
            eps = normals(seed, stream, *z.shape)
            v = fma(sigma(z, full_scale, *levels), eps, z)

        y = v
        if output_bits:
            full_scale = ranges
            if not static:
                full_scale = np.abs(v).max(1, keepdims=True)
                lost |= ~np.isfinite(v).all(1)
            codes, steps = quantize(v, output_bits, full_scale)
            y = np.where(np.isnan(v), v, steps * codes)
        if b is not None and bias_stage == "digital":
            y = y + b
        y = np.where(lost[:, None], F(np.nan), y).astype(F)
        y.view(np.uint32)[np.isnan(y)] = QUIET_NAN
        return y.reshape(*x.shape[:-1], len(w))


# Arithmetic


def fma(a: Any, b: Any, c: Any) -> Floats:
    """a b + c with a single rounding.

    In float64 the product is exact. The sum is rounded to odd, which keeps what the rounding to float32 needs.
    """
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    c = np.asarray(c, np.float64)
    total = np.asarray(product + c)
    # The exact rounding error of the sum (Knuth's two-sum).
    part = total - product
    rest = (product - (total - part)) + (c - part)
    even = total.view(np.int64) & 1 == 0
    inexact = np.isfinite(total) & (rest != 0) & even
    odd = np.nextafter(total, np.where(rest > 0, np.inf, -np.inf))
    return np.where(inexact, odd, total).astype(F)


def chain(a: Floats, c: Floats) -> Floats:
    """sum_k a[m, k] c[n, k] as one chain of fused multiply-adds from 0, k ascending."""
    total = np.zeros((len(a), len(c)), F)
    for k in range(a.shape[1]):
        total = fma(a[:, k, None], c[None, :, k], total)
    return total


def quantize(v: Floats, bits: int, full_scale: Floats) -> tuple[Floats, Floats]:
    """The codes, as floats, and the step of a quantiser with this full scale."""
    largest = F(2 ** (bits - 1) - 1)
    inverse = largest / full_scale
    codes = np.rint(np.clip(v * inverse, -largest, largest))
    # Codes are integers, so there is no -0.
    codes = np.where(np.isfinite(inverse) & ~np.isnan(codes), codes, F(0)) + F(0)
    return codes, full_scale / largest


def dac(rows: Floats, bits: int, full_scale: np.float32) -> tuple[Floats, Floats]:
    """a and s_x of each row; an analog input enters unquantised."""
    if not bits:
        return rows, np.ones((len(rows), 1), F)
    scales = np.full((len(rows), 1), full_scale) if full_scale else np.abs(rows).max(1, keepdims=True)
    return quantize(rows, bits, scales)


# Weights


def weight_codes(w: Array, w_scale: Floats, bits: int, in_features: int | None) -> Array:
    """c as ``[N, K]``: the values of an analog weight, else the codes, from any storage."""
    if w.dtype == np.uint8:
        assert in_features is not None
        return unpack(w, bits, in_features)
    if w.dtype == np.int8 or not bits:
        return w
    if bits == 1:
        return np.where(w >= 0, F(1), F(-1))
    largest = F(2 ** (bits - 1) - 1)
    return quantize(w, bits, (w_scale * largest)[:, None])[0]


def unpack(w: NDArray[np.uint8], bits: int, k: int) -> NDArray[np.int64]:
    """Unpacks codes from bytes that hold several each, low bits first."""
    fields = w.astype(np.int64)[:, :, None] >> np.arange(0, 8, bits) & (2**bits - 1)
    stored = fields.reshape(len(w), -1)[:, :k]
    return 2 * stored - 1 if bits == 1 else stored - 2 ** (bits - 1)


def pack(codes: Array, bits: int) -> NDArray[np.uint8]:
    """Packs codes into bytes, the end of each row padded with zero bits."""
    stored = (codes.astype(np.int64) + 1) // 2 if bits == 1 else codes.astype(np.int64) + 2 ** (bits - 1)
    fields = 8 // bits
    padded = np.pad(stored, ((0, 0), (0, -stored.shape[1] % fields))).reshape(len(codes), -1, fields)
    return np.asarray((padded << np.arange(0, 8, bits)).sum(-1), np.uint8)


def default_scale(w: Floats, bits: int) -> Floats:
    """A channel's weight step if none is given."""
    if bits > 1:
        return np.asarray(np.abs(w).max(1) / F(2 ** (bits - 1) - 1), F)
    lanes = np.zeros((len(w), 16), F)
    for k in range(w.shape[1]):
        lanes[:, k % 16] += np.abs(w[:, k])
    for half in (8, 4, 2, 1):
        lanes[:, :half] += lanes[:, half : 2 * half]
    return np.asarray(lanes[:, 0] / F(w.shape[1]), F)


# Noise


def sigma(z: Floats, full_scale: Floats, relative: F, additive: F, shot: F) -> Floats:
    """The factor of the normal: a single law's formula, or the root of the laws' summed variances."""
    laws = []
    if relative:
        laws.append(relative * np.abs(z))
    if additive:
        laws.append(np.broadcast_to(additive * full_scale, z.shape))
    if shot:
        laws.append(shot * np.sqrt(np.abs(z) * full_scale))
    if len(laws) == 1:
        return laws[0]
    total = laws[0] * laws[0]
    for law in laws[1:]:
        total = total + law * law
    return np.sqrt(total)


U = np.uint64
GOLDEN = U(0x9E3779B97F4A7C15)


def _finish(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ x >> U(30)) * U(0xBF58476D1CE4E5B9)
    x = (x ^ x >> U(27)) * U(0x94D049BB133111EB)
    return x ^ x >> U(31)


def mix(x: Any) -> NDArray[np.uint64]:
    """The first output of SplitMix64 seeded with x."""
    with np.errstate(over="ignore"):
        return _finish(np.asarray(x, U) + GOLDEN)


def _rotated(x: NDArray[np.uint64], by: int) -> NDArray[np.uint64]:
    return x << U(by) | x >> U(64 - by)


def block_states(seed: int, stream: int, rows: NDArray[np.uint64], block: int) -> list[NDArray[np.uint64]]:
    """The four words of the generators' states, ``[rows, lanes]`` each."""
    h = mix(mix(mix(mix(U(seed)) ^ U(stream)) ^ rows) ^ U(block))
    words = _finish(h[:, None] + GOLDEN * np.arange(1, 4 * LANES + 1, dtype=U))
    return list(words.reshape(-1, LANES, 4).transpose(2, 0, 1))


def draw(s: list[NDArray[np.uint64]]) -> NDArray[np.uint32]:
    """The next word of each lane of xoshiro256++, as halves: ``[rows, 2 lanes]``."""
    word = _rotated(s[0] + s[3], 23) + s[0]
    t = s[1] << U(17)
    s[2] = s[2] ^ s[0]
    s[3] = s[3] ^ s[1]
    s[1] = s[1] ^ s[2]
    s[0] = s[0] ^ s[3]
    s[2] = s[2] ^ t
    s[3] = _rotated(s[3], 45)
    halves = np.stack([word & U(0xFFFFFFFF), word >> U(32)], -1)
    return halves.reshape(len(word), 2 * LANES).astype(np.uint32)


H = (-2, 0.9999998, -0.666679, 0.5000351, -0.39924145, 0.33141014, -0.2983595, 0.28615063, -0.17469698)
S = (1, -0.16666655, 0.00833216, -0.00019515282)
C = (1, -0.49999884, 0.041655776, -0.0013591853)


def polynomial(coefficients: tuple[float, ...], x: Floats) -> Floats:
    """Horner's rule; the coefficients start with the lowest power."""
    value = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = fma(value, x, F(coefficient))
    return value


def box_muller(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> tuple[Floats, Floats]:
    """Two normals for each pair of words."""
    u = fma((a >> np.uint32(1)).astype(F), F(2**-31), F(2**-32))
    bits = u.view(np.int32)
    e = (bits - np.int32(0x3F3504F3)) >> np.int32(23)
    f = (bits - (e << np.int32(23))).view(F) - F(1)
    r = np.sqrt(fma(e.astype(F), F(-2 * np.log(2)), f * polynomial(H, f)))
    x = (b << np.uint32(2)).view(np.int32).astype(F) * F(np.pi / 4 * 2**-31)
    s = x * polynomial(S, x * x)
    c = polynomial(C, x * x)
    c = np.where(b >> np.uint32(31) == 1, -c, c)
    swapped = b >> np.uint32(30) & np.uint32(1) == 1
    return np.where(swapped, r * s, r * c), np.where(swapped, r * c, r * s)


def normals(seed: int, stream: int, rows: int, columns: int) -> Floats:
    """eps, ``[rows, columns]``."""
    result = np.empty((rows, -(-columns // GROUP) * GROUP), F)
    for start in range(0, columns, GROUP):
        if start % BLOCK == 0:
            states = block_states(seed, stream, np.arange(rows, dtype=U), start // BLOCK)
        first, second = box_muller(draw(states), draw(states))
        result[:, start : start + 16], result[:, start + 16 : start + 32] = first, second
    return result[:, :columns]
