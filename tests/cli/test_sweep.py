"""`lumina sweep`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

import lumina_onnx


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "test.npz"
    np.savez(path, images=rng.normal(size=(40, 6)).astype(np.float32), labels=rng.integers(0, 3, 40))
    return path


GRID = ("--grid", "noise_additive=0,0.1,0.2", "--grid", "2:output_bits=3:5")


def test_it_writes_results_and_a_picture(lumina: Any, model: Path, data: Path, tmp_path: Path) -> None:
    out, means, plot = (tmp_path / name for name in ("r.parquet", "means.csv", "noise.png"))
    written = ("--out", out, "--summary", means, "--plot", plot)
    result = lumina("sweep", model, "--data", data, *GRID, "--seeds", 4, *written, "--workers", 1, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["cells"], len(facts["points"])) == (36, 9)
    assert facts["written"] == [str(out), str(means), str(plot)]
    arrays = dict(np.load(data))
    grid = {"noise_additive": [0, 0.1, 0.2], "2:output_bits": [3, 4, 5]}
    expected = lumina_onnx.sweep(model, arrays, grid, seeds=4, workers=1, progress=False)  # type: ignore[arg-type]
    assert pyarrow.parquet.read_table(out).to_pydict() == {name: each.tolist() for name, each in expected.cells.items()}
    assert [row["accuracy"] for row in facts["points"]] == expected.summary["accuracy"].tolist()
    assert means.read_text().splitlines()[0] == "noise_additive,2:output_bits,accuracy,accuracy_error,draws"
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert lumina("sweep", model, "--data", data, *GRID, "--seeds", 4, "--out", out, "--workers", 1).exit_code == 0


def test_it_shows_a_table(lumina: Any, model: Path, data: Path) -> None:
    result = lumina("sweep", model, "-d", data, "-g", "noise_additive=0.1", "-s", "5:6", "-w", 1)
    assert result.exit_code == 0, result.output
    words = result.stdout.split()
    assert words[:3] == ["noise_additive", "accuracy", "draws"]
    assert words[-1] == "2"


def test_a_single_draw_has_no_error(lumina: Any, model: Path, data: Path) -> None:
    result = lumina("sweep", model, "-d", data, "-g", "noise_additive=0.1", "-w", 1, "--json")
    assert json.loads(result.stdout)["points"][0]["accuracy_error"] is None


def test_metric_and_data_of_ones_own(lumina: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "SCALE = 2\n"
        "def rows():\n    return {'x': np.ones((8, 6), np.float32)}\n"
        "def scaled(outputs):\n    return SCALE * float(outputs.mean())\n"
        "def mean(outputs, labels):\n    return {'twice': scaled(outputs)}\n"
    )
    mine = ("--data", f"{tmp_path}/mine.py:rows", "--metric", f"{tmp_path}/mine.py:mean")
    for workers in (1, 2):
        result = lumina(
            "sweep", model, *mine, "--grid", "noise_additive=0", "--seeds", 3, "--workers", workers, "--json"
        )
        assert result.exit_code == 0, result.output
        (point,) = json.loads(result.stdout)["points"]
        assert (list(point), point["twice_error"]) == (["noise_additive", "twice", "twice_error", "draws"], 0)
    result = lumina("sweep", model, "-d", f"{tmp_path}/mine.py:rows", "-m", "statistics:mean", "-s", 1, "-w", 1)
    assert result.exit_code == 1
    assert "cell seed=0: TypeError: mean() takes 1 positional argument" in result.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "give --grid, --seeds or both"),
        (("--grid", "output_bits"), 2, "allowed is NAME=VALUES"),
        (("--grid", "output_bits=3", "--grid", "output_bits=4"), 2, "'output_bits' is given twice"),
        (("--grid", "bits=3"), 1, "unknown axis 'bits': allowed is input_bits"),
        (("--grid", "output_bits=1"), 1, "output_bits = 1: allowed is 0 (no ADC), 2..16"),
        (("--seeds", "few"), 2, "'few' is no value"),
        (("--seeds", "2", "--plot", "a.jpg"), 2, "plot = 'a.jpg'"),
        (("--seeds", "2", "--kind", "map"), 2, "'map' would be ignored without --plot"),
        (("--seeds", "2", "--plot", "a.png", "--kind", "map"), 2, "kind = 'map': allowed are grids with two"),
        (("--grid", "output_bits=3:5", "--plot", "a.png", "--x", "seed"), 2, "x = 'seed': allowed is 'output_bits'"),
        (("--seeds", "2", "--metric", "json"), 1, "--metric = 'json': allowed is MODULE:NAME or FILE.py:NAME"),
        (("--seeds", "2", "--metric", "json:nothing"), 1, "'json' has no function 'nothing'"),
        (("--seeds", "2", "--metric", "nowhere.py:f"), 1, "'nowhere.py' cannot be imported (FileNotFoundError"),
        (("--seeds", "2", "--labels", "y"), 1, "the model's are 'input'"),
        (("--seeds", "2", "--skip", "tail"), 1, "skip pattern 'tail' matches no layer: there are 0, 2"),
        (("--seeds", "2", "--backend", "spark"), 1, "backend = 'spark': allowed is 'loky', 'ray', 'dask'"),
    ],
)
def test_wrong_usage(lumina: Any, model: Path, data: Path, options: Any, code: int, message: str) -> None:
    result = lumina("sweep", model, "--data", data, *options)
    words = " ".join(result.stderr.replace("│", " ").split())
    assert (result.exit_code, message in words) == (code, True), words


def test_what_is_missing_is_named(process: Any, model: Path, data: Path) -> None:
    result = process("sweep", model, "--data", data, "--seeds", 2, hide=("joblib",))
    assert result.returncode == 1
    assert "needs the Python package joblib, which cannot be imported" in result.stderr
    assert 'pip install "lumina-onnx[sweep]"' in result.stderr


def test_it_runs_without_torch(process: Any, model: Path, data: Path) -> None:
    hide = ("torch", "onnxscript")
    result = process("sweep", model, "--data", data, "--grid", "weight_bits=2:4", "--seeds", 2, "-w", 1, hide=hide)
    assert result.returncode == 0, result.stderr


def test_an_interrupted_sweep_says_how_to_go_on(
    lumina: Any, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("def stop(outputs, labels):\n    raise KeyboardInterrupt\n")
    options = ("--metric", f"{tmp_path}/mine.py:stop", "--seeds", 2, "--workers", 1, "--out", tmp_path / "r.csv")
    result = lumina("sweep", model, "--data", data, *options)
    assert result.exit_code == 130
    assert "interrupted: 0 of 2 cells are kept in" in result.stderr
