"""Gaussian noise on one core."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

import lumina_kernel
from benchmarks.context import Context
from benchmarks.groups.forward import use_threads
from benchmarks.results import Row, compare
from benchmarks.timing import interleave


def run(context: Context) -> Iterator[Row]:
    """Standard normals, written to memory that is already allocated and in the cache."""
    use_threads(1)
    rows, columns = (4, 64) if context.quick else (32, 1024)
    out, tensor = np.empty((rows, columns), np.float32), torch.empty(rows, columns)
    sides = {
        "ours": lambda: lumina_kernel.noise(1, 2, rows, columns, out),
        "theirs": lambda: torch.randn(rows, columns, out=tensor),
    }
    times = interleave(sides, context.effort)
    goal = context.goal(any=5.0) if context.machine.tier in ("avx2", "avx512bw") else context.goal(intel=6.0, amd=10.0)
    yield compare(
        times["ours"],
        times["theirs"],
        group="noise",
        what="noise",
        against="torch.randn",
        shape=(rows, columns),
        threads=1,
        tier=context.machine.tier,
        goal=goal,
    )
