"""What the ADC sees where rows are split into tiles, or where its full scale is bounded: for calibration."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ._histogram import FullScales
from ._reference_quantizer import largest_code, quantize

Floats = NDArray[np.float32]


def is_apart(tile_features: int, output_bound: float, in_features: int) -> bool:
    """Whether the ADC sees something else than z of the whole row."""
    return bool(output_bound) or 0 < tile_features < in_features


def outputs(
    x: Floats,
    weight: tuple[NDArray[np.generic], Floats],
    bias: Floats | None,
    input_bits: int,
    tile_features: int,
    full_scale: int | None,
) -> Iterator[Floats]:
    """z of each tile, without noise and with a dynamic DAC.

    Args:
        x: ``[..., K]``.
        weight: codes (or analog values) ``[N, K]`` and the step of one ``[N]``.
        bias: ``[N]``, if it enters before the ADC.
        input_bits: of the DAC; 0 = analog.
        tile_features: T; 0 = the whole row.
        full_scale: the code that is a weight's full scale, in whose units z is where it is bounded; None elsewhere.
    """
    rows, (codes, scale) = x.reshape(-1, x.shape[-1]), weight
    steps = np.ones((len(rows), 1), np.float32)
    if input_bits and len(rows):
        found, steps = quantize(rows, largest_code(input_bits), np.abs(rows).max(axis=1, keepdims=True))
        rows = found.astype(np.float32)
    values = codes.astype(np.float32)
    # Outputs whose weights are all 0 have no full scale, and see nothing.
    unit = np.float32(1) if full_scale is None else np.where(scale > 0, scale * np.float32(full_scale), np.float32(1))
    tile = tile_features or rows.shape[1]
    for first in range(0, rows.shape[1], tile):
        part = slice(first, first + tile)
        z = (rows[:, part] @ values[:, part].T) * (steps * scale)
        if first == 0 and bias is not None:
            z += bias
        yield np.asarray(z / unit, np.float32)


def bound(scales: FullScales, before: float) -> tuple[float, str]:
    """The bound that calibration found, from z in units of the weights' full scale; and a note, or ""."""
    found = float(np.max(scales.output_range)) / scales.input_range if scales.input_range else 0.0
    return (found, "") if found else (before, f"its output_bound stays {before:.4g}")
