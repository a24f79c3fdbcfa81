"""`fma32` against exact rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lumina_onnx.reference import fma32

SMALLEST = 2.0**-149
LARGEST = float(np.finfo(np.float32).max)

bits = st.integers(0, 2**32 - 1).map(lambda word: float(np.uint32(word).view(np.float32)))
finite = st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), bits.filter(math.isfinite))


def rounded(exact: Fraction) -> float:
    """``exact``, which is not zero, rounded to the nearest float32, ties to even."""
    magnitude = abs(exact)
    exponent = max(
        math.frexp(magnitude.numerator / magnitude.denominator)[1] - 24 if magnitude > 2**-160 else -149, -149
    )
    while magnitude >= Fraction(2) ** (exponent + 24):
        exponent += 1
    while exponent > -149 and magnitude < Fraction(2) ** (exponent + 23):
        exponent -= 1
    unit = Fraction(2) ** exponent
    nearest = round(magnitude / unit) * unit  # round() of a Fraction takes the even neighbour of a tie
    result = math.inf if nearest >= 2**128 else float(nearest)
    return math.copysign(result, -1.0 if exact < 0 else 1.0)


def expected(a: float, b: float, c: float) -> float:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    # An exact zero has the sign that IEEE 754 gives the sum of two zeros, or +0 where they cancel.
    return rounded(exact) if exact else a * b + c if a * b == 0 and c == 0 else 0.0


def same(x: np.float32, y: float) -> bool:
    return bool(np.float32(x).view(np.uint32) == np.float32(y).view(np.uint32))


@settings(max_examples=2000)
@given(finite, finite, finite)
@example(1.0, 1.0, -1.0)
@example(-0.0, 1.0, -0.0)
@example(-0.0, 1.0, 0.0)
@example(0.0, -5.0, -0.0)
@example(SMALLEST, 0.5, 0.0)
@example(SMALLEST, -0.5, 0.0)
@example(SMALLEST, 0.75, 0.0)
@example(SMALLEST, SMALLEST, 0.0)
@example(SMALLEST, -SMALLEST, SMALLEST)
@example(LARGEST, 1.0, 2.0**103)
@example(LARGEST, 1.0, 2.0**103 - 2.0**79)
@example(LARGEST, LARGEST, -LARGEST)
@example(-LARGEST, 2.0, LARGEST)
def test_equals_exact_arithmetic(a: float, b: float, c: float) -> None:
    assert same(fma32(a, b, c)[()], expected(a, b, c))  # type: ignore[arg-type]


@st.composite
def nearly_ties(draw: st.DrawFn) -> tuple[float, float, float]:
    """A sum halfway between two float32, up to a product far too small for float64 to hold beside it."""
    significand = draw(st.integers(2**23, 2**24 - 1))
    exponent = draw(st.integers(-100, 60))
    sign = draw(st.sampled_from([-1.0, 1.0]))
    # a * b = 2^exponent * (1/2 + 2^-23 t): half a unit of c, give or take a little.
    a = 1.0 + draw(st.integers(-4, 4)) * 2.0**-23
    b = 2.0 ** (exponent - 1) * (1.0 - draw(st.integers(-4, 4)) * 2.0**-23)
    return a * draw(st.sampled_from([-1.0, 1.0])), b, sign * significand * 2.0**exponent


@settings(max_examples=2000)
@given(nearly_ties())
def test_near_ties(values: tuple[float, float, float]) -> None:
    assert same(fma32(*values)[()], expected(*values))  # type: ignore[arg-type]


@settings(max_examples=1000)
@given(st.integers(1, 2**12), st.integers(1, 2**12), st.integers(-(2**24), 2**24), st.integers(-30, 0))
def test_around_the_subnormals(a: int, b: int, c: int, shift: int) -> None:
    values = (a * 2.0**-70, b * 2.0 ** (-79 + shift), c * SMALLEST)
    assert same(fma32(*values)[()], expected(*values))  # type: ignore[arg-type]


def test_rounding_twice_would_be_wrong() -> None:
    # a * b = 2^-24 - 2^-70, less than half a unit of c; added to c in float64 it becomes exactly half, a tie.
    a, b, c = np.float32(1 - 2.0**-23), np.float32(2.0**-24 * (1 + 2.0**-23)), np.float32(1 + 2.0**-23)
    assert fma32(a, b, c) == c
    assert np.float32(np.float64(a) * np.float64(b) + np.float64(c)) > c


@pytest.mark.parametrize(
    ("a", "b", "c"),
    [(np.inf, 1, -np.inf), (np.inf, 0, 1), (np.nan, 1, 1), (1, np.nan, 1), (1, 1, np.nan), (0, -np.inf, np.nan)],
)
def test_nan(a: float, b: float, c: float) -> None:
    assert np.isnan(fma32(a, b, c))


@pytest.mark.parametrize(
    ("a", "b", "c", "result"),
    [(np.inf, 2, 1, np.inf), (-np.inf, 2, 1, -np.inf), (1, 1, -np.inf, -np.inf), (LARGEST, LARGEST, -np.inf, -np.inf)],
)
def test_infinities(a: float, b: float, c: float, result: float) -> None:
    assert fma32(a, b, c) == result


def test_broadcasts() -> None:
    a, b = np.arange(3, dtype=np.float32)[:, None], np.arange(4, dtype=np.float32)[None, :]
    result = fma32(a, b, np.float32(1))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, a * b + 1)
