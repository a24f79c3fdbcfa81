"""Tables of reports in plain text, and the words in their cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lumina_onnx._text import visible
from lumina_onnx.profile import OpticalProfile
from lumina_onnx.schema import NOISE


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as their widest cell, numbers to the right, a rule under the header."""
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


def range_text(value: float | tuple[float, ...]) -> str:
    """A range as a report shows it."""
    if isinstance(value, tuple):
        return f"{min(value):.4g}..{max(value):.4g} per output"
    return f"{value:.4g}" if value else "dynamic"


def bits_text(profile: OpticalProfile) -> str:
    """The bits of input, weight and output as a report shows them, "-" where analog."""
    return "/".join(str(bits or "-") for bits in (profile.input_bits, profile.weight_bits, profile.output_bits))


def noise_text(profile: OpticalProfile) -> str:
    """The profile's noise laws and levels in a few words."""
    levels = [f"{name.removeprefix('noise_')} {level:g}" for name in NOISE if (level := getattr(profile, name))]
    return ", ".join(levels) or "none"
