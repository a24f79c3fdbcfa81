"""The converters of `lumina::OpticalLinear` in plain numpy: the DAC with the noise behind it, and the ADC's full scale.

Shapes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ._reference_checks import Floats, Params
from ._reference_fma import fma32
from ._reference_noise import input_noise_of_rows
from ._reference_quantizer import codes_of, largest_code, quantize

NAN = np.uint32(0x7FC00000).view(np.float32)
"""Every NaN result is this NaN."""


@dataclass(frozen=True)
class Inputs:
    """What the rows of X are to the product."""

    values: Floats
    """[M, K]: codes behind the DAC and its noise, or X where it is analog; 0 in rows that are NaN throughout."""
    step: Floats
    """[M]: s_x, of one code of `values`; NaN in rows that are NaN throughout."""
    saturated: NDArray[np.bool_]
    """[M, K]: where |x| exceeds a static range."""
    nan_row: NDArray[np.bool_]
    """[M]: whether X makes the row NaN throughout."""


def dac(params: Params, x: Floats, rows: NDArray[np.int64]) -> Inputs:
    """The rows of X ``[M, K]``, whose numbers in the call are `rows`."""
    static = bool(params.input_range > 0)
    unbounded = np.isnan(x) if static else ~np.isfinite(x)
    nan_row = np.asarray(unbounded.any(axis=1))
    x = np.where(nan_row[:, None], np.float32(0), x)
    saturated = (np.abs(x) > params.input_range) & static
    if params.input_bits == 0:
        values, step = x, np.ones(len(x), dtype=np.float32)
    else:
        full_scale = np.full(len(x), params.input_range) if static else np.abs(x).max(axis=1)
        codes, steps = quantize(x, largest_code(params.input_bits), full_scale[:, None])
        values, step = codes.astype(np.float32), steps[:, 0]
    if params.noisy_inputs:
        values = np.where(nan_row[:, None], np.float32(0), _noisy(params, values, rows))
        step = step * np.float32(2.0**-params.input_shift)
    return Inputs(values, np.where(nan_row, NAN, step), saturated, nan_row)


def _noisy(params: Params, codes: Floats, rows: NDArray[np.int64]) -> Floats:
    """Codes with noise, rounded to a grid that is 2^g times as fine and has as many levels as the type of codes."""
    fine = np.float32(2**params.input_shift) * codes
    terms: list[Floats] = []
    if params.input_relative:
        relative = params.input_relative * np.abs(fine)
        terms.append(relative * relative)
    if params.input_additive:
        additive = params.input_additive * np.float32(params.input_full_scale)
        terms.append(np.full_like(fine, additive * additive))
    variance = terms[0] if len(terms) == 1 else terms[0] + terms[1]
    # Rounding to the grid adds a variance of 1/12 of a step squared.
    without_rounding = np.where(variance > np.float32(0.25), variance - np.float32(1 / 12), variance)
    eps = input_noise_of_rows(params.seed, params.stream, rows, codes.shape[1])
    limit = np.float32(largest_code(params.input_code_bits))
    return np.rint(np.clip(fma32(np.sqrt(without_rounding), eps, fine), -limit, limit))


@dataclass(frozen=True)
class FullScale:
    """An ADC's full scale that does not depend on what it reads; each ``[1 or M, 1 or N]``."""

    range: Floats
    """R, also of the noise."""
    inv: Floats
    """Codes per unit of v."""
    step: Floats
    """Of one code."""

    def codes(self, v: Floats, levels: int) -> NDArray[np.int32]:
        return codes_of(v, levels, self.inv)


def full_scale(params: Params, x_step: Floats, weight_scale: Floats) -> FullScale | None:
    """The given range, or the bound in full-scale products; None where the range is dynamic."""
    # Without an ADC only the range is read.
    levels = np.float32(largest_code(params.output_bits)) if params.output_bits else np.float32(1)
    if params.output_bound:
        of_input = (x_step * np.float32(params.input_full_scale))[:, None]
        of_weight = (params.output_bound * (weight_scale * np.float32(params.weight_full_scale)))[None, :]
        inv = (np.float32(1) / of_input) * (levels / of_weight)
        return FullScale(of_input * of_weight, inv, of_input * (of_weight / levels))
    if params.dynamic_output:
        return None
    given = params.output_range[None, :]
    return FullScale(given, levels / given, given / levels)
