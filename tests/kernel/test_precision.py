"""Precisions of the gradient: the bound of each, threads, errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lumina_kernel

#: The largest code and the terms of a block of each precision's fixed point; None for floats.
BLOCKS: dict[Any, tuple[int, int] | None] = {
    "highest": None,
    "high": (32639, 512),
    "medium": (32639, 512),
    "8 bits": (127, 256),
}


@dataclass
class Pass:
    """What a forward pass saved, and dY."""

    params: lumina_kernel.Params
    dy: np.ndarray
    weight: np.ndarray
    saved: lumina_kernel.Saved

    def gradients(self, precision: Any) -> tuple[np.ndarray, ...]:
        return self.saved.backward(self.dy, precision)

    def factors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """g [M, N] in float64, the codes of X [M, K] and of W [N, K]."""
        assert self.saved.adc_saturated is not None
        assert self.saved.x_codes is not None
        g = np.where(self.saved.adc_saturated, 0.0, self.dy.astype(np.float64))
        codes, _ = lumina_kernel.quantize_weight(self.weight, self.params.weight_bits)
        return g, self.saved.x_codes.astype(np.float64), codes.astype(np.float64)


def forward(shape: tuple[int, int, int], seed: int, size: float = 1.0, **parameters: Any) -> Pass:
    """A forward pass over random numbers, with dY scaled by `size`."""
    m, n, k = shape
    generator = np.random.default_rng(seed)
    x, weight, dy = (generator.standard_normal(shape).astype(np.float32) for shape in ((m, k), (n, k), (m, n)))
    params = lumina_kernel.Params(input_range=1.5, output_range=float(np.sqrt(k)), **parameters)
    _, saved = lumina_kernel.forward_train(params, x, weight, None, 0, 0)
    return Pass(params, dy * np.float32(size), weight, saved)


@st.composite
def passes(draw: st.DrawFn) -> Pass:
    sizes = st.one_of(st.integers(1, 60), st.sampled_from([256, 257, 600]))
    shape = draw(sizes), draw(sizes), draw(st.integers(1, 70))
    input_bits, weight_bits = draw(st.sampled_from([2, 8, 12])), draw(st.sampled_from([1, 4, 8, 16]))
    seed, size = draw(st.integers(0, 2**32)), draw(st.sampled_from([1.0, 1e-38, 1e25]))
    return forward(shape, seed, size, input_bits=input_bits, weight_bits=weight_bits)


@pytest.fixture
def threads() -> Iterator[None]:
    before = lumina_kernel.num_threads()
    yield
    lumina_kernel.set_num_threads(before)


def assert_within(actual: np.ndarray, left: np.ndarray, right: np.ndarray, bits: int, precision: Any) -> None:
    """Asserts that ``actual`` is the product of ``left`` [rows, T] and ``right`` [T, K], codes of ``bits`` bits, within
    the bound of ``Saved.backward``.
    """
    terms, magnitudes, largest = left.shape[1], abs(left) @ abs(right), 1 + abs(right).max(initial=0)
    block = BLOCKS[precision] if bits <= 8 else None
    if block is None:
        bound = (terms + 2) * 2.0**-23 * magnitudes + terms * 2.0**-125 * largest
    else:
        levels, size = block
        cuts = [slice(start, start + size) for start in range(0, terms, size)]
        bound = (2 * len(cuts) + 8) * 2.0**-24 * magnitudes + terms * 2.0**-112 * largest
        for cut in cuts:
            bound += np.outer(abs(left[:, cut]).max(axis=1), abs(right[cut]).sum(axis=0)) / (2 * levels - 1)
    assert np.all(abs(actual - left @ right) <= bound)


@pytest.mark.parametrize("precision", BLOCKS)
@given(passes())
def test_every_precision_keeps_its_bound(precision: Any, case: Pass) -> None:
    dx, dw, db = case.gradients(precision)
    g, x, w = case.factors()
    masked = case.saved.dac_saturated
    assert masked is not None
    assert not dx[masked].any()
    for_x, for_weight = g * case.saved.weight_scale, (g * case.saved.x_step[:, None]).T
    # A masked element is not a sum; the exact sum is put in its place.
    assert_within(np.where(masked, for_x @ w, dx), for_x, w, case.params.weight_bits, precision)
    assert_within(dw, for_weight, x, case.params.input_bits, precision)
    np.testing.assert_array_equal(db, case.gradients("highest")[2])


@pytest.mark.usefixtures("threads")
def test_threads_change_no_bits() -> None:
    case = forward((300, 200, 260), 0, input_bits=8, weight_bits=8)
    for precision in BLOCKS:
        expected = None
        for count in (1, 2, 3, 8):
            lumina_kernel.set_num_threads(count)
            gradients = [gradient.tobytes() for gradient in case.gradients(precision)]
            expected = expected or gradients
            assert gradients == expected


def test_errors() -> None:
    case = forward((2, 3, 4), 0, input_bits=8, weight_bits=8)
    for precision, error, message in [
        ("low", ValueError, 'precision = "low": allowed is "highest", "high", "medium" or "8 bits"'),
        ("", ValueError, 'precision = "": allowed is "highest", "high", "medium" or "8 bits"'),
        (1, TypeError, 'precision is of type int: allowed is "highest", "high", "medium" or "8 bits"'),
        (None, TypeError, 'precision is of type NoneType: allowed is "highest", "high", "medium" or "8 bits"'),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            case.gradients(precision)
