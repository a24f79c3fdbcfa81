"""The grid: axes, their text form, and what they make of layers."""

from __future__ import annotations

import itertools
import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumina_onnx import OpticalProfile
from lumina_onnx.schema import LAYER
from lumina_onnx.sweeping.grid import Plan, as_grid, parsed, parsed_seeds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("noise_additive=0,0.01,0.05", ("noise_additive", [0, 0.01, 0.05])),
        ("output_bits=3:8", ("output_bits", [3, 4, 5, 6, 7, 8])),
        ("output_bits=0,4:6,8", ("output_bits", [0, 4, 5, 6, 8])),
        ("noise_shot=0:0.3:0.1", ("noise_shot", [0.0, 0.1, 0.2, 0.3])),
        ("input_range=1e-3, 2", ("input_range", [0.001, 2])),
        ("fc*:output_bits=4", ("fc*:output_bits", [4])),
        ("a=b:c:output_bits=4", ("a=b:c:output_bits", [4])),
        ("bias_stage=analog,digital", ("bias_stage", ["analog", "digital"])),
    ],
)
def test_the_text_of_an_axis(text: str, expected: tuple[str, list[Any]]) -> None:
    assert parsed(text) == expected


@given(first=st.integers(-50, 50), count=st.integers(1, 40), step=st.sampled_from(["1", "0.1", "0.05", "0.3", "7"]))
def test_a_span_has_both_ends_and_no_rounding(first: int, count: int, step: str) -> None:
    last = first + (count - 1) * Decimal(step)
    _, values = parsed(f"noise_shot={first}:{last}:{step}")
    assert values == [float(first + place * Decimal(step)) for place in range(count)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output_bits", "allowed is NAME=VALUES"),
        ("output_bits=3:x", r"'3:x' is no value; allowed are numbers, FIRST:LAST and FIRST:LAST:STEP"),
        ("output_bits=", "'' is no value"),
        ("output_bits=nan", "'nan' is no value"),
        ("output_bits=1:2:3:4", "'1:2:3:4' is no value"),
        ("output_bits=8:3", "'8:3' holds no value: allowed is FIRST <= LAST"),
        ("noise_shot=0:1:0", "a STEP above 0"),
        ("noise_shot=0:0.5", "'0:0.5' needs a step"),
        ("noise_shot=0:1e9:1", "holds 1000000001 values; allowed are up to 100000"),
    ],
)
def test_a_text_that_is_no_axis(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(text)


def test_the_text_of_seeds() -> None:
    assert parsed_seeds("20") == 20
    assert parsed_seeds("5:7") == [5, 6, 7]
    assert parsed_seeds("3,9") == [3, 9]


def test_draws_vary_fastest() -> None:
    grid = as_grid({"seed": [7, 8], "output_bits": [3, 4], "noise_shot": [0]}, None)
    assert [axis.name for axis in grid.axes] == ["output_bits", "noise_shot", "seed"]
    assert list(grid.cells()) == [(3, 0.0, 7), (3, 0.0, 8), (4, 0.0, 7), (4, 0.0, 8)]
    assert (len(grid), grid.shape, list(grid.points())) == (4, (2, 1, 2), [(3, 0.0), (4, 0.0)])
    assert as_grid({"output_bits": [3]}, 3).stated() == {"output_bits": [3], "seed": [0, 1, 2]}
    assert len(as_grid({}, None)) == 1


@pytest.mark.parametrize(
    ("grid", "seeds", "error", "message"),
    [
        ({"noise": [1]}, None, ValueError, r"unknown axis 'noise': allowed is input_bits, weight_bits, .*, seed; and"),
        ({"0:seed": [1]}, None, ValueError, "unknown axis '0:seed'"),
        ({"weight_scale": [1]}, None, ValueError, "unknown axis 'weight_scale'"),
        ({"output_bits": []}, None, ValueError, r"grid\['output_bits'\] is empty"),
        ({"output_bits": [3, 4, 3]}, None, ValueError, "has 3 twice"),
        ({"output_bits": 3}, None, TypeError, "is 3: allowed is a list of values"),
        ({"output_bits": [3.5]}, None, TypeError, r"holds 3.5: allowed is 0 \(no ADC\), 2..16"),
        ({"output_bits": [True]}, None, TypeError, "holds True"),
        ({"noise_shot": ["x"]}, None, TypeError, r"holds 'x': allowed is one number, a finite number >= 0"),
        ({"bias_stage": [1]}, None, TypeError, 'holds 1: allowed is "analog", "digital"'),
        ({"seed": [-1]}, None, ValueError, r"seed = -1: allowed is 0..2\^63-1"),
        ({"seed": [1]}, 3, ValueError, "seeds are given as well"),
        ({"noise_shot": range(10**5)}, 101, ValueError, "grid has 10100000 cells: allowed are up to 10000000"),
        ({}, 0, ValueError, "seeds = 0: allowed is at least 1"),
        ([("output_bits", [3])], None, TypeError, "grid is a list: allowed is a mapping"),
        ({3: [3]}, None, TypeError, "axis 3: allowed are names"),
    ],
)
def test_a_grid_that_is_none(grid: Any, seeds: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        as_grid(grid, seeds)


@pytest.mark.parametrize("row", LAYER, ids=[row.name for row in LAYER])
def test_every_parameter_of_the_hardware_is_an_axis(row: Any) -> None:
    value = {"STRING": row.choices[-1:], "INT": (3,)}.get(row.type, (0.25,))[0]
    plan = Plan(as_grid({row.name: [value]}, None), ["a"], [OpticalProfile()], ())
    try:
        expected = OpticalProfile(**{row.name: value})
    except ValueError as error:  # one that needs another beside it
        with pytest.raises(ValueError, match=re.escape(f"layer 'a': {error}")):
            plan.profiles([value])
    else:
        assert plan.profiles([value]) == [expected]


LAYERS = ["fc1", "fc2", "head"]
PROFILES = [OpticalProfile(output_bits=bits, input_range=bits) for bits in (4, 5, 6)]


def bits(grid: dict[str, Any], point: list[Any], skip: Any = ()) -> list[int]:
    plan = Plan(as_grid(grid, None), LAYERS, PROFILES, skip)
    return [profile.output_bits for profile in plan.profiles(point)]


def test_patterns_choose_layers_and_the_last_axis_counts() -> None:
    assert bits({"output_bits": [8]}, [8]) == [8, 8, 8]
    assert bits({"output_bits": [8]}, [8], skip="fc*") == [4, 5, 8]
    assert bits({"fc*:output_bits": [8]}, [8]) == [8, 8, 6]
    assert bits({"output_bits": [8], "head:output_bits": [3]}, [8, 3]) == [8, 8, 3]
    assert bits({"head:output_bits": [3], "output_bits": [8]}, [3, 8]) == [8, 8, 8]


def test_an_analog_input_drops_the_full_scale_of_its_dac() -> None:
    plan = Plan(as_grid({"input_bits": [0, 4]}, None), LAYERS, PROFILES, ())
    assert [profile.input_range for profile in plan.profiles([0])] == [0, 0, 0]
    assert [profile.input_range for profile in plan.profiles([4])] == [4, 5, 6]
    given = Plan(as_grid({"input_bits": [0], "input_range": [2]}, None), LAYERS, PROFILES, ())
    with pytest.raises(ValueError, match=r"grid: input_bits=0, input_range=2.0: layer 'fc1': input_range = 2 would be"):
        given.profiles([0, 2.0])


@pytest.mark.parametrize(
    ("grid", "skip", "message"),
    [
        ({"tail:output_bits": [3]}, (), "axis 'tail:output_bits': pattern 'tail' matches no layer: there are fc1, fc2"),
        ({"output_bits": [3]}, "tail", "skip pattern 'tail' matches no layer"),
        ({"fc1:output_bits": [3]}, "fc*", "axis 'fc1:output_bits' applies to no layer"),
    ],
)
def test_a_pattern_that_chooses_no_layer(grid: dict[str, Any], skip: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(as_grid(grid, None), LAYERS, PROFILES, skip)


def test_cells_are_the_product_of_the_axes() -> None:
    grid = as_grid({"output_bits": [3, 4], "noise_shot": [0, 0.5]}, [2, 4])
    assert list(grid.cells()) == list(itertools.product([3, 4], [0.0, 0.5], [2, 4]))
