"""The effects of version 2 against independent calculations, and what the reference refuses of them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import lumina_kernel
from lumina_onnx import reference, schema

RANDOM = np.random.default_rng(2)
EIGHT: dict[str, Any] = {"input_bits": 8, "weight_bits": 8}
LAYER = [row.name for row in schema.LAYER]


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, dtype=np.float32)


def sigma_of(x: np.ndarray, weight: np.ndarray, **params: Any) -> np.ndarray:
    """Sigma of each output of one row, from the normal that it was drawn with."""
    eps = reference.noise(0, 0, len(x), len(weight)).astype(np.float64)
    noisy, quiet = (reference.optical_linear(x, weight, output_bits=0, **each) for each in (params, EIGHT))
    return np.asarray((noisy.astype(np.float64) - quiet) / eps)


def in_steps(values: np.ndarray, bits: int, full_scale: np.ndarray | float) -> np.ndarray:
    """In steps of a converter, in float64; 0 where it has no full scale."""
    full_scale = np.broadcast_to(np.asarray(full_scale, dtype=np.float64), values.shape)
    return np.divide(values * (2 ** (bits - 1) - 1), full_scale, out=np.zeros(values.shape), where=full_scale > 0)


def codes(values: np.ndarray, bits: int, full_scale: np.ndarray | float) -> np.ndarray:
    """The nearest codes of a converter."""
    levels = 2 ** (bits - 1) - 1
    return np.clip(np.round(in_steps(values, bits, full_scale)), -levels, levels)


# Tiles


@pytest.mark.parametrize("tile", [1, 7, 64, 99, 100, 101])
@pytest.mark.parametrize("scale", ["row", "given", "bound"])
def test_tiles_against_a_calculation_in_float64(tile: int, scale: str) -> None:
    x, weight, bias = floats(30, 100), floats(20, 100), floats(20)
    params: dict[str, Any] = {"input_bits": 6, "weight_bits": 5, "output_bits": 7, "tile_features": tile}
    params |= {"bias_stage": "digital"} if scale == "bound" else {}
    params |= {"given": {"output_range": 3.0}, "bound": {"output_bound": 5.0}}.get(scale, {})
    x_step, w_step = (np.abs(each).max(axis=1, keepdims=True) / levels for each, levels in ((x, 31), (weight, 15)))
    a, c = codes(x, 6, 31 * x_step), codes(weight, 5, 15 * w_step)
    y, between = np.zeros((30, 20)), np.zeros((30, 20), dtype=int)
    for start in range(0, 100, tile):
        part = slice(start, start + tile)
        v = a[:, part] @ c[:, part].T * x_step * w_step.T
        v += bias if scale != "bound" and start == 0 else 0
        full = {"row": np.abs(v).max(axis=1, keepdims=True), "given": 3.0, "bound": 5 * 31 * 15 * x_step * w_step.T}
        y += codes(v, 7, full[scale]) * full[scale] / 63
        between += np.abs(np.abs(in_steps(v, 7, full[scale])) % 1 - 0.5) < 1e-4
    y += bias if scale == "bound" else 0
    off = np.abs(reference.optical_linear(x, weight, bias, **params) - y)
    # Halfway between two codes either may be right.
    assert (off < 2e-6 * (1 + np.abs(y)))[between == 0].all()
    assert (between == 0).mean() > (0.2 if tile == 1 and scale == "row" else 0.9)


def test_tiles_without_an_adc_add_up_to_the_whole_row() -> None:
    x, weight, bias = floats(5, 33), floats(4, 33), floats(4)
    for stage in ("analog", "digital"):
        y = reference.optical_linear(x, weight, bias, output_bits=0, tile_features=8, bias_stage=stage)
        np.testing.assert_allclose(y, x.astype(np.float64) @ weight.T + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tile", [33, 34, 131072])
def test_a_tile_that_holds_the_row_is_the_row(tile: int) -> None:
    x, weight, bias, dy = floats(5, 33), floats(4, 33), floats(4), floats(5, 4)
    params: dict[str, Any] = {"noise_additive": 0.1, "noise_relative": 0.1, "seed": 3}
    for more in ({}, {"output_range": 2.0}, {"output_bits": 0}, EIGHT):
        both = [params | more, params | more | {"tile_features": tile}]
        first, second = (reference.optical_linear(x, weight, bias, **each) for each in both)
        np.testing.assert_array_equal(first.view(np.uint32), second.view(np.uint32))
        gradients = (reference.optical_linear_backward(dy, x, weight, bias, **each) for each in both)
        for one, other in zip(*gradients, strict=True):
            np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))


def test_sums_of_codes_are_exact() -> None:
    # 65,536 readings of 16 bits whose sum is odd and beyond 2^24, where a sum in float32 would lose its last bits.
    x = np.abs(floats(1, 65536)) % np.float32(1)
    x[0, 0] = 0
    total = int(np.rint(x * np.float32(32767)).astype(np.int64).sum())
    x[0, 0] = np.float32((1 - total % 2) / 32767)
    total += 1 - total % 2
    assert total > 2**29
    ones = np.ones(65536)
    weight = np.stack([ones, -ones, np.resize([1, -1], 65536)]).astype(np.float32)
    params: dict[str, Any] = {"output_bits": 16, "output_range": 1.0, "tile_features": 1}
    y = reference.optical_linear(x, weight, **params)
    step = np.float32(1) / np.float32(32767)
    np.testing.assert_array_equal(y[0, :2], step * np.array([total, -total], np.float32))
    kernel = lumina_kernel.PreparedLayer(lumina_kernel.Params(**params), weight)
    np.testing.assert_array_equal(kernel.forward(x, 0, 0).view(np.uint32), y.view(np.uint32))
    # The largest sum there is.
    assert kernel.forward(np.full_like(x, 2), 0, 0)[0].tolist() == [65536, -65536, 0]


# The full scale in products


def test_a_bound_is_a_full_scale_for_each_row_and_output() -> None:
    x, weight = np.array([[1.0, 1.0], [4.0, 4.0]], np.float32), np.array([[1.0, 1.0], [0.5, 0.5]], np.float32)
    params = {**EIGHT, "bias_stage": "digital", "output_bits": 8}
    # Two products of full-scale operands each, of which the ADC takes 1.5.
    y = reference.optical_linear(x, weight, output_bound=1.5, **params)
    np.testing.assert_allclose(y, [[1.5, 0.75], [6.0, 3.0]], rtol=1e-6)
    y = reference.optical_linear(x, weight, output_bound=1.5, weight_levels=64, **params)
    np.testing.assert_allclose(y, np.array([[1.5, 0.75], [6.0, 3.0]]) * 64 / 127, rtol=1e-6)
    y = reference.optical_linear(x, weight, output_bound=4.0, **params)
    np.testing.assert_allclose(y, [[2.0, 1.0], [8.0, 4.0]], rtol=1e-2)


def test_a_bound_is_the_full_scale_of_the_noise() -> None:
    x, weight = floats(200, 6), floats(50, 6)
    params: dict[str, Any] = {**EIGHT, "output_bits": 0, "seed": 4}
    v = reference.optical_linear(x, weight, bias_stage="digital", output_bound=3.0, noise_additive=0.1, **params)
    z = reference.optical_linear(x, weight, **params)
    products = np.abs(x).max(axis=1, keepdims=True) * np.abs(weight).max(axis=1)
    sigma = (v - z) / reference.noise(4, 0, 200, 50)
    np.testing.assert_allclose(np.median(sigma / products), 0.3, rtol=1e-4)


def test_a_row_or_channel_of_zeros_has_no_full_scale() -> None:
    x, weight, bias = floats(3, 6), floats(3, 6), np.array([1.0, 2.0, 3.0], np.float32)
    x[1], weight[2] = 0, 0
    y = reference.optical_linear(x, weight, bias, output_bound=2.0, bias_stage="digital", **EIGHT)
    np.testing.assert_array_equal(y[1], bias)
    np.testing.assert_array_equal(y[:, 2], 3.0)
    assert np.isfinite(y).all()


def test_a_full_scale_beyond_float32() -> None:
    x, weight, bias = np.full((1, 2), 1e30, np.float32), np.array([[1e3, 1e3], [1e3, -1e3]], np.float32), floats(2)
    y = {}
    for bound in (1e9, 1e10, 1e30):
        for output_bits in (8, 16):
            params = {**EIGHT, "output_bits": output_bits, "output_bound": bound, "bias_stage": "digital"}
            y[bound, output_bits] = reference.optical_linear(x, weight, bias, **params)
            layer = lumina_kernel.PreparedLayer(lumina_kernel.Params(**params), weight, bias)
            np.testing.assert_array_equal(layer.forward(x, 0, 0).view(np.uint32), y[bound, output_bits].view(np.uint32))
    # R = 1e42 overflows, but its step of 8e39 does at 8 bits alone.
    np.testing.assert_array_equal(y[1e9, 16][0], bias)
    assert np.isnan(y[1e9, 8]).all()
    # From here on inv is 0: codes of 0, of a step that is infinite.
    assert np.isnan(y[1e30, 8]).all()
    assert np.isnan(y[1e30, 16]).all()


# Light


def photons_of(a: np.ndarray, c: np.ndarray, photons: float, detection: str, reference_: str, draws: int) -> np.ndarray:
    """Dot products of codes a [K] and c [N, K] read from Poisson numbers of photons: [draws, N], in codes."""
    l_x = l_w = 127
    if reference_ == "mean":
        photons = photons * len(a) * l_x / np.abs(a).sum()
    through = (1 + c * np.sign(a) / l_w) / 2
    port, other = (photons * np.abs(a) / l_x * each for each in (through, 1 - through))
    counts = RANDOM.poisson(port.sum(axis=1), (draws, len(c)))
    if detection == "balanced":
        difference = counts - RANDOM.poisson(other.sum(axis=1), (draws, len(c)))
        return np.asarray(difference * (l_x * l_w / photons))
    return np.asarray(counts * (2 * l_x * l_w / photons) - l_w * np.abs(a).sum())


@pytest.mark.parametrize("photons", [0.5, 20.0])
@pytest.mark.parametrize("detection", ["offset", "balanced"])
@pytest.mark.parametrize("photon_reference", ["full_scale", "mean"])
def test_photons_have_the_variance_of_a_poisson_number(photons: float, detection: str, photon_reference: str) -> None:
    x, weight = floats(1, 24), floats(4, 24)
    steps = [np.abs(each).max(axis=1) / 127 for each in (x, weight)]
    a, c = codes(x, 8, np.abs(x).max())[0], codes(weight, 8, np.abs(weight).max(axis=1, keepdims=True))
    read = photons_of(a, c, photons, detection, photon_reference, 1_000_000) * steps[0] * steps[1]
    plain = reference.optical_linear(x, weight, output_bits=0, **EIGHT)
    np.testing.assert_allclose(read.mean(axis=0), plain[0], atol=5 * read.std(axis=0).max() / 1000)
    sigma = sigma_of(x, weight, photons=photons, detection=detection, photon_reference=photon_reference, **EIGHT)
    np.testing.assert_allclose(sigma[0] ** 2, read.var(axis=0), rtol=0.01)


def test_the_light_of_an_analog_bias_is_not_counted() -> None:
    x, weight, bias = floats(1, 24), floats(4, 24), 100 * np.ones(4, np.float32)
    params = {**EIGHT, "output_bits": 0, "photons": 1.0}
    with_bias, without = (reference.optical_linear(x, weight, each, **params) for each in (bias, None))
    np.testing.assert_allclose(with_bias - bias, without, rtol=1e-3)


def test_each_tile_has_its_own_light() -> None:
    x, weight = floats(1, 8), floats(3, 8)
    x[0, 4:] = 0
    params: dict[str, Any] = {**EIGHT, "output_bits": 0, "photons": 0.1, "noise_read": 0.1}
    # The second tile is dark: no noise of its own.
    whole, split = (reference.optical_linear(x, weight, tile_features=tile, **params) for tile in (0, 4))
    np.testing.assert_array_equal(whole, split)


def test_read_noise_is_that_of_noisy_weights() -> None:
    x, weight = floats(1, 24), floats(4, 24)
    a = codes(x, 8, np.abs(x).max())[0]
    steps = [np.abs(each).max(axis=1) / 127 for each in (x, weight)]
    for levels in (127, 50):
        drawn = (0.05 * levels * RANDOM.standard_normal((100_000, 24), dtype=np.float32)) @ a
        sigma = sigma_of(x, weight, noise_read=0.05, weight_levels=levels, **EIGHT)
        np.testing.assert_allclose(sigma[0], drawn.std() * steps[0] * steps[1], rtol=0.01)


# Noise on inputs


@pytest.mark.parametrize("bits", [2, 4, 6, 8, 12])
@pytest.mark.parametrize(("relative", "additive"), [(0.01, 0.0), (0.1, 0.0), (0.0, 0.01), (0.0, 0.1), (0.05, 0.05)])
def test_noise_on_inputs_against_exact_injection(bits: int, relative: float, additive: float) -> None:
    rows, k, levels = 20_000, 128, 2 ** (bits - 1) - 1
    x, weight = floats(1, k), floats(16, k)
    full_scale = np.abs(x).max()
    params: dict[str, Any] = {"input_bits": bits, "output_bits": 0, "input_noise_additive": additive}
    layer = lumina_kernel.PreparedLayer(lumina_kernel.Params(input_noise_relative=relative, **params), weight)
    y = layer.forward(np.repeat(x, rows, axis=0), 5, 6).astype(np.float64)

    exact = codes(x, bits, full_scale) / levels
    sigma = np.sqrt((relative * exact) ** 2 + additive**2)
    largest = (127 if bits <= 8 else 32767) / (levels * 2 ** ((8 if bits <= 8 else 16) - bits))
    noisy = np.clip(exact + sigma * RANDOM.standard_normal((rows, k)), -largest, largest)
    expected = noisy * full_scale @ weight.T
    deviations = y.std(axis=0), expected.std(axis=0)
    assert np.sqrt(np.mean(deviations[0] ** 2)) == pytest.approx(
        # Of 1 % of a value, less is left than a step of the grid.
        np.sqrt(np.mean(deviations[1] ** 2)),
        rel=0.03 if relative == 0.01 else 0.02,
    )
    np.testing.assert_allclose(y.mean(axis=0), expected.mean(axis=0), atol=8 * expected.std() / rows**0.5)


def test_outputs_of_a_row_share_the_noise_of_its_inputs() -> None:
    x, weight = floats(3, 5), np.repeat(floats(1, 5), 4, axis=0)
    y = reference.optical_linear(x, weight, input_noise_additive=0.2, output_bits=0, **EIGHT)
    np.testing.assert_array_equal(y, np.repeat(y[:, :1], 4, axis=1))
    tiles = reference.optical_linear(x, weight, input_noise_additive=0.2, output_bits=0, tile_features=2, **EIGHT)
    np.testing.assert_allclose(tiles, y, rtol=1e-5, atol=1e-6)


# What is not finite


@pytest.mark.parametrize("value", [np.inf, 3e38])
def test_what_is_not_finite_in_one_tile(value: float) -> None:
    x, weight = np.ones((2, 4), np.float32), np.full((2, 4), 2, np.float32)
    x[1, 3], weight[1, 3] = value, 0
    params: dict[str, Any] = {"tile_features": 2}
    dynamic = reference.optical_linear(x, weight, **params)
    assert np.isnan(dynamic[1]).all()
    assert np.isfinite(dynamic[0]).all()
    y = reference.optical_linear(x, weight, output_range=2.0, **params)
    if np.isinf(value):
        # Without a range of the DAC an infinity makes the row NaN.
        assert np.isnan(y[1]).all()
    else:
        np.testing.assert_array_equal(y[1], [4, 4])


def test_an_element_is_nan_where_one_of_its_tiles_is() -> None:
    x, weight = np.full((1, 4), 3e38, np.float32), np.ones((2, 4), np.float32)
    weight[0, 3] = -3
    # The first tile is infinite, and so is the second, with another sign for output 0.
    y = reference.optical_linear(x, weight, tile_features=2, output_bits=0)
    assert np.isnan(y[0, 0])
    assert np.isinf(y[0, 1])
    y = reference.optical_linear(x, weight, tile_features=2, output_range=1.0, noise_relative=2.0)
    kernel = lumina_kernel.PreparedLayer(
        lumina_kernel.Params(tile_features=2, output_range=1.0, noise_relative=2.0), weight
    )
    np.testing.assert_array_equal(y.view(np.uint32), kernel.forward(x, 0, 0).view(np.uint32))


# Gradients


def test_a_tile_that_saturates_masks_its_own_inputs() -> None:
    x, weight = np.array([[3.0, 1.0, 0.25, 0.5]], np.float32), np.ones((1, 4), np.float32)
    bias, dy = np.zeros(1, np.float32), np.full((1, 1), 2, np.float32)
    for stage, db in (("analog", 0), ("digital", 2)):
        params: dict[str, Any] = {"tile_features": 2, "output_range": 2.0, "bias_stage": stage}
        gradients = reference.optical_linear_backward(dy, x, weight, bias, **params)
        np.testing.assert_array_equal(gradients[0], [[0, 0, 2, 2]])
        np.testing.assert_array_equal(gradients[1], [[0, 0, 0.5, 1]])
        np.testing.assert_array_equal(gradients[2], [db])
    # An analog bias is in the first tile alone.
    gradients = reference.optical_linear_backward(
        dy, x[:, ::-1].copy(), weight, bias, **params | {"bias_stage": "analog"}
    )
    np.testing.assert_array_equal(gradients[2], [2])


def test_the_gradient_of_weights_has_the_noisy_inputs() -> None:
    x, weight, dy = np.full((400, 1), 0.5, np.float32), np.ones((1, 1), np.float32), np.ones((400, 1), np.float32)
    params: dict[str, Any] = {"input_bits": 8, "input_range": 1.0, "output_bits": 0, "input_noise_additive": 0.1}
    y = reference.optical_linear(x, weight, **params)
    assert y.std() == pytest.approx(0.1, rel=0.2)
    dx, dw, _ = reference.optical_linear_backward(dy, x, weight, **params)
    np.testing.assert_array_equal(dx, np.ones_like(x))
    np.testing.assert_allclose(dw[0, 0], y.sum(), rtol=1e-5)


# Errors


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tile_features": -1}, "tile_features = -1: allowed is 0 (the whole row), 1..131072"),
        ({"tile_features": 131073}, "tile_features = 131073: allowed is 0 (the whole row), 1..131072"),
        ({**EIGHT, "output_bound": -0.5}, "output_bound = -0.5: allowed is a finite number >= 0"),
        (
            {**EIGHT, "output_bound": 1.5},
            'output_bound = 1.5: allowed is 0 where bias_stage is "analog": an output without light would lose its '
            "bias",
        ),
        (
            {**EIGHT, "output_bound": 1.0, "output_range": 2.0, "bias_stage": "digital"},
            "output_bound = 1: allowed is 0 where output_range is given (2): both are the ADC's full scale",
        ),
        (
            {"input_bits": 8, "output_bound": 1.0, "bias_stage": "digital"},
            "output_bound = 1: allowed is 0 where input_bits (8) or weight_bits (0) is 0: it refers to the full scale "
            "of both",
        ),
        (
            {"weight_bits": 8, "noise_read": 0.25},
            "noise_read = 0.25: allowed is 0 where input_bits (0) or weight_bits (8) is 0: it refers to the full scale "
            "of both",
        ),
        (
            {"photons": 0.5},
            "photons = 0.5: allowed is 0 where input_bits (0) or weight_bits (0) is 0: it refers to the full scale "
            "of both",
        ),
        ({**EIGHT, "noise_read": np.inf}, "noise_read = inf: allowed is a finite number >= 0"),
        (
            {**EIGHT, "photons": -1.5},
            "photons = -1.5: allowed is 0 (no shot noise of light), or a finite number >= 1e-6",
        ),
        (
            {**EIGHT, "photons": 10.0, "noise_shot": 0.5},
            "noise_shot = 0.5: allowed is 0 where photons is given (10): both are the shot noise",
        ),
        ({**EIGHT, "photons": 1.0, "detection": "both"}, 'detection = "both": allowed is "offset", "balanced"'),
        (
            {**EIGHT, "photons": 1.0, "photon_reference": "max"},
            'photon_reference = "max": allowed is "full_scale", "mean"',
        ),
        (
            {**EIGHT, "detection": "balanced"},
            'detection = "balanced" would be ignored: with photons 0 there is no light',
        ),
        (
            {**EIGHT, "photon_reference": "mean"},
            'photon_reference = "mean" would be ignored: with photons 0 there is no light',
        ),
        ({"input_bits": 8, "input_noise_relative": 1.5}, "input_noise_relative = 1.5: allowed is 0..1"),
        ({"input_bits": 8, "input_noise_additive": -0.5}, "input_noise_additive = -0.5: allowed is 0..1"),
        (
            {"input_noise_relative": 0.5},
            "input_noise_relative = 0.5 would be ignored: with input_bits 0 there is no DAC behind which it enters",
        ),
        (
            {"input_noise_additive": 1.0},
            "input_noise_additive = 1 would be ignored: with input_bits 0 there is no DAC behind which it enters",
        ),
        (
            {"input_bits": 8, "input_noise_additive": 0.0047},
            "input_noise_additive = 0.0047: allowed is 0, or at least 0.0047244094 with input_bits 8: a smaller sigma "
            "is below 0.6 steps of the grid that noisy inputs are rounded to",
        ),
        (
            {"input_bits": 12, "input_noise_additive": 0.00001},
            "input_noise_additive = 0.00001: allowed is 0, or at least 1.8319493e-5 with input_bits 12: a smaller "
            "sigma is below 0.6 steps of the grid that noisy inputs are rounded to",
        ),
        ({**EIGHT, "weight_levels": -1}, "weight_levels = -1: allowed is 0 (L), 1..L, the largest code of weight_bits"),
        (
            {**EIGHT, "weight_levels": 100},
            "weight_levels = 100 would be ignored: without noise_read, photons and output_bound nothing refers to a "
            "weight's full scale",
        ),
        (
            {**EIGHT, "weight_levels": 128, "noise_read": 0.5},
            "weight_levels = 128: allowed is 0 or 1..127, the largest code with weight_bits 8",
        ),
        (
            {**EIGHT, "output_bound": 3e38, "bias_stage": "digital", "weight_scale": [0.001, 1.0]},
            "output_bound = 300000000000000000000000000000000000000: allowed is a number with which output_bound * "
            "weight_scale * L_w is finite, which it is not for output 1",
        ),
    ],
)  # fmt: skip
def test_both_refuse_in_the_same_words(wrong: dict[str, Any], message: str) -> None:
    x, weight = np.ones((1, 2), np.float32), np.ones((2, 2), np.float32)
    exactly = f"^{re.escape(message)}$"
    if "a finite number >= 0" in message:
        message += " (in 32 bits)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        reference.optical_linear(x, weight, **wrong)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        reference.optical_linear_backward(x, x, weight, **wrong)
    layer = {name: value for name, value in wrong.items() if name in LAYER}
    with pytest.raises(ValueError, match=exactly):
        lumina_kernel.PreparedLayer(lumina_kernel.Params(**layer), weight, None, wrong.get("weight_scale"))


@pytest.mark.parametrize("photons", [9e-7, 1e-30, 1e-60, np.nan, np.inf])
def test_both_refuse_a_number_of_photons(photons: float) -> None:
    x = np.ones((1, 2), np.float32)
    with pytest.raises(ValueError, match=r"^photons = .*: allowed is 0 \(no shot noise of light\), or a finite"):
        reference.optical_linear(x, x, photons=photons, **EIGHT)
    with pytest.raises(ValueError, match="photons"):
        lumina_kernel.Params(photons=photons, **EIGHT)


def test_too_many_tiles_are_refused_in_the_same_words() -> None:
    x = np.ones((1, 65537), np.float32)
    message = "tile_features = 1: allowed is at least 2 for K = 65537, so that a row has at most 65536 parts"
    with pytest.raises(ValueError, match=f"^{message}$"):
        reference.optical_linear(x, x, tile_features=1)
    with pytest.raises(ValueError, match=f"^{message}$"):
        lumina_kernel.PreparedLayer(lumina_kernel.Params(tile_features=1), x)
