"""Finished cells are kept, and never mixed with those of another sweep."""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from torch import nn

import lumina_onnx
from lumina_onnx.sweeping import journal
from lumina_onnx.sweeping.fingerprint import of_function
from lumina_onnx.sweeping.grid import as_grid
from lumina_onnx.sweeping.journal import Journal

Sweep = Callable[..., lumina_onnx.SweepResult]
GRID: dict[str, list[Any]] = {"noise_additive": [0.0, 0.2], "output_bits": [3, 8]}


def counting(folder: Path, limit: int = 10**9) -> Callable[[Any, Any], float]:
    """A metric that leaves a file for each cell, and fails after some."""
    place = str(folder)

    def mean(outputs: Any, labels: Any) -> float:
        import os
        import tempfile

        if len(os.listdir(place)) >= limit:
            raise ArithmeticError("enough")
        tempfile.mkstemp(dir=place)
        return float(outputs.mean())

    return mean


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    (tmp_path / "seen").mkdir()
    return tmp_path / "seen"


def count(folder: Path) -> int:
    return len(list(folder.iterdir()))


def lines(out: Path) -> list[Any]:
    return [json.loads(line) for line in journal.beside(out).read_text().splitlines()]


def test_finished_cells_are_not_computed_again(sweep: Sweep, tmp_path: Path, seen: Path) -> None:
    out = tmp_path / "r.csv"
    metric = counting(seen)
    first = sweep(GRID, seeds=3, metric=metric, out=out)
    assert count(seen) == 12
    content = out.read_bytes()
    again = sweep(GRID, seeds=3, metric=metric, out=out)
    assert (count(seen), out.read_bytes()) == (12, content)
    np.testing.assert_array_equal(first.cells["mean"], again.cells["mean"])


@pytest.mark.parametrize("cut", [0, 1, 9], ids=["between lines", "line feed", "in a line"])
def test_it_goes_on_where_it_was_cut_off(sweep: Sweep, tmp_path: Path, seen: Path, cut: int) -> None:
    out = tmp_path / "r.csv"
    metric = counting(seen)
    whole = sweep(GRID, seeds=3, metric=metric, out=out).cells["mean"]
    file = journal.beside(out)
    head, *rest = file.read_bytes().splitlines(keepends=True)
    text = head + b"".join(rest[:7])
    file.write_bytes(text[: len(text) - cut])
    out.unlink()
    before = count(seen)
    np.testing.assert_array_equal(sweep(GRID, seeds=3, metric=metric, out=out).cells["mean"], whole)
    assert count(seen) - before == (5 if cut == 0 else 6)
    assert len(lines(out)) == 13


def test_a_failed_cell_is_named_and_the_finished_ones_stay(sweep: Sweep, tmp_path: Path, seen: Path) -> None:
    out = tmp_path / "r.csv"
    with pytest.raises(
        RuntimeError,
        match=r"^cell noise_additive=0.0, output_bits=8, seed=1: ArithmeticError: enough .4 of 12 cells are kept in .*"
        r"r.csv.cells.jsonl': the same sweep goes on from there.$",
    ) as failed:
        sweep(GRID, seeds=3, metric=counting(seen, 4), out=out)
    assert "in mean" in str(failed.value.__cause__)
    assert not out.exists()
    assert len(lines(out)) == 5


