"""A training step: forward and backward through autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import eager
from benchmarks.context import Context
from benchmarks.groups.forward import BITS, EAGER, NOISE, data, means, rows, use_threads
from benchmarks.results import Row, Shape
from benchmarks.timing import Call
from lumina_onnx import OpticalProfile
from lumina_onnx.nn import functional

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


@torch.enable_grad()
def step(forward: Forward, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> None:
    """Forward and backward; all three get a gradient."""
    x.grad = weight.grad = bias.grad = None
    forward(x, weight, bias).backward(grad)


def run(context: Context) -> Iterator[Row]:
    """In 32-bit floats ("highest"), PyTorch's default."""
    profile = OpticalProfile(noise_relative=NOISE)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.optical_linear(x, weight, bias, profile)

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return eager.optical_linear(x, weight, bias, noise_relative=NOISE)

    def measure(shape: Shape) -> list[Row]:
        x, weight, bias = (tensor.requires_grad_() for tensor in data(shape))
        grad = torch.randn(shape[0], shape[2])
        sides: dict[str, Call] = {
            "ours": lambda: step(ours, x, weight, bias, grad),
            EAGER: lambda: step(theirs, x, weight, bias, grad),
        }
        what = f"forward and backward, {BITS}, noise_relative"
        # Two products of floats, in the backward pass, are most of the work.
        return rows(context, shape, sides, context.threads, group="training", what=what, peak="fma", products=2)

    use_threads(context.threads)
    found = []
    for shape in context.shapes:
        found += measure(shape)
        yield found[-1]
    yield from means(found, {EAGER: context.goal(intel=3.0, amd=4.0)})
