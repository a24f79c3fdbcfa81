"""The report of a run: a table on the terminal, and JSON."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.results import Row, Time

FORMAT = "lumina-benchmarks/2"
HEAD = ("measured", "against", "M x K x N", "threads", "ours", "theirs", "ratio", "of peak", "goal")


@dataclass
class Report:
    """Everything that a run of the benchmarks measured."""

    machine: dict[str, Any]
    quick: bool
    started: str
    seconds: float = 0.0
    operations_per_second: dict[str, float] = field(default_factory=dict)
    read_bytes_per_second: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": FORMAT,
            "machine": self.machine,
            "quick": self.quick,
            "started": self.started,
            "seconds": self.seconds,
            "peaks": {
                "operations_per_second": self.operations_per_second,
                "read_bytes_per_second": self.read_bytes_per_second,
            },
            "skipped": self.skipped,
            "rows": [row.as_dict() for row in self.rows],
        }

    def as_json(self) -> str:
        """The same as text, with a line for each row."""
        document = self.as_dict()
        rows = ",\n".join(f"  {json.dumps(row)}" for row in document.pop("rows"))
        body = json.dumps(document, indent=1).removesuffix("\n}")
        return f'{body},\n "rows": [\n{rows}\n ]\n}}\n'

    def without_goals(self) -> Report:
        """The report in the form that is published: goals are for those who work on the kernel."""
        return replace(self, rows=[replace(row, goal=None, or_of_peak=None) for row in self.rows])

    @staticmethod
    def of_files(paths: Sequence[Path]) -> Report:
        """One report from what several runs on one machine wrote with `--json`.

        Raises:
            ValueError: the runs differ in machine, versions or format.
        """
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        first = runs[0]
        same = ("cpu", "tier", "versions")
        for path, run in zip(paths, runs, strict=True):
            if run["format"] != FORMAT:
                raise ValueError(f"{path} has format {run['format']!r}: allowed is {FORMAT!r}")
            if any(run["machine"][key] != first["machine"][key] for key in same):
                raise ValueError(f"{path} and {paths[0]} are not of one machine with the same versions")
        report = Report(first["machine"], any(run["quick"] for run in runs), first["started"])
        report.seconds = sum(run["seconds"] for run in runs)
        report.operations_per_second = first["peaks"]["operations_per_second"]
        report.read_bytes_per_second = first["peaks"]["read_bytes_per_second"]
        report.rows = [Row.from_dict(row) for run in runs for row in run["rows"]]
        for run in runs:
            report.skipped |= run["skipped"]
        return report

    def head(self) -> list[str]:
        """The machine and its peaks, as lines."""
        machine = self.machine
        caches = ", ".join(f"{level} {size_text(size)}" for level, size in machine["caches"].items())
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        rates = ", ".join(f"{name} {rate / 1e9:.0f} G" for name, rate in self.operations_per_second.items())
        reads = ", ".join(f"{size} {rate / 1e9:.1f}" for size, rate in self.read_bytes_per_second.items())
        lines = [
            f"{machine['cpu']}: {machine['cores']} cores, {caches}; load {machine['load']:.1f} at the start",
            f"Tier {machine['tier']}; {versions}",
        ]
        if rates:
            lines.append(f"Peaks of a core, operations a second: {rates}; read bandwidth, GB/s: {reads}")
        if self.quick:
            lines.append("Quick: tiny sizes and few rounds; the figures say nothing about speed")
        lines.append(f"{self.started}, {self.seconds:.0f} s")
        lines += [f"Not measured: {name}: {why}" for name, why in self.skipped.items()]
        return lines

    def by_group(self) -> Iterable[tuple[str, list[Row]]]:
        """The rows, group by group."""
        for name, rows in itertools.groupby(self.rows, key=lambda row: row.group):
            yield name, list(rows)


def size_text(size: int) -> str:
    """A number of bytes as text: 24 KiB, 1 MiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.4g} {name}"
    return f"{size} B"


def _amount(time: Time | None, size: int | None) -> str:
    """Microseconds, or bytes if memory was measured."""
    if time is None:
        return "" if size is None else size_text(size)
    median, least = (
        f"{value * 1e6:#.3g}".rstrip(".") if value < 1e-3 else f"{value * 1e6:.0f}"
        for value in (time.median, time.minimum)
    )
    return f"{median} ({least})"


def _ratio(value: float, unit: str) -> str:
    return f"{100 * value:.0f} %" if unit == "peak" else f"{value:.2f}x"


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table as text."""
    shape = "geometric mean" if row.shape is None else " x ".join(map(str, row.shape))
    spread = f"{_ratio(row.ratio, row.unit)} ({_ratio(row.low, row.unit)} - {_ratio(row.high, row.unit)})"
    peak = "" if row.of_peak is None else f"{100 * row.of_peak:.0f} % {row.peak}"
    goal = "" if row.goal is None else f">= {_ratio(row.goal, row.unit)}"
    if goal and row.or_of_peak is not None:
        goal += f" or {100 * row.or_of_peak:.0f} % of peak"
    what = f"{row.what} [{row.tier}]"
    return (
        what,
        row.against,
        shape,
        str(row.threads),
        _amount(row.ours, row.ours_bytes),
        _amount(row.theirs, row.theirs_bytes),
        spread,
        peak,
        goal,
    )


def show(report: Report, console: Console) -> None:
    """Prints the table: rows that reach their goal in green, those that do not in red."""
    for line in report.head():
        console.print(Text(line))
    table = Table(show_lines=False, header_style="bold", pad_edge=False)
    for index, name in enumerate(HEAD):
        table.add_column(name, justify="left" if index < 2 else "right", overflow="fold")
    for name, rows in report.by_group():
        table.add_row(Text(name, style="bold cyan"))
        previous: tuple[str, ...] = ("", "")
        for row in rows:
            texts = cells(row)
            colour = {True: "green", False: "red", None: ""}[row.met]
            style = "bold" if row.shape is None else ""
            shown = [
                "" if index < 2 and texts[: index + 1] == previous[: index + 1] else text
                for index, text in enumerate(texts)
            ]
            previous = texts[:2]
            table.add_row(
                *(Text(text, style=colour if index in (6, 8) else "") for index, text in enumerate(shown)), style=style
            )
        table.add_section()
    console.print(table)
