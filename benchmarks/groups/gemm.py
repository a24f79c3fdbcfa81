"""The products alone, on one core: no noise, no ADC."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

import lumina_kernel
from benchmarks import eager
from benchmarks.context import Context
from benchmarks.groups.forward import data, use_threads
from benchmarks.results import Row, Shape, compare
from benchmarks.rivals import AT_HIGHEST, CODES_OF_4_BITS, HIGHEST, WAYS, Way
from benchmarks.timing import Call, interleave
from lumina_onnx import OpticalProfile
from lumina_onnx.nn import functional, gradient_bits


def run(context: Context) -> Iterator[Row]:
    """8-bit codes and 32-bit floats, with prepared weights; the time of the integer product includes the DAC.

    Then the products of the backward pass, from 8-bit codes, through autograd, whose own share is negligible.
    """
    use_threads(1)
    shape: Shape = context.shapes[0] if context.quick else (1024, 1024, 1024)
    x, weight, _ = data(shape)
    x_codes, w_codes = eager.codes(x)[0], eager.codes(weight)[0].t()
    yield from _product(
        context,
        shape,
        _forward(shape, x, lumina_kernel.Params(input_bits=8, weight_bits=8, output_bits=0), weight),
        what="int8 product with DAC and scaling",
        instruction=context.instruction("dot"),
        of_peak=context.goal(intel=0.8, amd=0.9),
        rival=("torch._int_mm, codes ready", lambda: torch._int_mm(x_codes, w_codes), None),
    )
    yield from _product(
        context,
        shape,
        _forward(shape, x, lumina_kernel.Params(output_bits=0), weight),
        what="float32 product",
        instruction=context.instruction("fma"),
        of_peak=context.goal(amd=0.85),
        rival=("F.linear", lambda: F.linear(x, weight), context.goal(intel=1.0)),
    )
    yield from _gradients(context, shape)


@torch.no_grad()
def _forward(shape: Shape, x: torch.Tensor, params: lumina_kernel.Params, weight: torch.Tensor) -> Call:
    layer, out = lumina_kernel.PreparedLayer(params, weight), torch.empty(shape[0], shape[2])
    return lambda: layer.forward(x, 0, 0, out=out)


@torch.enable_grad()
def _gradients(context: Context, shape: Shape) -> Iterator[Row]:
    """dX and dW, each alone and both together, in each way."""
    x, weight, _ = data(shape)
    grad = torch.randn(shape[0], shape[2])
    rivals: dict[str, tuple[bool, bool, Call]] = {
        "dX": (True, False, lambda: grad @ weight),
        "dW": (False, True, lambda: grad.t() @ x),
        "dX and dW": (True, True, lambda: (grad @ weight, grad.t() @ x)),
    }
    for way in WAYS:
        profile = OpticalProfile(way.bits, way.bits, 0)
        # No instruction alone sums products of codes of 4 bits everywhere.
        peak = context.gradient_peak(way.precision, way.gradient_bits) if way.bits == 8 else None
        for name, (for_x, for_weight, theirs) in rivals.items():
            # The forward pass decides which gradients are computed; torch.autograd.grad does not reduce them.
            leaves = x.clone().requires_grad_(for_x), weight.clone().requires_grad_(for_weight)
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            with gradient_bits(way.gradient_bits):
                y = functional.optical_linear(*leaves, None, profile)
            share = {AT_HIGHEST: context.goal(amd=0.85), CODES_OF_4_BITS: None}
            yield from _product(
                context,
                shape,
                partial(torch.autograd.grad, y, wanted, grad, retain_graph=True),
                what=f"{name}, {codes(way)}{way.name}",
                instruction=context.instruction(peak) if peak else None,
                of_peak=share.get(way, context.goal(amd=0.85, avx2=0.8)),
                rival=("grad @ w, grad.t() @ x", theirs, context.goal(intel=1.0) if way == AT_HIGHEST else None),
                products=len(wanted),
                precision=way.precision,
            )


def codes(way: Way) -> str:
    """What to say of codes that have not the usual 8 bits."""
    return "" if way.bits == 8 else f"codes of {way.bits} bits, "


def _product(
    context: Context,
    shape: Shape,
    ours: Call,
    *,
    what: str,
    instruction: str | None,
    of_peak: float | None,
    rival: tuple[str, Call, float | None],
    products: int = 1,
    precision: str = HIGHEST,
) -> Iterator[Row]:
    name, call, goal = rival
    sides: dict[str, Call] = {"ours": ours, name: call}
    peaks = context.peaks
    if peaks is not None and instruction is not None:
        sides["peak"] = lambda: peaks.operations(instruction)
    torch.set_float32_matmul_precision(precision)
    try:
        times = interleave(sides, context.effort)
    finally:
        torch.set_float32_matmul_precision(HIGHEST)
    tier = context.machine.tier
    if peaks is not None and instruction is not None:
        # Times the seconds of one peak call, this is how long the operations of the products take at the peak.
        scale = products * 2 * shape[0] * shape[1] * shape[2] / peaks.operations(instruction)
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
