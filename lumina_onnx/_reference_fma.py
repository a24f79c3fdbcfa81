"""A fused multiply-add of 32-bit floats, which numpy lacks."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def fma32(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> NDArray[np.float32]:
    """``a * b + c`` rounded once to float32, as IEEE 754's fusedMultiplyAdd.

    ``a``, ``b``, ``c`` are float32 (other types are converted to it) and broadcast. NaN, infinities, signed zeros,
    subnormals and overflow are as IEEE 754 has them; the payload of a NaN is not defined.

    The product of two float32 has at most 48 significant bits and an exponent far inside float64's, so it is exact in
    float64. The sum with ``c`` is not, and rounding it to nearest twice (to 53 bits, then to 24) can differ from
    rounding once. Rounded to *odd* in the first step it cannot: of the two float64 around an inexact sum take the one
    whose last bit is 1, and the second rounding sees on which side of every tie the exact sum lies. That holds where
    the first format has at least two bits more than the second, subnormals included (S. Boldo, G. Melquiond, "Emulation
    of FMA and correctly rounded sums: proved algorithms using rounding to odd", IEEE Trans. Comput. 57, 2008,
    doi:10.1109/TC.2007.70819, theorem 3). The exact sum is known as ``total + error`` (Knuth's TwoSum), and ``error``
    says whether it was inexact and to which side to step.
    """
    a, b, c = (np.asarray(value, dtype=np.float32).astype(np.float64) for value in (a, b, c))
    with np.errstate(all="ignore"):
        product = np.asarray(a * b)
        total = np.asarray(product + c)
        c_part = total - product
        error = (product - (total - c_part)) + (c - c_part)
        inexact = (error > 0) | (error < 0)  # false where total is infinite or NaN: error is NaN there
        bits = total.view(np.int64)
        away_from_zero = (error > 0) == (total > 0)
        step = np.where(inexact & (bits & 1 == 0), np.where(away_from_zero, 1, -1), 0)
        return np.asarray((bits + step).view(np.float64).astype(np.float32))
