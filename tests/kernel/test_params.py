"""`Params`, and every value that a parameter refuses."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import numpy as np
import pytest

import lumina_kernel
from lumina_kernel import Params

X, W = np.ones((2, 4), np.float32), np.ones((3, 4), np.float32)

REFUSED = [
    ({"input_bits": 1}, ValueError, "input_bits = 1: allowed is 0 (analog), 2..16"),
    ({"input_bits": 17}, ValueError, "input_bits = 17: allowed is 0 (analog), 2..16"),
    ({"weight_bits": -1}, ValueError, "weight_bits = -1: allowed is 0 (analog), 1..16"),
    ({"weight_bits": 2**70}, ValueError, f"weight_bits = {2**70}: allowed is 0 (analog), 1..16"),
    ({"output_bits": 1}, ValueError, "output_bits = 1: allowed is 0 (no ADC), 2..16"),
    ({"output_bits": 8.0}, TypeError, "output_bits is of type float: allowed is 0 (no ADC), 2..16"),
    ({"input_range": -1.0, "input_bits": 8}, ValueError, "input_range = -1: allowed is a finite number >= 0"),
    ({"input_range": 1.0}, ValueError, "input_range = 1 would be ignored: with input_bits 0 there is no DAC"),
    ({"input_range": 1e-60, "input_bits": 8}, ValueError, "input_range = 0.0000"),
    ({"output_range": -1.0}, ValueError, "output_range[0] = -1: allowed is a single 0 (dynamic)"),
    ({"output_range": float("inf")}, ValueError, "output_range[0] = inf: allowed is"),
    ({"output_range": [1.0, 0.0, 2.0]}, ValueError, "output_range[1] = 0: allowed is"),
    ({"output_range": []}, ValueError, "output_range has 0 elements: allowed is"),
    ({"output_range": "wide"}, TypeError, "output_range[0] is of type str: allowed is a number"),
    ({"output_range": None}, TypeError, "output_range is of type NoneType: allowed is a number"),
    ({"output_range": [1.0, None]}, TypeError, "output_range[1] is of type NoneType: allowed is a number"),
    ({"noise_relative": -0.5}, ValueError, "noise_relative = -0.5: allowed is a finite number >= 0"),
    ({"noise_relative": 1e300}, ValueError, "allowed is a number that 32 bits can hold"),
    ({"noise_additive": float("nan")}, ValueError, "noise_additive = NaN: allowed is a finite number >= 0"),
    ({"noise_shot": float("inf")}, ValueError, "noise_shot = inf: allowed is a finite number >= 0"),
    ({"noise_shot": "loud"}, TypeError, "noise_shot is of type str: allowed is a number"),
    ({"bias_stage": "optical"}, ValueError, 'bias_stage = "optical": allowed is "analog", "digital"'),
    ({"bias_stage": 3}, TypeError, 'bias_stage is of type int: allowed is "analog", "digital"'),
]


@pytest.mark.parametrize(("fields", "error", "message"), REFUSED)
def test_refused(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        Params(**fields)


@pytest.mark.parametrize(("fields", "error", "message"), REFUSED)
def test_refused_by_the_function_under_its_own_names(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    fields = {"noise_relative": 0.0, "output_bits": 8, **fields}
    noise_std, bits = fields.pop("noise_relative"), fields.pop("output_bits")
    message = message.replace("noise_relative", "noise_std").replace("output_bits", "bits")
    with pytest.raises(error, match="^.*" + re.escape(message)) as raised:
        lumina_kernel.optical_linear_forward(X, W, None, noise_std, bits, **fields)
    assert "noise_relative" not in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"output_range": [1.0, 2.0]},
            "output_range has 2 elements: allowed is 1, or one for each of the N = 3 outputs",
        ),
        ({"weight_scale": 1.0}, "weight_scale = 1 would be ignored: with weight_bits 0 the weights are analog"),
        ({"weight_scale": [1, 2], "weight_bits": 4}, "weight_scale has 2 elements: allowed is 1, or one for each"),
        ({"weight_scale": np.inf, "weight_bits": 4}, "weight_scale[0] = inf: allowed is a finite number >= 0"),
        ({"seed": -1}, "seed = -1: allowed is 0..2^63-1"),
        ({"seed": 2**63}, f"seed = {2**63}: allowed is 0..2^63-1"),
        ({"seed": 1, "stream": 2**64}, f"stream = {2**64}: allowed is 0..2^63-1"),
        ({"stream": 1}, "stream = 1 would be ignored: without a seed every call draws fresh noise"),
    ],
)
def test_refused_by_the_function(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        lumina_kernel.optical_linear_forward(X, W, None, 0.0, 8, **fields)


def test_k_beyond_an_exact_sum_is_refused() -> None:
    wide = np.ones((1, 131_073), np.float32)
    with pytest.raises(ValueError, match=r"K \(columns of weight\) = 131073: allowed is at most 131072 where"):
        lumina_kernel.optical_linear_forward(wide, wide, None, 0.0, 8, input_bits=8, weight_bits=8)


def test_fields_are_kept_in_32_bits() -> None:
    params = Params(input_bits=np.int64(4), noise_relative=0.1, output_range=np.array([1, 2], np.float32))
    assert params.noise_relative == float(np.float32(0.1))
    assert params.output_range == (1.0, 2.0)
    assert Params(output_range=[3]).output_range == 3.0
    assert (params.input_bits, params.weight_bits, params.output_bits, params.bias_stage) == (4, 0, 8, "analog")


def test_equality_hash_repr_and_copies() -> None:
    fields: dict[str, Any] = {"weight_bits": 3, "output_range": (1.5, 2.0), "noise_shot": 0.25, "bias_stage": "digital"}
    params = Params(**fields)
    assert params == Params(**fields)
    assert hash(params) == hash(Params(**fields))
    assert params != Params()
    assert params != "params"
    assert eval(repr(params), {"Params": Params}) == params
    for same in (pickle.loads(pickle.dumps(params)), copy.copy(params), copy.deepcopy(params)):
        assert same == params
    assert hash(Params(noise_relative=-0.0)) == hash(Params(noise_relative=0.0))


def test_params_are_immutable() -> None:
    with pytest.raises(AttributeError):
        Params().input_bits = 4  # type: ignore[misc]
    with pytest.raises(TypeError):
        Params(8)  # type: ignore[call-arg]


def test_noise_level_zero_is_no_noise() -> None:
    first, second = (lumina_kernel.optical_linear_forward(X, W, None, 0.0, 8) for _ in range(2))
    np.testing.assert_array_equal(first, second)
