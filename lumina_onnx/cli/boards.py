"""Predicted times of a layer on boards, from the cycles that llvm-mca counts for the kernel's loops.

The cycles are in boards.json, which docs/generate.py writes from docs/measurements/boards.json; that page says how they
are found and what they leave out. They are predictions: nothing here was measured on a board.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Board:
    """A board, as its maker describes it."""

    name: str
    processor: str
    tier: str
    """The kernel's instruction-set tier for it."""
    hertz: float
    bandwidth: float
    """Bytes per second that it reads from memory."""
    cores: int = 4


BOARDS = (
    Board("Raspberry Pi 4", "Cortex-A72", "neon", 1.5e9, 5e9),
    Board("Raspberry Pi 5", "Cortex-A76", "neon_dotprod", 2.4e9, 10e9),
)


@dataclass(frozen=True)
class Prediction:
    """Seconds that a layer takes at least."""

    compute: float
    """For its arithmetic, shared by the threads."""
    memory: float
    """To read its weights from memory once. A layer that is run again and again need not do so if it fits a cache."""


def find(name: str | None, processor: str) -> Board | None:
    """The board of this name, or one with this processor."""
    named = (board for board in BOARDS if name and name.startswith(board.name))
    alike = (board for board in BOARDS if board.processor == processor)
    return next(named, next(alike, None))


def predict(
    board: Board,
    bits: int,
    rows: int,
    outputs: int,
    inputs: int,
    threads: int = 1,
    *,
    hertz: float | None = None,
    cycles: dict[str, Any] | None = None,
) -> Prediction:
    """The time of a layer with DAC and ADC.

    Args:
        board: The board.
        bits: Of the weights.
        rows: Of X. One alone is multiplied by the tiles for one row, more by those for many.
        outputs: N.
        inputs: K.
        threads: Up to the board's cores, between which the arithmetic is shared without loss.
        hertz: The clock, by default the board's.
        cycles: By default those of boards.json.
    """
    each = (cycles or _cycles())[board.tier]
    products = rows * outputs * inputs * each["one row" if rows == 1 else "rows"][str(bits)] / 1000
    total = products + rows * (inputs * each["DAC"] + outputs * each["ADC"])
    compute = total / (hertz or board.hertz) / min(threads, board.cores)
    return Prediction(compute, outputs * inputs * bits / 8 / board.bandwidth)


@functools.cache
def _cycles() -> dict[str, Any]:
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
