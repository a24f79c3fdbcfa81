"""The binding against the numpy reference, bit for bit: one call, a prepared layer, both passes of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lumina_kernel
from lumina_onnx import reference

COUNTERS = st.integers(0, 2**63 - 1)
LEVELS = st.sampled_from([0.0, 0.0, 0.05, 0.5])


@dataclass
class Case:
    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    fields: dict[str, Any]
    weight_scale: Any
    seed: int
    stream: int

    @property
    def params(self) -> lumina_kernel.Params:
        return lumina_kernel.Params(**self.fields)

    def expected(self) -> np.ndarray:
        return reference.optical_linear(
            self.x,
            self.weight,
            self.bias,
            weight_scale=self.weight_scale,
            seed=self.seed,
            stream=self.stream,
            **self.fields,
        )


@st.composite
def cases(draw: st.DrawFn, finite: bool = False, scaled: bool = True) -> Case:
    n, k = draw(st.integers(1, 40)), draw(st.integers(1, 70))
    leading = draw(st.lists(st.integers(0, 4), max_size=3))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = generator.standard_normal((*leading, k)).astype(np.float32)
    x *= draw(st.sampled_from([1.0, 1.0, 1e-40, 1e30]))
    if x.size and not finite and draw(st.booleans()):
        x.flat[draw(st.integers(0, x.size - 1))] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 3e38]))
    weight = generator.standard_normal((n, k)).astype(np.float32)
    weight[draw(st.integers(0, n - 1))] *= draw(st.sampled_from([1.0, 0.0]))
    input_bits = draw(st.sampled_from([0, *range(2, 17)]))
    weight_bits = draw(st.integers(0, 16))
    fields = {
        "input_bits": input_bits,
        "weight_bits": weight_bits,
        "output_bits": draw(st.sampled_from([0, *range(2, 17)])),
        "input_range": draw(st.sampled_from([0.0, 1.5])) if input_bits else 0.0,
        "output_range": draw(st.sampled_from([0.0, 4.0, tuple(np.linspace(1, 9, n).tolist())])),
        "noise_relative": draw(LEVELS),
        "noise_additive": draw(LEVELS),
        "noise_shot": draw(LEVELS),
        "bias_stage": draw(st.sampled_from(["analog", "digital"])),
    }
    scales = [None, 0.05, np.linspace(0.01, 0.1, n, dtype=np.float32).tolist()] if weight_bits and scaled else [None]
    bias = generator.standard_normal(n).astype(np.float32) if draw(st.booleans()) else None
    return Case(x, weight, bias, fields, draw(st.sampled_from(scales)), draw(COUNTERS), draw(COUNTERS))


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == expected.dtype == np.float32
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


def call(case: Case, x: Any, **more: Any) -> Any:
    fields = dict(case.fields)
    noise_std, bits = fields.pop("noise_relative"), fields.pop("output_bits")
    return lumina_kernel.optical_linear_forward(
        x,
        case.weight,
        case.bias,
        noise_std,
        bits,
        weight_scale=case.weight_scale,
        seed=case.seed,
        stream=case.stream,
        **fields,
        **more,
    )


@given(cases())
def test_forward(case: Case) -> None:
    expected = case.expected()
    assert_same_bits(call(case, case.x), expected)
    out = np.full_like(expected, 7)
    assert call(case, case.x, out=out) is out
    assert_same_bits(out, expected)


@given(cases())
def test_prepared_layer(case: Case) -> None:
    layer = lumina_kernel.PreparedLayer(case.params, case.weight, case.bias, case.weight_scale)
    assert (layer.n, layer.k) == case.weight.shape
    for _ in range(2):
        assert_same_bits(layer.forward(case.x, case.seed, case.stream), case.expected())


@given(cases(scaled=False))
def test_training(case: Case) -> None:
    case.x = case.x.reshape(-1, case.x.shape[-1])
    y, saved = lumina_kernel.forward_train(case.params, case.x, case.weight, case.bias, case.seed, case.stream)
    assert_same_bits(y, case.expected())
    dy = np.random.default_rng(0).standard_normal(y.shape).astype(np.float32)
    expected = reference.optical_linear_backward(
        dy, case.x, case.weight, case.bias, seed=case.seed, stream=case.stream, **case.fields
    )
    for _ in range(2):
        for actual, wanted in zip(saved.backward(dy), expected, strict=True):
            assert_same_bits(actual, wanted)


@pytest.mark.parametrize("bits", range(1, 17))
@given(cases())
def test_quantize_weight(bits: int, case: Case) -> None:
    codes, scale = lumina_kernel.quantize_weight(case.weight, bits)
    wanted_codes, wanted_scale = reference.quantize_weight(case.weight, bits)
    assert codes.dtype == (np.int8 if bits <= 8 else np.int16)
    np.testing.assert_array_equal(codes, wanted_codes)
    assert_same_bits(scale, wanted_scale)
    again, same_scale = lumina_kernel.quantize_weight(case.weight, bits, scale)
    np.testing.assert_array_equal(again, codes)
    assert_same_bits(same_scale, scale)


@pytest.mark.parametrize("bits", [1, 2, 4])
@given(cases())
def test_packed_weights(bits: int, case: Case) -> None:
    codes, _ = lumina_kernel.quantize_weight(case.weight, bits)
    packed = lumina_kernel.pack_weight(codes, bits)
    np.testing.assert_array_equal(packed, reference.pack_weight(codes, bits))  # type: ignore[arg-type]
    np.testing.assert_array_equal(lumina_kernel.unpack_weight(packed, bits, codes.shape[1]), codes)
