"""A training step: forward and backward through autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks import eager
from benchmarks.context import Context
from benchmarks.groups.forward import BITS, EAGER, NOISE, data, means, rows, use_threads
from benchmarks.results import Row, Shape
from benchmarks.timing import Call
from lumina_onnx import OpticalProfile
from lumina_onnx.nn import convert, functional

# Batch, inputs and outputs of a small network, and the width between.
SMALL, HIDDEN = (64, 64, 10), 64

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
    yield from _small_network(context, profile)


class _EagerLinear(nn.Linear):
    """:func:`eager.optical_linear` as a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return eager.optical_linear(input, self.weight, self.bias, noise_relative=NOISE)


def _small_network(context: Context, profile: OpticalProfile) -> Iterator[Row]:
    """A whole step of a small network, where what a call costs counts for more than what it computes."""
    m, k, n = SMALL
    x, target = torch.randn(m, k), torch.randint(0, n, (m,))

    def network(layer: type[nn.Linear]) -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(layer(k, HIDDEN), nn.ReLU(), layer(HIDDEN, n))

    def training(model: nn.Module) -> Call:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

        @torch.enable_grad()
        def step() -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), target).backward()
            optimizer.step()

        return step

    sides: dict[str, Call] = {
        "ours": training(convert(network(nn.Linear), profile)),
        EAGER: training(network(_EagerLinear)),
        "nn.Linear, without bits and noise": training(network(nn.Linear)),
    }
    what = f"a step of {m} x {k} -> {HIDDEN} -> {n}: forward, loss, backward, SGD, {BITS}, noise_relative"
    for row in rows(context, SMALL, sides, context.threads, group="training", what=what, peak=None):
        yield row.with_goal(context.goal(intel=2.0, amd=2.0) if row.against == EAGER else None)
