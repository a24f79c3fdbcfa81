"""Spreads cells over workers by joblib: its own processes here, or those of a cluster of Ray or Dask."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .worker import Outcome, compute, forget

__all__ = ["BACKENDS", "Pool", "WorkerDied", "need", "pool"]

BACKENDS = ("loky", "ray", "dask")

_WAVE = 5.0
"""Seconds that a wave of cells takes on a backend that returns no cell before it has all."""

_MODULES = {"joblib": "sweep", "cloudpickle": "sweep", "ray": "sweep-ray", "distributed": "sweep-dask"}


class WorkerDied(RuntimeError):
    """A worker ended without a result."""


def need(*packages: str) -> None:
    """Imports packages that the base installation lacks.

    Raises:
        ImportError: one is missing; the message names it and the extra that installs it.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            extra = _MODULES.get(package, "sweep")
            raise ImportError(
                f"a sweep needs the Python package {package}, which cannot be imported ({error}): "
                f'pip install "lumina-onnx[{extra}]"'
            ) from error


Map = Callable[[Iterable[tuple[Any, ...]]], Iterator[Outcome]]


@dataclass(frozen=True)
class Pool:
    """Workers that know the work."""

    run: Map
    """Computes cells; outcomes come in any order. It may raise what the backend raises if a worker dies."""
    alone: Map | None
    """The same with a single cell at a time, after a worker died; None if cells are computed in this process."""


@contextlib.contextmanager
def pool(backend: str, workers: int | None, address: str | None, work: bytes, cells: int) -> Iterator[Pool]:
    """Workers for pickled work, each of one thread.

    Args:
        backend: one of `BACKENDS`.
        workers: their number; None: one for each core that this process may use, or all of a cluster's.
        address: of a running cluster. None: the one that the process is connected to or that its settings name; else a
            cluster is started on this machine, and ended afterwards.
        work: a pickled :class:`.worker.Work`.
        cells: the number of cells: processes are started for no more.

    Raises:
        ImportError: a package of the backend is missing.
    """
    token = uuid.uuid4().hex
    if workers is None and backend == "loky":
        workers = min(_cores(), cells)
    opened = {"loky": _loky, "ray": _ray, "dask": _dask}[backend]
    try:
        with opened(workers, address, work, token) as made:
            yield made
    finally:
        forget()


def _cores() -> int:
    """Cores that this process may use."""
    import joblib

    return int(joblib.cpu_count())


class _Held:
    """The work itself, as a worker gets it."""

    def __init__(self, work: bytes) -> None:
        self._work = work

    def __call__(self) -> bytes:
        return self._work


class _InFile:
    """The work in a file of this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self) -> bytes:
        return self._path.read_bytes()


class _InStore:
    """The work in the object store of Ray, which a node reads once."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def __call__(self) -> bytes:
        import ray

        found: bytes = ray.get(self._reference)
        return found


@contextlib.contextmanager
def _loky(workers: int | None, address: str | None, work: bytes, token: str) -> Iterator[Pool]:
    import joblib
    import threadpoolctl

    if workers == 1:

        def here(cells: Iterable[tuple[Any, ...]]) -> Iterator[Outcome]:
            return (compute(_Held(work), token, cell) for cell in cells)

        with threadpoolctl.threadpool_limits(1):
            yield Pool(here, None)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "work"
        path.write_bytes(work)

        def run(cells: Iterable[tuple[Any, ...]], **options: Any) -> Iterator[Outcome]:
            with joblib.parallel_config("loky", inner_max_num_threads=1):
                parallel = joblib.Parallel(workers, return_as="generator_unordered", **options)
                return parallel(joblib.delayed(compute)(_InFile(path), token, cell) for cell in cells)

        yield Pool(run, lambda cells: run(cells, pre_dispatch=1, batch_size=1))


@contextlib.contextmanager
def _dask(workers: int | None, address: str | None, work: bytes, token: str) -> Iterator[Pool]:
    import joblib

    need("distributed")
    held = _Held(work)
    with _client(workers, address) as client:

        def run(cells: Iterable[tuple[Any, ...]]) -> Iterator[Outcome]:
            with joblib.parallel_config("dask", client=client, scatter=[held]):
                parallel = joblib.Parallel(workers or -1, return_as="generator_unordered")
                return parallel(joblib.delayed(compute)(held, token, cell) for cell in cells)

        def alone(cells: Iterable[tuple[Any, ...]]) -> Iterator[Outcome]:
            sent = client.scatter(held, broadcast=True)  # anew: what a worker holds dies with it
            return (client.submit(compute, sent, token, cell, pure=False).result() for cell in cells)

        # joblib takes a single worker for this process.
        yield Pool(alone if 1 in (workers, sum(client.ncores().values())) else run, alone)


@contextlib.contextmanager
def _client(workers: int | None, address: str | None) -> Iterator[Any]:
    import dask
    import distributed

    address = address or dask.config.get("scheduler-address", None)
    if address is not None:
        with distributed.Client(address, set_as_default=False) as client:
            yield client
        return
    try:
        current = distributed.get_client()
    except ValueError:
        current = None
    if current is not None:
        yield current
        return
    with (
        _quiet("distributed"),
        distributed.LocalCluster(
            n_workers=workers or _cores(),
            threads_per_worker=1,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
            env={"DASK_LOGGING__DISTRIBUTED": "critical"},
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


@contextlib.contextmanager
def _ray(workers: int | None, address: str | None, work: bytes, token: str) -> Iterator[Pool]:
    import joblib

    need("ray")
    import ray
    from ray.util.joblib import register_ray

    own = not ray.is_initialized()
    if own:
        options: dict[str, Any] = {"address": address} if address else {}
        if not address and "RAY_ADDRESS" not in os.environ:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            options = {"address": "local", "num_cpus": workers or _cores(), "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **options)
    try:
        register_ray()
        fetch = _InStore(ray.put(work))
        count = workers or int(ray.cluster_resources()["CPU"])

        def run(cells: Iterable[tuple[Any, ...]]) -> Iterator[Outcome]:
            with _quiet("ray.util.multiprocessing"), joblib.parallel_config("ray"), joblib.Parallel(count) as parallel:
                for wave, done in _waves(cells, count):
                    yield from parallel(joblib.delayed(compute)(fetch, token, cell) for cell in wave)
                    done()

        task = ray.remote(compute).options(num_cpus=1, max_retries=0)

        def alone(cells: Iterable[tuple[Any, ...]]) -> Iterator[Outcome]:
            return (ray.get(task.remote(fetch, token, cell)) for cell in cells)

        # joblib takes a single worker for this process.
        yield Pool(alone if count == 1 else run, alone)
    finally:
        if own:
            ray.shutdown()


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keeps the messages of a package about its own doings from the terminal."""
    logger = logging.getLogger(name)
    propagates, level = logger.propagate, logger.level
    logger.propagate = False
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.propagate = propagates
        logger.setLevel(level)


def _waves(
    cells: Iterable[tuple[Any, ...]], workers: int
) -> Iterator[tuple[Sequence[tuple[Any, ...]], Callable[[], None]]]:
    """Cells in waves of some seconds, each with a function to call once it is done."""
    size, cells = 4 * workers, iter(cells)
    while True:
        wave = list(itertools.islice(cells, size))
        if not wave:
            return
        started = time.monotonic()

        def done() -> None:
            nonlocal size
            each = (time.monotonic() - started) / len(wave)  # noqa: B023
            size = max(workers, min(2 * size, int(_WAVE / max(each, 1e-9))))

        yield wave, done
