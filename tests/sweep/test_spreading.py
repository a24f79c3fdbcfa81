"""Workers: the same cells on every backend, each worker on one thread, and what becomes of a sweep that ends early."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import lumina_onnx
from lumina_onnx.sweeping import journal
from lumina_onnx.sweeping.spreading import BACKENDS

Sweep = Callable[..., lumina_onnx.SweepResult]
GRID: dict[str, list[Any]] = {"noise_additive": [0.0, 0.1, 0.2], "2:output_bits": [3, 8]}


@contextlib.contextmanager
def without_the_backends_warnings(backend: str) -> Iterator[None]:
    """Clusters are left to warn of what is theirs, as of sockets that they leave open."""
    with warnings.catch_warnings():
        if backend != "loky":
            warnings.simplefilter("ignore")
        yield


def metric() -> Callable[[Any, Any], dict[str, float]]:
    """A metric that travels by value: workers cannot import tests."""

    def of_outputs(outputs: Any, labels: Any) -> dict[str, float]:
        return {"mean": float(outputs.mean()), "first": float(outputs[0, 0])}

    return of_outputs


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_gives_the_same_cells(sweep: Sweep, module: nn.Module, tmp_path: Path, backend: Any) -> None:
    with without_the_backends_warnings(backend):
        options = {"seeds": 5, "metric": metric()}
        expected = sweep(GRID, **options)
        out = tmp_path / "r.parquet"
        found = sweep(GRID, **options, backend=backend, workers=2, out=out)
        for name, column in expected.cells.items():
            np.testing.assert_array_equal(found.cells[name], column)
        # The rest of the sweep on another backend.
        file = journal.beside(out)
        head, *rest = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(head + b"".join(rest[::3]))
        resumed = sweep(GRID, **options, backend="loky", workers=2, out=out)
        np.testing.assert_array_equal(resumed.cells["mean"], expected.cells["mean"])
        if backend == "loky":
            one, two = (sweep(GRID, **options, model=module, workers=count) for count in (1, 2))
            np.testing.assert_array_equal(one.cells["first"], two.cells["first"])


def test_workers_have_one_thread_and_load_the_model_once(sweep: Sweep, module: nn.Module, tmp_path: Path) -> None:
    folder = str(tmp_path)

    class Loud(nn.Module):
        """Says when it is unpickled, and with how many threads it runs."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def __setstate__(self, state: dict[str, Any]) -> None:
            import os
            import tempfile

            self.__dict__.update(state)
            tempfile.mkstemp(dir=folder, prefix=f"loaded-{os.getpid()}-")

        def forward(self, x: Any) -> Any:
            import torch

            return self.inner(x) * 0 + torch.get_num_threads()

    def threads(outputs: Any, labels: Any) -> dict[str, float]:
        import os

        return {
            "torch": float(outputs.max()),
            "blas": float(os.environ["OPENBLAS_NUM_THREADS"]),
            "pid": float(os.getpid()),
        }

    cells = sweep({"output_bits": [3, 4, 5, 6]}, model=Loud(module), seeds=25, metric=threads, workers=2).cells
    assert set(cells["torch"]) == set(cells["blas"]) == {1.0}
    loaded = [path.name.split("-")[1] for path in tmp_path.iterdir() if path.name.startswith("loaded-")]
    workers = {str(int(pid)) for pid in cells["pid"]}
    assert str(os.getpid()) not in workers
    assert sorted(pid for pid in loaded if pid in workers) == sorted(workers)


def dying(folder: Path, times: int) -> Callable[[Any, Any], float]:
    """A metric whose process ends in cells of a large range, the first `times` times."""
    place = str(folder)

    def mean(outputs: Any, labels: Any) -> float:
        import os
        import tempfile

        if outputs.std() > 50 and len(os.listdir(place)) < times:
            tempfile.mkstemp(dir=place)
            os._exit(3)
        return float(outputs.mean())

    return mean


@pytest.fixture
def deaths(tmp_path: Path) -> Path:
    (tmp_path / "deaths").mkdir()
    return tmp_path / "deaths"


WIDE = {"2:output_range": [10.0, 20.0, 1e4, 30.0]}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cell_that_ends_its_worker_is_named(sweep: Sweep, deaths: Path, tmp_path: Path, backend: Any) -> None:
    out = tmp_path / "r.csv"
    with (
        without_the_backends_warnings(backend),
        pytest.raises(
            RuntimeError, match=r"^cell 2:output_range=10000.0, seed=0: its worker died, twice: .* of 12 cells"
        ),
    ):
        sweep(WIDE, seeds=3, metric=dying(deaths, 100), backend=backend, workers=2, out=out)
    kept = [line for line in journal.beside(out).read_text().splitlines() if line.startswith("[")]
    assert len(kept) >= 6


