"""`lumina_kernel` against the numpy reference, bit for bit, over random shapes, parameters and data."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lumina_kernel
from lumina_onnx import reference

PARAMETERS = (
    "input_bits", "weight_bits", "output_bits", "input_range", "output_range", "noise_relative", "noise_additive",
    "noise_shot", "bias_stage",
)  # fmt: skip
PRECISIONS: tuple[Any, ...] = ("highest", "high", "medium", "8 bits")
SPECIAL = [0.0, -0.0, 1e-45, -1e-40, 1e-30, 3e38, -3e38, np.inf, -np.inf, np.nan]


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual.view(np.uint8), expected.view(np.uint8))


@st.composite
def calls(draw: st.DrawFn, largest: int = 70) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, dict[str, Any]]:
    m, n, k = draw(st.integers(0, 5)), draw(st.integers(1, largest)), draw(st.integers(1, largest))
    level = st.sampled_from([0.0, 0.0, 1e-3, 0.05, 0.7])
    input_bits = draw(st.sampled_from([0, *range(2, 17)]))
    weight_bits = draw(st.sampled_from([0, *range(1, 17)]))
    positive = st.sampled_from([0.1, 0.5, 1.0, 4.0, 1e-38, 1e30])
    per_output = st.lists(positive, min_size=n, max_size=n)
    params = {
        "input_bits": input_bits,
        "weight_bits": weight_bits,
        "output_bits": draw(st.sampled_from([0, *range(2, 17)])),
        "input_range": draw(st.sampled_from([0.0, 0.3, 1.0, 2.5, 1e-39])) if input_bits else 0.0,
        "output_range": draw(st.one_of(st.just(0.0), positive, per_output)),
        "noise_relative": draw(level),
        "noise_additive": draw(level),
        "noise_shot": draw(level),
        "bias_stage": draw(st.sampled_from(["analog", "digital"])),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "stream": draw(st.integers(0, 2**63 - 1)),
    }
    if weight_bits and draw(st.booleans()):
        scale = st.sampled_from([0.0, 0.01, 0.2, 1e-44])
        params["weight_scale"] = draw(st.one_of(scale, st.lists(scale, min_size=n, max_size=n)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    x, weight, bias = (random.standard_normal(shape).astype(np.float32) for shape in ((m, k), (n, k), (n,)))
    if m and draw(st.booleans()):
        for value in draw(st.lists(st.sampled_from(SPECIAL), max_size=3)):
            x[random.integers(m), random.integers(k)] = value
    if draw(st.booleans()):
        weight[random.integers(n)] = 0.0
    return x, weight, bias if draw(st.booleans()) else None, params


def kernel_params(params: dict[str, Any]) -> lumina_kernel.Params:
    return lumina_kernel.Params(**{name: params[name] for name in PARAMETERS})


@settings(max_examples=300, deadline=None)
@given(calls())
def test_forward(call: tuple[np.ndarray, np.ndarray, np.ndarray | None, dict[str, Any]]) -> None:
    x, weight, bias, params = call
    expected = reference.optical_linear(x, weight, bias, **params)
    layer = lumina_kernel.PreparedLayer(kernel_params(params), weight, bias, params.get("weight_scale"))
    assert_same_bits(layer.forward(x, params["seed"], params["stream"]), expected)
    arguments = dict(params)
    noise_std, bits = arguments.pop("noise_relative"), arguments.pop("output_bits")
    assert_same_bits(lumina_kernel.optical_linear_forward(x, weight, bias, noise_std, bits, **arguments), expected)


@pytest.mark.parametrize("columns", [1000, 1024, 1025, 2100])
def test_forward_over_several_blocks_of_noise(columns: int) -> None:
    random = np.random.default_rng(columns)
    x, weight = random.standard_normal((3, 8), dtype=np.float32), random.standard_normal((columns, 8), dtype=np.float32)
    params: dict[str, Any] = {"noise_additive": 0.1, "input_bits": 8, "weight_bits": 4}
    expected = reference.optical_linear(x, weight, seed=4, stream=5, **params)
    layer = lumina_kernel.PreparedLayer(lumina_kernel.Params(**params), weight)
    assert_same_bits(layer.forward(x, 4, 5), expected)


def assert_same_gradients(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, params: dict[str, Any], dy: np.ndarray, precision: Any
) -> None:
    y, saved = lumina_kernel.forward_train(kernel_params(params), x, weight, bias, params["seed"], params["stream"])
    assert_same_bits(y, reference.optical_linear(x, weight, bias, **params))
    expected = reference.optical_linear_backward(dy, x, weight, bias, precision=precision, **params)
    for actual, wanted in zip(saved.backward(dy, precision), expected, strict=True):
        assert_same_bits(actual, wanted)


@settings(max_examples=200, deadline=None)
@given(calls(largest=40), st.sampled_from(PRECISIONS))
def test_backward(call: tuple[np.ndarray, np.ndarray, np.ndarray | None, dict[str, Any]], precision: Any) -> None:
    x, weight, bias, params = call
    params.pop("weight_scale", None)
    dy = np.random.default_rng(1).standard_normal((len(x), len(weight))).astype(np.float32)
    assert_same_gradients(x, weight, bias, params, dy, precision)


@st.composite
def gradients(draw: st.DrawFn, shape: tuple[int, int]) -> np.ndarray:
    """dY of one size, of many sizes, or with outliers; down to denormals; some of it not finite."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    dy = random.standard_normal(shape) * draw(st.sampled_from([1.0, 1e-30, 1e-34, 3e-37, 1e-40, 1e-45, 1e30]))
    match draw(st.sampled_from(["normal", "many sizes", "outliers"])):
        case "many sizes":
            dy *= 10.0 ** random.uniform(-9, 0, shape)
        case "outliers":
            dy[random.random(shape) < 0.01] *= 1e6
    for value in draw(st.lists(st.sampled_from(SPECIAL), max_size=3)):
        dy[random.integers(shape[0]), random.integers(shape[1])] = value
    with np.errstate(over="ignore"):
        return np.asarray(dy, dtype=np.float32)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(PRECISIONS))
