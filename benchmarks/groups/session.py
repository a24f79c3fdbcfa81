"""One layer in ONNX Runtime: sessions of one thread, input and output bound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import sessions
from benchmarks.context import Context
from benchmarks.groups.forward import NOISE, use_threads
from benchmarks.results import Row, Shape, compare, quotients
from benchmarks.timing import Call, Samples, interleave

BITS = (8, 4, 2, 1)
#: What MatMulNBits exists for.
N_BITS = (8, 4, 2)
BLOCKS = (32, 128)
EMPTY = "an empty session"


def fastest(times: dict[str, Samples], names: list[str]) -> str:
    """The one with the smallest median."""
    return min(names, key=lambda name: float(np.median(times[name].seconds)))


@torch.no_grad()
def run(context: Context) -> Iterator[Row]:
    """Noise off first, then everything on."""
    use_threads(1)
    shapes: list[Shape] = [(1, 1024, 1024), (1, 4096, 4096), (16, 1024, 1024), (16, 4096, 4096)]
    if context.quick:
        shapes = [(1, 128, 64), (16, 128, 64)]
    for shape in shapes:
        yield from _noise_off(context, shape)
    for shape in shapes[:1] if context.quick else [shapes[0], shapes[2]]:
        yield from _everything_on(context, shape)


def _arrays(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    m, k, n = shape
    generator = np.random.default_rng(0)
    return generator.standard_normal((m, k), np.float32), generator.standard_normal((n, k), np.float32)


def _noise_off(context: Context, shape: Shape) -> Iterator[Row]:
    m, k, n = shape
    x, weight = _arrays(shape)
    x_tensor, weight_tensor = torch.from_numpy(x), torch.from_numpy(weight)
    sides: dict[str, Call] = {
        "F.linear": lambda: F.linear(x_tensor, weight_tensor),
        "MatMul f32": sessions.Bound(sessions.mat_mul(weight, m), x),
        "integer chain": sessions.Bound(sessions.integer_chain(weight, m), x),
        EMPTY: sessions.Bound(sessions.nothing(), np.zeros((1, 1), np.float32)),
    }
    for bits in BITS:
        sides[f"ours {bits}"] = sessions.Bound(sessions.optical(weight, m, bits), x)
    for bits in N_BITS:
        for block in BLOCKS:
            sides[f"MatMulNBits {bits}, block {block}"] = sessions.Bound(sessions.n_bits(weight, m, bits, block), x)
    memories = {bits: context.peaks.memory(n * k * bits // 8) for bits in BITS} if context.peaks and m == 1 else {}
    for bits, memory in memories.items():
        sides[f"read {bits}"] = memory.read
    times = interleave(sides, context.effort)
    empty = times[EMPTY]
    for bits in BITS:
        ours = times[f"ours {bits}"]
        fields: dict[str, Any] = {
            "group": "session",
            "what": f"OpticalLinear, {bits}-bit weights, DAC and ADC",
            "shape": shape,
            "threads": 1,
            "tier": context.machine.tier,
        }
        if bits in memories:
            # Seconds to read the weights, over seconds of the node.
            part = n * k * bits / 8 / memories[bits].bytes_read
            _, of_peak, _ = quotients(ours.less(empty), times[f"read {bits}"], part)
            fields |= {"of_peak": of_peak, "peak": "read"}
        single = m == 1 and bits in (8, 4)
        against_torch = context.goal(**({"intel": 8.0, "amd": 5.0} if bits == 8 else {"intel": 12.0, "amd": 7.0}))
        against_float = context.goal(any=3.5 if bits == 8 else 8.0)
        yield compare(
            ours, times["F.linear"], against="PyTorch F.linear", goal=against_torch if single else None, **fields
        )
        yield compare(
            ours, times["MatMul f32"], against="MatMul, float32", goal=against_float if single else None, **fields
        )
        width = max(bits, min(N_BITS))
        names = [f"MatMulNBits {width}, block {block}" for block in BLOCKS] + (["integer chain"] if bits == 8 else [])
        best = fastest(times, names)
        goals = {8: (1.1, 1.0), 4: (1.5, 2.0), 2: (1.5, 2.0)}
        goal = context.goal(any=goals[bits][m > 1]) if bits in goals else None
        yield compare(
            ours.less(empty),
            times[best].less(empty),
            against=f"{best} (both less an empty session)",
            goal=goal,
            or_of_peak=0.9 if m == 1 and goal else None,
            **fields,
        )


def _everything_on(context: Context, shape: Shape) -> Iterator[Row]:
    x, weight = _arrays(shape)
    m = shape[0]
    sides: dict[str, Call] = {
        "ours": sessions.Bound(sessions.optical(weight, m, 8, noise_relative=NOISE), x),
        "float product": sessions.Bound(sessions.standard_operators(weight, m, NOISE, integer=False), x),
        "integer product": sessions.Bound(sessions.standard_operators(weight, m, NOISE, integer=True), x),
    }
    times = interleave(sides, context.effort)
    best = fastest(times, ["float product", "integer product"])
    yield compare(
        times["ours"],
        times[best],
        group="session",
        what="OpticalLinear, 8-bit weights, DAC, noise and ADC",
        against=f"the same in standard operators, {best}",
        shape=shape,
        threads=1,
        tier=context.machine.tier,
        goal=context.goal(any=4.0),
    )
