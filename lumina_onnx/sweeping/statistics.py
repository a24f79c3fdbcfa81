"""Means over draws, and their standard errors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["estimate"]


def estimate(values: NDArray[np.float64], draws: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means over the last `draws` dimensions, and their standard errors; these are NaN without two draws.

    Over one dimension that is the sample's standard deviation by the square root of its size. Over two, such as devices
    and the seeds that each of them is run with, values of one device are alike, and so are values of one seed: there
    the variance of the mean is (MS_a + MS_b - MS_ab) / (a b), with the mean squares of a two-way analysis of variance
    without replication, and at least that of each dimension alone.

    Args:
        values: float64 ``[..., draws]``; 0 to 2 dimensions of draws.
        draws: their number.
    """
    axes = tuple(range(values.ndim - draws, values.ndim))
    shape = values.shape[values.ndim - draws :]
    mean = values.mean(axis=axes) if axes else values
    count = int(np.prod(shape, dtype=np.int64))
    if count < 2:
        return mean, np.full_like(mean, np.nan)
    long = tuple(axis for axis, size in zip(axes, shape, strict=True) if size > 1)
    if len(long) == 1:
        return mean, np.squeeze(values.std(axis=long, ddof=1, keepdims=True) / count**0.5, axes)
    a, b = shape
    of_a, of_b = (values.mean(axis=axis, keepdims=True) for axis in (-1, -2))
    grand = values.mean(axis=(-2, -1), keepdims=True)
    square_a = b * ((of_a - grand) ** 2).sum(axis=(-2, -1)) / (a - 1)
    square_b = a * ((of_b - grand) ** 2).sum(axis=(-2, -1)) / (b - 1)
    square_ab = ((values - of_a - of_b + grand) ** 2).sum(axis=(-2, -1)) / ((a - 1) * (b - 1))
    square = np.maximum(np.maximum(square_a, square_b), square_a + square_b - square_ab)
    return mean, np.sqrt(square / count)
