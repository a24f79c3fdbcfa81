"""What a sweep found: a value for each cell, and for each point its mean and standard error."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from typing import Literal

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table

from lumina_onnx._files import replacing
from lumina_onnx._text import text

from .grid import Grid, Value
from .statistics import estimate
from .targets import FORMATS, Columns, check_target

__all__ = ["SweepResult"]

_SHOWN = 40
"""Rows of a printed table."""


class SweepResult:
    """The values of all cells of a grid.

    ``print`` shows the means. A table is a dictionary of columns, NumPy arrays of equal lengths in the order of the
    grid: ``pandas.DataFrame(result.cells)`` and ``pyarrow.table(result.cells)`` take it.

    Attributes:
        cells: a row for each cell: a column for each axis, and one for each value of the metric.
        summary: a row for each point, the draws taken together: a column for each parameter; for each value of the
            metric its mean and, as ``NAME_error``, the mean's standard error (NaN without two draws); and ``draws``,
            the number of cells behind them.
        metrics: the names of the metric's values.
    """

    def __init__(self, grid: Grid, values: Mapping[tuple[Value, ...], Mapping[str, float]]) -> None:
        """`values` has those of every cell."""
        self._grid = grid
        rows = [(cell, values[cell]) for cell in grid.cells()]
        self.metrics: tuple[str, ...] = tuple(rows[0][1])
        self.cells: Columns = {
            **{axis.name: np.array([cell[place] for cell, _ in rows]) for place, axis in enumerate(grid.axes)},
            **{name: np.array([row[name] for _, row in rows], np.float64) for name in self.metrics},
        }
        points = list(grid.points())
        self.summary: Columns = {
            axis.name: np.array([point[place] for point in points]) for place, axis in enumerate(grid.parameters)
        }
        for name in self.metrics:
            mean, error = estimate(self.cells[name].reshape(grid.shape), len(grid.draws))
            self.summary |= {name: mean.reshape(-1), f"{name}_error": error.reshape(-1)}
        self.summary["draws"] = np.full(len(points), len(rows) // len(points))

    def write(self, path: str | os.PathLike[str], table: Literal["cells", "summary"] = "cells") -> None:
        """Writes a table to a .csv or .parquet file; an older file stays until the new one is complete.

        Raises:
            ValueError: the name ends in neither, or there is no such table.
            ImportError: pyarrow, which writes .parquet, is missing.
            OSError: the file cannot be written.
        """
        file = check_target(path, "path", FORMATS)
        if table not in ("cells", "summary"):
            raise ValueError(f"table = {table!r}: allowed is 'cells', 'summary'")
        columns = self.cells if table == "cells" else self.summary
        with replacing(file) as temporary:
            if file.suffix == ".csv":
                with temporary.open("w", newline="", encoding="utf-8") as opened:
                    writer = csv.writer(opened, lineterminator="\n")
                    writer.writerow(columns)
                    writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
            else:
                import pyarrow
                from pyarrow import parquet

                parquet.write_table(pyarrow.table(columns), temporary)

    def plot(
        self,
        path: str | os.PathLike[str],
        *,
        kind: Literal["lines", "map"] | None = None,
        x: str | None = None,
        y: str | None = None,
        metric: str | None = None,
    ) -> None:
        """Draws the means: lines with their standard errors, or a heat map of two parameters.

        Parameters with one value are left out. The first of the others is `x`. In lines the next is in the legend, in a
        heat map it is `y`; a further one has a panel for each of its values.

        Args:
            path: a .png, .svg or .pdf file.
            kind: "lines" or "map". None: a map if there are two parameters and both have more than six values.
            x: the parameter of the horizontal axis.
            y: the parameter of the legend, or of the vertical axis of a map.
            metric: which of several values of the metric. None: the first.

        Raises:
            ValueError: an argument is not allowed, or the grid has too many parameters, or values, for one picture.
            ImportError: matplotlib is missing.
            OSError: the file cannot be written.
        """
        from .plotting import draw

        draw(self.summary, self.metrics, self._grid, path, kind, x, y, metric)

    def __rich__(self) -> RenderableType:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for axis in self._grid.parameters:
            table.add_column(text(axis.name), justify="right")
        for name in self.metrics:
            table.add_column(text(name), justify="right")
        table.add_column("draws", justify="right")
        count = len(self.summary["draws"])
        for place in range(min(count, _SHOWN)):
            row = {name: column[place] for name, column in self.summary.items()}
            table.add_row(
                *(text(str(row[axis.name])) for axis in self._grid.parameters),
                *(_estimate_text(row[name], row[f"{name}_error"]) for name in self.metrics),
                str(row["draws"]),
            )
        more = [] if count <= _SHOWN else [text(f"and {count - _SHOWN} points more")]
        return Group(table, *more)

    def __str__(self) -> str:
        page = io.StringIO()
        Console(file=page, width=160, color_system=None).print(self, soft_wrap=True)
        return "\n".join(line.rstrip() for line in page.getvalue().rstrip().split("\n"))


def _estimate_text(mean: float, error: float) -> str:
    """A mean with its error, as far as the error makes its digits worth showing."""
    if not np.isfinite(error):
        return f"{mean:.4f}"
    return f"{mean:.4f} ± {error:.4f}"
