"""The products of a gradient in plain numpy: chains of float32, or fixed point in blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ._reference_checks import Floats
from ._reference_fma import fma32


@dataclass(frozen=True)
class Block:
    """Fixed point in blocks. A sum of `terms` products of `levels` with a code of 8 bits is less than 2^31."""

    levels: int
    """L: the largest code."""
    terms: int
    """Terms of a sum that share a full scale."""


BITS_16 = Block(levels=32639, terms=512)
BITS_8 = Block(levels=127, terms=256)
PRECISIONS = {"highest": None, "high": BITS_16, "medium": BITS_16, "8 bits": BITS_8}


def block_of(precision: str) -> Block | None:
    """The fixed point of a precision; None for floats throughout."""
    if precision not in PRECISIONS:
        raise ValueError(f'precision = "{precision}": allowed is "highest", "high", "medium" or "8 bits"')
    return PRECISIONS[precision]


def product(left: Floats, right: Floats, bits: int, block: Block | None) -> Floats:
    """`left` ``[rows, T]`` times `right` ``[T, K]``, which are codes of `bits` bits, or analog values (0).

    Each element is one chain from 0 over ascending terms or blocks.
    """
    total = np.zeros((len(left), right.shape[1]), dtype=np.float32)
    if block is None or not 1 <= bits <= 8:
        for term in range(left.shape[1]):
            total = fma32(left[:, term, None], right[term], total)
        return total
    for start in range(0, left.shape[1], block.terms):
        terms = slice(start, start + block.terms)
        codes, step = _fixed_point(left[:, terms], block.levels)
        exact = codes @ right[terms].astype(np.int32)
        total = fma32(exact.astype(np.float32), step[:, None], total)
    return total


def _fixed_point(v: Floats, levels: int) -> tuple[NDArray[np.int32], Floats]:
    """Codes of one block of each row, int32 ``[rows, terms]``, and what a code stands for, float32 ``[rows]``."""
    with np.errstate(all="ignore"):
        largest = np.abs(v).max(axis=1)  # NaN if there is one
        inv = np.float32(levels) / largest
        finite = np.isfinite(largest)
        coded = finite & np.isfinite(inv)
        codes = np.where(coded[:, None], np.rint(v * inv[:, None]), np.float32(0))
        step = np.where(coded, largest / np.float32(levels), np.where(finite, np.float32(0), np.float32(np.nan)))
    return codes.astype(np.int32), step
