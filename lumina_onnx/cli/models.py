"""`lumina inspect`, `lumina verify` and `lumina run`: what a file holds, whether it computes right, its outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table
from rich.text import Text

from lumina_onnx.cli import arrays
from lumina_onnx.cli.console import Batch, Debug, Failure, Json, Model, command, need, show

INSPECT_EPILOG = "Example: lumina inspect model.onnx"
VERIFY_EPILOG = "Example: lumina verify model.onnx --input x.npy"
RUN_EPILOG = "Example: lumina run model.onnx --input x.npy --output y.npz"

Input = Annotated[
    Path | None,
    typer.Option(
        "--input",
        "-i",
        exists=True,
        dir_okay=False,
        help="A .npz by the names of the model's inputs, or a .npy where it has one. Random numbers without it.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the random inputs.")]


@command
def inspect(model: Model, as_json: Json = False, debug: Debug = False) -> None:
    """List a file's optical layers: sizes, bits, full scales, noise, bytes."""
    need("train", "onnx")
    from lumina_onnx import exporter

    report = exporter.inspect(model)
    show(report, report.to_dict(), as_json)


@command
def verify(model: Model, source: Input = None, as_json: Json = False, debug: Debug = False) -> None:
    """Run a file and recompute each optical layer in plain numpy: every bit must be equal, noise included."""
    need("train", "onnx")
    from lumina_onnx import exporter

    inputs = None
    if source is not None:
        inputs = arrays.feeds(arrays.load_model(model), source, batch=1, seed=0)
    report = exporter.verify(model, inputs=inputs)
    show(report, report.to_dict(), as_json)
    if not report.ok:
        raise typer.Exit(1)


@command
def run(
    model: Model,
    source: Input = None,
    target: Annotated[
        Path | None,
        typer.Option("--output", "-o", dir_okay=False, help="Write the outputs: .npz, or .npy where there is one."),
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
    try:
        results = dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:
        raise Failure(f"{model}: ONNX Runtime cannot run it: {error}") from error
    if target is not None:
        arrays.write(target, results)
    table = Table("tensor", "", "shape", "dtype", "minimum", "mean", "maximum", "first values")
    facts = []
    for kind, group in (("input", feeds), ("output", results)):
        for name, value in group.items():
            numbers = value.astype(np.float64).ravel()
            spread = [float(f(numbers)) for f in (np.min, np.mean, np.max)] if numbers.size else []
            shown = [f"{number:.5g}" for number in spread] or ["-"] * 3
            first = " ".join(f"{number:.4g}" for number in numbers[:5]) + (" ..." if numbers.size > 5 else "")
            table.add_row(Text(name), kind, str(list(value.shape)), str(value.dtype), *shown, first)
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
    written = None if target is None else str(target)
    if written:
        table.caption = Text(f"written to {written}")
    show(table, {"model": str(model), "tensors": facts, "written": written}, as_json)
