"""Precisions of the gradient: the bound of each, threads, errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lumina_kernel

#: r of each precision, as lumina_kernel.backward documents it.
RELATIVE: dict[Literal["highest", "high", "medium"], float] = {"highest": 0.0, "high": 2**-16, "medium": 2**-8}


@dataclass
class Pass:
    """What a forward pass left, and dY."""

    params: lumina_kernel.Params
    dy: np.ndarray
    x: np.ndarray
    x_step: np.ndarray
    weight: np.ndarray
    w_scale: np.ndarray
    adc_mask: np.ndarray
    dac_mask: np.ndarray

    @property
    def k(self) -> int:
        return self.weight.shape[1]

    def gradients(self, precision: Any) -> list[np.ndarray]:
        (m, n), k = self.dy.shape, self.k
        out: Any = [np.full(shape, 7, np.float32) for shape in ((m, k), (n, k), (n,))]
        lumina_kernel.backward(  # type: ignore[call-arg]
            self.params, self.dy, self.x, self.x_step, self.weight, self.w_scale, self.adc_mask, self.dac_mask,
            *out, precision,
        )  # fmt: skip
        return out

    def factors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """g [M, N] in float64, the codes of X [M, K] and of W [N, K]."""
        g = np.where(bits(self.adc_mask, self.dy.shape[1]), 0.0, self.dy.astype(np.float64))
        codes, _ = lumina_kernel.quantize_weight(self.weight, self.params.weight_bits)
        return g, self.x[:, : self.k].astype(np.float64), codes.astype(np.float64)


def bits(mask: np.ndarray, columns: int) -> np.ndarray:
    return np.unpackbits(mask, axis=1, bitorder="little")[:, :columns].astype(bool)


@st.composite
def passes(draw: st.DrawFn) -> Pass:
    m, n, k = draw(st.integers(1, 60)), draw(st.integers(1, 60)), draw(st.integers(1, 70))
    input_bits, weight_bits = draw(st.sampled_from([2, 8, 12])), draw(st.sampled_from([1, 4, 8, 16]))
    params = lumina_kernel.Params(
        input_bits=input_bits, weight_bits=weight_bits, input_range=1.5, output_range=float(np.sqrt(k))
    )
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    x, weight, dy = (generator.standard_normal(shape).astype(np.float32) for shape in ((m, k), (n, k), (m, n)))
    dy *= np.float32(draw(st.sampled_from([1.0, 1e-38, 1e25])))

    result = Pass(
        params,
        dy,
        np.empty((m, lumina_kernel.code_stride(k)), np.int8 if input_bits <= 8 else np.int16),
        np.empty(m, np.float32),
        weight,
        np.empty(n, np.float32),
        np.empty((m, lumina_kernel.mask_stride(n)), np.uint8),
        np.empty((m, lumina_kernel.mask_stride(k)), np.uint8),
    )
    lumina_kernel.forward_train(
        params, x, weight, None, 0, 0, np.empty((m, n), np.float32),
        result.x, result.x_step, result.w_scale, result.adc_mask, result.dac_mask,
    )  # fmt: skip
    return result


@pytest.fixture
def threads() -> Iterator[None]:
    before = lumina_kernel.num_threads()
    yield
    lumina_kernel.set_num_threads(before)


def assert_within(actual: np.ndarray, left: np.ndarray, right: np.ndarray, relative: float) -> None:
    """Bounds ``actual`` as the product of ``left`` [rows, T] and ``right`` [T, K]."""
    terms = left.shape[1]
    bound = (relative + (terms + 2) * 2.0**-23) * (abs(left) @ abs(right))
    bound += terms * 2.0**-125 * (1 + abs(right).max(initial=0))
    assert np.all(abs(actual - left @ right) <= bound)


@pytest.mark.parametrize("precision", RELATIVE)
@given(passes())
def test_every_precision_keeps_its_bound(precision: Literal["highest", "high", "medium"], case: Pass) -> None:
    dx, dw, db = case.gradients(precision)
    g, x, w = case.factors()
    masked = bits(case.dac_mask, case.k)
    assert not dx[masked].any()
    for_x, for_weight = g * case.w_scale, (g * case.x_step[:, None]).T
    relative = RELATIVE[precision]
    # A masked element is no sum: its place is taken by the exact one.
    assert_within(np.where(masked, for_x @ w, dx), for_x, w, relative)
    assert_within(dw, for_weight, x, relative)
    np.testing.assert_array_equal(db, case.gradients("highest")[2])


def random_pass(m: int, n: int, k: int) -> Pass:
    generator = np.random.default_rng(0)
    stride = lumina_kernel.code_stride(k)
    return Pass(
        lumina_kernel.Params(input_bits=8, weight_bits=8, input_range=1.0, output_range=1.0),
        generator.standard_normal((m, n)).astype(np.float32),
        generator.integers(-127, 128, (m, stride), dtype=np.int8),
        np.full(m, 0.1, np.float32),
        generator.standard_normal((n, k)).astype(np.float32),
        np.full(n, 0.2, np.float32),
        generator.integers(0, 256, (m, lumina_kernel.mask_stride(n)), dtype=np.uint8),
        generator.integers(0, 256, (m, lumina_kernel.mask_stride(k)), dtype=np.uint8),
    )


@pytest.mark.usefixtures("threads")
def test_threads_change_no_bits() -> None:
    case = random_pass(300, 200, 260)
    for precision in RELATIVE:
        expected = None
        for count in (1, 2, 3, 8):
            lumina_kernel.set_num_threads(count)
            gradients = [gradient.tobytes() for gradient in case.gradients(precision)]
            expected = expected or gradients
            assert gradients == expected


def test_errors() -> None:
    case = random_pass(2, 3, 4)
    for precision, error, message in [
        ("low", ValueError, 'precision = "low": allowed is "highest", "high" or "medium"'),
        ("", ValueError, 'precision = "": allowed is "highest", "high" or "medium"'),
        (1, TypeError, 'precision is of type int: allowed is "highest", "high" or "medium"'),
        (None, TypeError, 'precision is of type NoneType: allowed is "highest", "high" or "medium"'),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            case.gradients(precision)
