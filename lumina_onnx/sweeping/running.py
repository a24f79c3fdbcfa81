"""Runs a sweep: checks everything, computes the cells that are not there yet, and keeps them."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from . import data as data_of
from . import metric as metric_of
from .engine import Engine, Source
from .fingerprint import of_arrays, of_function
from .grid import Grid, Plan, Value, as_grid
from .journal import EXISTING, Journal
from .metric import Metric
from .result import SweepResult
from .spreading import BACKENDS, Pool, WorkerDied, need, pool
from .targets import FORMATS, check_target
from .worker import Outcome, Work

if TYPE_CHECKING:
    import torch

__all__ = ["sweep"]

Cell = tuple[Value, ...]
Done = dict[Cell, dict[str, float]]


def sweep(
    model: str | os.PathLike[str] | torch.nn.Module,
    data: data_of.Source,
    grid: Mapping[str, Iterable[Value]],
    *,
    seeds: int | Iterable[int] | None = None,
    metric: Metric | Literal["accuracy"] = "accuracy",
    labels: str = "labels",
    skip: str | Iterable[str] = (),
    batch: int = 256,
    out: str | os.PathLike[str] | None = None,
    existing: Literal["resume", "extend", "overwrite"] = "resume",
    backend: Literal["loky", "ray", "dask"] = "loky",
    workers: int | None = None,
    address: str | None = None,
    progress: bool = True,
) -> SweepResult:
    """Evaluates a model with optical layers in every cell of a grid of hardware parameters and draws of the noise.

    A cell is one value for each axis. Each is computed on one thread from the model, the data and its values alone, so
    it is the same for every backend and number of workers, and whatever was computed before it.

    Args:
        model: a .onnx file with optical layers, or a module whose :class:`lumina_onnx.nn.OpticalLayer` modules are
            found by their type. Neither is changed. A module runs in eval mode.
        data: a .npz file, a mapping from names to arrays, or a callable that returns such a mapping, which is called
            once, in this process. Dimension 0 of every array counts the samples. Arrays have the names of the model's
            inputs; with one input the name does not matter.
        grid: values for each axis. An axis is a parameter of :class:`lumina_onnx.OpticalProfile`, which it sets in
            every layer; ``PATTERN:parameter``, for the layers whose names match (``*``, ``?``, ``[...]``, as in
            :mod:`fnmatch`), where of several axes that set one parameter of a layer the last applies; or "seed", the
            draws of the noise, over which standard errors are taken.
        seeds: the axis "seed": n for the seeds 0..n-1, or the seeds. In a .onnx file a seed gives each layer the noise
            seed that ``lumina_onnx.nn.convert(model, profile, seed=seed)`` gives a layer of its name, in a fresh
            session. For a module it is that of ``torch.manual_seed`` before the first batch. Without it a file keeps
            its own seeds, and a module has ``torch.manual_seed(0)``.
        metric: "accuracy", or ``metric(outputs, labels)``, which returns a number or a mapping from names to numbers.
            `outputs` is the array of the model's output for all samples, or a mapping (a tuple, for a module that
            returns one) of several; `labels` is None if the data have none.
        labels: the name of the labels in the data. The accuracy takes the number of a class for each sample.
        skip: patterns of layers that keep their own parameters.
        batch: samples in one run of the model. The noise depends on it: a batch is a call.
        out: a .csv or .parquet file with a row for each cell. Beside it ``NAME.cells.jsonl`` keeps finished cells, and
            the next call goes on from there.
        existing: what to do with the cells of an earlier call. "resume": take them, if model, data, grid, metric and
            versions are the same, and else refuse. "extend": take those that are in the new grid too. "overwrite":
            start anew.
        backend: joblib's: "loky", processes on this machine; "ray" or "dask", a cluster.
        workers: their number. None: one for each core that this process may use, or all of a cluster's.
        address: of a running cluster. None: the one that this process is connected to or that the backend's own
            settings name, else one on this machine.
        progress: whether to show a progress bar on stderr.

    Returns:
        Every cell's values; means and standard errors over the draws; tables and plots of them.

    Raises:
        ImportError: a package is missing; the message says how to install it.
        OSError: a file cannot be read or written.
        TypeError: an argument has the wrong type.
        ValueError: an argument is not allowed; an axis is unknown, or a value not allowed in a layer; the data do not
            fit the model; or `out` has the cells of another sweep, and the message says what differs.
        RuntimeError: a cell failed, or its worker died; the message names the cell. Finished cells are kept in `out`.
        KeyboardInterrupt: the sweep was interrupted; the message says how to go on.
    """
    need("joblib", "cloudpickle", "threadpoolctl")
    axes = as_grid(grid, seeds)
    for argument, given, allowed in (("backend", backend, BACKENDS), ("existing", existing, EXISTING)):
        if given not in allowed:
            raise ValueError(f"{argument} = {given!r}: allowed is {', '.join(map(repr, allowed))}")
    for argument, count in (("workers", workers), ("batch", batch)):
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise ValueError(f"{argument} = {count!r}: allowed is a number from 1")
    if address is not None and backend == "loky":
        raise ValueError(f"address = {address!r} would be ignored: backend 'loky' runs on this machine")
    target = None if out is None else check_target(out, "out", FORMATS)
    judge: Any = metric_of.accuracy if metric == "accuracy" else metric
    if not callable(judge):
        raise TypeError(f"metric = {metric!r}: allowed is 'accuracy', or a callable metric(outputs, labels)")
    source = _source(model)
    chosen = (skip,) if isinstance(skip, str) else tuple(skip)
    with contextlib.closing(source.open()) as engine:
        _check_points(axes, engine, Plan(axes, engine.names, engine.profiles, chosen))
        samples = data_of.read(data, labels).named(engine.inputs)
        _try_out(engine, samples, judge, batch)
    work = Work(source, samples.inputs, samples.labels, judge, _name(judge), axes, chosen, batch)
    with contextlib.ExitStack() as stack:
        journal = None
        if target is not None:
            journal = stack.enter_context(Journal.open(target, axes, _facts(work), existing))
        done: Done = dict(journal.cells) if journal else {}
        if len(done) < len(axes):
            _compute(work, done, journal, backend, workers, address, progress)
        result = SweepResult(axes, done)
        if target is not None:
            result.write(target)
    return result


def _source(model: Any) -> Source:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        from .of_module import Module

        return Module.of(model)
    if isinstance(model, (str, os.PathLike)):
        need("onnx", "onnx_ir")
        from .of_file import File

        return File.of(Path(model))
    raise TypeError(f"model is a {type(model).__name__}; allowed is the path of a .onnx file, or a torch.nn.Module")


def _check_points(grid: Grid, engine: Engine, plan: Plan) -> None:
    """Refuses a grid with a value that a layer does not allow, before anything is computed."""
    known: set[tuple[int, Any]] = set()
    for point in grid.points():
        for place, profile in enumerate(plan.profiles(point)):
            if (place, profile) not in known:
                known.add((place, profile))
                try:
                    engine.check_profile(place, profile)
                except ValueError as error:
                    where = f"grid: {grid.described(point)}: layer {engine.names[place]!r}"
                    raise ValueError(f"{where}: {error}") from None


def _try_out(engine: Engine, data: data_of.Data, metric: Metric, size: int) -> None:
    """Runs the first batch, so that a model that does not take the data says so before workers start."""
    parts = list(data_of.batches(data.inputs, size))
    for part in (parts[0], parts[-1]):
        try:
            engine.check_inputs(part)
        except ValueError as error:
            raise ValueError(f"{error} (batch = {size}, of {data.samples} samples)") from None
    try:
        engine.set_up(engine.profiles)
        outputs = engine.run(parts[:1], None)
    except Exception as error:
        shown = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in parts[0].items())
        raise ValueError(f"the model does not run on the data ({shown}): {type(error).__name__}: {error}") from error
    if metric is metric_of.accuracy:
        metric(outputs, None if data.labels is None else data.labels[:size])


def _name(metric: Any) -> str:
    """A metric's name, for its column."""
    while hasattr(metric, "func"):  # functools.partial
        metric = metric.func
    name = getattr(metric, "__name__", type(metric).__name__)
    return str(name) if str(name).isidentifier() else "metric"


