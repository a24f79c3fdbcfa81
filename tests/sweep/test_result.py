"""Tables and plots."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

import lumina_onnx
from lumina_onnx import SweepResult
from lumina_onnx.sweeping.grid import as_grid

Sweep = Callable[..., lumina_onnx.SweepResult]


def made(grid: dict[str, Any], seeds: int | None = None, names: tuple[str, ...] = ("accuracy",)) -> SweepResult:
    axes = as_grid(grid, seeds)
    rng = np.random.default_rng(0)
    return SweepResult(axes, {cell: {name: float(rng.random()) for name in names} for cell in axes.cells()})


@pytest.fixture
def result() -> SweepResult:
    return made({"noise_additive": [0.0, 0.1, 0.2], "bias_stage": ["analog", "digital"]}, 4, ("top1", "top5"))


def test_the_summary_takes_the_draws_together(result: SweepResult) -> None:
    assert list(result.cells) == ["noise_additive", "bias_stage", "seed", "top1", "top5"]
    assert list(result.summary) == [
        *("noise_additive", "bias_stage", "top1", "top1_error", "top5", "top5_error", "draws"),
    ]
    for place in range(6):
        mine = (result.cells["noise_additive"] == result.summary["noise_additive"][place]) & (
            result.cells["bias_stage"] == result.summary["bias_stage"][place]
        )
        values = result.cells["top5"][mine]
        assert len(values) == result.summary["draws"][place] == 4
        assert result.summary["top5"][place] == pytest.approx(values.mean())
        assert result.summary["top5_error"][place] == pytest.approx(values.std(ddof=1) / 2)


def test_what_it_prints(result: SweepResult) -> None:
    rows = [line.split() for line in str(result).splitlines()]
    mean, error = result.summary["top1"][1], result.summary["top1_error"][1]
    assert ["0.0", "digital", f"{mean:.4f}", "±", f"{error:.4f}"] in [row[:5] for row in rows]
    assert "and 60 points more" in str(made({"noise_additive": np.arange(100) / 100}))
    assert "±" not in str(made({"noise_additive": [0.1]}))


@pytest.mark.parametrize("table", ["cells", "summary"])
def test_files_hold_the_tables(result: SweepResult, table: Any, tmp_path: Path) -> None:
    columns = getattr(result, table)
    result.write(tmp_path / "r.csv", table)
    result.write(tmp_path / "r.parquet", table)
    with (tmp_path / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    read = pyarrow.parquet.read_table(tmp_path / "r.parquet")
    assert read.column_names == list(rows[0]) == list(columns)
    for name, column in columns.items():
        assert read[name].to_pylist() == column.tolist()
        # Every digit: a value read back is the value.
        assert [column.dtype.type(row[name]) for row in rows] == column.tolist()


def test_without_draws_there_is_no_error_in_the_files(tmp_path: Path) -> None:
    result = made({"output_bits": [3, 4]})
    assert np.isnan(result.summary["accuracy_error"]).all()
    result.write(tmp_path / "r.csv", "summary")
    assert (tmp_path / "r.csv").read_text().splitlines()[1].endswith(",nan,1")


def test_files_that_cannot_be_written(result: SweepResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"r.txt': allowed is a name that ends in .csv, .parquet"):
        result.write(tmp_path / "r.txt")
    with pytest.raises(ValueError, match="table = 'points': allowed is 'cells', 'summary'"):
        result.write(tmp_path / "r.csv", "points")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"r.jpg': allowed is a name that ends in .png, .svg, .pdf"):
        result.plot(tmp_path / "r.jpg")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r'needs the Python package pyarrow, .*: pip install "lumina-onnx\[sweep\]"'):
        result.write(tmp_path / "r.parquet")


@pytest.mark.parametrize("name", ["noise.png", "noise.svg", "noise.pdf"])
def test_equal_results_give_equal_pictures(result: SweepResult, name: str, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        result.plot(tmp_path / folder / name)
    one, other = ((tmp_path / folder / name).read_bytes() for folder in "ab")
    assert len(one) > 1000
    if name.endswith(".svg"):  # its names of parts are random
        assert abs(len(one) - len(other)) < 200
    else:
        assert one == other


class Drawn:
    """What a figure shows."""

    def __init__(self, figure: Any) -> None:
        self.panels = [panel for panel in figure.axes if panel.axison and panel.get_label() != "<colorbar>"]

    def lines(self, panel: int = 0) -> dict[str, Any]:
        handles, labels = self.panels[panel].get_legend_handles_labels()
        return dict(zip(labels, handles, strict=True))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Drawn]:
    """Draws a result and returns its figure."""
    from matplotlib.figure import Figure

    figures: list[Any] = []
    save = Figure.savefig

    def keep(self: Any, *arguments: Any, **options: Any) -> None:
        figures.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(result: SweepResult, **options: Any) -> Drawn:
        result.plot(tmp_path / "plot.png", **options)
        return Drawn(figures[-1])

    return draw


def test_lines_have_means_and_errors(drawn: Callable[..., Drawn]) -> None:
    result = made({"noise_additive": [0.2, 0.0, 0.1], "output_bits": [3, 8]}, 5)
    picture = drawn(result)
    lines = picture.lines()
    assert list(lines) == ["3", "8"]
    (panel,) = picture.panels
    assert panel.get_xlabel() == "noise_additive"
    mine = result.summary["output_bits"] == 8
    order = np.argsort(result.summary["noise_additive"][mine])
    line, _, (bars,) = lines["8"].lines
    np.testing.assert_allclose(line.get_xdata(), [0.0, 0.1, 0.2])
    np.testing.assert_allclose(line.get_ydata(), result.summary["accuracy"][mine][order])
    half = [(segment[1, 1] - segment[0, 1]) / 2 for segment in bars.get_segments()]
    np.testing.assert_allclose(half, result.summary["accuracy_error"][mine][order])


def test_axes_of_a_picture_are_chosen(drawn: Callable[..., Drawn]) -> None:
    result = made({"output_bits": [3, 8], "noise_additive": [0.0, 0.1], "input_bits": [4], "weight_bits": [2, 4, 8]}, 2)
    default = drawn(result)
    assert [panel.get_xlabel() for panel in default.panels] == ["output_bits"] * 3
    assert [panel.get_title() for panel in default.panels] == [f"weight_bits {bits}" for bits in (2, 4, 8)]
    chosen = drawn(result, x="weight_bits", y="output_bits")
    assert [panel.get_xlabel() for panel in chosen.panels] == ["weight_bits"] * 2
    assert list(chosen.lines()) == ["3", "8"]


def test_a_map_has_the_means(drawn: Callable[..., Drawn]) -> None:
    result = made({"noise_additive": np.arange(7) / 10, "output_bits": range(3, 10)})
    picture = drawn(result)
    (panel,) = picture.panels
    (image,) = panel.get_images()
    np.testing.assert_array_equal(image.get_array(), result.summary["accuracy"].reshape(7, 7).T)
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("noise_additive", "output_bits")
    assert [tick.get_text() for tick in panel.get_yticklabels()] == [str(bits) for bits in range(3, 10)]


def test_words_have_places(drawn: Callable[..., Drawn]) -> None:
    (panel,) = drawn(made({"bias_stage": ["analog", "digital"]}, 3)).panels
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["analog", "digital"]


def test_a_point_alone_is_drawn(drawn: Callable[..., Drawn]) -> None:
    assert len(drawn(made({}, 3)).panels) == 1


@pytest.mark.parametrize(
    ("grid", "options", "message"),
    [
        ({"output_bits": [3, 4]}, {"kind": "bars"}, "kind = 'bars': allowed is 'lines', 'map'"),
        ({"output_bits": [3, 4]}, {"kind": "map"}, "kind = 'map': allowed are grids with two parameters"),
        ({"output_bits": [3, 4]}, {"metric": "loss"}, "metric = 'loss': allowed is 'accuracy'"),
        ({"output_bits": [3, 4]}, {"x": "seed"}, "x = 'seed': allowed is 'output_bits'"),
        ({"output_bits": [3, 4]}, {"x": "output_bits", "y": "output_bits"}, "x and y are both 'output_bits'"),
        ({"output_bits": [3, 4], "noise_shot": np.arange(30)}, {"kind": "lines"}, "noise_shot would have 30 lines"),
        (
            {"output_bits": [3, 4], "noise_shot": [0, 1], "noise_additive": np.arange(20)},
            {},
            "noise_additive would have 20 panels; allowed are up to 12",
        ),
    ],
)
def test_pictures_that_cannot_be_drawn(
    grid: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        made(grid).plot(tmp_path / "r.png", **options)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("text", "TypeError: the metric returned 'bad': str; allowed is a number, or a mapping from names to numbers"),
        ({}, "TypeError: the metric returned an empty mapping"),
        ({"draws": 1.0}, "the metric returned 'draws'; 'draws' is the name of another column"),
        ({"output_bits": 1.0}, "the metric returned 'output_bits'; 'output_bits' is the name of another column"),
        ({"a": 1.0, "a_error": 1.0}, "the metric returned 'a', 'a_error'; 'a_error' is the name of another column"),
    ],
)
def test_what_a_metric_may_not_return(sweep: Sweep, returned: Any, message: str) -> None:
    def bad(outputs: Any, labels: Any) -> Any:
        return returned

    with pytest.raises(RuntimeError, match=f"cell output_bits=3: {message}"):
        sweep({"output_bits": [3]}, metric=bad)


def test_a_metric_returns_the_same_names_in_every_cell(sweep: Sweep) -> None:
    def some(outputs: Any, labels: Any) -> dict[str, float]:
        return {"three" if len(np.unique(outputs)) < 9 else "eight": 1.0}

    with pytest.raises(RuntimeError, match="returned 'eight', and before 'three'; allowed are the same names"):
        sweep({"noise_additive": [0], "2:output_bits": [2, 8]}, metric=some)


def test_numbers_of_every_kind(sweep: Sweep) -> None:
    def kinds(outputs: Any, labels: Any) -> dict[str, Any]:
        return {"numpy": np.float32(0.5), "array": np.array(2), "whole": 3, "truth": True, "none": float("nan")}

    cells = sweep({}, metric=kinds).cells
    assert [float(column[0]) for column in cells.values()][:4] == [0.5, 2.0, 3.0, 1.0]
    assert np.isnan(cells["none"]).all()
