"""A histogram of magnitudes over any number of batches, and the clipping range with the least error."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["max", "percentile", "mse"]
METHODS = ("max", "percentile", "mse")

# Magnitudes share a bin if the exponent and some leading bits of the fraction of their float32 agree: 8 bits; 5 where
# each output is counted apart, since a network has tens of thousands of them.
_FRACTION_BITS, _FRACTION_BITS_OF_OUTPUTS = 8, 5
# Magnitudes below this fraction of the largest are treated as 0 in the search.
_NEGLIGIBLE = 2.0**-12
# Midpoints of 16 equally likely slices of the normal distribution.
_NORMALS = np.array([NormalDist().inv_cdf((i + 0.5) / 16) for i in range(16)])
_NORMALS /= np.sqrt(np.mean(_NORMALS**2))

# Elements of arrays in the search.
_AT_ONCE = 1 << 17

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Search:
    """The candidates of a search for a full scale: some per octave, then some between the neighbours of the best."""

    per_octave: int
    octaves: int
    fine: int

    def coarse(self, maximum: float) -> Floats:
        return maximum * 2.0 ** (-np.arange(self.per_octave * self.octaves + 1) / self.per_octave)


_SEARCH, _SEARCH_OF_OUTPUTS = _Search(16, 10, 33), _Search(4, 6, 17)


class Histogram:
    """Counts of float32 magnitudes over the whole range of float32: of all values together, or of each output's apart.

    Bins are at most 1/256 of an octave wide, and 1/32 where outputs are counted apart.
    """

    def __init__(self, outputs: int | None = None) -> None:
        """`outputs`: the last dimension of the arrays to come, whose columns are counted apart; None: all together."""
        self.outputs = outputs
        self._search = _SEARCH if outputs is None else _SEARCH_OF_OUTPUTS
        self._shift = 23 - (_FRACTION_BITS if outputs is None else _FRACTION_BITS_OF_OUTPUTS)
        columns = 1 if outputs is None else outputs
        # Memory that is never written is never committed: only the rows of bins in use are written.
        self._counts = np.zeros((1 << (31 - self._shift), columns), dtype=np.int64)
        self.maxima = np.zeros(columns, dtype=np.float32)
        """The largest magnitude of each column, exactly."""

    def add(self, values: NDArray[np.float32]) -> None:
        """Counts the elements of a finite float32 array."""
        if not values.size:
            return
        columns = self.maxima.size
        magnitudes = np.abs(values).reshape(-1, columns)
        bins = magnitudes.view(np.int32) >> self._shift
        if self.outputs is None:
            counts = np.bincount(bins.ravel())
            used = np.flatnonzero(counts)
            self._counts[used, 0] += counts[used]
        else:
            np.add.at(self._counts.reshape(-1), (bins.astype(np.int64) * columns + np.arange(columns)).ravel(), 1)
        self.maxima = np.maximum(self.maxima, magnitudes.max(axis=0))

    @property
    def count(self) -> int:
        """How many values were counted."""
        return int(self.counts(*self.span()).sum())

    def span(self) -> tuple[int, int]:
        """The first non-empty bin and the one past the last; (0, 0) if all bins are empty."""
        if not self.maxima.any():
            # Zeros are in the first bin.
            return (0, 1) if self._counts[0].any() else (0, 0)
        high = (int(self.maxima.max().view(np.int32)) >> self._shift) + 1
        filled = np.flatnonzero(self._counts[:high].any(axis=1))
        return int(filled[0]), high

    def counts(self, low: int, high: int) -> NDArray[np.int64]:
        """The counts of the bins from `low` up to `high`, `high` excluded, of each column."""
        return self._counts[low:high]

    def become(self, low: int, counts: NDArray[np.int64], maxima: NDArray[np.float32]) -> None:
        """Replaces the contents: `counts` for the bins from `low` on, 0 elsewhere, and the columns' maxima."""
        self._counts = np.zeros_like(self._counts)
        self._counts[low : low + len(counts)] = counts
        self.maxima = maxima

    def quantiles(self, fraction: float) -> Floats:
        """For each column the smallest magnitude that `fraction` of its values do not exceed, or up to a bin more."""
        low, high = self.span()
        cumulative = np.cumsum(self.counts(low, high), axis=0)
        if not len(cumulative):
            return np.zeros(self.maxima.size)
        enough = np.ceil(fraction * cumulative[-1])
        bins = low + np.sum(cumulative < enough, axis=0)
        return np.where(bins > 0, np.minimum(self._edges(bins + 1), self.maxima), 0.0)

    def full_scales(self, method: Method, fraction: float, bits: int, noise: tuple[float, float, float]) -> Floats:
        """What a calibration method chooses for each column; 0 where it was always 0.

        Args:
            method: of calibration.
            fraction: of the values that "percentile" keeps.
            bits: of the converter.
            noise: relative, additive and shot noise before it.
        """
        if method == "percentile":
            # A quantile of 0 says nothing about the scale of the signal; its maximum does.
            quantiles = self.quantiles(fraction)
            return np.where(quantiles > 0, quantiles, self.maxima)
        if method == "mse" and bits:
            low, high = self.span()
            columns = zip(np.ascontiguousarray(self.counts(low, high).T), self.maxima, strict=True)
            return np.array([self._least_error(low, counts, float(top), bits, noise) for counts, top in columns])
        return self.maxima.astype(np.float64)

    def fraction_above(self, thresholds: float | Floats) -> float:
        """The fraction of the values whose magnitude exceeds their column's threshold, to within one bin."""
        limits = np.broadcast_to(np.asarray(thresholds, np.float32), self.maxima.shape)
        low, high = self.span()
        beyond = np.arange(low, high)[:, None] > limits.view(np.int32) >> self._shift
        return float(self.counts(low, high)[beyond & (limits < self.maxima)].sum()) / self.count

    def _least_error(
        self, low: int, counts: NDArray[np.int64], maximum: float, bits: int, noise: tuple[float, float, float]
    ) -> float:
        """The full scale that minimises the mean squared error of quantisation of a column.

        For each candidate full scale R every value z gets the operator's noise, with sigma^2 = (relative z)^2 +
        (additive R)^2 + shot^2 |z| R, and is then clipped and quantised to `bits` bits at R. The column has these
        `counts` in the bins from `low` on, and this maximum.
        """
        if maximum == 0:
            return 0.0
        relative, additive, shot = noise
        values, weights = self._points(low, counts, maximum)
        levels = 2 ** (bits - 1) - 1

        def errors(full_scales: Floats) -> Floats:
            scale = full_scales[:, None, None]
            v = values
            if relative or additive or shot:
                variance = (relative * values) ** 2 + (additive * scale) ** 2 + shot**2 * values * scale
                v = values + np.sqrt(variance) * _NORMALS[:, None]
            step = scale / levels
            quantised = np.rint(np.clip(v / step, -levels, levels)) * step
            return np.sum((quantised - values) ** 2 * weights, axis=(1, 2))

        def best_of(candidates: Floats) -> int:
            at_once = max(1, _AT_ONCE // (_NORMALS.size * values.size))
            parts = [errors(candidates[first : first + at_once]) for first in range(0, candidates.size, at_once)]
            return int(np.argmin(np.concatenate(parts)))

        coarse = self._search.coarse(maximum)
        best = best_of(coarse)
        low, high = coarse[min(best + 1, len(coarse) - 1)], coarse[max(best - 1, 0)]
        fine = np.linspace(low, high, self._search.fine)
        chosen = float(fine[best_of(fine)])
        return float(np.float32(min(chosen, maximum)))

    def _points(self, first: int, counts: NDArray[np.int64], maximum: float) -> tuple[Floats, Floats]:
        """Two points per bin of a column with their shares of the values; all negligible values are one point at 0."""
        filled = np.flatnonzero(counts)
        low, high = self._edges(first + filled), np.minimum(self._edges(first + filled + 1), maximum)
        kept = high > maximum * _NEGLIGIBLE
        low, high, shares = low[kept], high[kept], counts[filled][kept] / counts.sum()
        values = np.concatenate([[0.0], low + (high - low) * 0.25, low + (high - low) * 0.75])
        weights = np.concatenate([[1 - shares.sum()], shares / 2, shares / 2])
        return values, weights

    def _edges(self, bins: NDArray[np.int64]) -> Floats:
        """The lower edges of bins."""
        return (bins.astype(np.int32) << self._shift).view(np.float32).astype(np.float64)


@dataclass(frozen=True)
class FullScales:
    """The ranges of a layer's converters; 0 where there is none to set, or the signal was always 0."""

    input_range: float
    output_range: float | tuple[float, ...]
    """One for each output where outputs were counted apart."""
    notes: tuple[str, ...]
    """What the signals did not determine."""


def full_scales(
    histograms: tuple[Histogram, Histogram],
    bits: tuple[int, int],
    noise: tuple[float, float, float],
    method: Method,
    fraction: float,
) -> FullScales:
    """The full scales that a method of calibration chooses for a layer.

    An output that was always 0 among others that were not gets the largest range of the layer, which clips nothing
    that the others do not reach.

    Args:
        histograms: of what its DAC and its ADC see.
        bits: of the DAC and of the ADC.
        noise: its relative, additive and shot noise.
        method: of calibration.
        fraction: of the values that the method "percentile" keeps, from 0 to 1.
    """
    (inputs, outputs), (input_bits, output_bits), (_, additive, shot) = histograms, bits, noise
    notes = []
    input_range = 0.0
    output_range: float | tuple[float, ...] = 0.0
    if input_bits:
        input_range = float(inputs.full_scales(method, fraction, input_bits, (0.0, 0.0, 0.0))[0])
        notes += [] if input_range else ["its input was always 0: dynamic"]
    # Without an ADC it is for the laws of noise that scale with it.
    if output_bits or additive or shot:
        found = outputs.full_scales(method, fraction, output_bits, noise)
        largest, silent = float(found.max()), int(np.sum(found == 0))
        if largest and silent:
            were, have = ("was", "it has") if silent == 1 else ("were", "they have")
            notes.append(
                f"{silent} of its {found.size} outputs {were} always 0: {have} the largest range of the others"
            )
            found = np.where(found == 0, largest, found)
        elif not largest:
            notes.append("its output was always 0: dynamic")
        output_range = tuple(map(float, found)) if largest and found.size > 1 else largest
    return FullScales(input_range, output_range, tuple(notes))


def check_method(method: str, percentile: float) -> None:
    """Checks the arguments that choose a calibration method.

    Raises:
        ValueError: one is not allowed; the message names it, its value and what is allowed.
    """
    if method not in METHODS:
        raise ValueError(f"method = {method!r}: allowed is {', '.join(map(repr, METHODS))}")
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile = {percentile}: allowed is a number above 0, at most 100")