def test_backward_over_several_blocks_of_terms(data: st.DataObject, precision: Any) -> None:
    sizes = st.sampled_from([1, 2, 3, 5, 13, 17])
    terms = st.sampled_from([255, 256, 257, 300, 511, 512, 513, 768, 1025])
    m, n = data.draw(st.one_of(st.tuples(sizes, terms), st.tuples(terms, sizes)))
    k = data.draw(st.sampled_from([1, 2, 3, 7, 31, 33]))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    x, weight, bias = (random.standard_normal(shape).astype(np.float32) for shape in ((m, k), (n, k), (n,)))
    if data.draw(st.booleans()):
        x[random.integers(m)] = data.draw(st.sampled_from(SPECIAL))
    bits = st.sampled_from([0, 2, 3, 4, 5, 8, 9, 16])
    input_bits = data.draw(bits)
    params: dict[str, Any] = {
        "input_bits": input_bits,
        "weight_bits": data.draw(st.one_of(bits, st.just(1))),
        "output_bits": data.draw(st.sampled_from([0, 8])),
        "input_range": data.draw(st.sampled_from([0.0, 1.0])) if input_bits else 0.0,
        "output_range": data.draw(st.sampled_from([0.0, 1.5])),
        "noise_relative": 0.0,
        "noise_additive": data.draw(st.sampled_from([0.0, 0.1])),
        "noise_shot": 0.0,
        "bias_stage": data.draw(st.sampled_from(["analog", "digital"])),
        "seed": 1,
        "stream": 2,
    }
    assert_same_gradients(x, weight, bias, params, data.draw(gradients((m, n))), precision)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 16), st.integers(1, 9), st.integers(1, 80), st.integers(0, 2**32), st.booleans())
def test_weights(bits: int, n: int, k: int, seed: int, scaled: bool) -> None:
    random = np.random.default_rng(seed)
    weight = (random.standard_normal((n, k)) * 10.0 ** random.integers(-44, 30, (n, 1))).astype(np.float32)
    scale = random.random(n).astype(np.float32) if scaled else None
    codes, step = reference.quantize_weight(weight, bits, scale)
    kernel_codes, kernel_step = lumina_kernel.quantize_weight(weight, bits, scale)
    assert_same_bits(np.asarray(kernel_codes), codes)
    assert_same_bits(np.asarray(kernel_step), step)
    again, _ = reference.quantize_weight(weight, bits, step)
    assert_same_bits(again, codes)
    if bits in (1, 2, 4):
        packed = reference.pack_weight(codes, bits)  # type: ignore[arg-type]
        assert_same_bits(lumina_kernel.pack_weight(codes, bits), packed)
        assert_same_bits(reference.unpack_weight(packed, bits, k), codes)
        assert_same_bits(lumina_kernel.unpack_weight(packed, bits, k), codes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"input_bits": 1}, {"input_bits": 17}, {"weight_bits": -1}, {"output_bits": 1}, {"output_bits": 17},
        {"input_bits": 8, "input_range": -1.0}, {"input_range": 1.0}, {"output_range": -1.0},
        {"output_range": [1.0, 0.0]}, {"output_range": []}, {"output_range": [np.nan]}, {"noise_relative": -0.1},
        {"noise_additive": np.inf}, {"noise_shot": np.nan}, {"bias_stage": "both"}, {"output_range": [1.0, 2.0, 3.0]},
        {"noise_relative": 1e39}, {"weight_scale": 1.0}, {"weight_bits": 8, "weight_scale": -1.0},
        {"weight_bits": 8, "weight_scale": 3e38}, {"weight_bits": 8, "weight_scale": [1.0, 2.0, 3.0]},
    ],
)  # fmt: skip
def test_both_refuse(wrong: dict[str, Any]) -> None:
    x, weight = np.ones((1, 2), np.float32), np.ones((2, 2), np.float32)
    name = list(wrong)[-1]
    with pytest.raises(ValueError, match=name):
        reference.optical_linear(x, weight, **wrong)
    rest = {key: value for key, value in wrong.items() if key != "weight_scale"}
    with pytest.raises(ValueError, match=name):
        lumina_kernel.PreparedLayer(lumina_kernel.Params(**rest), weight, None, wrong.get("weight_scale"))


@pytest.mark.parametrize("precision", ["low", "", "Highest"])
def test_both_refuse_a_precision(precision: Any) -> None:
    x, weight, dy = np.ones((1, 2), np.float32), np.ones((3, 2), np.float32), np.ones((1, 3), np.float32)
    message = re.escape(f'precision = "{precision}": allowed is "highest", "high", "medium" or "8 bits"')
    with pytest.raises(ValueError, match=f"^{message}$"):
        reference.optical_linear_backward(dy, x, weight, precision=precision)
    _, saved = lumina_kernel.forward_train(lumina_kernel.Params(), x, weight, None, 0, 0)
    with pytest.raises(ValueError, match=f"^{message}$"):
        saved.backward(dy, precision)


@pytest.mark.parametrize("function", [reference.optical_linear, reference.optical_linear_backward])
def test_defaults_are_those_of_the_table(function: Any) -> None:
    signature = inspect.signature(function).parameters
    table = {row["name"]: row["default"] for row in lumina_kernel.schema()}
    assert {name: signature[name].default for name in table if name in signature} == {
        name: default for name, default in table.items() if name in signature
    }
    assert set(table) - set(signature) <= {"in_features"}