def _facts(work: Work) -> dict[str, Any]:
    """What cells depend on besides the grid, by the word for it."""
    data = dict(work.inputs) if work.labels is None else {**work.inputs, "\nlabels": work.labels}
    return {
        "versions": {
            **work.source.versions(),
            "numpy": np.__version__,
            "python": ".".join(map(str, sys.version_info[:2])),
        },
        "model": work.source.digest(),
        "data": of_arrays(data),
        "metric": "accuracy" if work.metric is metric_of.accuracy else of_function(work.metric),
        "batch": work.batch,
        "skip": list(work.skip),
    }


def _compute(
    work: Work,
    done: Done,
    journal: Journal | None,
    backend: str,
    workers: int | None,
    address: str | None,
    progress: bool,
) -> None:
    """Adds the cells that are not `done`."""
    import cloudpickle

    grid = work.grid
    resumed = len(done)

    def kept() -> str:
        if journal is None:
            return ""
        return f"{len(done)} of {len(grid)} cells are kept in {str(journal.path)!r}: the same sweep goes on from there"

    def keep(outcome: Outcome) -> None:
        if outcome.error:
            raise _Failed(f"cell {grid.described(outcome.cell)}: {outcome.error}", outcome.trace)
        _check_names(grid, outcome, done)
        done[outcome.cell] = outcome.values
        if journal is not None:
            journal.add([(outcome.cell, outcome.values)])
        tick()

    try:
        with (
            pool(backend, workers, address, cloudpickle.dumps(work), len(grid) - resumed) as made,
            _bar(progress, len(grid), resumed) as tick,
        ):
            _spread(made, [cell for cell in grid.cells() if cell not in done], done, keep, grid)
    except _Failed as failed:
        cause = RuntimeError(f"in the worker:\n{failed.trace}") if failed.trace else None
        raise RuntimeError(_with(str(failed), kept())) from cause
    except WorkerDied as died:
        raise RuntimeError(_with(str(died), kept())) from died.__cause__
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted: {kept()}".removesuffix(": ")) from None


