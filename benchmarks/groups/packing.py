"""Quantising and packing weights, which should run at about the bandwidth of reading them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import lumina_kernel
from benchmarks.context import Context
from benchmarks.groups.forward import data, use_threads
from benchmarks.peaks import Memory
from benchmarks.results import Row, compare
from benchmarks.timing import Call, interleave

BITS = (8, 4)


def run(context: Context) -> Iterator[Row]:
    """`PreparedLayer` of float32 weights, on one thread and on all."""
    if context.peaks is None:
        return
    n, k = (48, 64) if context.quick else (4096, 4096)
    weight = data((1, k, n))[1]
    size = weight.numel() * weight.element_size()
    for threads in sorted({1, context.threads}):
        use_threads(threads)
        parts = [context.peaks.memory(size // threads) for _ in range(threads)]
        with ThreadPoolExecutor(threads) as readers:

            def read(parts: list[Memory] = parts, readers: ThreadPoolExecutor = readers) -> None:
                for reading in [readers.submit(part.read) for part in parts]:
                    reading.result()

            sides: dict[str, Call] = {"read": read}
            for bits in BITS:
                params = lumina_kernel.Params(input_bits=8, weight_bits=bits)
                sides[f"{bits}"] = partial(lumina_kernel.PreparedLayer, params, weight)
            times = interleave(sides, context.effort, own_threads=threads > 1)
        for bits in BITS:
            yield compare(
                times[f"{bits}"],
                times["read"],
                scale=size / sum(part.bytes_read for part in parts),
                unit="peak",
                group="packing",
                what=f"PreparedLayer, {bits}-bit weights",
                against="reading as many bytes",
                shape=(n, k),
                threads=threads,
                tier=context.machine.tier,
            )
