"""A histogram of magnitudes over any number of batches, and the clipping range with the least error."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["max", "percentile", "mse"]
METHODS = ("max", "percentile", "mse")

# Magnitudes share a bin if the exponent and the leading 8 bits of the fraction of their float32 agree.
_SHIFT = 15
_BINS = 1 << (31 - _SHIFT)
# Magnitudes below this fraction of the largest are treated as 0 in the search.
_NEGLIGIBLE = 2.0**-12
# Candidates of the search: 16 per octave over 10 octaves, then 33 between the neighbours of the best.
_CANDIDATES = 2.0 ** (-np.arange(161) / 16)
# Midpoints of 16 equally likely slices of the normal distribution.
_NORMALS = np.array([NormalDist().inv_cdf((i + 0.5) / 16) for i in range(16)])
_NORMALS /= np.sqrt(np.mean(_NORMALS**2))


class Histogram:
    """Counts of float32 magnitudes in bins at most 1/256 of an octave wide, over the whole range of float32."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, dtype=np.int64)
        self.maximum = 0.0
        """The largest magnitude, exactly."""

    def add(self, values: NDArray[np.float32]) -> None:
        """Counts the elements of a finite float32 array."""
        if values.size:
            magnitudes = np.abs(values).ravel()
            counts = np.bincount(magnitudes.view(np.int32) >> _SHIFT)
            # Each layer has half a megabyte of counts. Memory that is never written is never committed, so only
            # the bins in use are written.
            used = np.flatnonzero(counts)
            self._counts[used] += counts[used]
            self.maximum = max(self.maximum, float(magnitudes.max()))

    @property
    def count(self) -> int:
        """How many values were counted."""
        return int(self._counts.sum())

    def span(self) -> tuple[int, int]:
        """The first non-empty bin and the one past the last; (0, 0) if all bins are empty."""
        filled = np.flatnonzero(self._counts)
        return (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, 0)

    def counts(self, low: int, high: int) -> NDArray[np.int64]:
        """The counts of the bins from `low` up to `high`, `high` excluded."""
        return self._counts[low:high]

    def become(self, low: int, counts: NDArray[np.int64], maximum: float) -> None:
        """Replaces the contents: `counts` for the bins from `low` on, 0 elsewhere, and their maximum."""
        self._counts[:] = 0
        self._counts[low : low + counts.size] = counts
        self.maximum = maximum

    def quantile(self, fraction: float) -> float:
        """A magnitude that `fraction` of the values do not exceed, at most 0.4 % above the smallest such magnitude."""
        cumulative = np.cumsum(self._counts)
        index = int(np.searchsorted(cumulative, np.ceil(fraction * cumulative[-1])))
        return min(_edge(index + 1), self.maximum) if index else 0.0

    def full_scale(self, method: Method, fraction: float, bits: int, noise: tuple[float, float, float]) -> float:
        """The full scale that a calibration method chooses for `bits` bits and relative, additive and shot noise."""
        if method == "percentile":
            # A quantile of 0 says nothing about the scale of the signal; its maximum does.
            return self.quantile(fraction) or self.maximum
        if method == "mse" and bits:
            return self.least_error_range(bits, *noise)
        return self.maximum

    def fraction_above(self, threshold: float) -> float:
        """The fraction of the values whose magnitude exceeds `threshold`, to within one bin."""
        if threshold >= self.maximum:
            return 0.0
        index = int(np.float32(threshold).view(np.int32)) >> _SHIFT
        return float(self._counts[index + 1 :].sum()) / self.count

    def least_error_range(self, bits: int, relative: float, additive: float, shot: float) -> float:
        """The full scale that minimises the mean squared error of quantisation.

        For each candidate full scale R every value z gets the operator's noise, with sigma^2 = (relative z)^2 +
        (additive R)^2 + shot^2 |z| R, and is then clipped and quantised to `bits` bits at R.
        """
        if self.maximum == 0:
            return 0.0
        values, weights = self._points()
        levels = 2 ** (bits - 1) - 1

        def error(full_scale: float) -> float:
            v = values
            if relative or additive or shot:
                variance = (relative * values) ** 2 + (additive * full_scale) ** 2 + shot**2 * values * full_scale
                v = values + np.sqrt(variance) * _NORMALS[:, None]
            step = full_scale / levels
            quantised = np.rint(np.clip(v / step, -levels, levels)) * step
            return float(np.sum((quantised - values) ** 2 * weights))

        coarse = self.maximum * _CANDIDATES
        best = int(np.argmin([error(candidate) for candidate in coarse]))
        low, high = coarse[min(best + 1, len(coarse) - 1)], coarse[max(best - 1, 0)]
        fine = np.linspace(low, high, 33)
        chosen = float(fine[int(np.argmin([error(candidate) for candidate in fine]))])
        return float(np.float32(min(chosen, self.maximum)))

    def _points(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Two points per bin with their shares of the values; all negligible values are one point at 0."""
        counts = self._counts
        bins = np.flatnonzero(counts)
        low, high = _edges(bins), np.minimum(_edges(bins + 1), self.maximum)
        kept = high > self.maximum * _NEGLIGIBLE
        low, high, shares = low[kept], high[kept], counts[bins][kept] / counts.sum()
        values = np.concatenate([[0.0], low + (high - low) * 0.25, low + (high - low) * 0.75])
        weights = np.concatenate([[1 - shares.sum()], shares / 2, shares / 2])
        return values, weights


@dataclass(frozen=True)
class FullScales:
    """The ranges of a layer's converters; 0 where there is none to set, or the signal was always 0."""

    input_range: float
    output_range: float
    silent: tuple[str, ...]
    """Which of "input" and "output" was always 0, so that its range is dynamic."""


def full_scales(
    histograms: tuple[Histogram, Histogram],
    bits: tuple[int, int],
    noise: tuple[float, float, float],
    method: Method,
    fraction: float,
) -> FullScales:
    """The full scales that a method of calibration chooses for a layer.

    Args:
        histograms: of what its DAC and its ADC see.
        bits: of the DAC and of the ADC.
        noise: its relative, additive and shot noise.
        method: of calibration.
        fraction: of the values that the method "percentile" keeps, from 0 to 1.
    """
    (inputs, outputs), (input_bits, output_bits), (_, additive, shot) = histograms, bits, noise
    silent = []
    input_range = output_range = 0.0
    if input_bits:
        input_range = inputs.full_scale(method, fraction, input_bits, (0.0, 0.0, 0.0))
        silent += [] if input_range else ["input"]
    # Without an ADC it is for the laws of noise that scale with it.
    if output_bits or additive or shot:
        output_range = outputs.full_scale(method, fraction, output_bits, noise)
        silent += [] if output_range else ["output"]
    return FullScales(input_range, output_range, tuple(silent))


def check_method(method: str, percentile: float) -> None:
    """Checks the arguments that choose a calibration method.

    Raises:
        ValueError: one is not allowed; the message names it, its value and what is allowed.
    """
    if method not in METHODS:
        raise ValueError(f"method = {method!r}: allowed is {', '.join(map(repr, METHODS))}")
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile = {percentile}: allowed is a number above 0, at most 100")


def _edges(bins: NDArray[np.int64]) -> NDArray[np.float64]:
    """The lower edges of bins."""
    return (bins.astype(np.int32) << _SHIFT).view(np.float32).astype(np.float64)


def _edge(index: int) -> float:
    return float(_edges(np.array([index]))[0])
