"""The numpy reference against the golden vectors that the Rust reference wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lumina_kernel
from lumina_onnx import _reference_noise as generator
from lumina_onnx import reference, schema

FOLDER = Path(__file__).parents[1] / "vectors"


def read(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


FORWARD = read("forward.json") + read("forward-2.json")
BACKWARD = read("backward.json") + read("backward-2.json")


def floats(text: str, *shape: int) -> np.ndarray:
    values = np.array([int(word, 16) for word in text.split()], dtype=np.uint32).view(np.float32)
    return values.reshape(shape) if shape else values


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


def call(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, dict[str, Any]]:
    m, n, k = case["m"], case["n"], case["k"]
    params = dict(case["params"])
    for row in schema.LAYER:
        if row.type == "FLOAT" and row.name in params:
            params[row.name] = float(floats(params[row.name])[0])
    params["output_range"] = floats(params["output_range"]).tolist()
    params |= {"seed": case["seed"], "stream": case["stream"]}
    if case["weight_scale"] is not None:
        params["weight_scale"] = floats(case["weight_scale"]).tolist()
    bias = None if case["bias"] is None else floats(case["bias"])
    return floats(case["x"], m, k), floats(case["weight"], n, k), bias, params


def name_of(case: dict[str, Any]) -> str:
    return f"{case['name']}, {precision_of(case)}" if "dy" in case else str(case["name"])


def precision_of(case: dict[str, Any]) -> Any:
    return case.get("precision", "highest")


@pytest.mark.parametrize(("start", "word"), read("rng.json")["mix"])
def test_mix(start: str, word: str) -> None:
    assert int(generator.mix(np.uint64(int(start, 16)))) == int(word, 16)


@pytest.mark.parametrize("block", read("rng.json")["blocks"])
def test_lanes(block: dict[str, Any]) -> None:
    key = generator.block_keys(generator.call_key(block["seed"], block["stream"]), block["row"], block["block"])
    assert int(key) == int(block["key"], 16)
    state = generator.lanes(key)
    words = np.concatenate([generator.next_words(state) for _ in range(4)])
    assert [int(word) for word in words] == [int(word, 16) for word in block["words"].split()]


def test_draw_is_the_halves_of_the_words() -> None:
    key = generator.block_keys(generator.call_key(3, 4), [0, 1], [0])
    words = generator.next_words(generator.lanes(key))
    halves = generator.draw(generator.lanes(key)).astype(np.uint64)
    np.testing.assert_array_equal(halves[:, 0::2] | halves[:, 1::2] << np.uint64(32), words)


def test_box_muller() -> None:
    table = np.array([[int(word, 16) for word in line.split()] for line in read("noise.json")["box_muller"]])
    a, b, first, second = table.astype(np.uint32).T
    actual = generator.box_muller(a.copy(), b.copy())
    assert_same_bits(actual[0], first.copy().view(np.float32))
    assert_same_bits(actual[1], second.copy().view(np.float32))


@pytest.mark.parametrize(
    "row", read("noise.json")["rows"], ids=lambda row: f"{row['seed']}-{row['stream']}-{row['row']}"
)
def test_noise(row: dict[str, Any]) -> None:
    expected = floats(row["eps"])
    eps = reference.noise(row["seed"], row["stream"], row["row"] + 1, row["columns"])[row["row"]]
    assert_same_bits(eps[row["start"] : row["start"] + len(expected)].copy(), expected)


@pytest.mark.parametrize("row", read("noise-2.json")["tiles"], ids=lambda row: f"tile {row['tile']} of {row['row']}")
def test_noise_of_tiles(row: dict[str, Any]) -> None:
    eps = reference.noise(row["seed"], row["stream"], row["row"] + 1, row["columns"], tile=row["tile"])
    assert_same_bits(eps[row["row"], row["start"] :].copy(), floats(row["eps"]))


@pytest.mark.parametrize("row", read("noise-2.json")["inputs"], ids=lambda row: f"row {row['row']}")
def test_noise_of_inputs(row: dict[str, Any]) -> None:
    eps = reference.input_noise(row["seed"], row["stream"], row["row"] + 1, row["columns"])
    assert_same_bits(eps[row["row"], row["start"] :].copy(), floats(row["eps"]))


@pytest.mark.parametrize("case", FORWARD, ids=name_of)
def test_forward(case: dict[str, Any]) -> None:
    x, weight, bias, params = call(case)
    expected = floats(case["y"], case["m"], case["n"])
    assert_same_bits(reference.optical_linear(x, weight, bias, **params), expected)

    bits = params["weight_bits"]
    if bits == 0:
        return
    codes, scale = reference.quantize_weight(weight, bits, params.pop("weight_scale", None))
    np.testing.assert_array_equal(codes.ravel(), [int(code) for code in case["codes"].split()])
    assert codes.dtype == (np.int8 if bits <= 8 else np.int16)
    assert_same_bits(scale, floats(case["scale"]))
    if bits <= 8:
        assert_same_bits(reference.optical_linear(x, codes, bias, weight_scale=scale, **params), expected)
    if bits in (1, 2, 4):
        packed = reference.pack_weight(codes, bits)  # type: ignore[arg-type]
        np.testing.assert_array_equal(packed.ravel(), [int(byte) for byte in case["packed"].split()])
        y = reference.optical_linear(x, packed, bias, weight_scale=scale, in_features=case["k"], **params)
        assert_same_bits(y, expected)


@pytest.mark.parametrize("case", FORWARD, ids=name_of)
def test_forward_of_the_kernel(case: dict[str, Any]) -> None:
    x, weight, bias, params = call(case)
    seed, stream, scale = params.pop("seed"), params.pop("stream"), params.pop("weight_scale", None)
    layer = lumina_kernel.PreparedLayer(lumina_kernel.Params(**params), weight, bias, scale)
    assert_same_bits(layer.forward(x, seed, stream), floats(case["y"], case["m"], case["n"]))
    if params["weight_bits"]:
        assert_same_bits(np.asarray(layer.weight_scale), floats(case["scale"]))


def assert_gradients(case: dict[str, Any], gradients: tuple[np.ndarray, ...]) -> None:
    m, n, k = case["m"], case["n"], case["k"]
    for name, shape, actual in zip(("dx", "dw", "db"), ((m, k), (n, k), (n,)), gradients, strict=True):
        assert_same_bits(actual, floats(case[name], *shape))


@pytest.mark.parametrize("case", BACKWARD, ids=name_of)
def test_backward(case: dict[str, Any]) -> None:
    x, weight, bias, params = call(case)
    dy, precision = floats(case["dy"], case["m"], case["n"]), precision_of(case)
    assert_gradients(case, reference.optical_linear_backward(dy, x, weight, bias, precision=precision, **params))


# forward_train takes no scale of the weight.
@pytest.mark.parametrize("case", [case for case in BACKWARD if case["weight_scale"] is None], ids=name_of)
def test_backward_of_the_kernel(case: dict[str, Any]) -> None:
    x, weight, bias, params = call(case)
    seed, stream = params.pop("seed"), params.pop("stream")
    _, saved = lumina_kernel.forward_train(lumina_kernel.Params(**params), x, weight, bias, seed, stream)
    dy = floats(case["dy"], case["m"], case["n"])
    assert_gradients(case, saved.backward(dy, precision_of(case)))


def test_the_cases_reach_every_parameter() -> None:
    cases = read("forward.json")
    for name, values in {
        "input_bits": {0, *range(2, 10), 12, 16},
        "weight_bits": {0, *range(1, 10), 12, 16},
        "output_bits": {0, 2, 3, 4, 6, 8, 10, 12, 16},
        "bias_stage": {"analog", "digital"},
    }.items():
        assert {case["params"][name] for case in cases} == values
    laws = ("noise_relative", "noise_additive", "noise_shot")
    assert len({tuple(case["params"][law] == "00000000" for law in laws) for case in cases}) == 8
    sizes = {min(2, len(case["params"]["output_range"].split())) for case in cases if case["n"] > 1}
    assert sizes == {1, 2}


@pytest.mark.parametrize("cases", [read("forward-2.json"), read("backward-2.json")], ids=["forward", "backward"])
def test_the_cases_of_version_2_reach_its_parameters(cases: list[dict[str, Any]]) -> None:
    for row in schema.LAYER:
        values = {str(case["params"].get(row.name, row.default)) for case in cases}
        if row.since == 2:
            assert len(values) > 1, row.name
    # Noise of the light with each kind of full scale, in tiles.
    for bound, static in ((True, False), (False, True), (False, False)):
        assert any(
            ("output_bound" in params) == bound
            and (params["output_range"] != "00000000") == static
            and {"photons", "noise_read", "tile_features"} <= set(params)
            and params["output_bits"]
            for params in (case["params"] for case in cases)
        )


def test_version_1_has_no_parameter_of_version_2() -> None:
    later = {row.name for row in schema.LAYER if row.since > 1}
    for name in ("forward.json", "backward.json"):
        assert not any(later & set(case["params"]) for case in read(name))
