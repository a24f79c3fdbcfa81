"""Plain-text tables for reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lumina_onnx._text import visible


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table: columns as wide as their widest cell, numbers aligned right, a rule under the header."""
    cells = [[visible(str(cell)) for cell in row] for row in rows]
    numeric = [
        all(row[column].replace(",", "").replace(".", "", 1).isdigit() for row in cells) and bool(cells)
        for column in range(len(header))
    ]
    widths = [max(len(row[column]) for row in [list(header), *cells]) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        parts = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        return "  ".join(parts).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, cells)])
