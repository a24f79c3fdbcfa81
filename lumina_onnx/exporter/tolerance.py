"""How far the function body's results may be from the operator's, with the noise off.

The DAC's codes and sums of integers are the same in both. The differences are:

- the body has no fused multiply-add, and ONNX Runtime adds the terms of a float32 product in its own order, so z
  differs in its last bits: by a few roundings if the product is one of integers, else by a number proportional to K;
- if z is that close to the midpoint between two codes, the ADC's result differs by one step;
- a row whose z overflows float32 may be infinite instead of NaN, or the other way round; numbers below 1e-30 may
  come out as 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lumina_onnx import reference as plain
from lumina_onnx.schema import quiet

__all__ = ["allowed", "is_within"]

ROUNDING = 2.0**-24
"""Half the spacing of float32 numbers at 1: the largest relative change by one rounding."""
LEAST = 1e-30


def is_within(got: NDArray[Any], expected: NDArray[Any], distance: NDArray[np.float64]) -> bool:
    """Whether the body's result is no farther from the operator's than :func:`allowed` permits."""
    with np.errstate(invalid="ignore"):
        near = np.abs(got.astype(np.float64) - expected) <= distance
    both = (got == expected) | (np.isnan(got) & np.isnan(expected)) | np.isinf(distance)
    return bool((near | both).all())


def allowed(
    x: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any] | None,
    *,
    weight_scale: NDArray[Any] | None,
    **attributes: Any,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The operator's result without noise, ``[..., N]``, and how far from it the body's result may be.

    The arguments are those of :func:`lumina_onnx.reference.optical_linear`. Where the reference is NaN, the body's
    result must be NaN too; where the distance is infinite, any result is allowed.
    """
    settings = attributes | quiet(attributes) | {"weight_scale": weight_scale}
    y = plain.optical_linear(x, weight, bias, **settings)
    bits, k = settings["output_bits"], x.shape[-1]
    digital = settings["bias_stage"] == "digital"
    unsampled = settings | {"output_bits": 0, "bias_stage": "analog"}
    v = plain.optical_linear(x, weight, None if digital else bias, **unsampled).astype(np.float64)

    if weight.dtype == np.uint8:
        weight = plain.unpack_weight(weight, settings["weight_bits"], settings["in_features"])
        unsampled.pop("in_features")
    offset = 0.0 if bias is None else np.abs(bias.astype(np.float64))
    with np.errstate(all="ignore"):
        if _is_integer(settings):
            terms = np.abs(v) + offset
            roundings = 4
        else:
            terms = plain.optical_linear(np.abs(x), np.abs(weight), None, **unsampled).astype(np.float64)
            roundings = 2 * k + 8
        error = roundings * ROUNDING * terms + 4 * ROUNDING * (np.abs(v) + offset) + LEAST
        distance = error
        if bits:
            levels = 2 ** (bits - 1) - 1
            ranges = np.asarray(settings["output_range"], np.float64).reshape(-1)
            if ranges.any():
                drift = np.zeros(())
            else:
                ranges = np.abs(v).max(axis=-1, keepdims=True, initial=0.0)
                drift = error.max(axis=-1, keepdims=True, initial=0.0)
            step = np.maximum(ranges, LEAST) / levels
            code = np.abs(v) / step
            blur = error / step + code * drift / (levels * step) + 8 * ROUNDING * levels
            steps = np.where(np.abs(code - np.floor(code) - 0.5) <= blur, np.ceil(np.minimum(blur, 2 * levels)), 0.0)
            distance = (code * drift + steps * (ranges + drift)) / levels + 8 * ROUNDING * (np.abs(y) + offset) + LEAST
        finite = np.isfinite(x).all(axis=-1, keepdims=True)
        overflows = ~np.isfinite(v).all(axis=-1, keepdims=True) & finite
        return y, np.where(overflows, np.inf, np.where(np.isnan(distance), 0.0, distance))


def _is_integer(settings: dict[str, Any]) -> bool:
    return 1 <= settings["input_bits"] <= 8 and 1 <= settings["weight_bits"] <= 8