def test_a_worker_that_died_is_replaced(sweep: Sweep, deaths: Path) -> None:
    with pytest.warns(UserWarning, match=r"a worker died at .*cell.* 2:output_range=.*computed again"):
        result = sweep(WIDE, seeds=3, metric=dying(deaths, 1), workers=2)
    np.testing.assert_array_equal(result.cells["mean"], sweep(WIDE, seeds=3, metric=dying(deaths, 0)).cells["mean"])


def test_a_cell_that_fails_in_a_worker_is_named(sweep: Sweep, tmp_path: Path) -> None:
    def failing(outputs: Any, labels: Any) -> float:
        if outputs.std() > 50:
            raise ZeroDivisionError("no")
        return 0.0

    with pytest.raises(RuntimeError, match=r"^cell 2:output_range=10000.0, seed=\d: ZeroDivisionError: no .* are kept"):
        sweep(WIDE, seeds=3, metric=failing, workers=2, out=tmp_path / "r.csv")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_no_dead_worker(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal.Journal, "add", full)
    with pytest.raises(OSError, match="No space left on device"):
        sweep(GRID, seeds=5, workers=workers, out=tmp_path / "r.csv")


def test_workers_that_do_not_start(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    import joblib

    def broken(*_: Any, **__: Any) -> None:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(joblib, "Parallel", broken)
    with pytest.raises(RuntimeError, match=r"^the workers failed: BlockingIOError: no more processes$"):
        sweep(GRID, workers=2)


SLOW = """
import sys, time
import lumina_onnx

def slow(outputs, labels):
    time.sleep(0.05)
    return float(outputs.mean())

model, data, out, workers = sys.argv[1:]
lumina_onnx.sweep(model, data, {"noise_additive": [0.1, 0.2]}, seeds=100, metric=slow, out=out, workers=int(workers))
"""


def heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("workers", "number"), [(1, signal.SIGINT), (2, signal.SIGINT), (2, signal.SIGKILL)])
def test_an_interrupted_sweep_goes_on(
    file: Path, data: dict[str, Any], sweep: Sweep, tmp_path: Path, workers: int, number: signal.Signals
) -> None:
    np.savez(tmp_path / "data.npz", **data)
    script, out = tmp_path / "slow.py", tmp_path / "r.csv"
    script.write_text(SLOW)
    command = [sys.executable, *map(str, (script, file, tmp_path / "data.npz", out, workers))]
    # A process group of its own, as a terminal gives to a command: Ctrl-C reaches the workers too.
    # Where the tests run in the background, a shell has had them ignore it.
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed_interrupts
    )
    kept = journal.beside(out)
    try:
        while not kept.exists() or len(kept.read_bytes().splitlines()) < 10:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        os.killpg(process.pid, number)
        told = process.communicate(timeout=60)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    before = kept.read_text()
    finished = before.count("\n") - 1
    assert 9 <= finished < 200
    if number == signal.SIGINT:
        assert process.returncode in (-signal.SIGINT, 130)
        assert f"interrupted: {finished} of 200 cells are kept in '{kept}': the same sweep goes on from there" in told
    assert not out.exists()
    # Code is compared, not the module that it is in.
    namespace: dict[str, Any] = {"__name__": "other"}
    exec(SLOW.split("model, data")[0], namespace)
    grid = {"noise_additive": [0.1, 0.2]}
    result = sweep(grid, seeds=100, metric=namespace["slow"], out=out, workers=2)
    after = kept.read_text()
    assert after.count("\n") == 201
    assert after.startswith(before[: before.rindex("\n")])

    def mean(outputs: Any, labels: Any) -> float:
        return float(outputs.mean())

    np.testing.assert_array_equal(result.cells["slow"], sweep(grid, seeds=100, metric=mean).cells["mean"])


@pytest.mark.parametrize(
    ("package", "backend", "extra"),
    [
        ("joblib", "loky", "sweep"),
        ("cloudpickle", "loky", "sweep"),
        ("ray", "ray", "sweep-ray"),
        ("distributed", "dask", "sweep-dask"),
    ],
)
def test_a_missing_package_is_named(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, package: str, backend: Any, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'needs the Python package {package}, .*install "lumina-onnx\[{extra}\]"'):
        sweep(GRID, backend=backend, workers=2)


@pytest.mark.parametrize("how", ["address", "current client"])
def test_a_cluster_that_is_running_is_used(sweep: Sweep, how: str) -> None:
    import distributed

    def where(outputs: Any, labels: Any) -> float:
        import os

        return float(os.getpid())

    def failing(outputs: Any, labels: Any) -> float:
        raise ValueError("no")

    with (
        without_the_backends_warnings("dask"),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster, set_as_default=how != "address") as client,
    ):
        workers = set(client.run(os.getpid).values())
        options = {"backend": "dask", "address": cluster.scheduler_address if how == "address" else None}
        cells = sweep(GRID, seeds=5, metric=where, **options, workers=None).cells
        with pytest.raises(RuntimeError, match="ValueError: no"):
            sweep(GRID, metric=failing, **options, workers=None)
    assert {int(pid) for pid in cells["where"]} <= workers
