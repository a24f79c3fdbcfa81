"""What a worker does: it gets the work once and keeps the model open, then computes one cell after another."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from .data import batches
from .engine import Engine, Source
from .grid import SEED, Grid, Plan, Value
from .metric import Metric, values

__all__ = ["Outcome", "Work", "compute"]


@dataclass(frozen=True)
class Work:
    """All that cells are computed from."""

    source: Source
    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[Any] | None
    metric: Metric
    metric_name: str
    grid: Grid
    skip: tuple[str, ...]
    batch: int


@dataclass(frozen=True)
class Outcome:
    """What became of a cell."""

    cell: tuple[Value, ...]
    values: dict[str, float]
    error: str = ""
    """Empty if the cell is finished."""
    trace: str = ""


class _Opened:
    """Work with its model open."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.engine: Engine = work.source.open()
        self.plan = Plan(work.grid, self.engine.names, self.engine.profiles, work.skip)

    def cell(self, cell: tuple[Value, ...]) -> dict[str, float]:
        """The metric's values in a cell."""
        work = self.work
        parameters = len(work.grid.parameters)
        draws = {axis.name: value for axis, value in zip(work.grid.draws, cell[parameters:], strict=True)}
        self.engine.set_up(self.plan.profiles(cell[:parameters]))
        seed = draws.get(SEED)
        outputs = self.engine.run(batches(work.inputs, work.batch), None if seed is None else int(seed))
        return values(work.metric(outputs, work.labels), work.metric_name)


_of_thread = threading.local()


def compute(fetch: Callable[[], bytes], token: str, cell: tuple[Value, ...]) -> Outcome:
    """A cell of the work that `fetch` gets, pickled, the first time that this thread sees its `token`."""
    try:
        if getattr(_of_thread, "token", None) != token:
            import cloudpickle

            forget()
            _of_thread.opened = _Opened(cloudpickle.loads(fetch()))
            _of_thread.token = token
        return Outcome(cell, _of_thread.opened.cell(cell))
    except Exception as error:
        return Outcome(cell, {}, f"{type(error).__name__}: {error}", traceback.format_exc())


def forget() -> None:
    """Closes the model that this thread has open."""
    opened: _Opened | None = getattr(_of_thread, "opened", None)
    if opened is not None:
        opened.engine.close()
    _of_thread.token = _of_thread.opened = None
