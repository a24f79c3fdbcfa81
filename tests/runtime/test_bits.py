"""Outputs equal the reference bit for bit: every storage, resolution, range mode, noise law and bias stage."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from effects import effects
from hypothesis import given, settings
from hypothesis import strategies as st
from op_model import Array, Layer, assert_same_bits, few_rows_layer, make_session, random_layer, run

RUNS = 2


@dataclass(frozen=True)
class Case:
    layer: Layer
    x: Array
    threads: int


def storages(weight_bits: int) -> list[str]:
    return ["float32"] + ["int8"] * (1 <= weight_bits <= 8) + ["uint8"] * (weight_bits in (1, 2, 4))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    bits = st.sampled_from([0, *range(2, 17)])
    n, k = draw(st.integers(1, 40)), draw(st.integers(1, 70))
    weight_bits = draw(st.sampled_from(range(17)))
    attributes: dict[str, Any] = {"input_bits": draw(bits), "output_bits": draw(bits)}
    positive = st.floats(2**-7, 32, width=32)
    if attributes["input_bits"] and draw(st.booleans()):
        attributes["input_range"] = draw(positive)
    match draw(st.sampled_from(["default", "dynamic", "layer", "channel"])):
        case "dynamic":
            attributes["output_range"] = [0.0]
        case "layer":
            attributes["output_range"] = [draw(positive)]
        case "channel":
            attributes["output_range"] = draw(st.lists(positive, min_size=n, max_size=n))
    for law in ("noise_relative", "noise_additive", "noise_shot"):
        if draw(st.booleans()):
            attributes[law] = draw(st.floats(0, 0.5, width=32))
    if draw(st.booleans()):
        attributes["bias_stage"] = draw(st.sampled_from(["analog", "digital"]))
    if draw(st.booleans()):
        attributes["seed"] = draw(st.integers(0, 2**63 - 1))
    later = draw(effects(attributes["input_bits"], weight_bits))
    if later:
        attributes |= later | {"op_version": 2}
        if "output_range" in later:
            attributes["output_range"] = [0.0]
    layer = random_layer(
        n,
        k,
        weight_bits=weight_bits,
        storage=draw(st.sampled_from(storages(weight_bits))),
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32)),
    )
    leading = draw(st.lists(st.integers(0, 4), max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = (rng.normal(size=(*leading, k)) * draw(st.sampled_from([1e-3, 1, 1e3]))).astype(np.float32)
    for value in draw(st.lists(st.sampled_from([np.nan, np.inf, -np.inf, 0, -0.0, 1e-42, 3e38]), max_size=3)):
        if x.size:
            x.reshape(-1)[draw(st.integers(0, x.size - 1))] = value
    layer = Layer(layer.w, layer.w_scale, layer.b, layer.attributes | attributes)
    return Case(layer, x, draw(st.integers(1, 3)))


@settings(max_examples=2 * settings().max_examples)
@given(case=cases())
def test_equals_the_reference(library: str, case: Case) -> None:
    x_shape = [f"d{axis}" for axis in range(case.x.ndim - 1)] + [case.x.shape[-1]]
    session = make_session(case.layer.model(x_shape=x_shape), library, threads=case.threads)
    for stream in range(RUNS):
        assert_same_bits(run(session, case.x), case.layer.expected(case.x, stream), case)


@pytest.mark.parametrize(
    ("weight_bits", "storage"), [(bits, storage) for bits in range(17) for storage in storages(bits)]
)
def test_every_storage_of_every_resolution(c_library: str, weight_bits: int, storage: str) -> None:
    layer = random_layer(
        9, 33, weight_bits=weight_bits, storage=storage, input_bits=8, noise_relative=0.05, noise_additive=0.02, seed=3
    )
    x = np.random.default_rng(1).normal(size=(5, 33)).astype(np.float32)
    assert_same_bits(run(make_session(layer.model(), c_library), x), layer.expected(x))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("weight_bits", [0, 4])
def test_work_for_several_threads(library: str, threads: int, weight_bits: int) -> None:
    storage = "uint8" if weight_bits else "float32"
    layer = random_layer(
        130, 257, weight_bits=weight_bits, storage=storage, input_bits=weight_bits, noise_additive=0.1, seed=7
    )
    x = np.random.default_rng(2).normal(size=(150, 257)).astype(np.float32)
    session = make_session(layer.model(), library, threads=threads)
    assert_same_bits(run(session, x), layer.expected(x))
    assert_same_bits(run(session, x[:1]), layer.expected(x[:1], stream=1))


@functools.cache
def few_rows(bits: int, m: int) -> tuple[bytes, Array, list[Array]]:
    """A model, X and the expected outputs of a session's runs."""
    layer = few_rows_layer(bits)
    x = np.random.default_rng(m).normal(size=(m, 1030)).astype(np.float32)
    return layer.model(), x, [layer.expected(x, stream) for stream in range(RUNS)]


@pytest.mark.parametrize("m", [1, 16])
@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("threads", [1, 2])
def test_few_rows_of_a_large_layer(library: str, bits: int, m: int, threads: int) -> None:
    """Cut by columns; a single row goes through the weights backwards in the second run."""
    model, x, outputs = few_rows(bits, m)
    session = make_session(model, library, threads=threads)
    for stream, expected in enumerate(outputs):
        assert_same_bits(run(session, x), expected, (stream, bits, m))


@pytest.mark.parametrize("shape", [(6,), (0, 6), (3, 0, 6), (1, 6), (2, 3, 4, 6)])
def test_ranks_and_empty_batches(library: str, shape: tuple[int, ...]) -> None:
    layer = random_layer(5, 6, weight_bits=8, storage="int8", input_bits=8, noise_relative=0.1)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    y = run(make_session(layer.model(x_shape=None), library), x)
    assert_same_bits(y, layer.expected(x))
    assert y.shape == (*shape[:-1], 5)


def test_rows_that_are_not_finite(library: str) -> None:
    layer = random_layer(5, 6, weight_bits=8, storage="int8", input_bits=8)
    x = np.ones((4, 6), np.float32)
    x[1, 2], x[2, 3] = np.nan, -np.inf
    dynamic = run(make_session(layer.model(), library), x)
    assert_same_bits(dynamic, layer.expected(x))
    assert np.isnan(dynamic).all(axis=1).tolist() == [False, True, True, False]
    clipped = Layer(layer.w, layer.w_scale, layer.b, {**layer.attributes, "input_range": 2.0})
    static = run(make_session(clipped.model(), library), x)
    assert_same_bits(static, clipped.expected(x))
    assert np.isnan(static).all(axis=1).tolist() == [False, True, False, False]
