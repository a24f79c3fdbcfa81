"""The products alone, on one core: no noise, no ADC."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

import lumina_kernel
from benchmarks import eager
from benchmarks.context import Context
from benchmarks.groups.forward import data, use_threads
from benchmarks.peaks import DOT, FMA
from benchmarks.results import Row, Shape, compare
from benchmarks.timing import Call, interleave


def run(context: Context) -> Iterator[Row]:
    """8-bit codes and 32-bit floats, with weights prepared; the DAC of the integer product is part of its time."""
    use_threads(1)
    shape: Shape = context.shapes[0] if context.quick else (1024, 1024, 1024)
    x, weight, _ = data(shape)
    x_codes, w_codes = eager.codes(x)[0], eager.codes(weight)[0].t()
    yield from _product(
        context,
        shape,
        x,
        lumina_kernel.PreparedLayer(lumina_kernel.Params(input_bits=8, weight_bits=8, output_bits=0), weight),
        what="int8 product with DAC and scaling",
        instruction=DOT.get(context.machine.tier),
        of_peak=context.goal(intel=0.8, amd=0.9),
        rival=("torch._int_mm, codes ready", lambda: torch._int_mm(x_codes, w_codes), None),
    )
    yield from _product(
        context,
        shape,
        x,
        lumina_kernel.PreparedLayer(lumina_kernel.Params(output_bits=0), weight),
        what="float32 product",
        instruction=FMA.get(context.machine.tier),
        of_peak=context.goal(amd=0.85),
        rival=("F.linear", lambda: F.linear(x, weight), context.goal(intel=1.0)),
    )


@torch.no_grad()
def _product(
    context: Context,
    shape: Shape,
    x: torch.Tensor,
    layer: lumina_kernel.PreparedLayer,
    *,
    what: str,
    instruction: str | None,
    of_peak: float | None,
    rival: tuple[str, Call, float | None],
) -> Iterator[Row]:
    name, call, goal = rival
    out = torch.empty(shape[0], shape[2])
    sides: dict[str, Call] = {"ours": lambda: layer.forward(x, 0, 0, out=out), name: call}
    peaks = context.peaks
    if peaks is not None and instruction is not None:
        sides["peak"] = lambda: peaks.operations(instruction)
    times = interleave(sides, context.effort)
    tier = context.machine.tier
    if peaks is not None and instruction is not None:
        # Seconds of as many operations as the product has, were they all at the peak.
        scale = 2 * shape[0] * shape[1] * shape[2] / peaks.operations(instruction)
        yield compare(
            times["ours"],
            times["peak"],
            scale=scale,
            unit="peak",
            group="gemm",
            what=what,
            against=f"{instruction} alone",
            shape=shape,
            threads=1,
            tier=tier,
            goal=of_peak,
        )
    yield compare(
        times["ours"], times[name], group="gemm", what=what, against=name, shape=shape, threads=1, tier=tier, goal=goal
    )
