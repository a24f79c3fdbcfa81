"""`lumina_kernel` against the numpy reference with the effects of version 2, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lumina_kernel
from lumina_onnx import reference, schema

Call = tuple[np.ndarray, np.ndarray, "np.ndarray | None", dict[str, Any]]

PRECISIONS: tuple[Any, ...] = ("highest", "high", "medium", "8 bits")
SPECIAL = [0.0, -0.0, 1e-45, -1e-40, 1e-30, 3e38, -3e38, np.inf, -np.inf, np.nan]
# What the kernel takes with a layer; the rest comes with a call.
LAYER = [row.name for row in schema.LAYER]


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual.view(np.uint8), expected.view(np.uint8))


def kernel_params(params: dict[str, Any]) -> lumina_kernel.Params:
    return lumina_kernel.Params(**{name: value for name, value in params.items() if name in LAYER})


def most(bits: int) -> int:
    return 1 if bits == 1 else 2 ** (bits - 1) - 1


def effects(draw: st.DrawFn, n: int, k: int) -> dict[str, Any]:
    """Random parameters of version 2 that are allowed together, most of them on."""
    on = st.sampled_from([False, True, True])
    level = st.sampled_from([0.0, 0.0, 1e-3, 0.05, 0.7])
    input_bits = draw(st.sampled_from([0, *range(2, 17), 8, 8, 4]))
    weight_bits = draw(st.sampled_from([0, *range(1, 17), 8, 8, 4]))
    params: dict[str, Any] = {
        "input_bits": input_bits,
        "weight_bits": weight_bits,
        "output_bits": draw(st.sampled_from([0, *range(2, 17), 8])),
        "input_range": draw(st.sampled_from([0.0, 0.3, 1.0, 2.5, 1e-39, 3e38])) if input_bits else 0.0,
        "noise_relative": draw(level),
        "noise_additive": draw(level),
        "noise_shot": draw(level),
        "bias_stage": draw(st.sampled_from(["analog", "digital"])),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "stream": draw(st.integers(0, 2**63 - 1)),
        "tile_features": draw(st.sampled_from([0, 1, 2, 3, 4, 5, 8, 16, 17, 32, 64, k - 1, k, k + 1, 131072]))
        if draw(on)
        else 0,
    }
    if input_bits and draw(on):
        grid = most(input_bits) * 2 ** ((8 if input_bits <= 8 else 16) - input_bits)
        params["input_noise_relative"] = draw(st.sampled_from([0.0, 1e-4, 0.02, 0.3, 1.0]))
        params["input_noise_additive"] = draw(st.sampled_from([0.0, 0.61 / grid, 0.02, 0.3, 1.0]))
        if 0 < params["input_noise_additive"] * grid < 0.61:
            params["input_noise_additive"] = 0.0
    refers = False
    if input_bits and weight_bits:
        if draw(on):
            params["noise_read"] = draw(st.sampled_from([1e-3, 0.02, 0.5]))
            refers = True
        if draw(on):
            params["photons"] = draw(st.sampled_from([1e-6, 0.01, 0.63, 10.0, 1e9, 3e38]))
            params["detection"] = draw(st.sampled_from(["offset", "balanced"]))
            params["photon_reference"] = draw(st.sampled_from(["full_scale", "mean"]))
            params["noise_shot"] = 0.0
            refers = True
        if draw(st.booleans()):
            params["output_bound"] = draw(st.sampled_from([0.01, 0.5, 3.0, 40.0, 1e-38, 1e-44, 1e20, 3e33]))
            params["bias_stage"] = "digital"
            refers = True
        if refers and draw(st.booleans()):
            params["weight_levels"] = draw(st.integers(1, most(weight_bits)))
    if "output_bound" not in params:
        positive = st.sampled_from([0.1, 0.5, 1.0, 4.0, 1e-38, 1e30])
        per_output = st.lists(positive, min_size=n, max_size=n)
        params["output_range"] = draw(st.one_of(st.just(0.0), positive, per_output))
    return params


@st.composite
def calls(draw: st.DrawFn, largest: int = 70, scaled: bool = True) -> Call:
    m, n, k = draw(st.integers(0, 5)), draw(st.integers(1, largest)), draw(st.integers(1, largest))
    params = effects(draw, n, k)
    if scaled and params["weight_bits"] and draw(st.booleans()):
        scale = st.sampled_from([0.0, 0.01, 0.2, 1e-44])
        params["weight_scale"] = draw(st.one_of(scale, st.lists(scale, min_size=n, max_size=n)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    x, weight, bias = (random.standard_normal(shape).astype(np.float32) for shape in ((m, k), (n, k), (n,)))
    size = st.sampled_from([1.0, 1.0, 1.0, 1e-40, 1e-25, 1e25, 1e36])
    x, weight = x * np.float32(draw(size)), weight * np.float32(draw(size))
    if params.get("output_bound", 0.0) > 100:
        weight = np.minimum(np.maximum(weight, np.float32(-1e4)), np.float32(1e4))
    if m and draw(st.booleans()):
        for value in draw(st.lists(st.sampled_from(SPECIAL), max_size=3)):
            x[random.integers(m), random.integers(k)] = value
    if m and draw(st.booleans()):
        x[random.integers(m)] = 0.0
    if draw(st.booleans()):
        weight[random.integers(n)] = 0.0
    return x, weight, bias if draw(st.booleans()) else None, params


@settings(max_examples=400)
@given(calls())
def test_forward(call: Call) -> None:
    x, weight, bias, params = call
    expected = reference.optical_linear(x, weight, bias, **params)
    layer = lumina_kernel.PreparedLayer(kernel_params(params), weight, bias, params.get("weight_scale"))
    assert_same_bits(layer.forward(x, params["seed"], params["stream"]), expected)
    arguments = dict(params)
    noise_std, bits = arguments.pop("noise_relative"), arguments.pop("output_bits")
    assert_same_bits(lumina_kernel.optical_linear_forward(x, weight, bias, noise_std, bits, **arguments), expected)


def assert_same_call(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, params: dict[str, Any], dy: np.ndarray, precision: Any
) -> None:
    y, saved = lumina_kernel.forward_train(kernel_params(params), x, weight, bias, params["seed"], params["stream"])
    assert_same_bits(y, reference.optical_linear(x, weight, bias, **params))
    expected = reference.optical_linear_backward(dy, x, weight, bias, precision=precision, **params)
    for actual, wanted in zip(saved.backward(dy, precision), expected, strict=True):
        assert_same_bits(actual, wanted)


@settings(max_examples=300)
@given(calls(largest=40, scaled=False), st.sampled_from(PRECISIONS))
def test_backward(call: Call, precision: Any) -> None:
    x, weight, bias, params = call
    dy = np.random.default_rng(1).standard_normal((len(x), len(weight))).astype(np.float32)
    assert_same_call(x, weight, bias, params, dy, precision)


@pytest.mark.parametrize(
    ("n", "k", "tile"), [(1030, 6, 4), (2100, 5, 2), (3, 1030, 1000), (3, 2100, 1024), (70, 1030, 129)]
)
def test_over_several_blocks_of_noise(n: int, k: int, tile: int) -> None:
    random = np.random.default_rng(n + k)
    x, weight, dy = (random.standard_normal(shape, dtype=np.float32) for shape in ((3, k), (n, k), (3, n)))
    params: dict[str, Any] = {
        "input_bits": 8, "weight_bits": 4, "tile_features": tile, "noise_additive": 0.1, "noise_read": 0.01,
        "photons": 3.0, "input_noise_relative": 0.02, "input_noise_additive": 0.05,
    }  # fmt: skip
    for more in ({}, {"output_range": 1.5}, {"output_bound": 2.0, "bias_stage": "digital"}):
        assert_same_call(x, weight, None, params | more | {"seed": 4, "stream": 5}, dy, "high")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("m", "n", "k"), [(513, 2, 7), (2, 1025, 7), (260, 300, 3)])
def test_backward_over_several_blocks_of_terms(m: int, n: int, k: int, precision: Any) -> None:
    random = np.random.default_rng(m)
    x, weight, bias, dy = (random.standard_normal(shape, dtype=np.float32) for shape in ((m, k), (n, k), (n,), (m, n)))
    # Each tile of which saturates elsewhere, so that its gradient has full scales of its own.
    params: dict[str, Any] = {"input_bits": 8, "weight_bits": 5, "tile_features": 3, "output_range": 0.4}
    assert_same_call(x, weight, bias, params | {"seed": 0, "stream": 0}, dy, precision)


def test_parameters_that_a_layer_has() -> None:
    """What these calls vary is all that a layer has."""
    varied: set[str] = set()

    @settings(max_examples=300, database=None)
    @given(calls(largest=5))
    def collect(call: Call) -> None:
        varied.update(name for name, value in call[3].items() if value != schema.parameter(name).default)

    collect()
    assert set(LAYER) <= varied
