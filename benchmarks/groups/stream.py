"""Layers that fit into no cache, so that the bandwidth of memory limits them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from benchmarks import sessions
from benchmarks.context import Context
from benchmarks.groups.session import CHAIN, EXACT_CHAIN
from benchmarks.results import Row, Shape, compare
from benchmarks.sessions import Bound, Floats, Layer
from benchmarks.timing import Call, interleave

#: Total size of the layers, in multiples of the largest cache.
TIMES = 4
#: Largest share of free memory for the layers, once for each side, and for the memory that is read.
SHARE = 0.1

BITS = (8, 4)


def _rivals(bits: int) -> dict[str, Callable[[Floats], Layer]]:
    """ONNX Runtime's exact operators on integers with weights of `bits`."""
    rivals: dict[str, Callable[[Floats], Layer]] = {
        f"MatMulNBits {bits}, block {block}": partial(sessions.n_bits, bits=bits, block=block) for block in (32, 128)
    }
    if bits == 8:
        exact = sessions.signed_products_are_exact()
        rivals[CHAIN if exact else EXACT_CHAIN] = partial(sessions.integer_chain, unsigned=not exact)
    return rivals


def _free_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _in_turn(layer: Layer, x: Floats, copies: int) -> Call:
    """A call that runs as many sessions of the layer, one after another: between two runs of one, all others run."""
    runs: Sequence[Bound] = [Bound(sessions.model([layer], 1), x) for _ in range(copies)]

    def call() -> None:
        for run in runs:
            run()

    return call


def run(context: Context) -> Iterator[Row]:
    """One row at a time through session after session, on one thread."""
    if context.peaks is None:
        return
    shape: Shape = (1, 256, 128) if context.quick else (1, 4096, 4096)
    _, k, n = shape
    generator = np.random.default_rng(0)
    x, weight = (generator.standard_normal(size).astype(np.float32) for size in ((1, k), (n, k)))
    wanted = TIMES * max(context.machine.caches.values(), default=32 * 2**20)
    for bits in BITS:
        rivals = _rivals(bits)
        layer_bytes = n * k * bits // 8
        copies = 3 if context.quick else max(2, int(min(wanted, SHARE * _free_bytes()) // layer_bytes))
        context.say(f"{copies} sessions, {bits} bits")
        memory = context.peaks.memory(copies * layer_bytes)
        sides: dict[str, Call] = {"ours": _in_turn(sessions.optical(weight, bits), x, copies), "read": memory.read}
        for name, build in rivals.items():
            sides[name] = _in_turn(build(weight), x, copies)
        times = interleave(sides, context.effort)
        # With fewer bytes, some of them stay in the cache.
        goal = context.goal(any=0.92) if copies * layer_bytes >= wanted else None
        fastest = min(rivals, key=lambda name: np.median(times[name].seconds))
        for other in ("read", fastest):
            reading = other == "read"
            yield compare(
                times["ours"],
                times[other],
                scale=copies * layer_bytes / memory.bytes_read if reading else 1.0,
                unit="peak" if reading else "times",
                group="stream",
                what=f"{bits}-bit weights in {copies} sessions, {copies * layer_bytes / 2**20:.0f} MiB",
                against="reading as many bytes" if reading else f"integer operators: {other}",
                shape=shape,
                threads=1,
                tier=context.machine.tier,
                goal=goal if reading else None,
            )
