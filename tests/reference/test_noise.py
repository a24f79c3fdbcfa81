"""Statistics of `reference.noise`. Seeds are fixed; a statistic is allowed five standard errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lumina_onnx import _reference_noise as generator
from lumina_onnx import reference

SIZE = 400


@pytest.fixture(scope="module")
def matrix() -> np.ndarray:
    return reference.noise(99, 3, SIZE, SIZE).astype(np.float64)


def within(value: float, expected: float, standard_error: float) -> bool:
    return abs(value - expected) < 5 * standard_error


def normal_cdf(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])


def assert_normal(x: np.ndarray) -> None:
    n = x.size
    assert within(x.mean(), 0, n**-0.5)
    centred = (x - x.mean()) / x.std()
    assert within(x.var(), 1, (2 / n) ** 0.5)
    assert within((centred**3).mean(), 0, (6 / n) ** 0.5)
    assert within((centred**4).mean(), 3, (24 / n) ** 0.5)
    for sigma in (1, 2, 3, 4):
        p = math.erfc(sigma / math.sqrt(2))
        assert within((np.abs(x) > sigma).mean(), p, (p / n) ** 0.5)
    cdf, rank = normal_cdf(np.sort(x)), np.arange(n) / n
    distance = max(np.abs(cdf - rank).max(), np.abs(cdf - rank - 1 / n).max())
    assert distance * math.sqrt(n) < 2.745  # P(sqrt(n) D > t) = 2 exp(-2 t^2): as rare as five standard errors


def assert_independent(x: np.ndarray, y: np.ndarray) -> None:
    for f in (np.asarray, np.sign, lambda values: (values**2 - 1) / math.sqrt(2)):
        assert within((f(x) * f(y)).mean(), 0, x.size**-0.5)


def test_normal(matrix: np.ndarray) -> None:
    assert_normal(matrix.ravel())


def test_normal_along_streams_and_seeds() -> None:
    assert_normal(np.concatenate([reference.noise(5, stream, 2, 16).ravel() for stream in range(1000)]).astype(float))
    assert_normal(np.concatenate([reference.noise(seed, 0, 2, 16).ravel() for seed in range(1000)]).astype(float))


@pytest.mark.parametrize("lag", [1, 2, 15, 16, 17, 32, 100])
def test_rows_and_columns_are_independent(matrix: np.ndarray, lag: int) -> None:
    assert_independent(matrix[:-lag], matrix[lag:])
    assert_independent(matrix[:, :-lag], matrix[:, lag:])


def test_row_and_column_exchanged(matrix: np.ndarray) -> None:
    upper = np.triu_indices(SIZE, 1)
    assert_independent(matrix[upper], matrix.T[upper])


@pytest.mark.parametrize(("seed", "stream"), [(99, 4), (100, 3), (3, 99), (100, 4), (99 + 2**40, 3), (99, 3 + 2**62)])
def test_seeds_and_streams_are_independent(matrix: np.ndarray, seed: int, stream: int) -> None:
    assert_independent(matrix, reference.noise(seed, stream, SIZE, SIZE))


def test_blocks_are_independent() -> None:
    x = reference.noise(1, 2, 100, 2048).astype(np.float64)
    assert_normal(x.ravel())
    assert_independent(x[:, :1024], x[:, 1024:])


@pytest.mark.parametrize("columns", [1, 31, 33, 1023, 1024, 1025, 2100])
def test_an_element_depends_on_its_place_alone(columns: int) -> None:
    wide = reference.noise(7, 8, 5, 2200)
    narrow = reference.noise(7, 8, 3, columns)
    assert narrow.dtype == np.float32
    np.testing.assert_array_equal(narrow, wide[:3, :columns])


def test_tiles_have_noise_of_their_own(matrix: np.ndarray) -> None:
    np.testing.assert_array_equal(matrix, reference.noise(99, 3, SIZE, SIZE, tile=0))
    for tile in (1, 2, 65535):
        other = reference.noise(99, 3, SIZE, SIZE, tile=tile).astype(np.float64)
        assert_independent(matrix, other)
        assert_normal(other.ravel())


def test_tiles_of_an_element_are_normal() -> None:
    assert_normal(
        np.concatenate([reference.noise(5, 1, 2, 16, tile=tile).ravel() for tile in range(1000)]).astype(float)
    )


def test_tiles_are_not_blocks() -> None:
    # The second block of the first tile, and the first block of the second.
    first = reference.noise(1, 2, 100, 2048).astype(np.float64)
    second = reference.noise(1, 2, 100, 2048, tile=1).astype(np.float64)
    assert_independent(first[:, 1024:], second[:, :1024])


def test_inputs_have_noise_of_their_own(matrix: np.ndarray) -> None:
    inputs = reference.input_noise(99, 3, SIZE, SIZE).astype(np.float64)
    assert_normal(inputs.ravel())
    for tile in (0, 1):
        assert_independent(inputs, reference.noise(99, 3, SIZE, SIZE, tile=tile))
    key = generator.call_key(99, 3)
    assert generator.block_keys(key ^ np.uint64(2**63), 5, 0) not in generator.block_keys(key, np.arange(10_000), 0)
    wide = reference.input_noise(7, 8, 5, 2200)
    for columns in (1, 33, 1025):
        np.testing.assert_array_equal(reference.input_noise(7, 8, 3, columns), wide[:3, :columns])


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0), (0, 0)])
def test_empty(rows: int, columns: int) -> None:
    assert reference.noise(1, 1, rows, columns).shape == (rows, columns)


def test_gaussian_is_box_muller() -> None:
    a, b = np.random.default_rng(0).integers(0, 2**32, (2, 200_000), dtype=np.uint32)
    u = ((a >> 1) + 0.5) / 2.0**31
    radius, angle = np.sqrt(-2 * np.log(u)), (b << np.uint32(2)).view(np.int32) * (math.pi / 2**33)
    cos, sin = np.where(b >> 31, -np.cos(angle), np.cos(angle)), np.sin(angle)
    exchange = (b >> 30 & 1) == 1
    first, second = generator.box_muller(a, b)
    np.testing.assert_allclose(first, radius * np.where(exchange, sin, cos), rtol=0, atol=2.5e-4)
    np.testing.assert_allclose(second, radius * np.where(exchange, cos, sin), rtol=0, atol=2.5e-4)
    away_from_one = u < 0.99
    for got, direction in ((first, np.where(exchange, sin, cos)), (second, np.where(exchange, cos, sin))):
        exact = (radius * direction)[away_from_one]
        np.testing.assert_allclose(got[away_from_one], exact, rtol=4e-6, atol=0)


def test_the_largest_normal() -> None:
    zero = np.zeros(1, dtype=np.uint32)
    first, _ = generator.box_muller(zero, zero)
    assert first[0] == np.float32(math.sqrt(64 * math.log(2)))


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("stream", 2**63)])
def test_keys_out_of_range(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"^{name} = {value}: allowed is 0\.\.2\^63-1$"):
        reference.noise(**{"seed": 0, "stream": 0, "rows": 1, "columns": 1, name: value})
    with pytest.raises(ValueError, match=rf"^{name} = {value}: allowed is 0\.\.2\^63-1$"):
        reference.input_noise(**{"seed": 0, "stream": 0, "rows": 1, "in_features": 1, name: value})
