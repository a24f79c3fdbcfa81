"""Which arrays are accepted, and the errors for the others."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import lumina_kernel

X = np.linspace(-1, 1, 10, dtype=np.float32).reshape(5, 2)
W = np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2)
B = np.ones(3, np.float32)


def forward(input: Any = X, weight: Any = W, bias: Any = B, **more: Any) -> Any:
    return lumina_kernel.optical_linear_forward(input, weight, bias, 0.1, 8, **{"seed": 1, **more})


@pytest.mark.parametrize("shape", [(2,), (1, 2), (2, 5, 2), (0, 2), (3, 0, 2)])
def test_result_is_of_the_kind_and_shape_of_input(shape: tuple[int, ...]) -> None:
    x = np.resize(X, shape)
    y = forward(x)
    assert type(y) is np.ndarray
    assert y.shape == (*shape[:-1], 3)
    t = forward(torch.from_numpy(x), torch.from_numpy(W), torch.from_numpy(B))
    assert type(t) is torch.Tensor
    np.testing.assert_array_equal(t.numpy(), y)


def test_a_tensor_is_read_and_written_in_place() -> None:
    x, out = torch.from_numpy(X.copy()), torch.empty(5, 3)
    assert forward(x, out=out) is out
    np.testing.assert_array_equal(out.numpy(), forward())
    x[0] = 0
    assert (forward(x)[0] != out[0]).any()


def test_a_parameter_without_grad_is_taken() -> None:
    np.testing.assert_array_equal(
        forward(weight=torch.nn.Parameter(torch.from_numpy(W), requires_grad=False)), forward()
    )


def test_sub_arrays_in_c_order_are_taken() -> None:
    np.testing.assert_array_equal(forward(np.concatenate([X, X])[5:]), forward())


unaligned = np.frombuffer(b"\0" + X.tobytes(), np.float32, 10, offset=1).reshape(5, 2)
read_only = np.empty((5, 3), np.float32)
read_only.flags.writeable = False
buffer = np.zeros(10 + 15, np.float32)
tensor = torch.zeros(25)
TAKEN = "allowed is a C-contiguous float32 numpy array or CPU torch tensor"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input": [[1.0, 2.0]]}, TypeError, f"input is of type list: {TAKEN}"),
        ({"input": None}, TypeError, f"input is of type NoneType: {TAKEN}"),
        ({"weight": "w"}, TypeError, f"weight is of type str: {TAKEN}"),
        ({"bias": 1.0}, TypeError, f"bias is of type float: {TAKEN}"),
        ({"out": [0.0]}, TypeError, f"out is of type list: {TAKEN}"),
        ({"input": X.astype(np.float64)}, TypeError, "input has dtype float64: allowed is float32"),
        ({"input": X.astype(">f4")}, TypeError, "input has dtype >f4: allowed is float32"),
        ({"weight": W.astype(np.int32)}, TypeError, "weight has dtype int32: allowed is float32"),
        ({"bias": B.astype(np.float16)}, TypeError, "bias has dtype float16: allowed is float32"),
        ({"input": torch.from_numpy(X).double()}, TypeError, "input has dtype float64: allowed is float32"),
        ({"input": torch.from_numpy(X).bfloat16()}, TypeError, "input is a torch.bfloat16 tensor without a numpy view"),
        ({"input": torch.from_numpy(X).to_sparse()}, TypeError, "input is a torch.float32 tensor without a numpy view"),
        ({"input": torch.empty(5, 2, device="meta")}, ValueError, "input is on the device meta: "),
        ({"input": torch.ones(5, 2, requires_grad=True)}, ValueError, "input requires grad"),
        ({"weight": torch.nn.Parameter(torch.from_numpy(W))}, ValueError, "weight requires grad"),
        ({"bias": torch.ones(3, requires_grad=True)}, ValueError, "bias requires grad"),
        (
            {"input": np.asfortranarray(X)},
            ValueError,
            "input of shape (5, 2) is not C-contiguous (strides in bytes [4, 20])",
        ),
        ({"input": np.ones((5, 4), np.float32)[:, ::2]}, ValueError, "input of shape (5, 2) is not C-contiguous"),
        ({"weight": np.asfortranarray(W)}, ValueError, "weight of shape (3, 2) is not C-contiguous"),
        (
            {"weight": torch.from_numpy(W).t().contiguous().t()},
            ValueError,
            "weight of shape (3, 2) is not C-contiguous",
        ),
        ({"bias": np.ones(6, np.float32)[::2]}, ValueError, "bias of shape (3,) is not C-contiguous"),
        ({"out": np.empty((3, 5), np.float32).T}, ValueError, "out of shape (5, 3) is not C-contiguous"),
        ({"input": unaligned}, ValueError, "input starts at an address that is no multiple"),
        ({"input": np.ones((), np.float32)}, ValueError, "input has shape (): allowed is (..., K) with K = 2"),
        ({"input": np.ones((5, 3), np.float32)}, ValueError, "input has shape (5, 3): allowed is (..., K) with K = 2"),
        ({"weight": B}, ValueError, "weight has shape (3,): allowed is [N, K]"),
        ({"weight": np.ones((0, 2), np.float32)}, ValueError, "N (rows of weight) = 0: allowed is at least 1"),
        ({"weight": np.ones((3, 0), np.float32)}, ValueError, "K (columns of weight) = 0: allowed is at least 1"),
        ({"bias": np.ones(2, np.float32)}, ValueError, "bias has shape (2,): allowed is (N,) = (3,)"),
        ({"bias": np.ones((3, 1), np.float32)}, ValueError, "bias has shape (3, 1): allowed is (N,) = (3,)"),
        (
            {"out": np.empty((3, 5), np.float32)},
            ValueError,
            "out has shape (3, 5): allowed is the shape of the result = (5, 3)",
        ),
        ({"out": np.empty((5, 3))}, TypeError, "out has dtype float64: allowed is float32"),
        ({"out": read_only}, ValueError, "out is read-only: allowed is a writeable array"),
        ({"out": torch.empty(5, 3, requires_grad=True)}, ValueError, "out requires grad"),
        (
            {"input": buffer[:10].reshape(5, 2), "out": buffer[9:24].reshape(5, 3)},
            ValueError,
            "out shares memory with input: allowed is memory of its own",
        ),
        (
            {"input": tensor[:10].view(5, 2), "out": tensor[9:24].view(5, 3)},
            ValueError,
            "out shares memory with input: allowed is memory of its own",
        ),
        (
            {"weight": buffer[:6].reshape(3, 2), "out": buffer[:15].reshape(5, 3)},
            ValueError,
            "out shares memory with weight",
        ),
        ({"bias": buffer[:3], "out": buffer[:15].reshape(5, 3)}, ValueError, "out shares memory with bias"),
        ({"weight": W * np.float32(np.nan)}, ValueError, "weight[0, 0] = NaN: allowed is a finite number"),
        ({"bias": np.array([0, np.inf, 0], np.float32)}, ValueError, "bias[1] = inf: allowed is a finite number"),
    ],
)
def test_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        forward(**arguments)


def test_out_may_lie_beside_the_input() -> None:
    buffer[:10] = X.ravel()
    out = buffer[10:].reshape(5, 3)
    forward(buffer[:10].reshape(5, 2), out=out)
    np.testing.assert_array_equal(out, forward())


def test_training_refuses_what_does_not_fit() -> None:
    arguments: dict[str, Any] = {
        "params": lumina_kernel.Params(input_bits=8, weight_bits=4, output_range=2.0),
        "x": X, "weight": W, "bias": B, "seed": 0, "stream": 0,
    }  # fmt: skip
    y, saved = lumina_kernel.forward_train(**arguments)
    for change, error, message in [
        ({"params": {}}, TypeError, "params is of type dict: allowed is lumina_kernel.Params"),
        ({"x": X[0]}, ValueError, "x has shape (2,): allowed is [M, K]"),
        ({"x": X.astype(np.float64)}, TypeError, "x has dtype float64: allowed is float32"),
        ({"weight": np.ones((3, 4), np.float32)}, ValueError, "weight has shape (3, 4): allowed is (N, K) with K = 2"),
        ({"weight": B}, ValueError, "weight has shape (3,): allowed is [N, K]"),
        (
            {"x": np.ones((5, 0), np.float32), "weight": np.ones((3, 0), np.float32)},
            ValueError,
            "K (columns of weight) = 0: allowed is at least 1",
        ),
        ({"weight": W * np.float32(np.nan)}, ValueError, "weight[0, 0] = NaN: allowed is a finite number"),
        ({"bias": B[:2]}, ValueError, "bias has shape (2,): allowed is (N,) = (3,)"),
        ({"seed": -1}, ValueError, "seed = -1: allowed is 0..2^63-1"),
        ({"stream": "a"}, TypeError, "stream is of type str: allowed is 0..2^63-1"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            lumina_kernel.forward_train(**{**arguments, **change})

    saved.backward(np.ones_like(y))
    for dy, error, message in [
        (np.ones(15, np.float32), ValueError, "dy has shape (15,): allowed is (M, N) = (5, 3)"),
        (np.ones((5, 3)), TypeError, "dy has dtype float64: allowed is float32"),
        (np.ones((3, 5), np.float32).T, ValueError, "dy of shape (5, 3) is not C-contiguous"),
        (None, TypeError, "dy is of type NoneType"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            saved.backward(dy)


def test_what_a_forward_pass_saves() -> None:
    params = lumina_kernel.Params(input_bits=4, weight_bits=4, input_range=1.0, output_range=2.0)
    x = np.array([[0.5, -3.0], [np.nan, 0.0]], np.float32)
    y, saved = lumina_kernel.forward_train(params, x, W, B, 0, 0)
    np.testing.assert_array_equal(saved.x_codes, np.array([[4, -7], [0, 0]], np.int8))
    np.testing.assert_array_equal(saved.x_step, np.array([1 / 7, np.nan], np.float32))
    np.testing.assert_array_equal(saved.weight_scale, lumina_kernel.quantize_weight(W, 4)[1])
    np.testing.assert_array_equal(saved.dac_saturated, [[False, True], [False, False]])
    assert saved.adc_saturated is not None
    assert saved.adc_saturated.shape == y.shape
    _, analog = lumina_kernel.forward_train(lumina_kernel.Params(output_bits=0), x[:1], W, B, 0, 0)
    assert analog.x_codes is None
    assert analog.adc_saturated is None
    assert analog.dac_saturated is None


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        ("quantize_weight", (W, 0), ValueError, "bits = 0: allowed is 1..16"),
        ("quantize_weight", (W, 17), ValueError, "bits = 17: allowed is 1..16"),
        ("quantize_weight", (W, 2.5), TypeError, "bits is of type float: allowed is 1..16"),
        (
            "quantize_weight",
            (W, 4, [1.0, 2.0]),
            ValueError,
            "weight_scale has 2 elements: allowed is 1, or one for each",
        ),
        ("quantize_weight", (W, 4, -1.0), ValueError, "weight_scale[0] = -1: allowed is a finite number >= 0"),
        ("quantize_weight", (B, 4), ValueError, "weight has shape (3,): allowed is [N, K]"),
        ("pack_weight", (W, 4), TypeError, "codes has dtype float32: allowed is int8"),
        ("pack_weight", (np.ones((1, 2), np.int8), 3), ValueError, "bits = 3: allowed is 1, 2 or 4"),
        (
            "pack_weight",
            (np.array([[1, 2], [8, 8]], np.int8), 4),
            ValueError,
            "codes[1, 0] = 8: allowed is a code -L..L",
        ),
        ("pack_weight", (np.zeros((1, 2), np.int8), 1), ValueError, "codes[0, 0] = 0: allowed is a code"),
        ("pack_weight", (np.zeros((1, 0), np.int8), 1), ValueError, "codes has K = 0 columns: allowed is at least 1"),
        (
            "unpack_weight",
            (np.ones((1, 2), np.uint8), 4, 5),
            ValueError,
            "in_features = 5: allowed is 3..4 where a row has 2 bytes",
        ),
        (
            "unpack_weight",
            (np.array([[0x10]], np.uint8), 4, 2),
            ValueError,
            "packed[0, 0] = -8: allowed is a code -L..L",
        ),
        (
            "unpack_weight",
            (np.array([[0x91]], np.uint8), 4, 1),
            ValueError,
            "packed[0, 1] = 9: allowed is 0 in the bits that fill up a row",
        ),
        (
            "unpack_weight",
            (np.ones((1, 1), np.uint8), 4, 2**62 + 2),
            ValueError,
            "in_features = 4611686018427387906: allowed is 1..2 where a row has 1 bytes",
        ),
        (
            "unpack_weight",
            (np.ones((1, 0), np.uint8), 4, 2**62),
            ValueError,
            "packed has rows of 0 bytes: allowed is at least 1",
        ),
        ("_saved_bytes", (lumina_kernel.Params(), 1, 0, True, True), ValueError, "k = 0: allowed is an integer >= 1"),
    ],
)
def test_storage_refuses(function: str, arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        getattr(lumina_kernel, function)(*arguments)


@pytest.mark.parametrize(
    ("x", "weight", "error"),
    [
        (np.broadcast_to(np.float32(0), (0,)).reshape(0, 1), np.zeros((2, 1), np.float32), None),
        (np.empty((0, 2**58, 1), np.float32), np.zeros((64, 1), np.float32), ValueError),
        (np.zeros((2**25, 1), np.float32), np.zeros((2**25, 1), np.float32), MemoryError),
    ],
)
def test_a_result_that_memory_cannot_hold(x: np.ndarray, weight: np.ndarray, error: type[Exception] | None) -> None:
    if error is None:
        assert lumina_kernel.optical_linear_forward(x, weight, None, 0.0, 8).shape == (0, 2)
        return
    with pytest.raises(error):
        lumina_kernel.optical_linear_forward(x, weight, None, 0.0, 8)
