"""`lumina sweep`: a file's accuracy, or another metric, over a grid of hardware parameters and draws of the noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group

from lumina_onnx._text import text
from lumina_onnx.cli.console import Debug, Failure, Json, Model, command, errors, need, show

EPILOG = """
Example: lumina sweep model.onnx --data test.npz --grid noise_additive=0,0.01,0.02,0.05 --grid output_bits=3:8 --seeds 20 --out results.parquet --plot noise.png

Example: lumina sweep model.onnx --data test.npz --grid 'fc1:output_bits=3:8' --metric metrics.py:top5 --backend dask --address tcp://head:8786
"""  # noqa: E501


@command
def sweep(
    model: Model,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            help="Samples: a .npz with the model's inputs and labels, dimension 0 counting the samples; or MODULE:NAME "
            "or FILE.py:NAME, a function that returns such arrays by name.",
        ),
    ],
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            "-g",
            help="NAME=VALUES: a parameter of the hardware and its values, 0,0.01,0.02 or 3:8 (3 to 8) or 0:0.1:0.02 "
            "(with a step); PATTERN:NAME=VALUES for the layers of these names. May be repeated.",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds", "-s", help="Draws of the noise at each point, for standard errors: a count, or seeds as 5:9."
        ),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            "--metric",
            "-m",
            help="accuracy, or MODULE:NAME or FILE.py:NAME, a function of outputs and labels that returns a number or "
            "numbers by name.",
        ),
    ] = "accuracy",
    labels: Annotated[str, typer.Option("--labels", help="The name of the labels in the data.")] = "labels",
    skip: Annotated[
        list[str] | None,
        typer.Option("--skip", help="Layers that stay as they are, by name: *, ?, [...]; may be repeated."),
    ] = None,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Samples in a run of the model. The noise depends on it.")
    ] = 256,
    target: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            dir_okay=False,
            help="Write a row for each cell: .csv or .parquet. Finished cells are kept beside it, and the same command "
            "goes on from there.",
        ),
    ] = None,
    summary: Annotated[
        Path | None,
        typer.Option(
            "--summary", dir_okay=False, help="Write means and standard errors of each point: .csv or .parquet."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", dir_okay=False, help="Draw them: .png, .svg or .pdf. Needs pip install 'lumina-onnx\\[plot]'."
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--kind", help="Of the plot: lines (with error bars) or map. \\[default: what suits the grid]"),
    ] = None,
    x: Annotated[str | None, typer.Option("--x", help="The plot's horizontal axis. \\[default: the first]")] = None,
    y: Annotated[
        str | None, typer.Option("--y", help="The plot's lines, or a map's vertical axis. \\[default: the next]")
    ] = None,
    existing: Annotated[
        str,
        typer.Option(
            "--existing",
            help="Cells of an earlier run: resume takes them if nothing has changed, extend also those of another "
            "grid, overwrite starts anew.",
        ),
    ] = "resume",
    backend: Annotated[
        str, typer.Option("--backend", help="loky: processes on this machine; ray or dask: a cluster.")
    ] = "loky",
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-w", min=1, help="Workers of one thread each. \\[default: one for each core]"),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="A running cluster. \\[default: the backend's setting, else one started here]"),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Evaluate a file with optical layers over a grid of hardware parameters and draws of the noise.

    Shows each point's mean over the draws with its standard error. A cell's value depends on the file, the data and the
    cell alone, not on the number of workers.
    """
    axes = _axes(grid or [])
    _check("--grid", not axes and seeds is None, "give --grid, --seeds or both")
    need("sweep", "joblib", "cloudpickle", "threadpoolctl", "onnx", "onnx_ir")
    from lumina_onnx import sweeping
    from lumina_onnx.sweeping.grid import as_grid, parsed_seeds
    from lumina_onnx.sweeping.metric import named
    from lumina_onnx.sweeping.plotting import layout
    from lumina_onnx.sweeping.targets import FORMATS, PICTURES, check_target

    for option, file, formats in (("--summary", summary, FORMATS), ("--plot", plot, PICTURES)):
        if file is not None:
            _told(check_target, file, option, formats)
    for option, given in (("--kind", kind), ("--x", x), ("--y", y)):
        _check(option, plot is None and given is not None, f"{given!r} would be ignored without --plot")
    count = None if seeds is None else _told(parsed_seeds, seeds)
    if plot is not None:
        _told(lambda: layout(as_grid(axes, count), kind, x, y))
    is_file = Path(data).exists() or ":" not in data
    arguments: dict[str, Any] = {
        "seeds": count,
        "metric": metric if metric == "accuracy" else named(metric, "--metric"),
        "labels": labels,
        "skip": skip or (),
        "batch": batch,
        "out": target,
        "existing": existing,
        "backend": backend,
        "workers": workers,
        "address": address,
    }
    try:
        result = sweeping.sweep(model, data if is_file else named(data, "--data"), axes, **arguments)
    except KeyboardInterrupt as interrupt:
        errors().print(text(str(interrupt) or "interrupted"), soft_wrap=True)
        raise typer.Exit(130) from None
    except (RuntimeError, ImportError) as error:
        raise Failure(str(error)) from error
    written = []
    if summary is not None:
        result.write(summary, "summary")
    if plot is not None:
        result.plot(plot, kind=kind, x=x, y=y)  # type: ignore[arg-type]
    written = [str(file) for file in (target, summary, plot) if file is not None]
    facts = {
        "model": str(model),
        "cells": len(next(iter(result.cells.values()))),
        "points": _rows(result.summary),
        "written": written,
    }
    note = [text(f"written to {', '.join(written)}")] if written else []
    show(Group(result, *note), facts, as_json)


def _axes(texts: list[str]) -> dict[str, Any]:
    from lumina_onnx.sweeping.grid import parsed

    axes: dict[str, Any] = {}
    for each in texts:
        name, values = _told(parsed, each)
        _check("--grid", name in axes, f"{name!r} is given twice; allowed is each name once")
        axes[name] = values
    return axes


def _told(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function whose ValueError is about the command's usage."""
    try:
        return function(*arguments)
    except ImportError as error:
        raise Failure(str(error)) from error
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error


def _check(option: str, is_wrong: bool, message: str) -> None:
    if is_wrong:
        raise typer.BadParameter(message, param_hint=repr(option))


def _rows(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """A table as rows of JSON's types; a NaN, as an error without two draws, is null."""
    rows = [
        dict(zip(columns, row, strict=True)) for row in zip(*(each.tolist() for each in columns.values()), strict=True)
    ]
    return [
        {name: None if isinstance(value, float) and value - value != 0 else value for name, value in row.items()}
        for row in rows
    ]
