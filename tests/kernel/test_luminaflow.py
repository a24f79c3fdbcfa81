"""The functions that LuminaFlow's SDK calls are thin: they give the bits of the operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import lumina_kernel
from lumina_onnx import reference


def arrays(m: int = 5, n: int = 7, k: int = 9) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in ((m, k), (n, k), (n,)))  # type: ignore[return-value]


def test_the_fused_call_is_the_operator_with_a_seed() -> None:
    x, w, b = arrays()
    y = lumina_kernel.optical_linear_fused(x, w, b, noise_std=0.1, bits=4, seed=42)
    expected = reference.optical_linear(x, w, b, output_bits=4, noise_relative=0.1, seed=42)
    np.testing.assert_array_equal(y.view(np.uint32), expected.view(np.uint32))
    np.testing.assert_array_equal(y, lumina_kernel.optical_linear_fused(x, w, b, 0.1, 4, 42))
    assert (y != lumina_kernel.optical_linear_fused(x, w, b, 0.1, 4, 43)).any()


def test_rows_do_not_share_noise() -> None:
    x, w, b = arrays()
    same = np.repeat(x[:1], 4, axis=0)
    y = lumina_kernel.optical_linear_fused(same, w, b, 0.1, 32, 1)
    assert len(np.unique(y, axis=0)) == 4


def test_the_call_for_inference_has_no_noise() -> None:
    x, w, b = arrays()
    for bias in (None, b):
        y = lumina_kernel.optical_linear_infer(x, w, bias, bits=8)
        np.testing.assert_array_equal(y, reference.optical_linear(x, w, bias, output_bits=8))


@pytest.mark.parametrize("bits", [0, 32, 64])
def test_many_bits_mean_no_quantisation(bits: int) -> None:
    x, w, b = arrays()
    exact = reference.optical_linear(x, w, b, output_bits=0)
    np.testing.assert_array_equal(lumina_kernel.optical_linear_infer(x, w, b, bits), exact)


def test_the_gradient_is_that_of_the_operator() -> None:
    x, w, _ = arrays()
    dy = np.random.default_rng(1).standard_normal((5, 7)).astype(np.float32)
    dx, dw = lumina_kernel.optical_linear_backward_kernel(dy, x, w)
    expected = reference.optical_linear_backward(dy, x, w, output_bits=0)
    np.testing.assert_array_equal(dx.view(np.uint32), expected[0].view(np.uint32))
    np.testing.assert_array_equal(dw.view(np.uint32), expected[1].view(np.uint32))
    np.testing.assert_allclose(dx, dy @ w, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dw, dy.T @ x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("m", "n", "k"), [(0, 3, 4), (1, 1, 1)])
def test_small_shapes(m: int, n: int, k: int) -> None:
    x, w, b = arrays(m, n, k)
    assert lumina_kernel.optical_linear_fused(x, w, b, 0.1, 4, 1).shape == (m, n)
    dx, dw = lumina_kernel.optical_linear_backward_kernel(np.ones((m, n), np.float32), x, w)
    assert (dx.shape, dw.shape) == ((m, k), (n, k))


def test_arrays_in_another_order_are_copied_and_tensors_are_taken() -> None:
    x, w, b = arrays()
    expected = lumina_kernel.optical_linear_infer(x, w, b, 8)
    strided = np.asfortranarray(x), np.repeat(w, 2, axis=0)[::2], np.repeat(b, 2)[::2]
    np.testing.assert_array_equal(lumina_kernel.optical_linear_infer(*strided, bits=8), expected)
    y = lumina_kernel.optical_linear_infer(torch.from_numpy(x), torch.from_numpy(w), torch.from_numpy(b), 8)
    assert isinstance(y, torch.Tensor)
    np.testing.assert_array_equal(y.numpy(), expected)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (r"bits = 17: allowed is", {"bits": 17}),
        (r"bits = 1: allowed is", {"bits": 1}),
        (r"bits is of type str: allowed is", {"bits": "8"}),
        (r"noise_std = -1", {"noise_std": -1.0}),
        (r"seed = -1: allowed is 0\.\.", {"seed": -1}),
        (r"input has dtype float64: allowed is float32", {"input": np.zeros((2, 9))}),
        (r"input has shape \(2, 8\): allowed is \(\.\.\., K\) with K = 9", {"input": np.zeros((2, 8), np.float32)}),
    ],
)
def test_what_the_fused_call_refuses(message: str, changes: dict[str, Any]) -> None:
    x, w, b = arrays()
    arguments = {"input": x, "weight": w, "bias": b, "noise_std": 0.1, "bits": 8, "seed": 1} | changes
    with pytest.raises((TypeError, ValueError), match=message):
        lumina_kernel.optical_linear_fused(**arguments)


@pytest.mark.parametrize(
    ("message", "place", "shape"),
    [
        (r"grad_output has shape \(4, 7\): allowed is \(M, N\), M the rows of input = \(5, 7\)", 0, (4, 7)),
        (r"grad_output has shape \(7,\)", 0, (7,)),
        (r"input has shape \(5,\)", 1, (5,)),
        (r"weight has shape \(7, 8\): allowed is \(N, K\), K the columns of input = \(7, 9\)", 2, (7, 8)),
    ],
)
def test_what_the_gradient_refuses(message: str, place: int, shape: tuple[int, ...]) -> None:
    x, w, _ = arrays()
    arguments = [np.zeros((5, 7), np.float32), x, w]
    arguments[place] = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=message):
        lumina_kernel.optical_linear_backward_kernel(*arguments)


def test_version_and_greeting() -> None:
    assert lumina_kernel.version() == lumina_kernel.__version__
    assert lumina_kernel.hello_lumina() == (
        f"Hello from lumina_kernel {lumina_kernel.__version__}: tier {lumina_kernel.isa()}, "
        f"{lumina_kernel.num_threads()} threads"
    )
