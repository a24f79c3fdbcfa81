"""Our own threads: two against one, in a process that has no others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import lumina_kernel
from benchmarks.context import Context
from benchmarks.results import Row, Shape, compare
from benchmarks.timing import Side, interleave

#: From this many multiply-adds on, two threads should nearly halve the time.
LARGE = 256 * 1024 * 1024


def run(context: Context) -> Iterator[Row]:
    """The fused forward pass, weights quantised in each call."""
    if context.machine.cores > 1:
        for shape in context.shapes:
            yield _row(context, shape)


def _row(context: Context, shape: Shape) -> Row:
    m, k, n = shape
    generator = np.random.default_rng(0)
    x, weight = generator.standard_normal((m, k), np.float32), generator.standard_normal((n, k), np.float32)
    out = np.empty((m, n), np.float32)
    bits: dict[str, Any] = {"input_bits": 8, "weight_bits": 8}

    def call() -> None:
        lumina_kernel.optical_linear_forward(x, weight, None, 0.02, 8, **bits, seed=1, out=out)

    sides = {
        "two": Side(call, before=lambda: lumina_kernel.set_num_threads(2)),
        "one": Side(call, before=lambda: lumina_kernel.set_num_threads(1)),
    }
    times = interleave(sides, context.effort)
    return compare(
        times["two"],
        times["one"],
        group="scaling",
        what="optical_linear_forward, 8/8/8 bits, noise_relative",
        against="one thread",
        shape=shape,
        threads=2,
        tier=context.machine.tier,
        goal=context.goal(any=1.9) if m * k * n >= LARGE else None,
    )
