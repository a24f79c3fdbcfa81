"""A page of docs/measurements: what was measured, on which machine, one table, one plot, and the rows beside it."""

from __future__ import annotations

import datetime
import math
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path

from benchmarks.questions import Column, Line, Page
from benchmarks.report import Report, size_text
from benchmarks.results import Row, Shape

WIDTH = 120
METHOD = (
    "Both sides take turns in one process, on the same number of threads, each burst after an untimed call. A "
    "ratio is the median over the rounds of their time divided by ours. Where a line stands for several sizes, the "
    "table shows the geometric mean of their ratios, and the smallest and the largest in brackets."
)


def write(report: Report, page: Page, path: Path) -> None:
    """Writes the page to `path`, and beside it the rows as JSON; the plot is :func:`benchmarks.plots.draw`'s."""
    path.with_suffix(".json").write_text(report.without_goals().as_json(), encoding="utf-8")
    path.write_text(markdown(report, page, path.stem), encoding="utf-8")


def markdown(report: Report, page: Page, stem: str) -> str:
    """The page, with links to `stem`.svg and `stem`.json."""
    most = max((row.threads for row in report.rows), default=1)
    threads = "One thread" if page.threads == "one" or most == 1 else f"{most} threads"
    lines = [f"# {title(report, page)}", "", _wrapped(page.about), "", "## Machine", ""]
    lines += [item for fact in machine(report) for item in _entry(fact)]
    lines += ["", "## Result", ""]
    told = "Each number says how many times as fast LuminaKernel is as the other side"
    if any(row.unit == "bytes" for row in report.rows):
        told += "; for memory, how many times less it takes"
    lines += [_wrapped(f"{told}. {threads}, unless a line says otherwise. {METHOD}"), ""]
    lines += table(report, page)
    lines += ["", f"![The ratios by size, as a plot]({stem}.svg)", ""]
    rows = f"[{stem}.json]({stem}.json) has every row: each size and number of threads, with both times and the "
    lines += [_wrapped(rows + "quartiles of the ratio."), "", "## Notes", ""]
    for word, note in page.notes.items():
        lines += _entry(f"**{word}**: {note}")
    lines += [item for name, reason in report.skipped.items() for item in _entry(f"**Not measured**: {name}; {reason}")]
    lines += ["", "## Measure it again", "", "```sh"]
    both = f"make {page.target} BENCH_ARGS='--page docs/measurements/{stem}.md'"
    lines += [
        f"{f'make {page.target}':{len(both)}}   # prints every row",
        f"{both}   # and writes this page",
        "```",
        "",
    ]
    return "\n".join(lines)


def title(report: Report, page: Page) -> str:
    """The page's title, with the tier unless it is the fastest."""
    tier = report.machine["tier"]
    return page.title if tier == "avx512" else f"{page.title} with {tier.upper()}"


def machine(report: Report) -> list[str]:
    """The machine and versions behind the figures, in sentences."""
    here = report.machine
    caches = ", ".join(f"{level} {size_text(size)}" for level, size in here["caches"].items())
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items() if name != "lumina")
    when = datetime.datetime.fromisoformat(report.started)
    return [
        f"{here['cpu']}, {here['cores']} cores, {caches}; instruction-set tier `{here['tier']}`.",
        f"LuminaKernel {here['versions']['lumina']}, {versions}.",
        f"Measured on {when.day} {when:%B %Y}; the load of other work was {here['load']:.1f} at the start.",
    ]


def table(report: Report, page: Page) -> list[str]:
    """The table: a heading for each question, and a line for each answer that the report has."""
    shown = page.shown(report.rows, report.machine["tier"])
    lines = [line for question in page.questions for line in question.lines]
    told = [row for row in shown if any(line.holds(row) for line in lines)]
    columns = [column for column in page.columns if any(map(column.holds, told))]
    texts = [_row(["", *(column.title for column in columns)]), _row(["---", *(["---:"] * len(columns))])]
    for question in page.questions:
        answers = [_row([line.label, *cells]) for line in question.lines if any(cells := _cells(shown, line, columns))]
        if answers:
            texts += [_row([f"**{question.text}**", *([""] * len(columns))]), *answers]
    return texts


def _cells(rows: Sequence[Row], line: Line, columns: Sequence[Column]) -> list[str]:
    mine = [row for row in rows if line.holds(row)]
    return [summary(fastest([row for row in mine if column.holds(row)])) for column in columns]


def fastest(rows: Sequence[Row]) -> list[Row]:
    """The rows of the fastest rival at each size and width of weights."""
    least: dict[tuple[str, Shape | None], Row] = {}
    for row in sorted(rows, key=lambda row: row.ratio):
        least.setdefault((row.what, row.shape), row)
    return list(least.values())


def summary(rows: Sequence[Row]) -> str:
    """The ratios of rows that differ in size alone, in a few characters."""
    if not rows:
        return ""
    ratios = [row.ratio for row in rows]
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    if rows[0].unit == "peak":
        return f"{100 * mean:.0f} %"
    spread = f" ({figure(min(ratios))} - {figure(max(ratios))})" if len(ratios) > 1 else ""
    return f"{figure(mean)}x{spread}"


def figure(ratio: float) -> str:
    """A ratio with its meaningful digits: 0.78, 3.5, 12."""
    return f"{ratio:.2f}" if ratio < 1 else f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _entry(text: str) -> list[str]:
    return textwrap.fill(
        f"- {text}", WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    ).splitlines()
