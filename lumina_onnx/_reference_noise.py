"""The noise of `lumina::OpticalLinear` in plain numpy: keys, xoshiro256++ lanes, Box-Muller.

All arrays of words are uint64 and wrap; the Gaussian uses operations that IEEE 754 defines exactly, and no library
function, so every implementation gives the same bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._reference_fma import fma32

Words = NDArray[np.uint64]
Floats = NDArray[np.float32]

BLOCK = 1024
"""Columns of a row that share one key."""
TILE_SHIFT = 24
"""A block's number has this many bits; those above are the tile's number, which is 0 where rows are not split."""
OF_INPUTS = np.uint64(2**63)
"""Joined to the key of a call for the noise on its inputs. Rows are below 2^62, so no key is that of an output."""
LANES = 8
"""Generators of a block; each gives 64 bits per draw."""
GROUP = 32
"""Columns that two draws serve: each draw gives 2 * LANES words of 32 bits, and each pair of words two normals."""
CHUNK = 32
"""Rows that are drawn at once, for which memory is needed."""
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""The increment of SplitMix64."""


def _floats(*values: float) -> tuple[np.float32, ...]:
    return tuple(np.float32(value) for value in values)


# -2 ln(1+f)/f on [sqrt(1/2)-1, sqrt(2)-1], lowest power first.
LOG = _floats(
    -2.0, 9.999998e-1, -6.66679e-1, 5.000351e-1, -3.9924145e-1, 3.3141014e-1, -2.983595e-1, 2.8615063e-1, -1.7469698e-1
)
MINUS_TWO_LN_2 = np.float32(-2.0) * np.float32(0.6931471805599453)
# sin(x)/x and cos(x) as polynomials in x^2 on |x| <= pi/4.
SIN = _floats(1.0, -1.6666655e-1, 8.33216e-3, -1.9515282e-4)
COS = _floats(1.0, -4.9999884e-1, 4.1655775e-2, -1.3591853e-3)
ANGLE_STEP = np.float32(0.7853981633974483) / np.float32(2.0**31)
UNIFORM_STEP = np.float32(2.0**-31)
UNIFORM_OFFSET = np.float32(2.0**-32)
SQRT_HALF_BITS = np.int32(0x3F3504F3)


def splitmix_word(state: ArrayLike, index: int) -> Words:
    """Output number ``index`` (from 0) of SplitMix64 started at ``state``.

    S. Vigna, https://prng.di.unimi.it/splitmix64.c; G. Steele, D. Lea, C. Flood, OOPSLA 2014,
    doi:10.1145/2660193.2660195.
    """
    step = np.uint64((int(GOLDEN) * (index + 1)) % 2**64)
    with np.errstate(over="ignore"):
        z = np.asarray(state, dtype=np.uint64) + step
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))


def mix(x: ArrayLike) -> Words:
    """The first output of SplitMix64 started at ``x``: the hash that keys are built from."""
    return splitmix_word(x, 0)


def call_key(seed: int, stream: int) -> np.uint64:
    """``mix(mix(seed) ^ stream)``: the key of a call's noise on outputs; of that on inputs joined with OF_INPUTS."""
    return np.uint64(mix(mix(np.uint64(seed)) ^ np.uint64(stream)))


def block_keys(key: np.uint64, rows: ArrayLike, blocks: ArrayLike) -> Words:
    """``mix(mix(key ^ row) ^ block)`` of a call's ``key``; ``rows`` and ``blocks`` broadcast."""
    row_key = mix(key ^ np.asarray(rows, dtype=np.uint64))
    return mix(row_key ^ np.asarray(blocks, dtype=np.uint64))


def lanes(keys: Words) -> list[Words]:
    """The state of the lanes of each block: four words ``[..., LANES]``.

    Lane i takes outputs 4i to 4i+3 of SplitMix64 started at the key.
    """
    return [np.stack([splitmix_word(keys, 4 * lane + word) for lane in range(LANES)], axis=-1) for word in range(4)]


def _rotate_left(x: Words, count: int) -> Words:
    return np.asarray((x << np.uint64(count)) | (x >> np.uint64(64 - count)))


def next_words(state: list[Words]) -> Words:
    """The next word of every lane; advances ``state``.

    xoshiro256++: D. Blackman, S. Vigna, ACM Trans. Math. Softw. 47, 2021, doi:10.1145/3460772.
    """
    s0, s1, s2, s3 = state
    result = _rotate_left(s0 + s3, 23) + s0
    t = s1 << np.uint64(17)
    s2 = s2 ^ s0
    s3 = s3 ^ s1
    s1 = s1 ^ s2
    s0 = s0 ^ s3
    s2 = s2 ^ t
    s3 = _rotate_left(s3, 45)
    state[:] = [s0, s1, s2, s3]
    return result


