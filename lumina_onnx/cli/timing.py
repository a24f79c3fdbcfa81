"""Latencies of runs, measured side by side."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lumina_onnx.cli import arrays

if TYPE_CHECKING:
    import onnxruntime

PERCENTILES = (50, 90, 99)
ROUNDS = 25
# About how many seconds a call runs in each round; it runs at least once.
BURST = 20e-3


class Bound:
    """A session with its inputs and outputs bound; calling it runs it."""

    def __init__(self, session: onnxruntime.InferenceSession, feeds: arrays.Arrays) -> None:
        import onnxruntime

        self._session, self._binding = session, session.io_binding()
        self._inputs = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            self._binding.bind_output(output.name)

    def __call__(self) -> None:
        self._session.run_with_iobinding(self._binding)


def measure(
    calls: Sequence[Callable[[], None]], rounds: int = ROUNDS, after_round: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Percentiles of each call's latency in seconds ("p50" and so on), and the number of "runs" behind them.

    The calls take turns, so that other load on the machine affects them all; each round reverses the order of the
    previous one.
    """
    sizes = []
    for call in calls:
        call()
        once = max(min(_time(call) for _ in range(3)), 1e-7)
        sizes.append(max(1, round(BURST / once)))
    latencies: list[list[float]] = [[] for _ in calls]
    enabled = gc.isenabled()
    gc.disable()
    try:
        for index in range(rounds):
            for place in range(len(calls)) if index % 2 == 0 else reversed(range(len(calls))):
                # An untimed run: the caches hold the other calls' data.
                if sizes[place] > 1:
                    calls[place]()
                latencies[place] += [_time(calls[place]) for _ in range(sizes[place])]
            after_round()
    finally:
        if enabled:
            gc.enable()
    return [
        {
            **{f"p{p}": float(value) for p, value in zip(PERCENTILES, np.percentile(each, PERCENTILES), strict=True)},
            "runs": len(each),
        }
        for each in latencies
    ]


def thread_counts(cores: int) -> list[int]:
    """The numbers of threads that are measured by default: 1 to 4, then doubling, and all cores."""
    counts = [count for count in (1, 2, 3, 4) if count <= cores]
    while counts[-1] < cores:
        counts.append(min(2 * counts[-1], cores))
    return counts


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _time(call: Callable[[], None]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) * 1e-9
