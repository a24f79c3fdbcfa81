"""The quantiser of `lumina::OpticalLinear` in plain numpy: symmetric, mid-tread, halves to even."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def largest_code(bits: int) -> int:
    """L, the largest code: codes are -L..L, or -1 and +1 with one bit."""
    return 1 if bits == 1 else 2 ** (bits - 1) - 1


def quantize(v: Floats, levels: int, full_scale: Floats) -> tuple[NDArray[np.int32], Floats]:
    """Codes of ``v`` and the step of one code; ``full_scale`` broadcasts against ``v``. NaN gives 0."""
    limit = np.float32(levels)
    with np.errstate(all="ignore"):
        return codes_of(v, levels, limit / full_scale), full_scale / limit


def codes_of(v: Floats, levels: int, inv: Floats) -> NDArray[np.int32]:
    """Codes of ``v``, where ``inv`` is codes per unit of ``v``. NaN, and an ``inv`` that is not finite, give 0."""
    limit = np.float32(levels)
    with np.errstate(all="ignore"):
        codes = np.rint(np.clip(v * inv, -limit, limit))
    return np.where(np.isfinite(inv) & ~np.isnan(codes), codes, np.float32(0)).astype(np.int32)