def test_without_a_file_nothing_is_kept(sweep: Sweep, seen: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ArithmeticError: enough$"):
        sweep(GRID, metric=counting(seen, 2))


def other_model(file: Path, data: Any, tmp_path: Path) -> dict[str, Any]:
    model = onnx.load(file)
    model.graph.initializer[0].raw_data = b"\1" * len(model.graph.initializer[0].raw_data)
    onnx.save(model, tmp_path / "other.onnx")
    return {"model": tmp_path / "other.onnx"}


def other_data(file: Path, data: Any, tmp_path: Path) -> dict[str, Any]:
    return {"data": {**data, "x": np.roll(data["x"], 1)}}


def other_labels(file: Path, data: Any, tmp_path: Path) -> dict[str, Any]:
    return {"data": {**data, "labels": np.roll(data["labels"], 1)}}


def other_metric(file: Path, data: Any, tmp_path: Path) -> dict[str, Any]:
    def accuracy(outputs: Any, labels: Any) -> float:
        return 0.5

    return {"metric": accuracy}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_model, "its model is another;"),
        (other_data, "its data is another;"),
        (other_labels, "its data is another;"),
        (other_metric, "its metric is another;"),
        (lambda *_: {"batch": 10}, "batch was 256 and is 10;"),
        (lambda *_: {"skip": "2"}, r"skip was \[\] and is \[\"2\"\];"),
        (
            lambda *_: {"seeds": 3},
            r"grid: seed was \[0, 1\] and is \[0, 1, 2\]; .*; existing='extend' .--existing extend",
        ),
        (
            lambda *_: {"grid": {"output_bits": [3]}},
            r"grid: noise_additive was \[0.0, 0.2\] and is not there, output_bits",
        ),
        (lambda *_: {"grid": dict(reversed(GRID.items()))}, "the order of the axes of its grid;"),
    ],
)
def test_cells_of_another_sweep_are_refused(
    sweep: Sweep, file: Path, data: Any, tmp_path: Path, change: Callable[..., dict[str, Any]], message: str
) -> None:
    out = tmp_path / "r.csv"
    sweep(GRID, seeds=2, out=out)
    content = journal.beside(out).read_bytes(), out.read_bytes()
    options = {"grid": GRID, "seeds": 2, "out": out, **change(file, data, tmp_path)}
    with pytest.raises(ValueError, match=f"r.csv.cells.jsonl' has the cells of another sweep: {message}") as refused:
        sweep(**options)
    assert "existing='overwrite' (--existing overwrite), which drops them" in str(refused.value)
    assert (journal.beside(out).read_bytes(), out.read_bytes()) == content
    anew = sweep(**options, existing="overwrite")
    for name, column in sweep(**{**options, "out": None}).cells.items():
        np.testing.assert_array_equal(anew.cells[name], column)


