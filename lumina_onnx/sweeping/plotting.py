"""Plots of a sweep: lines with error bars, or a heat map."""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lumina_onnx._files import replacing
from lumina_onnx._text import visible

from .grid import Axis, Grid
from .targets import PICTURES, Columns, check_target

__all__ = ["draw", "layout"]

KINDS = ("lines", "map")
_FEW = 6
_MOST_LINES = 20
_MOST_PANELS = 12


def draw(
    summary: Columns,
    metrics: tuple[str, ...],
    grid: Grid,
    path: str | os.PathLike[str],
    kind: str | None,
    x: str | None,
    y: str | None,
    metric: str | None,
) -> None:
    """Implements :meth:`.result.SweepResult.plot`."""
    file = check_target(path, "plot", PICTURES)
    made = layout(grid, kind, x, y)
    metric = metrics[0] if metric is None else metric
    if metric not in metrics:
        raise ValueError(f"metric = {metric!r}: allowed is {', '.join(map(repr, metrics))}")
    _picture(summary, made, metric, file)


@dataclass(frozen=True)
class Layout:
    """What goes where in a picture."""

    kind: str
    axes: tuple[Axis, ...]
    """The horizontal axis, then that of the lines or the vertical one."""
    panels: tuple[Axis, ...]


def layout(grid: Grid, kind: str | None, x: str | None, y: str | None) -> Layout:
    """The layout of a grid's picture.

    Raises:
        ValueError: an argument is not allowed, or there are too many parameters, or values, for one picture.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind = {kind!r}: allowed is {', '.join(map(repr, KINDS))}")
    ordered = _ordered(grid, x, y)
    axes, panels = ordered[:2], ordered[2:]
    if kind is None:
        kind = "map" if len(ordered) == 2 and min(len(axis.values) for axis in axes) > _FEW else "lines"
    if kind == "map" and len(axes) < 2:
        raise ValueError("kind = 'map': allowed are grids with two parameters of several values")
    panel_count = math.prod(len(axis.values) for axis in panels)
    if panel_count > _MOST_PANELS:
        raise ValueError(
            f"plot: {', '.join(axis.name for axis in panels)} would have {panel_count} panels; allowed are up to "
            f"{_MOST_PANELS}: sweep fewer values"
        )
    if kind == "lines" and len(axes) == 2 and len(axes[1].values) > _MOST_LINES:
        raise ValueError(
            f"plot: {axes[1].name} would have {len(axes[1].values)} lines; allowed are up to {_MOST_LINES}: "
            "kind='map', or another y"
        )
    return Layout(kind, axes, panels)


def _ordered(grid: Grid, x: str | None, y: str | None) -> tuple[Axis, ...]:
    """The parameters with several values, `x` first and `y` second."""
    axes = [axis for axis in grid.parameters if len(axis.values) > 1] or list(grid.parameters[:1])
    names = [axis.name for axis in axes]
    for argument, name in (("x", x), ("y", y)):
        if name is not None and name not in names:
            raise ValueError(f"{argument} = {name!r}: allowed is {', '.join(map(repr, names)) or 'nothing'}")
    if x is not None and x == y:
        raise ValueError(f"x and y are both {x!r}: allowed are two parameters")
    first = x or next(name for name in [*names, None] if name != y or name is None)
    order = [name for name in (first, y) if name is not None]
    chosen = [axes[names.index(name)] for name in order]
    return (*chosen, *(axis for axis in axes if axis.name not in order))


def _picture(summary: Columns, made: Layout, metric: str, file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes, panels = made.axes, made.panels
    settings = list(itertools.product(*(axis.values for axis in panels)))
    columns = min(len(settings), 3)
    rows = -(-len(settings) // columns)
    figure = Figure(figsize=(1.4 + 4.4 * columns, 0.6 + 3.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    drawn = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    means = summary[metric]
    limits = (float(np.nanmin(means)), float(np.nanmax(means))) if np.isfinite(means).any() else (0.0, 1.0)
    image = None
    for panel, setting in itertools.zip_longest(drawn.flat, settings):
        if setting is None:
            panel.set_axis_off()
            continue
        where = {axis.name: value for axis, value in zip(panels, setting, strict=True)}
        if made.kind == "map":
            image = _map(panel, summary, axes[0], axes[1], where, metric, limits)
        else:
            _lines(panel, summary, axes, where, metric)
        if where:
            panel.set_title(_shown(", ".join(f"{name} {value}" for name, value in where.items())), fontsize=10)
    if image is not None:
        figure.colorbar(image, ax=drawn, label=_shown(metric))
    elif len(axes) > 1:
        drawn.flat[0].legend(title=_shown(axes[1].name), fontsize=8, title_fontsize=8)
    suffix = file.suffix[1:]
    # No date and version: equal results give equal files.
    dated = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None}}[suffix]
    with replacing(file) as temporary, temporary.open("wb") as opened:
        figure.savefig(opened, format=suffix, dpi=150, metadata=dated)


def _rows(summary: Columns, where: dict[str, Any]) -> Any:
    """Which rows of the summary have these values."""
    found = np.ones(len(summary["draws"]), bool)
    for name, value in where.items():
        found &= summary[name] == value
    return found


def _places(axis: Axis | None) -> tuple[list[float], list[str] | None]:
    """Where an axis has its values; words are side by side, under their names."""
    if axis is None:
        return [0.0], [""]
    if any(isinstance(value, str) for value in axis.values):
        return [float(place) for place in range(len(axis.values))], [_shown(str(value)) for value in axis.values]
    return [float(value) for value in axis.values], None


def _lines(panel: Any, summary: Columns, axes: tuple[Axis, ...], where: dict[str, Any], metric: str) -> None:
    x, y = (axes[0] if axes else None), (axes[1] if len(axes) > 1 else None)
    places, words = _places(x)
    for value in y.values if y else (None,):
        mine = _rows(summary, where if y is None else {**where, y.name: value})
        means, errors = (summary[name][mine] for name in (metric, f"{metric}_error"))
        order = np.argsort(places)
        bars = None if np.isnan(errors).all() else errors[order]
        panel.errorbar(
            np.array(places)[order],
            means[order],
            bars,
            marker="o",
            markersize=4,
            capsize=3,
            linewidth=1.2,
            label=_shown(str(value)),
        )
    if words:
        panel.set_xticks(places, words)
    panel.set_xlabel(_shown(x.name) if x else "")
    panel.set_ylabel(
        _shown(metric) + (" (bars: standard error)" if not np.isnan(summary[f"{metric}_error"]).all() else "")
    )
    panel.grid(linewidth=0.3)


def _map(
    panel: Any, summary: Columns, x: Axis, y: Axis, where: dict[str, Any], metric: str, limits: tuple[float, float]
) -> Any:
    """Cells of equal size, whatever lies between the values."""
    order_x, order_y = (sorted(axis.values, key=lambda value: (isinstance(value, str), value)) for axis in (x, y))
    means = np.full((len(order_y), len(order_x)), np.nan)
    mine = _rows(summary, where)
    columns = (summary[name][mine].tolist() for name in (x.name, y.name, metric))
    for value_x, value_y, mean in zip(*columns, strict=True):
        means[order_y.index(value_y), order_x.index(value_x)] = mean
    image = panel.imshow(means, origin="lower", aspect="auto", vmin=limits[0], vmax=limits[1])
    for axis, values in (("x", order_x), ("y", order_y)):
        step = -(-len(values) // 12)
        labels = [_shown(f"{value:g}" if isinstance(value, float) else str(value)) for value in values[::step]]
        getattr(panel, f"set_{axis}ticks")(range(0, len(values), step), labels)
    panel.set_xlabel(_shown(x.name))
    panel.set_ylabel(_shown(y.name))
    return image


def _shown(words: str) -> str:
    """Text as it stands: no part of it is taken for a formula."""
    return visible(words).replace("$", r"\$")
