"""Standard errors against their definition, and against how means scatter."""

from __future__ import annotations

import numpy as np
import pytest

from lumina_onnx.sweeping.statistics import estimate


def test_one_dimension_of_draws() -> None:
    values = np.random.default_rng(0).normal(size=(3, 2, 7))
    mean, error = estimate(values, 1)
    np.testing.assert_allclose(mean, values.mean(axis=2))
    np.testing.assert_allclose(error, values.std(axis=2, ddof=1) / np.sqrt(7))


def test_without_two_draws_there_is_no_error() -> None:
    values = np.arange(6.0).reshape(2, 3)
    for shaped, draws in ((values, 0), (values[..., None], 1), (values[..., None, None], 2)):
        mean, error = estimate(shaped, draws)
        np.testing.assert_array_equal(mean, values)
        assert np.isnan(error).all()


def test_a_dimension_of_one_value_does_not_count() -> None:
    values = np.random.default_rng(0).normal(size=(3, 7))
    expected = estimate(values, 1)
    for shaped in (values[:, :, None], values[:, None, :]):
        for mine, theirs in zip(estimate(shaped, 2), expected, strict=True):
            np.testing.assert_allclose(mine, theirs)


@pytest.mark.parametrize(("device", "seed"), [(1.0, 0.6), (0.5, 1.5), (1.0, 0.0)])
def test_two_dimensions_cover_what_is_common_to_a_device_and_to_a_seed(device: float, seed: float) -> None:
    a, b, trials = 6, 8, 20_000
    rng = np.random.default_rng(1)
    values = (
        device * rng.normal(size=(trials, a, 1))
        + seed * rng.normal(size=(trials, 1, b))
        + rng.normal(size=(trials, a, b))
    )
    mean, error = estimate(values, 2)
    # The bound by each dimension alone makes it a little larger than unbiased.
    assert mean.var() < (error**2).mean() < 1.12 * mean.var()
    # As if all were independent, it would be far too small.
    assert values.reshape(trials, -1).var(axis=1, ddof=1).mean() / (a * b) < 0.5 * mean.var()


def test_equal_values_have_no_error() -> None:
    assert (estimate(np.full((2, 3, 4), 0.5), 2)[1] == 0).all()