def test_another_version_is_refused(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(GRID, out=tmp_path / "r.csv")
    monkeypatch.setattr("onnxruntime.__version__", "1.99.0")
    with pytest.raises(ValueError, match=r'versions: onnxruntime was "1\.\d+\.\d+" and is "1.99.0";'):
        sweep(GRID, out=tmp_path / "r.csv")


def test_a_grid_is_extended(sweep: Sweep, tmp_path: Path, seen: Path) -> None:
    out, metric = tmp_path / "r.csv", counting(seen)
    sweep(GRID, seeds=2, metric=metric, out=out)
    wide = {"noise_additive": [0.2, 0.1], "output_bits": [8, 4]}
    extended = sweep(wide, seeds=3, metric=metric, out=out, existing="extend")
    assert count(seen) == 8 + 12 - 2
    for name, column in sweep(wide, seeds=3, metric=metric).cells.items():
        np.testing.assert_array_equal(extended.cells[name], column)
    before = count(seen)
    with pytest.raises(ValueError, match="grid: "):
        sweep(GRID, seeds=2, metric=metric, out=out)
    # What an earlier grid had is there still.
    sweep(GRID, seeds=2, metric=metric, out=out, existing="extend")
    assert count(seen) == before


def test_results_without_a_journal_are_not_overwritten(sweep: Sweep, tmp_path: Path) -> None:
    out = tmp_path / "r.csv"
    out.write_text("mine")
    with pytest.raises(FileExistsError, match=r"r.csv' exists, and no sweep has left 'r.csv.cells.jsonl' beside it"):
        sweep(GRID, out=out)
    assert out.read_text() == "mine"
    sweep(GRID, out=out, existing="overwrite")
    assert out.read_text().startswith("noise_additive,output_bits,accuracy\n")


@pytest.mark.parametrize("content", [b"[1,2]\n", b"not JSON\n", b'{"lumina_sweep":99,"grid":{}}\n', b"\xff\n"])
def test_a_file_that_is_no_journal(sweep: Sweep, tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "r.csv"
    journal.beside(out).write_bytes(content)
    with pytest.raises(ValueError, match=r"r.csv.cells.jsonl' is not the journal of a sweep"):
        sweep(GRID, out=out)
    assert journal.beside(out).read_bytes() == content


def test_two_sweeps_do_not_write_one_file(sweep: Sweep, tmp_path: Path) -> None:
    out = tmp_path / "r.csv"
    with (
        Journal.open(out, as_grid(GRID, None), {}, "resume"),
        pytest.raises(ValueError, match=r"another sweep is writing 'r.csv.cells.jsonl'"),
    ):
        sweep(GRID, out=out)


def test_the_fingerprint_sees_what_a_metric_names_of_its_module() -> None:
    def made(**parts: str) -> str:
        lines = {"limit": "1", "helper": "return x", "method": "return 1"} | parts
        namespace: dict[str, Any] = {"__name__": "mine"}
        exec(
            f"LIMIT = {lines['limit']}\n"
            f"def helper(x):\n    {lines['helper']}\n"
            f"class Kind:\n    def method(self):\n        {lines['method']}\n"
            "kind = Kind()\n"
            "def metric(outputs, labels):\n    return helper(outputs.sum()) + LIMIT + Kind().method()\n",
            namespace,
        )
        return of_function(namespace["metric"])

    found = [made(), made(limit="2"), made(helper="return 2 * x"), made(method="return 2")]
    assert len(set(found)) == 4
    assert made() == found[0]


class Judge:
    """A metric with a setting."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, outputs: Any, labels: Any) -> float:
        return self.scale * float(outputs.mean())


def scaled(outputs: Any, labels: Any, scale: float = 1.0) -> float:
    return scale * float(outputs.mean())


def test_the_fingerprint_of_a_metric() -> None:
    def enclosing(number: Any) -> Callable[[Any, Any], float]:
        return lambda outputs, labels: float(np.sum(number)) * float(outputs.mean())

    different = [
        of_function(each)
        for each in (
            Judge(1.0),
            Judge(2.0),
            scaled,
            functools.partial(scaled, scale=1.0),
            functools.partial(scaled, scale=2.0),
            enclosing(1.0),
            enclosing(2.0),
            enclosing([1.0]),
            enclosing([1.0, 2.0]),
            enclosing((Judge(1.0), scaled)),
            enclosing((Judge(2.0), scaled)),
            enclosing(np.ones(2)),
            enclosing(np.ones(3)),
            lambda outputs, labels: float(outputs.mean()),
            lambda outputs, labels: float(outputs.sum()),
            lambda outputs, labels: scaled(outputs, labels),
        )
    ]
    assert len(set(different)) == len(different)
    assert of_function(Judge(1.0)) == of_function(Judge(1.0))
    for value in (1.0, [1.0, {"a": (Judge(1.0), object())}], np.ones(2), {"b", "a"}):
        assert of_function(enclosing(value)) == of_function(enclosing(copy.deepcopy(value)))


def test_the_fingerprint_of_a_metric_in_another_process(tmp_path: Path) -> None:
    script = (
        "import functools, logging, random, numpy as np\n"
        "from lumina_onnx.sweeping.fingerprint import of_function\n"
        "class Thing:\n    def __init__(self): self.me, self.names = self, {'b', 'a', 'c'}\n"
        "log = logging.getLogger('a')\n"
        "log.isEnabledFor(random.randrange(50))\n"
        "def inner(x): log.info(x); return x in {'one', 'two', 'three'}\n"
        "def outer(outputs, labels, thing=Thing(), call=inner): return recursive(np.sum(outputs))\n"
        "def recursive(x): return x if inner(x) else recursive(x - 1)\n"
        "print(of_function(functools.partial(outer, thing=Thing(), labels=[outer, Thing])))\n"
    )
    path = tmp_path / "script.py"
    path.write_text(script)
    prints = [
        subprocess.run(
            [sys.executable, str(path)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(3)
    ]
    assert len(set(prints)) == 1


def test_the_fingerprint_of_a_module(sweep: Sweep, module: nn.Module, tmp_path: Path) -> None:
    out = tmp_path / "r.csv"
    sweep(GRID, model=module, out=out)
    sweep(GRID, model=module, out=out)
    module[2].profile = module[2].profile.replace(noise_shot=0.1)  # type: ignore[index]
    with pytest.raises(ValueError, match="its model is another"):
        sweep(GRID, model=module, out=out)
