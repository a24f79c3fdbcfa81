"""The fused forward pass against PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import lumina_kernel
from benchmarks import eager
from benchmarks.context import Context
from benchmarks.results import Row, Shape, Time, compare, geometric_mean
from benchmarks.timing import Call, interleave
from lumina_onnx import OpticalProfile
from lumina_onnx.nn import functional

NOISE = 0.02
BITS = "8/8/8 bits"
EAGER = "eager PyTorch"
INT_MM = "torch._int_mm and separate passes"


def data(shape: Shape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight, bias."""
    m, k, n = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    return normal(m, k), normal(n, k), normal(n)


def use_threads(threads: int) -> None:
    """Sets the same number of threads on both sides."""
    torch.set_num_threads(threads)
    lumina_kernel.set_num_threads(threads)


def part_of_peak(rate: float | None, shape: Shape, time: Time | None, threads: int, products: int = 1) -> float | None:
    """The fraction that a call with `products` products reaches of an instruction's peak, which is `rate` per core."""
    if rate is None or time is None:
        return None
    return products * 2 * shape[0] * shape[1] * shape[2] / (time.median * rate * threads)


@torch.no_grad()
def rows(context: Context, shape: Shape, sides: dict[str, Call], threads: int, **fields: Any) -> list[Row]:
    """Our side, the one called "ours", against each of the others."""
    times = interleave(sides, context.effort)
    ours = times.pop("ours")
    rate = context.rate(fields["peak"]) if fields["peak"] else None
    fields |= {"shape": shape, "threads": threads, "tier": context.machine.tier}
    fields["of_peak"] = part_of_peak(rate, shape, Time.of(ours), threads, fields.pop("products", 1))
    return [compare(ours, other, against=name, **fields) for name, other in times.items()]


def means(found: list[Row], goals: dict[str, float | None]) -> Iterator[Row]:
    """A mean over the shapes for each rival."""
    for against in dict.fromkeys(row.against for row in found):
        yield geometric_mean([row for row in found if row.against == against], goals.get(against))


def relative(context: Context) -> Iterator[Row]:
    """Noise in proportion to the signal, on all threads and on one."""
    for threads in sorted({1, context.threads}, reverse=True):
        yield from _quantised(context, "forward", {"noise_relative": NOISE}, threads, int_mm=True)


def additive(context: Context) -> Iterator[Row]:
    """Noise in proportion to the full scale, which costs one more pass."""
    yield from _quantised(context, "additive", {"noise_additive": NOISE}, context.threads, int_mm=False)


def _quantised(context: Context, group: str, law: dict[str, Any], threads: int, *, int_mm: bool) -> Iterator[Row]:
    profile = OpticalProfile(**law)
    what = f"nn.functional.optical_linear, {BITS}, {next(iter(law))}"
    has_goal = threads == context.threads

    def measure(shape: Shape) -> list[Row]:
        x, weight, bias = data(shape)
        sides: dict[str, Call] = {
            "ours": lambda: functional.optical_linear(x, weight, bias, profile),
            EAGER: lambda: eager.optical_linear(x, weight, bias, **law),
        }
        if int_mm:
            sides[INT_MM] = lambda: eager.optical_linear_int_mm(x, weight, bias, **law)
        return rows(context, shape, sides, threads, group=group, what=what, peak="dot")

    use_threads(threads)
    found = []
    for shape in context.shapes:
        for row in measure(shape):
            least = context.goal(intel=3.0, amd=3.0) if has_goal and row.against == EAGER else None
            found.append(row.with_goal(least))
            yield found[-1]
    goals = {EAGER: context.goal(intel=5.0, amd=8.0), INT_MM: context.goal(intel=2.0, amd=2.0)}
    yield from means(found, goals if has_goal else {})


def prepared(context: Context) -> Iterator[Row]:
    """The weights are quantised once, beforehand, on both sides."""
    what = f"PreparedLayer.forward, {BITS}, noise_relative"
    params = OpticalProfile(noise_relative=NOISE).params()

    def measure(shape: Shape) -> list[Row]:
        x, weight, bias = data(shape)
        layer = lumina_kernel.PreparedLayer(params, weight, bias)
        quantised = eager.quantize(weight, 8)
        sides: dict[str, Call] = {
            "ours": lambda: layer.forward(x, 1, 2),
            f"{EAGER}, without its weight quantiser": lambda: eager.optical_linear(
                x, quantised, bias, weight_bits=0, noise_relative=NOISE
            ),
        }
        return rows(context, shape, sides, context.threads, group="prepared", what=what, peak="dot")

    use_threads(context.threads)
    found = []
    for shape in context.shapes:
        found += measure(shape)
        yield found[-1]
    yield from means(found, {})


def seed(context: Context) -> Iterator[Row]:
    """Analog X and W: the call that replaces three lines of PyTorch."""
    against = "three lines of PyTorch"
    what = f"optical_linear_forward(x, w, b, {NOISE}, 8)"

    def measure(shape: Shape) -> list[Row]:
        x, weight, bias = data(shape)
        sides: dict[str, Call] = {
            "ours": lambda: lumina_kernel.optical_linear_forward(x, weight, bias, NOISE, 8),
            against: lambda: eager.three_lines(x, weight, bias, NOISE, 8),
        }
        return rows(context, shape, sides, context.threads, group="seed", what=what, peak="fma")

    use_threads(context.threads)
    found = []
    for shape in context.shapes:
        found += measure(shape)
        yield found[-1]
    yield from means(found, {against: context.goal(intel=2.0, amd=2.0)})
