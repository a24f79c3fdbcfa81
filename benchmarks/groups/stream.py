"""Layers that fit into no cache, so that the bandwidth of memory limits them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

import lumina_kernel
from benchmarks.context import Context
from benchmarks.results import Row, Shape, compare
from benchmarks.timing import interleave

BITS = 4
#: Total size of the layers, in multiples of the largest cache.
TIMES = 4
#: Largest share of free memory for the layers, and again for the memory that is read for comparison.
SHARE = 0.25


def _free_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def run(context: Context) -> Iterator[Row]:
    """One row at a time through layer after layer, with 4-bit weights, on one thread."""
    if context.peaks is None:
        return
    lumina_kernel.set_num_threads(1)
    shape: Shape = (1, 256, 128) if context.quick else (1, 4096, 4096)
    _, k, n = shape
    generator = np.random.default_rng(0)
    x, weight = (generator.standard_normal(size).astype(np.float32) for size in ((1, k), (n, k)))
    layer_bytes = n * k * BITS // 8
    wanted = TIMES * max(context.machine.caches.values(), default=32 * 2**20)
    copies = 3 if context.quick else max(2, int(min(wanted, SHARE * _free_bytes()) // layer_bytes))
    params = lumina_kernel.Params(input_bits=8, weight_bits=BITS)
    layers = [lumina_kernel.PreparedLayer(params, weight) for _ in range(copies)]
    memory = context.peaks.memory(copies * layer_bytes)
    out = np.empty((1, n), np.float32)

    def ours() -> None:
        for layer in layers:
            layer.forward(x, 0, 0, out=out)

    times = interleave({"ours": ours, "read": memory.read}, context.effort)
    yield compare(
        times["ours"],
        times["read"],
        scale=copies * layer_bytes / memory.bytes_read,
        unit="peak",
        group="stream",
        what=f"{copies} layers of {BITS}-bit weights, {copies * layer_bytes / 2**20:.0f} MiB",
        against="reading as many bytes",
        shape=shape,
        threads=1,
        tier=context.machine.tier,
        # With fewer bytes, some of them stay in the cache.
        goal=context.goal(any=0.85) if copies * layer_bytes >= wanted else None,
    )
