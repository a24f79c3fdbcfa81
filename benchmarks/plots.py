"""The plot of a page of measurements, small enough for a screen: ratios by size, with a mark for each rival."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import fastest
from benchmarks.questions import ONNXRUNTIME, TRAINING, Column, Line, Page
from benchmarks.report import Report
from benchmarks.results import Row

#: The panels of each page, side by side: a title, and the lines of the table that are shown by size.
PANELS: dict[str, list[tuple[str, list[Line]]]] = {
    "Kernel speed": [
        ("forward pass", [Line("", "forward")]),
        ("weights quantised beforehand", [Line("", "prepared")]),
        ("analog inputs and weights", [Line("", "seed")]),
    ],
    "Training speed": [
        ('step of a layer, precision "highest"', [Line("", "training", '"highest"')]),
        ('step of a layer, precision "high"', [Line("", "training", '"high"')]),
    ],
    "Speed in ONNX Runtime": [
        (f"{samples} row{'s' * (samples > 1)}", [Line("", "session", "DAC and ADC", samples)]) for samples in (1, 16)
    ],
}
TICKS = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)
MARKS = "os^Dv<>P"


def pyplot() -> Any:
    """matplotlib without a window; text stays text in an SVG, and files are reproducible byte for byte."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "lumina", "font.family": "sans-serif", "font.size": 9}
    )
    from matplotlib import pyplot as found

    return found


def draw(report: Report, page: Page, path: Path) -> None:
    """Draws the plot of a page; a panel without rows stays empty."""
    plt = pyplot()
    panels = PANELS[page.title]
    figure, axes = plt.subplots(1, len(panels), figsize=(9.5, 4.6), layout="constrained", squeeze=False)
    shown = page.shown(report.rows, report.machine["tier"])
    for panel, (title, lines) in zip(axes[0], panels, strict=True):
        rows = [row for row in shown if any(line.holds(row) for line in lines)]
        dots(panel, rows, page.columns, page is ONNXRUNTIME)
        panel.set_title(title, fontsize=9)
    legend(figure, axes[0])
    threads = "one thread" if page.threads == "one" else f"{report.machine['cores']} threads"
    figure.suptitle(f"{report.machine['cpu']}, {threads}", fontsize=9)
    save(figure, path)


def dots(panel: Any, rows: Sequence[Row], columns: Sequence[Column], with_bits: bool = False) -> None:
    """Draws a line for each size, with a mark for each column."""
    names = list(dict.fromkeys(size(row, with_bits) for row in rows))
    for number, column in enumerate(columns):
        mine = fastest([row for row in rows if column.holds(row) and row.unit == "times"])
        if mine:
            places = [names.index(size(row, with_bits)) for row in mine]
            ratios = [row.ratio for row in mine]
            panel.plot(
                ratios, places, MARKS[number], color=f"C{number}", markersize=6, label=column.title.replace("`", "")
            )
    panel.axvline(1.0, color="black", linewidth=0.8)
    panel.set_xscale("log")
    most = max((row.ratio for row in rows if row.unit == "times"), default=1.0)
    least = min((row.ratio for row in rows if row.unit == "times"), default=1.0)
    ticks = [tick for tick in TICKS if least / 2.1 < tick < 2.1 * most]
    panel.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    panel.minorticks_off()
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.set_xlabel("times as fast as the other side", fontsize=8)
    panel.grid(linewidth=0.3)
    panel.invert_yaxis()


def size(row: Row, with_bits: bool) -> str:
    """A row's size as text: M x K x N, or K x N and the bits of the weights."""
    sizes = [] if row.shape is None else list(row.shape)
    return f"{sizes[1]} x {sizes[2]}, {row.what.split('-bit')[0]} bit" if with_bits else " x ".join(map(str, sizes))


def legend(figure: Any, axes: Sequence[Any]) -> None:
    """Draws one legend for all panels."""
    found = {label: handle for panel in axes for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=min(len(found), 5) or 1, fontsize=8)


def save(figure: Any, path: Path) -> None:
    """Saves without date and version, so that the same rows give the same file."""
    dated = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(path, dpi=110, metadata=dated)
    pyplot().close(figure)


def front(training: Report, onnxruntime: Report, path: Path) -> None:
    """The plot of the README: a training step, and layers in ONNX Runtime."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    line = Line("", "training", '"highest"')
    steps = [row for row in TRAINING.shown(training.rows, training.machine["tier"]) if line.holds(row)]
    dots(axes[0], steps, TRAINING.columns[:2])
    axes[0].set_title("a training step of one layer, 8 bits, 2 threads", fontsize=9)
    shown = ONNXRUNTIME.shown(onnxruntime.rows, onnxruntime.machine["tier"])
    layers = [row for row in shown if Line("", "session", "^[842]-bit weights, DAC and ADC", 1).holds(row)]
    dots(axes[1], layers, [Column(c.title, c.against) for c in ONNXRUNTIME.columns[:2]], with_bits=True)
    axes[1].set_title("one row through one layer in ONNX Runtime, 1 thread", fontsize=9)
    for panel in axes:
        panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    save(figure, path)
