"""`lumina_kernel.noise`: the operator's normals by themselves."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lumina_kernel
from lumina_onnx import reference

counters = st.integers(0, 2**63 - 1)


@given(counters, counters, st.integers(0, 40), st.integers(0, 1100), st.integers(1, 3))
def test_it_is_the_noise_of_the_reference(seed: int, stream: int, rows: int, columns: int, threads: int) -> None:
    before = lumina_kernel.num_threads()
    lumina_kernel.set_num_threads(threads)
    try:
        eps = lumina_kernel.noise(seed, stream, rows, columns)
    finally:
        lumina_kernel.set_num_threads(before)
    assert eps.shape == (rows, columns)
    assert (eps.view(np.uint32) == reference.noise(seed, stream, rows, columns).view(np.uint32)).all()


def test_it_is_the_noise_that_a_call_adds() -> None:
    """With a full scale of 1 and no signal, the result of a call is the noise itself."""
    x, weight = np.zeros((70, 3), np.float32), np.zeros((1500, 3), np.float32)
    y = lumina_kernel.optical_linear_forward(
        x, weight, None, 0.0, 0, noise_additive=1.0, output_range=1.0, seed=7, stream=9
    )
    assert (y.view(np.uint32) == lumina_kernel.noise(7, 9, 70, 1500).view(np.uint32)).all()


def test_many_rows_are_those_of_one_task_after_another() -> None:
    """More than one task, with rows that do not divide evenly among them."""
    eps = lumina_kernel.noise(1, 2, 131, 1027)
    for row in (0, 31, 32, 33, 130):
        assert (eps[row] == lumina_kernel.noise(1, 2, row + 1, 1027)[row]).all()


def test_out_is_written_and_returned() -> None:
    out = np.empty((3, 5), np.float32)
    assert lumina_kernel.noise(1, 2, 3, 5, out) is out
    assert (out == lumina_kernel.noise(1, 2, 3, 5)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 1, 1), "seed = -1: allowed is 0..2^63-1"),
        ((0, 2**63, 1, 1), "stream = 9223372036854775808: allowed is 0..2^63-1"),
        ((0, 0, -1, 1), "rows = -1: allowed is an integer >= 0"),
        ((0, 0, 1, -1), "columns = -1: allowed is an integer >= 0"),
        ((0, 0, 2, 3, np.empty((3, 2), np.float32)), "out has shape (3, 2): allowed is (rows, columns) = (2, 3)"),
    ],
)
def test_what_is_not_allowed(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        lumina_kernel.noise(*arguments)  # type: ignore[arg-type]


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="out has dtype float64: allowed is float32"):
        lumina_kernel.noise(0, 0, 2, 2, np.empty((2, 2)))


def test_too_large_is_numpys_error() -> None:
    with pytest.raises((ValueError, MemoryError)):
        lumina_kernel.noise(0, 0, 2**40, 2**40)
