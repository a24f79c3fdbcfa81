"""Pictures of a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report import Report
from benchmarks.results import Row


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def bars(report: Report, path: Path) -> None:
    """The speed-ups as bars, their goals as marks."""
    pyplot = _pyplot()
    rows = [row for row in report.rows if row.unit == "times"]
    names = []
    for row in rows:
        shape = "geometric mean" if row.shape is None else "x".join(map(str, row.shape))
        names.append(f"{row.group}: {shape}, {row.threads} thr., against {row.against}")
    colours = {True: "tab:green", False: "tab:red", None: "tab:blue"}
    figure, axes = pyplot.subplots(figsize=(11, 1.5 + 0.2 * len(rows)), layout="constrained")
    places = range(len(rows))
    spread = [[max(row.ratio - row.low, 0) for row in rows], [max(row.high - row.ratio, 0) for row in rows]]
    axes.barh(places, [row.ratio for row in rows], xerr=spread, color=[colours[row.met] for row in rows], height=0.7)
    goals = [(place, row.goal) for place, row in enumerate(rows) if row.goal is not None]
    axes.plot([goal for _, goal in goals], [place for place, _ in goals], "k|", markersize=9, label="goal")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(places, names, fontsize=7)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast")
    axes.set_title(f"{report.machine['cpu']}, tier {report.machine['tier']}", fontsize=9)
    if goals:
        axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def training(report: Report, path: Path) -> None:
    """:func:`_dots` by precision, on all threads alone: with marks for each number of threads nothing could be read."""
    threads = max((row.threads for row in report.rows), default=1)
    panels: dict[str, list[Row]] = {}
    for row in report.rows:
        if row.unit == "peak" or (row.threads != threads and row.group != "epoch"):
            continue
        what, _, precision = row.what.rpartition(", precision ")
        kind = f"times as fast, precision {precision}" if what else "times as fast"
        if row.unit == "bytes":
            kind = f"times as little memory: {row.what.split(': ')[1].split(',')[0]}"
        panels.setdefault(kind, []).append(row)
    _dots(report, panels, path, f", {threads} threads")


def edge(report: Report, path: Path) -> None:
    """:func:`_dots` by what was measured and its threads."""
    panels: dict[str, list[Row]] = {}
    for row in report.rows:
        if row.unit == "times":
            about = {"session": "one layer", "models": "networks", "creation": "making a session"}[row.group]
            panels.setdefault(f"times as fast: {about}, {row.threads} thread{'s' * (row.threads > 1)}", []).append(row)
    _dots(report, panels, path)


def _dots(report: Report, panels: dict[str, list[Row]], path: Path, about: str = "") -> None:
    """A line for what was measured, a mark on it for each of the others; a panel for each kind of comparison."""
    pyplot = _pyplot()
    others = list(dict.fromkeys(_other(row) for rows in panels.values() for row in rows))
    lines = {kind: list(dict.fromkeys(map(_line, rows))) for kind, rows in panels.items()}
    figure, grid = pyplot.subplots(
        len(panels),
        1,
        figsize=(11, 1 + sum(0.7 + 0.24 * len(names) for names in lines.values())),
        height_ratios=[2 + len(names) for names in lines.values()],
        layout="constrained",
        squeeze=False,
    )
    marks = "os^Dv<>PX*"
    for axes, (kind, rows) in zip(grid[:, 0], panels.items(), strict=True):
        names = lines[kind]
        for number, other in enumerate(others):
            mine = [row for row in rows if _other(row) == other]
            axes.plot(
                [row.ratio for row in mine],
                [names.index(_line(row)) for row in mine],
                marks[number % len(marks)],
                color=f"C{number}",
                markersize=6,
                label=other,
            )
        goals = [row for row in rows if row.goal is not None]
        axes.plot(
            [row.goal for row in goals], [names.index(_line(row)) for row in goals], "k|", markersize=12, label="goal"
        )
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_xscale("log")
        most = 1.5 * max(value for row in rows for value in (row.ratio, row.goal or 0.0))
        ticks = [tick for tick in (0.5, 1, 2, 3, 4, 6, 8, 12, 16, 32, 64) if tick <= most]
        axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
        axes.minorticks_off()
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.grid(linewidth=0.3)
        axes.invert_yaxis()
        axes.set_title(kind, fontsize=9)
    handles, labels = [], []
    for axes in grid[:, 0]:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label not in labels and len(handle.get_xdata()):
                handles.append(handle)
                labels.append(label)
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(f"{report.machine['cpu']}, tier {report.machine['tier']}{about}", fontsize=9)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _other(row: Row) -> str:
    """What stands behind a colon is the choice made among others of the kind."""
    return row.against.split(":")[0]


def _line(row: Row) -> str:
    shape = "geometric mean" if row.shape is None else "x".join(map(str, row.shape))
    return f"{row.what.split(':')[0]}, {shape}"


#: By the page that groups are on.
DRAW = {"": bars, "training": training, "edge": edge}