def draw(state: list[Words]) -> NDArray[np.uint32]:
    """One draw as words of 32 bits ``[..., 2 * LANES]``: word 2i is the low half of lane i's word, 2i+1 the high."""
    words = next_words(state)
    halves = np.stack([words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)], axis=-1)
    return halves.astype(np.uint32).reshape(*words.shape[:-1], 2 * LANES)


def _horner(coefficients: tuple[np.float32, ...], x: Floats) -> Floats:
    total = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = fma32(total, x, coefficient)
    return total


def box_muller(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> tuple[Floats, Floats]:
    """The two standard normals of the words ``a`` and ``b``.

    G. Box, M. Muller, Ann. Math. Statist. 29, 1958, doi:10.1214/aoms/1177706645: ``r cos(t)``, ``r sin(t)`` with
    ``r = sqrt(-2 ln u)``. u in (0, 1] comes from ``a``; the low 30 bits of ``b`` give an angle within a quarter of the
    circle, the top two bits the quarter.
    """
    u = fma32((a >> np.uint32(1)).astype(np.float32), UNIFORM_STEP, UNIFORM_OFFSET)
    # u = mantissa * 2^exponent, the mantissa in [sqrt(1/2), sqrt(2)).
    bits = u.view(np.int32)
    exponent = (bits - SQRT_HALF_BITS) >> np.int32(23)
    f = (bits - (exponent << np.int32(23))).view(np.float32) - np.float32(1.0)
    r = np.sqrt(fma32(exponent.astype(np.float32), MINUS_TWO_LN_2, f * _horner(LOG, f)))

    x = (b << np.uint32(2)).view(np.int32).astype(np.float32) * ANGLE_STEP
    square = x * x
    sin = x * _horner(SIN, square)
    cos = (_horner(COS, square).view(np.uint32) ^ (b & np.uint32(0x80000000))).view(np.float32)
    exchange = (b & np.uint32(0x40000000)) != 0
    return np.where(exchange, r * sin, r * cos), np.where(exchange, r * cos, r * sin)


def check_keys(seed: int, stream: int) -> None:
    for name, key in (("seed", seed), ("stream", stream)):
        if not 0 <= key < 2**63:
            raise ValueError(f"{name} = {key}: allowed is 0..2^63-1")


def noise(seed: int, stream: int, rows: int, columns: int, *, tile: int = 0) -> Floats:
    """The standard normals eps ``[rows, columns]`` that a call with this ``seed`` and ``stream`` adds to its outputs.

    ``seed`` and ``stream`` are 0..2^63-1. Where rows are split into tiles each tile has noise of its own: ``tile`` is
    its number, from 0. The value at (m, n) depends on seed, stream, m, n and tile alone.
    """
    return noise_of_rows(seed, stream, np.arange(rows), columns, tile)


def input_noise(seed: int, stream: int, rows: int, in_features: int) -> Floats:
    """The standard normals ``[rows, in_features]`` of the noise that the same call adds to its inputs."""
    return input_noise_of_rows(seed, stream, np.arange(rows), in_features)


def noise_of_rows(seed: int, stream: int, rows: NDArray[np.int64], columns: int, tile: int = 0) -> Floats:
    """Some rows of :func:`noise`, by their numbers: ``[len(rows), columns]``."""
    check_keys(seed, stream)
    return _normals(call_key(seed, stream), rows, columns, tile)


def input_noise_of_rows(seed: int, stream: int, rows: NDArray[np.int64], in_features: int) -> Floats:
    """Some rows of :func:`input_noise`, by their numbers: ``[len(rows), in_features]``."""
    check_keys(seed, stream)
    return _normals(call_key(seed, stream) ^ OF_INPUTS, rows, in_features, 0)


def _normals(key: np.uint64, rows: NDArray[np.int64], columns: int, tile: int) -> Floats:
    eps = np.empty((len(rows), columns), dtype=np.float32)
    numbers = np.arange(-(-columns // BLOCK)) | tile << TILE_SHIFT
    groups = -(-min(columns, BLOCK) // GROUP)
    for start in range(0, len(rows) if columns else 0, CHUNK):
        some = rows[start : start + CHUNK]
        state = lanes(block_keys(key, some[:, None], numbers[None, :]))
        draws = np.stack([draw(state) for _ in range(2 * groups)], axis=-2)
        # The halves of a group are [..., groups, 2, GROUP / 2].
        normals = np.stack(box_muller(draws[..., 0::2, :], draws[..., 1::2, :]), axis=-2)
        eps[start : start + CHUNK] = normals.reshape(len(some), -1)[:, :columns]
    return eps
