"""What the reference promises besides its numbers: shapes, non-finite rows, independence, errors."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from lumina_onnx import reference

NAN_BITS = 0x7FC00000
RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, dtype=np.float32)


def test_an_analog_layer_without_noise_is_linear() -> None:
    x, weight, bias = floats(3, 4, 5), floats(6, 5), floats(6)
    y = reference.optical_linear(x, weight, bias, output_bits=0)
    np.testing.assert_allclose(y, x.astype(np.float64) @ weight.T + bias, rtol=1e-5, atol=1e-6)


def test_sixteen_bits_are_nearly_linear() -> None:
    x, weight, bias = floats(7, 33), floats(6, 33), floats(6)
    y = reference.optical_linear(x, weight, bias, input_bits=16, weight_bits=16, output_bits=16)
    np.testing.assert_allclose(y, x.astype(np.float64) @ weight.T + bias, atol=2e-3)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (0, 5), (2, 0, 5), (2, 3, 5)])
def test_shapes(shape: tuple[int, ...]) -> None:
    x, weight = floats(*shape), floats(4, 5)
    y = reference.optical_linear(x, weight, noise_additive=0.1, input_bits=8)
    assert y.shape == (*shape[:-1], 4)
    dx, dw, db = reference.optical_linear_backward(np.ones_like(y), x, weight, noise_additive=0.1, input_bits=8)
    assert (dx.shape, dw.shape, db.shape) == (shape, (4, 5), (4,))
    assert {array.dtype for array in (y, dx, dw, db)} == {np.dtype(np.float32)}
    if x.size == 0:
        assert not dw.any()
        assert not db.any()


def test_a_row_does_not_depend_on_the_batch() -> None:
    x, weight = floats(6, 9), floats(5, 9)
    params: dict[str, Any] = {"input_bits": 6, "weight_bits": 4, "noise_additive": 0.1, "seed": 3}
    y = reference.optical_linear(x, weight, **params)
    other = np.concatenate([x[:3], 100 * floats(2, 9)])
    np.testing.assert_array_equal(reference.optical_linear(other, weight, **params)[:3], y[:3])


def test_some_rows_of_a_call() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(90, 5)).astype(np.float32), rng.normal(size=(40, 5)).astype(np.float32)
    params: dict[str, Any] = {"input_bits": 8, "weight_bits": 4, "noise_additive": 0.1, "seed": 3, "stream": 2}
    every = reference.optical_linear(x, w, **params)
    for rows in ([0], [89, 3, 3], list(range(90))):
        np.testing.assert_array_equal(reference.optical_linear(x[rows], w, rows=rows, **params), every[rows])
        some = reference.optical_linear(x[rows][None], w, rows=np.array(rows), **params)
        np.testing.assert_array_equal(some, every[rows][None])
    wrong: Any
    for wrong in ([0], [0, -1], [0, 0.5], [[0, 1]]):
        with pytest.raises(ValueError, match="allowed is a number from 0 for each of the 2 rows of input"):
            reference.optical_linear(x[:2], w, rows=wrong, **params)


def test_noise_has_the_sigma_of_its_law() -> None:
    x, weight = np.ones((4000, 1), np.float32), np.array([[4.0], [-1.0]], np.float32)
    for params, sigma in (
        ({"noise_relative": 0.1}, [0.4, 0.1]),
        ({"noise_additive": 0.1}, [0.4, 0.4]),
        ({"noise_additive": 0.1, "output_range": 8.0}, [0.8, 0.8]),
        ({"noise_shot": 0.1}, [0.4, 0.2]),
        ({"noise_relative": 0.3, "noise_additive": 0.1}, [(1.2**2 + 0.4**2) ** 0.5, (0.3**2 + 0.4**2) ** 0.5]),
    ):
        y = reference.optical_linear(x, weight, output_bits=0, seed=1, **params)  # type: ignore[arg-type]
        np.testing.assert_allclose(y.std(axis=0), sigma, rtol=0.06)
        np.testing.assert_allclose(y.mean(axis=0), [4, -1], atol=0.07)


def test_seed_and_stream_choose_the_noise() -> None:
    x, weight = floats(2, 5), floats(3, 5)
    draw = {
        key: reference.optical_linear(
            x, weight, output_bits=0, noise_additive=0.1, seed=key[0], stream=key[1]
        ).tobytes()
        for key in ((0, 0), (0, 1), (1, 0), (1, 1))
    }
    assert len(set(draw.values())) == 4
    again = reference.optical_linear(x, weight, output_bits=0, noise_additive=0.1, seed=1, stream=1)
    assert again.tobytes() == draw[1, 1]


@pytest.mark.parametrize(
    ("value", "params", "row"),
    [
        (np.nan, {}, "nan"),
        (np.nan, {"input_bits": 8, "input_range": 1.0}, "nan"),
        (np.inf, {}, "nan"),
        (-np.inf, {"input_bits": 8}, "nan"),
        (np.inf, {"input_bits": 8, "input_range": 1.0}, "finite"),
        (3e38, {"output_bits": 8}, "nan"),
        (3e38, {"output_bits": 0}, "inf"),
        (3e38, {"output_bits": 8, "output_range": 2.0}, "saturated"),
    ],
)
def test_what_is_not_finite(value: float, params: dict[str, Any], row: str) -> None:
    x = np.array([[1.0, 2.0], [value, 1.0]], np.float32)
    weight = np.full((3, 2), 4.0, np.float32)
    y = reference.optical_linear(x, weight, **params)
    assert np.isfinite(y[0]).all()
    if row == "nan":
        assert (y[1].view(np.uint32) == NAN_BITS).all()
    elif row == "inf":
        assert (y[1] == np.inf).all()
    elif row == "saturated":
        assert (y[1] == 2.0).all()
    else:
        saturated = np.array([[1.0, 1.0]], np.float32)
        np.testing.assert_array_equal(y[1:], reference.optical_linear(saturated, weight, **params))


def test_gradient_is_that_of_a_linear_layer_where_nothing_saturates() -> None:
    x, weight, bias, dy = floats(6, 9), floats(4, 9), floats(4), floats(6, 4)
    dx, dw, db = reference.optical_linear_backward(dy, x, weight, bias, output_bits=8, noise_additive=0.1)
    np.testing.assert_allclose(dx, dy.astype(np.float64) @ weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dw, dy.T.astype(np.float64) @ x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(db, dy.sum(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stage", "db"), [("analog", 1.0), ("digital", 2.0)])
def test_gradient_is_clipped_where_a_range_saturates(stage: str, db: float) -> None:
    x, weight = np.array([[1.0, 0.5], [8.0, 0.5]], np.float32), np.array([[1.0, 0.25]], np.float32)
    params: dict[str, Any] = {"input_bits": 16, "input_range": 4.0, "output_range": 2.0, "bias_stage": stage}
    bias = np.zeros(1, np.float32)
    dx, dw, got = reference.optical_linear_backward(np.ones((2, 1), np.float32), x, weight, bias, **params)
    np.testing.assert_array_equal(dx, [[1.0, 0.25], [0.0, 0.0]])
    np.testing.assert_allclose(dw, [[1.0, 0.5]], rtol=1e-3)
    assert got == [db]
    # With an ADC that does not saturate only the DAC's mask remains: column 0 of the second row.
    params["output_range"] = 100.0
    dx, _, _ = reference.optical_linear_backward(np.ones((2, 1), np.float32), x, weight, bias, **params)
    np.testing.assert_array_equal(dx, [[1.0, 0.25], [0.0, 0.25]])


def test_gradients_in_a_fixed_point() -> None:
    # One output and input codes of 1: dX is v = g * 1 itself, rounded; the rows of dW are the sums of v over m.
    x, weight = np.ones((3, 1), np.float32), np.ones((1, 1), np.float32)
    params: dict[str, Any] = {"input_bits": 8, "weight_bits": 1, "output_bits": 0}
    dy = np.array([[127.0], [1.4], [-0.6]], np.float32)
    for precision, dw in (("highest", 127.8), ("high", 127.8), ("medium", 127.8), ("8 bits", 127.0)):
        gradient = reference.optical_linear_backward(dy, x, weight, precision=precision, **params)
        # A row of dX is a block of its own, so that its only term keeps all its bits but the rounding of the step.
        np.testing.assert_allclose(gradient[0], dy, rtol=2e-7)
        # At 8 bits a code of dW stands for 1: 127 + 1 - 1.
        np.testing.assert_allclose(gradient[1], [[dw]], rtol=5e-5)
        np.testing.assert_array_equal(gradient[2], np.float32(127.0) + dy[1] + dy[2])


@pytest.mark.parametrize(("precision", "terms", "levels"), [("high", 512, 32639), ("8 bits", 256, 127)])
def test_blocks_of_a_fixed_point(precision: str, terms: int, levels: int) -> None:
    x, weight = np.ones((1, 1), np.float32), np.ones((2 * terms + 1, 1), np.float32)
    dy = np.zeros((1, 2 * terms + 1), np.float32)

    def gradient() -> Any:
        params: dict[str, Any] = {"weight_bits": 1, "output_bits": 0, "precision": precision}
        return reference.optical_linear_backward(dy, x, weight, **params)[0].item()

    # Beside 1 a small term is less than half a code; in another block it keeps its value.
    dy[0, terms - 1], dy[0, 0] = 1.0, 0.4 / levels
    assert gradient() == 1.0
    dy[0, 0], dy[0, terms] = 0.0, 0.4 / levels
    assert gradient() == pytest.approx(1 + 0.4 / levels, abs=1e-7)
    # Blocks whose full scale is too small for a reciprocal are 0; what is not finite makes the sum NaN.
    dy[:] = 0.0
    smallest = np.float32(levels) / np.finfo(np.float32).max
    dy[0, -1] = smallest
    assert gradient() == pytest.approx(float(smallest), rel=1e-2)
    dy[0, -1] = np.nextafter(smallest, np.float32(0)) * np.float32(0.999)
    assert gradient() == 0.0
    for value in (np.nan, np.inf, -np.inf):
        dy[0, terms] = value
        assert np.isnan(gradient())


def call(**changes: Any) -> Any:
    arguments: dict[str, Any] = {"input": np.ones((2, 3), np.float32), "weight": np.ones((4, 3), np.float32)} | changes
    return reference.optical_linear(arguments.pop("input"), arguments.pop("weight"), **arguments)


CODES = np.ones((4, 3), np.int8)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input": np.ones((2, 3))}, TypeError, "input has dtype float64: allowed is float32"),
        ({"input": np.ones((2, 2), np.float32)}, ValueError, "input has shape (2, 2): allowed is [..., K] with K = 3"),
        ({"input": np.float32(1)}, ValueError, "input has shape (): allowed is [..., K] with K = 3"),
        ({"weight": np.ones(3, np.float32)}, ValueError, "weight has shape (3,): allowed is [N, K]"),
        ({"weight": np.ones((0, 3), np.float32)}, ValueError, "weight has shape (0, 3): allowed is [N, K]"),
        ({"weight": np.ones((4, 3))}, TypeError, "weight has dtype float64: allowed is float32"),
        ({"weight": np.array([[1, np.nan, 1]], np.float32)}, ValueError, "weight[0, 1] = nan: allowed is a finite"),
        ({"bias": np.ones(3, np.float32)}, ValueError, "bias has shape (3,): allowed is [N] with N = 4"),
        ({"bias": np.ones(4)}, TypeError, "bias has dtype float64: allowed is float32"),
        ({"bias": np.array([1, 1, np.inf, 1], np.float32)}, ValueError, "bias[2] = inf: allowed is a finite number"),
        ({"input_bits": 1}, ValueError, "input_bits = 1: allowed is 0 (analog), 2..16"),
        ({"weight_bits": 17}, ValueError, "weight_bits = 17: allowed is 0 (analog), 1..16"),
        ({"output_bits": -2}, ValueError, "output_bits = -2: allowed is 0 (no ADC), 2..16"),
        ({"input_range": 1.0}, ValueError, "input_range = 1.0 would be ignored: with input_bits 0 there is no DAC"),
        ({"input_bits": 2, "input_range": -1.0}, ValueError, "input_range = -1.0: allowed is a finite number >= 0"),
        ({"input_bits": 2, "input_range": 1e-50}, ValueError, "input_range = 1e-50: allowed is a finite number >= 0"),
        ({"output_range": [1.0, 2.0]}, ValueError, "output_range has 2 elements: allowed is 1, or one for each"),
        ({"output_range": []}, ValueError, "output_range has 0 elements: allowed is a single 0"),
        ({"output_range": [1.0, 0.0]}, ValueError, "output_range = [1.0, 0.0]: allowed is a single 0 (dynamic), or 1"),
        ({"output_range": 1e-50}, ValueError, "output_range = 1e-50: allowed is a single 0 (dynamic), or 1"),
        ({"noise_shot": -1.0}, ValueError, "noise_shot = -1.0: allowed is a finite number >= 0"),
        ({"noise_additive": np.nan}, ValueError, "noise_additive = nan: allowed is a finite number >= 0"),
        ({"noise_relative": 1e39}, ValueError, "noise_relative = 1e+39: allowed is a finite number >= 0"),
        ({"bias_stage": "late"}, ValueError, 'bias_stage = \'late\': allowed is "analog", "digital"'),
        ({"seed": -1}, ValueError, "seed = -1: allowed is 0..2^63-1"),
        ({"stream": 2**63}, ValueError, "stream = 9223372036854775808: allowed is 0..2^63-1"),
        ({"weight_scale": 1.0}, ValueError, "weight_scale = 1.0 would be ignored: with weight_bits 0"),
        ({"weight_bits": 8, "weight_scale": [1, 2]}, ValueError, "weight_scale has 2 elements: allowed is 1, or one"),
        ({"weight_bits": 8, "weight_scale": -1}, ValueError, "weight_scale[0] = -1.0: allowed is a finite number >= 0"),
        ({"weight_bits": 8, "weight_scale": 3e38}, ValueError, "allowed is a finite number >= 0 whose full scale"),
        ({"in_features": 3}, ValueError, "in_features = 3 would be ignored: the weight is not packed in uint8"),
        ({"weight": CODES}, TypeError, "weight has dtype int8: allowed is float32"),
        ({"weight": CODES, "weight_bits": 4}, ValueError, "weight_scale is missing: allowed is 1 or N numbers"),
        (
            {"weight": CODES, "weight_bits": 9, "weight_scale": 1},
            ValueError,
            "weight_bits = 9: allowed is 1..8 where the weights are int8 codes",
        ),
        (
            {"weight": 2 * CODES, "weight_bits": 2, "weight_scale": 1},
            ValueError,
            "weight[0, 0] = 2: allowed is a code -L..L with L = 2^(weight_bits-1)-1",
        ),
        (
            {"weight": 0 * CODES, "weight_bits": 1, "weight_scale": 1},
            ValueError,
            "weight[0, 0] = 0: allowed is a code -L..L",
        ),
        (
            {"weight": CODES, "weight_bits": 8, "weight_scale": np.inf},
            ValueError,
            "weight_scale = inf: allowed is finite numbers >= 0",
        ),
        (
            {"weight": CODES.view(np.uint8), "weight_bits": 4, "weight_scale": 1},
            ValueError,
            "in_features is missing: it is required where weight is packed in uint8",
        ),
        (
            {"weight": CODES.view(np.uint8), "weight_bits": 8, "weight_scale": 1, "in_features": 3},
            ValueError,
            "weight_bits = 8: allowed is 1, 2 or 4 where the weights are packed in uint8",
        ),
        (
            {"weight": CODES.view(np.uint8), "weight_bits": 4, "weight_scale": 1, "in_features": 3},
            ValueError,
            "weight has shape (4, 3): allowed is [N, 2] for in_features 3",
        ),
        (
            {"weight": CODES.view(np.uint8), "weight_bits": 4, "weight_scale": 1, "in_features": 0},
            ValueError,
            "in_features = 0: allowed is at least 1",
        ),
        (
            {"weight": np.full((4, 2), 0x10, np.uint8), "weight_bits": 4, "weight_scale": 1, "in_features": 3},
            ValueError,
            "weight holds a code -8 or a padding bit that is not 0",
        ),
        (
            {
                "input": np.ones((1, 131073), np.float32),
                "weight": np.ones((1, 131073), np.float32),
                "input_bits": 8,
                "weight_bits": 8,
            },
            ValueError,
            "K (columns of weight) = 131073: allowed is at most 131072",
        ),
    ],
)
def test_errors(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call(**changes)
    assert str(caught.value).startswith(message) or message in str(caught.value)


def test_a_default_scale_that_overflows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^weight_scale\[0\] = inf: allowed is a finite number"):
        reference.quantize_weight(np.full((1, 40), 3e38, np.float32), 1)


def test_quantize_weight_wants_bits() -> None:
    with pytest.raises(ValueError, match=r"^weight_bits = 0: allowed is 1\.\.16$"):
        reference.quantize_weight(np.ones((1, 2), np.float32), 0)


def test_grad_output_is_checked() -> None:
    x, weight = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    with pytest.raises(ValueError, match=r"^grad_output has shape \(2, 3\): allowed is \(2, 4\)$"):
        reference.optical_linear_backward(x, x, weight)
    with pytest.raises(TypeError, match=r"^grad_output has dtype float64: allowed is float32$"):
        reference.optical_linear_backward(np.ones((2, 4)), x, weight)


def test_the_largest_exact_sum() -> None:
    k = 131072
    x, weight = np.ones((1, k), np.float32), np.concatenate([np.ones((1, k)), -np.ones((1, k))]).astype(np.float32)
    y = reference.optical_linear(x, weight, input_bits=8, weight_bits=8, output_bits=0)
    np.testing.assert_allclose(y, [[k, -k]], rtol=1e-6)


def test_it_imports_numpy_alone() -> None:
    program = (
        "import sys; from lumina_onnx import reference; "
        "hidden = {'torch', 'onnx', 'onnxruntime', 'onnxscript', 'scipy'}; print(sorted(hidden & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
