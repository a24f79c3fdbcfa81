"""Timing several sides in turn, so that other load on the machine affects them all."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Call = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)

# Shorter calls are timed several at a time.
SAMPLE_SECONDS = 100e-6


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: Bursts of each side.
        burst: Approximate seconds of one burst; a burst has at least one sample.
        settle: Seconds for which all threads must have rested before a burst, if the sides have threads of their own.
            Idle threads of a pool spin, for some 10 ms after a call of PyTorch (OpenMP's) and some 40 ms after one of
            ONNX Runtime, and would take a core from the other side.
    """

    rounds: int = 15
    burst: float = 8e-3
    settle: float = 15e-3


FULL = Effort()
QUICK = Effort(rounds=3, burst=1e-3, settle=0.0)


@dataclass(frozen=True)
class Side:
    """One of the calls that are compared; `before` runs untimed ahead of each burst."""

    call: Call
    before: Call | None = None


@dataclass(frozen=True)
class Samples:
    """Seconds per call, one tuple for each round."""

    rounds: tuple[tuple[float, ...], ...]

    @property
    def seconds(self) -> list[float]:
        """The samples of all rounds."""
        return [sample for samples in self.rounds for sample in samples]

    @property
    def medians(self) -> list[float]:
        """The median of each round."""
        return [statistics.median(samples) for samples in self.rounds]

    def less(self, other: Samples) -> Samples:
        """These samples less each round's median of `other`, such as the cost of a session without work."""
        return Samples(
            tuple(
                tuple(max(sample - overhead, 1e-9) for sample in samples)
                for samples, overhead in zip(self.rounds, other.medians, strict=True)
            )
        )


def _time(call: Call, calls: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - start) * 1e-9 / calls


def rest(settle: float) -> None:
    """Sleeps until this process has not run for `settle` seconds, or a second has passed."""
    for _ in range(max(1, round(1 / settle))):
        before = time.process_time()
        time.sleep(settle)
        # A sleeping process still uses a little time, but less than this.
        if time.process_time() - before < 0.25 * settle:
            return


def interleave(sides: Mapping[Name, Call | Side], effort: Effort, *, own_threads: bool = False) -> dict[Name, Samples]:
    """Measures the sides in turn, `effort.rounds` times, each round in the reverse order of the one before.

    Args:
        sides: What to call, by name.
        effort: How long to measure.
        own_threads: Whether the sides run on different pools of threads; if so, each burst waits until the threads of
            the previous one rest. PyTorch and our calls from Python share a pool.
    """
    prepared = {name: side if isinstance(side, Side) else Side(side) for name, side in sides.items()}
    plan: dict[Name, tuple[int, int]] = {}
    for name, side in prepared.items():
        if side.before:
            side.before()
        side.call()
        once = max(min(_time(side.call, 1) for _ in range(3)), 1e-9)
        calls = max(1, math.ceil(SAMPLE_SECONDS / once))
        plan[name] = calls, max(1, round(effort.burst / (calls * once)))
    rounds: dict[Name, list[tuple[float, ...]]] = {name: [] for name in prepared}
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for index in range(effort.rounds):
            order = list(prepared) if index % 2 == 0 else list(reversed(prepared))
            for name in order:
                side, (calls, samples) = prepared[name], plan[name]
                if side.before:
                    side.before()
                if own_threads and effort.settle:
                    rest(effort.settle)
                side.call()
                rounds[name].append(tuple(_time(side.call, calls) for _ in range(samples)))
    finally:
        if enabled:
            gc.enable()
    return {name: Samples(tuple(samples)) for name, samples in rounds.items()}
