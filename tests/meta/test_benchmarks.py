"""The benchmarks run, report what they promise, and compare like with like. No speed is asserted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lumina_kernel
from benchmarks import boards, pages, peaks, plots, report
from benchmarks.__main__ import arguments, chosen
from benchmarks.context import Context
from benchmarks.groups import GROUPS
from benchmarks.machine import Machine
from benchmarks.questions import PAGES
from benchmarks.results import Row, Time, compare, geometric_mean
from benchmarks.timing import Effort, Samples, Side, interleave

ROOT = Path(__file__).parents[2]
ALWAYS = {"group", "what", "against", "shape", "threads", "tier", "ratio", "low", "high"}
SOMETIMES = {"unit", "ours", "theirs", "of_peak", "peak", "ours_bytes", "theirs_bytes"}


def runner(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of all groups on tiny sizes writes."""
    folder = tmp_path_factory.mktemp("benchmarks")
    files = [f"--{kind}={folder / name}" for kind, name in (("json", "b.json"), ("page", "kernel.md"))]
    result = runner("--quick", *files, "--only", *GROUPS)
    assert result.returncode == 0, result.stderr
    (folder / "table.txt").write_text(result.stdout)
    return folder


@pytest.fixture(scope="module")
def measured(outputs: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((outputs / "b.json").read_text())
    return content


def test_the_json_has_what_it_promises(measured: dict[str, Any]) -> None:
    assert set(measured) == {"format", "machine", "quick", "started", "seconds", "peaks", "rows", "skipped"}
    assert measured["format"] == report.FORMAT
    assert measured["quick"] is True
    assert measured["machine"]["cpu"]
    assert measured["machine"]["tier"] == lumina_kernel.isa()
    assert {"lumina", "torch", "onnxruntime", "numpy", "python"} <= set(measured["machine"]["versions"])
    assert set(measured["peaks"]) == {"operations_per_second", "read_bytes_per_second"}
    for row in measured["rows"]:
        assert ALWAYS <= set(row) <= ALWAYS | SOMETIMES, "tiny sizes have no goals"
        assert 0 < row["low"] <= row["ratio"] <= row["high"]
        timed, sized = "ours" in row, "ours_bytes" in row
        assert (timed, sized) == ("theirs" in row, "theirs_bytes" in row)
        assert sized == (row.get("unit") == "bytes")
        assert timed + sized + (row["shape"] is None) == 1
        if timed:
            assert 0 < row["ours"]["minimum"] <= row["ours"]["median"]


def test_every_group_and_every_tier_is_measured(measured: dict[str, Any]) -> None:
    found = {(row["group"], row["tier"]) for row in measured["rows"]}
    tier = lumina_kernel.isa()
    expected = {(name, tier) for name in GROUPS}
    if "peaks" in measured["skipped"]:
        expected -= {("stream", tier), ("packing", tier)}
    if "aihwkit" in measured["skipped"]:
        expected.remove(("aihwkit", tier))
    if measured["machine"]["cores"] < 2:
        expected -= {("scaling", tier), ("step-scaling", tier)}
    # If the environment forces a tier, it is the only one that is measured.
    vectors = [] if "LUMINA_ISA" in os.environ else lumina_kernel.available_isas()[1:]
    expected |= {(name, other) for name, group in GROUPS.items() if group.every_tier for other in vectors}
    assert found == expected


def test_the_table_shows_every_row(outputs: Path, measured: dict[str, Any]) -> None:
    table = (outputs / "table.txt").read_text()
    assert measured["machine"]["cpu"] in table
    assert f"torch {torch.__version__}" in table
    for name in {row["group"] for row in measured["rows"]}:
        assert name in table


def test_a_page_comes_with_its_plot_and_its_rows(outputs: Path, measured: dict[str, Any]) -> None:
    page = (outputs / "kernel.md").read_text()
    assert page.startswith("# Kernel speed")
    assert measured["machine"]["cpu"] in page
    assert "](kernel.svg)" in page
    assert "](kernel.json)" in page
    assert "</svg>" in (outputs / "kernel.svg").read_text()
    assert report.Report.of_files([outputs / "kernel.json"]).rows == report.Report.of_files([outputs / "b.json"]).rows


@pytest.mark.parametrize("kind", PAGES)
def test_every_group_is_asked_about(outputs: Path, tmp_path: Path, kind: str) -> None:
    page = PAGES[kind]
    everything = report.Report.of_files([outputs / "b.json"])
    everything.rows = [row for row in everything.rows if GROUPS[row.group].page == kind]
    lines = [line for question in page.questions for line in question.lines]
    for name in {row.group for row in everything.rows}:
        assert any(re.fullmatch(line.group, name) for line in lines), f"no question about {name}"
    plots.draw(everything, page, tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


#: The lines of a page that was measured before gradients had fixed point in blocks, and the least of memory beside it.
FEWER_BITS = r'precision "high"|gradients of 8 bits|both gradients, (8|16) bits|without any scratch'


@pytest.mark.parametrize(
    ("stem", "kind", "unanswered"),
    [
        ("kernel", "", FEWER_BITS),
        ("training", "training", FEWER_BITS),
        ("training-avx2", "training", "(?!)"),
        ("onnxruntime", "edge", "(?!)"),
    ],
)
def test_every_question_has_its_answers(stem: str, kind: str, unanswered: str) -> None:
    rows = report.Report.of_files([ROOT / "docs" / "measurements" / f"{stem}.json"]).rows
    lines = [line for question in PAGES[kind].questions for line in question.lines]
    expected = {line.label for line in lines if re.search(unanswered, line.label)}
    assert {line.label for line in lines if not any(line.holds(row) for row in rows)} == expected


def example(ratio: float, **more: Any) -> Row:
    return compare(samples(1), samples(ratio), **{"shape": (1, 2, 3), **FIELDS, **more})


def test_a_cell_tells_the_mean_and_the_spread() -> None:
    assert pages.summary([]) == ""
    assert pages.summary([example(0.785)]) == "0.79x"
    assert pages.summary([example(2.0), example(8.0)]) == "4.0x (2.0 - 8.0)"
    assert pages.summary([example(0.881, unit="peak")]) == "88 %"


def test_a_column_of_several_rivals_tells_of_the_fastest_at_each_size() -> None:
    rows = [example(ratio, shape=(1, 1, n), against=str(ratio)) for ratio, n in ((3.0, 1), (2.0, 1), (4.0, 2))]
    assert [row.ratio for row in pages.fastest(rows)] == [2.0, 4.0]


def test_runs_are_shown_together(outputs: Path, measured: dict[str, Any], tmp_path: Path) -> None:
    file, page = str(outputs / "b.json"), tmp_path / "both.md"
    result = runner("--show", file, file, "--page", str(page))
    assert result.returncode == 0, result.stderr
    assert len(report.Report.of_files([page.with_suffix(".json")]).rows) == 2 * len(measured["rows"])
    other = json.loads((outputs / "b.json").read_text())
    other["machine"]["cpu"] = "another"
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"other\.json and .*b\.json are not of one machine with the same versions"):
        report.Report.of_files([outputs / "b.json", tmp_path / "other.json"])
    (tmp_path / "old.json").write_text('{"format": "lumina-benchmarks/0"}')
    with pytest.raises(ValueError, match=r"old\.json has format 'lumina-benchmarks/0': allowed is"):
        report.Report.of_files([tmp_path / "old.json"])


@pytest.mark.parametrize("kind", ["", "training", "edge"])
@pytest.mark.parametrize("page", [[], ["--page", "figures.md"]])
def test_the_kind_that_is_measured_does_not_depend_on_what_is_written(kind: str, page: list[str]) -> None:
    for order in ([f"--{kind}"] * bool(kind) + page, page + [f"--{kind}"] * bool(kind)):
        options = arguments(order)
        assert options.page == (Path("figures.md") if page else None)
        assert chosen(options) == [name for name, group in GROUPS.items() if group.page == kind] != []
    assert chosen(arguments(["--only", "memory", *page])) == ["memory"]


def test_an_unknown_group_is_refused() -> None:
    result = runner("--only", "everything")
    assert result.returncode == 2
    assert "invalid choice: 'everything'" in result.stderr


def test_without_a_compiler_the_peaks_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(peaks.Missing, match="no rustc on the path"):
        peaks.Peaks()


# Timing and figures


def test_sides_take_turns() -> None:
    bursts: list[str] = []
    calls = {"a": 0, "b": 0}

    def side(name: str) -> Side:
        def call() -> None:
            calls[name] += 1

        return Side(call, before=lambda: bursts.append(name))

    times = interleave({"a": side("a"), "b": side("b")}, Effort(rounds=4, burst=1e-6, settle=0.0))
    # First once each to estimate their duration, then round by round.
    assert "".join(bursts) == "ab" + "ab" + "ba" + "ab" + "ba"
    for name in calls:
        assert len(times[name].rounds) == 4
        assert all(seconds > 0 for seconds in times[name].seconds)
        assert calls[name] > len(times[name].seconds), "each burst begins with a call that is not timed"


def samples(*medians: float) -> Samples:
    return Samples(tuple((median,) for median in medians))


FIELDS: dict[str, Any] = {"group": "g", "what": "w", "against": "a", "threads": 1, "tier": "t"}


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    row = compare(samples(1, 2, 4), samples(3, 4, 20), shape=(1, 2, 3), goal=3.0, **FIELDS)
    assert (row.ratio, row.low, row.high) == (3.0, 2.5, 4.0)
    assert row.ours == Time(median=2, minimum=1)
    assert row.met
    assert Row.from_dict(json.loads(json.dumps(row.as_dict()))) == row


def test_an_empty_session_is_taken_off_round_by_round() -> None:
    assert samples(5, 7).less(samples(1, 2)).medians == [4, 5]


def test_goals() -> None:
    def row(ratio: float, **more: Any) -> Row:
        return compare(samples(1), samples(ratio), shape=(1,), **more, **FIELDS)

    assert row(2.0).met is None
    assert row(2.0, goal=2.0).met is True
    assert row(1.9, goal=2.0).met is False
    assert row(1.9, goal=2.0, or_of_peak=0.9, of_peak=0.95).met is True
    assert row(1.9, goal=2.0, or_of_peak=0.9, of_peak=0.5).met is False
    mean = geometric_mean([row(2.0), row(8.0)], goal=5.0)
    assert mean.ratio == pytest.approx(4.0)
    assert mean.met is False
    assert mean.shape is None


@pytest.mark.parametrize(
    ("vendor", "tier", "goal"),
    [
        ("GenuineIntel", "avx512", 5.0),
        ("AuthenticAMD", "avx512", 8.0),
        ("GenuineIntel", "avx512bw", None),
        ("GenuineIntel", "avx2", None),
        ("aarch64", "portable", None),
    ],
)
def test_goals_are_for_kinds_of_machines(vendor: str, tier: str, goal: float | None) -> None:
    here = Machine("cpu", vendor, 2, {}, 0.0, tier, {})
    assert Context(here).goal(intel=5.0, amd=8.0) == goal
    assert Context(here).goal(any=1.5) == 1.5
    assert Context(here, quick=True).goal(any=1.5) is None


def test_the_cycles_of_boards_are_those_of_the_slowest_loops() -> None:
    """Where a tier has no bar for many rows of few bits, it unpacks them to 8 bits."""
    facts = json.loads((ROOT / "docs" / "measurements" / "boards.json").read_text(encoding="utf-8"))
    found = boards.cycles(facts)
    assert set(found) == {"neon", "neon_dotprod"}
    for tier, cycles in found.items():
        bars = {bar["name"]: bar for bar in facts["bars"] if bar["tier"] == tier}
        for bar in bars.values():
            loop = facts["loops"][bar["loop"]]
            assert (loop["tier"], loop["main"], loop["relative"]) == (tier, True, bar["relative"])
        assert cycles["one row"]["1"] == bars["1 bit, one row"]["relative"]
        assert cycles["rows"]["4"] == bars.get("4 bits, rows", bars["8 bits, rows"])["relative"]
        converting = [loop["relative"] for loop in facts["loops"] if (loop["tier"], loop["work"]) == (tier, "DAC")]
        assert cycles["DAC"] == max(converting)
    assert "4 bits, rows" not in {bar["name"] for bar in facts["bars"] if bar["tier"] == "neon_dotprod"}
