"""Layers of every kind, drawn by hypothesis, and the results that the reference gives for them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from effects import effects
from hypothesis import strategies as st

from lumina_onnx import reference
from lumina_onnx.profile import OpticalProfile

torch = pytest.importorskip("torch")


@dataclasses.dataclass
class Case:
    """A layer, an input and an output gradient."""

    profile: OpticalProfile
    x: Any
    weight: Any
    bias: Any
    grad: Any
    seed: int
    stream: int

    @property
    def parameters(self) -> dict[str, Any]:
        return dataclasses.asdict(self.profile)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        return self.x.numpy(), self.weight.numpy(), None if self.bias is None else self.bias.numpy()

    def reference(self) -> np.ndarray:
        return reference.optical_linear(*self.arrays(), **self.parameters, seed=self.seed, stream=self.stream)

    def reference_gradients(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return reference.optical_linear_backward(
            self.grad.numpy(), *self.arrays(), **self.parameters, seed=self.seed, stream=self.stream
        )

    def leaves(self) -> tuple[Any, Any, Any]:
        """x, weight and bias, recording gradients."""
        x, weight, bias = (None if t is None else t.clone().requires_grad_() for t in (self.x, self.weight, self.bias))
        return x, weight, bias


@st.composite
def profiles(draw: st.DrawFn, n: int) -> OpticalProfile:
    positive = st.floats(0.125, 4.0, width=32)
    levels = st.sampled_from([0.0, 0.0, 0.0625, 0.5])
    input_bits = draw(st.sampled_from([0, 2, 3, 4, 8, 9, 16]))
    weight_bits = draw(st.sampled_from([0, 1, 2, 4, 7, 8, 9, 12]))
    profile = OpticalProfile(
        input_bits=input_bits,
        weight_bits=weight_bits,
        output_bits=draw(st.sampled_from([0, 2, 4, 8, 16])),
        input_range=draw(st.just(0.0) | positive) if input_bits else 0.0,
        output_range=draw(st.just(0.0) | positive | st.tuples(*[positive] * n)),
        noise_relative=draw(levels),
        noise_additive=draw(levels),
        noise_shot=draw(levels),
        bias_stage=draw(st.sampled_from(["analog", "digital"])),
    )
    return profile.replace(**draw(effects(input_bits, weight_bits)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Layers of every kind, with inputs of any number of dimensions, including empty ones."""
    n, k = draw(st.integers(1, 9)), draw(st.integers(1, 19))
    leading = draw(st.lists(st.integers(0, 4), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0]))

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator)

    x = normal(*leading, k) * scale
    if x.numel():
        # A row of zeros, or one number that is not finite, huge or subnormal.
        odd = draw(st.sampled_from([None, None, 0.0, float("nan"), float("inf"), float("-inf"), 3e38, 1e-42]))
        if odd == 0.0:
            x.view(-1, k)[0] = 0.0
        elif odd is not None:
            x.view(-1)[draw(st.integers(0, x.numel() - 1))] = odd
    return Case(
        profile=draw(profiles(n)),
        x=x,
        weight=normal(n, k),
        bias=normal(n) if draw(st.booleans()) else None,
        grad=normal(*leading, n),
        seed=draw(st.integers(0, 2**63 - 1)),
        stream=draw(st.integers(0, 2**63 - 1)),
    )


def assert_same_bits(actual: Any, expected: np.ndarray) -> None:
    actual = actual.detach().numpy() if isinstance(actual, torch.Tensor) else actual
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype == np.float32
    different = actual.view(np.uint32) != expected.view(np.uint32)
    assert not different.any(), f"{different.sum()} differ: {actual[different]} {expected[different]}"
