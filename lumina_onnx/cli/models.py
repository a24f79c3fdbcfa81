"""`lumina inspect`, `lumina verify` and `lumina run`: what a file holds, whether its results are right, its outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from lumina_onnx._text import text, visible
from lumina_onnx.cli import arrays
from lumina_onnx.cli.console import Batch, Debug, Failure, Input, Json, Model, command, need, show

INSPECT_EPILOG = "Example: lumina inspect model.onnx"
VERIFY_EPILOG = "Example: lumina verify model.onnx --input x.npy"
RUN_EPILOG = "Example: lumina run model.onnx --input x.npy --output y.npz"

ROWS = 64
"""The default of :func:`lumina_onnx.exporter.verify`."""

Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the random inputs.")]


@command
def inspect(model: Model, as_json: Json = False, debug: Debug = False) -> None:
    """List a file's optical layers: sizes, bits, full scales, noise, bytes."""
    need("train", "onnx", "onnx_ir")
    from lumina_onnx import exporter

    report = exporter.inspect(model)
    show(report, report.to_dict(), as_json)


@command
def verify(
    model: Model,
    source: Input = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows of each layer's input that are recomputed.")] = ROWS,
    all_rows: Annotated[bool, typer.Option("--all-rows", help="Recompute all rows of each layer's input.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a file and recompute each optical layer in plain numpy.

    With the operator's library every bit must be equal, noise included; without it, results must be within a tolerance.
    """
    need("train", "onnx", "onnx_ir")
    from lumina_onnx import exporter

    inputs = None
    if source is not None:
        inputs = arrays.feeds(arrays.load_model(model), source, batch=1, seed=0)
    report = exporter.verify(model, inputs=inputs, rows=None if all_rows else rows)
    show(report, report.to_dict(), as_json)
    if not report.ok:
        raise typer.Exit(1)


def _tensors(kind: str, rows: list[tuple[str, ...]]) -> Table:
    """A table that stays readable on 80 columns: a long name wraps, and the first values are truncated."""
    header = (kind, "dtype and shape", "minimum", "mean", "maximum", "first values")
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    widths = [max(len(visible(cell)) for cell in cells) for cells in zip(header, *rows, strict=True)]
    table.add_column(header[0], overflow="fold", min_width=min(widths[0], 12))
    for name, width in zip(header[1:-1], widths[1:-1], strict=True):
        table.add_column(name, no_wrap=True, min_width=width)
    table.add_column(header[-1], no_wrap=True, overflow="ellipsis")
    for name, *cells in rows:
        table.add_row(text(name), *cells)
    return table


@command
def run(
    model: Model,
    source: Input = None,
    target: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", dir_okay=False, help="Where to write the outputs: a .npz, or a .npy for a single one."
        ),
    ] = None,
    batch: Batch = 1,
    seed: Seed = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a file once in ONNX Runtime and show its outputs, or write them."""
    if target is not None and target.suffix not in (".npz", ".npy"):
        raise typer.BadParameter(f"{str(target)!r} ends neither in .npz nor in .npy", param_hint="'--output'")
    if target is not None and not target.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {str(target.parent)!r}", param_hint="'--output'")
    session = arrays.load_model(model)
    feeds = arrays.feeds(session, source, batch=batch, seed=seed)
    names = [value.name for value in session.get_outputs()]
    with arrays.running(model, feeds, source):
        results = dict(zip(names, session.run(names, feeds), strict=True))
    others = [name for name, value in results.items() if not isinstance(value, np.ndarray)]
    if others:
        raise Failure(f"{model}: its output {others[0]!r} is no tensor: allowed are tensors")
    if target is not None:
        arrays.write(target, results)
    tables, facts = [], []
    for kind, group in (("input", feeds), ("output", results)):
        rows = []
        for name, value in group.items():
            is_text = value.dtype == object
            numbers = np.zeros(0) if is_text else value.astype(np.float64).ravel()
            spread = [float(f(numbers)) for f in (np.min, np.mean, np.max)] if numbers.size else []
            shown = [f"{number:.4g}" for number in spread] or ["-"] * 3
            some = map(repr, value.ravel()[:3]) if is_text else (f"{number:.3g}" for number in numbers[:3])
            first = visible(" ".join(some)) + (" ..." if value.size > 3 else "")
            rows.append((name, f"{value.dtype} {list(value.shape)}", *shown, first))
            finite = spread if np.isfinite(spread).all() else []
            facts.append(
                {
                    "name": name,
                    "kind": kind,
                    "shape": list(value.shape),
                    "dtype": str(value.dtype),
                    **dict(zip(("minimum", "mean", "maximum"), finite, strict=False)),
                    "finite": bool(np.isfinite(numbers).all()),
                }
            )
        tables.append(_tensors(kind, rows))
    written = None if target is None else str(target)
    if written:
        tables[-1].caption = text(f"written to {written}")
    show(Group(*tables), {"model": str(model), "tensors": facts, "written": written}, as_json)