def _with(message: str, kept: str) -> str:
    return f"{message} ({kept})" if kept else message


class _Failed(Exception):
    """A cell failed."""

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace


class _Broken(Exception):
    """The backend failed, and not a cell; its error is the cause."""


def _spread(made: Pool, pending: list[Cell], done: Done, keep: Callable[[Outcome], None], grid: Grid) -> None:
    """Computes cells. Those that a worker was at when it died are tried once more, one at a time."""
    while pending:
        given: list[Cell] = []
        try:
            _keep_all(made.run, _noting(pending, given), keep)
            return
        except _Broken as broken:
            suspects = [cell for cell in given if cell not in done]
            if made.alone is None or not suspects:
                raise WorkerDied(f"the workers failed: {_in_words(broken)}") from broken.__cause__
        given = []
        try:
            _keep_all(made.alone, _noting(suspects, given), keep)
        except _Broken as broken:
            (cell, *_) = [cell for cell in given if cell not in done] or suspects
            died = f"cell {grid.described(cell)}: its worker died, twice: {_in_words(broken)}"
            raise WorkerDied(died) from broken.__cause__
        warnings.warn(f"sweep: a worker died at {_some(suspects, grid)}, which was computed again", stacklevel=4)
        pending = [cell for cell in pending if cell not in done]


def _in_words(broken: _Broken) -> str:
    cause = broken.__cause__
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}"


def _keep_all(
    run: Callable[[Iterable[Cell]], Iterator[Outcome]], cells: Iterable[Cell], keep: Callable[[Outcome], None]
) -> None:
    """Keeps outcomes; where that raises, what is still being computed is given up.

    Raises:
        _Broken: the backend failed.
        Exception: what `keep` raises.
    """
    try:
        outcomes = run(cells)
    except Exception as error:
        raise _Broken from error
    try:
        while (outcome := _next(outcomes)) is not None:
            keep(outcome)
    except BaseException:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # joblib counts what is given up
            if isinstance(outcomes, Generator):
                outcomes.close()
        raise


def _next(outcomes: Iterator[Outcome]) -> Outcome | None:
    """The next outcome; None after the last."""
    try:
        return next(outcomes, None)
    except Exception as error:
        raise _Broken from error


def _noting(cells: list[Cell], given: list[Cell]) -> Iterator[Cell]:
    """The cells, each noted when it is handed out."""
    for cell in cells:
        given.append(cell)
        yield cell


def _some(cells: list[Cell], grid: Grid) -> str:
    shown = "; ".join(grid.described(cell) for cell in cells[:3])
    return f"cell {shown}" if len(cells) <= 3 else f"one of {len(cells)} cells ({shown}; ...)"


def _check_names(grid: Grid, outcome: Outcome, done: Done) -> None:
    """Refuses a metric whose names change, or are those of columns that a table has anyway."""
    names = tuple(outcome.values)
    first = next(iter(done.values()), None)
    cell = f"cell {grid.described(outcome.cell)}: the metric returned {', '.join(map(repr, names))}"
    if first is not None and tuple(first) != names:
        raise _Failed(f"{cell}, and before {', '.join(map(repr, first))}; allowed are the same names in every cell")
    taken = {axis.name for axis in grid.axes} | {"draws"} | {f"{name}_error" for name in names}
    if clash := taken & set(names):
        raise _Failed(f"{cell}; {sorted(clash)[0]!r} is the name of another column")


@contextlib.contextmanager
def _bar(shown: bool, total: int, done: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, and the function that advances it by a cell."""
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("resume" if done else "sweep", total=total, completed=done)
        yield lambda: bar.advance(task)
