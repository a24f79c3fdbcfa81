"""`lumina bench`: how fast a file runs in ONNX Runtime, with the operator's library and in other ways."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

import lumina_kernel
from lumina_onnx._files import replacing
from lumina_onnx._text import text, visible
from lumina_onnx.cli import arrays, layers, timing
from lumina_onnx.cli.console import (
    Debug,
    Failure,
    Input,
    Json,
    command,
    need,
    output,
    progress,
    show,
    size_text,
    time_text,
)

EPILOG = """
Example: lumina bench model.onnx --batch 32 --threads 1 --threads 4 --plot latency.png

Example: lumina bench --layers
"""

# Without a limit, a typo could start a million threads and bring the machine down.
MAXIMUM_THREADS = 1024

LIBRARY, BODY, TWIN = "with the library", "without it", "float32 twin"


@dataclass(frozen=True)
class Side:
    """One way to run the model."""

    name: str
    path: Path
    library: bool
    bytes: int
    """The size of its file, external data included."""


@command
def bench(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help="A .onnx file.", exists=True, dir_okay=False, readable=True),
    ] = None,
    of_layers: Annotated[
        bool,
        typer.Option(
            "--layers",
            help="Measure single layers of several sizes and bits instead, and print a block to send to us. Needs "
            "pip install onnx.",
        ),
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            min=1,
            help="Size of the model's symbolic dimensions in random inputs. \\[default: 1; with --layers 1 and 32]",
        ),
    ] = None,
    source: Input = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(
            "--threads",
            min=1,
            max=MAXIMUM_THREADS,
            help="Threads of a session; may be repeated. \\[default: 1, 2, 3, 4, 8 and so on, up to all usable cores]",
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Number of rounds; in each, every side runs for some 20 ms.")
    ] = timing.ROUNDS,
    target: Annotated[
        Path | None,
        typer.Option("--plot", dir_okay=False, help="Draw a bar chart: .png. Needs pip install 'lumina-onnx\\[plot]'."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a file's latency in ONNX Runtime: with the operator's library, without it, and as a float32 model.

    Without the library the function body runs. The float32 twin multiplies by the dequantised weights instead.

    With --layers and without a file, measure single layers, and compare them with what is predicted for a known board.
    """
    if of_layers:
        for name, value in {"MODEL": model, "--input": source, "--plot": target}.items():
            if value is not None:
                raise typer.BadParameter(f"{str(value)!r} cannot be given with --layers", param_hint=f"'{name}'")
        _bench_layers([batch] if batch else layers.BATCHES, threads, rounds, as_json)
        return
    if model is None:
        raise typer.BadParameter("give a .onnx file, or --layers", param_hint="'MODEL'")
    if target is not None:
        _check_target(target)
    counts = _counts(threads)
    rows: list[dict[str, Any]] = []
    feeds = arrays.feeds(arrays.load_model(model), source, batch=batch or 1, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        sides, left_out = _sides(model, Path(folder))
        with progress() as bar:
            task = bar.add_task("measure", total=len(counts) * rounds)
            for count in counts:
                rows += _measure(sides, feeds, source, count, rounds, lambda: bar.advance(task))
    import onnxruntime

    facts = {
        "model": str(model),
        "inputs": {name: list(array.shape) for name, array in feeds.items()},
        "rounds": rounds,
        "onnxruntime": onnxruntime.__version__,
        "isa": lumina_kernel.isa(),
        "unit": "seconds",
        "rows": rows,
        "left_out": left_out,
        "plot": None if target is None else str(target),
    }
    if target is not None:
        _plot(facts, target)
    show(_page(facts), facts, as_json)


def _counts(threads: Sequence[int] | None) -> list[int]:
    return sorted({*(threads or timing.thread_counts(timing.usable_cores()))})


def _bench_layers(batches: Sequence[int], threads: Sequence[int] | None, rounds: int, as_json: bool) -> None:
    counts = _counts(threads)
    with tempfile.TemporaryDirectory() as folder, progress() as bar:
        task = bar.add_task("measure", total=layers.combinations(batches, counts) * rounds)
        facts = layers.measure(Path(folder), batches, counts, rounds, lambda: bar.advance(task))
    show(layers.page(facts), facts, as_json)
    if not as_json:
        output().print(text(*layers.block(facts)), soft_wrap=True)


def _measure(
    sides: Sequence[Side],
    feeds: arrays.Arrays,
    source: Path | None,
    threads: int,
    rounds: int,
    after_round: Callable[[], None],
) -> list[dict[str, Any]]:
    """A row for each side."""
    calls = []
    for side in sides:
        session = arrays.load_model(side.path, threads, library=side.library, resting=True)
        calls.append(timing.Bound(session, feeds))
    with arrays.running(sides[0].path, feeds, source):
        measured = timing.measure(calls, rounds, after_round)
    rows = [
        {"threads": threads, "side": side.name, "bytes": side.bytes, **latency}
        for side, latency in zip(sides, measured, strict=True)
    ]
    for row in rows:
        twin = next((other["p50"] for other in rows if other["side"] == TWIN), None)
        row["speed_up"] = None if twin is None else twin / row["p50"]
    return rows


def _sides(model: Path, folder: Path) -> tuple[list[Side], dict[str, str]]:
    """The ways to run a model, with the twin written to `folder`, and the ways left out with the reason for each."""
    left_out = {}
    missing = next((name for name in ("onnx", "onnx_ir") if importlib.util.find_spec(name) is None), "")
    size = model.stat().st_size
    if not missing:
        from lumina_onnx import exporter

        size = exporter.inspect(model).file_bytes
    sides = [Side(LIBRARY, model, True, size)]
    try:
        arrays.load_model(model, library=False)
        sides.append(Side(BODY, model, False, size))
    except Failure as failure:
        left_out[BODY] = " ".join(str(failure).split())
    if not missing:
        try:
            path, size = _write_twin(model, folder)
            sides.append(Side(TWIN, path, False, size))
        except ValueError as error:
            left_out[TWIN] = str(error)
    else:
        left_out[TWIN] = f"it is made with the Python package {missing}, which is not installed"
    return sides, left_out


def _write_twin(model: Path, folder: Path) -> tuple[Path, int]:
    import onnx_ir as ir

    from lumina_onnx.exporter import files
    from lumina_onnx.exporter.twin import float_twin

    path = folder / "twin.onnx"
    files.write(ir.to_proto(float_twin(model)), path)
    return path, sum(file.stat().st_size for file in folder.iterdir())


def _page(facts: dict[str, Any]) -> Group:
    with_twin = any(row["side"] == TWIN for row in facts["rows"])
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("threads", "", *(f"p{p}" for p in timing.PERCENTILES), *(["speed"] if with_twin else []), "file"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    previous = None
    for row in facts["rows"]:
        if previous not in (None, row["threads"]):
            table.add_section()
        table.add_row(
            "" if row["threads"] == previous else str(row["threads"]),
            row["side"],
            *(time_text(row[f"p{p}"]) for p in timing.PERCENTILES),
            *([f"{row['speed_up']:.2f}x"] if with_twin else []),
            size_text(row["bytes"]),
        )
        previous = row["threads"]
    inputs = ", ".join(f"{name} {shape}" for name, shape in facts["inputs"].items())
    head = f"{facts['model']}: latency of a run, inputs {inputs}"
    lines = [f"ONNX Runtime {facts['onnxruntime']}, tier {facts['isa']}; threads sleep between runs"]
    if with_twin:
        lines.append("speed: times as fast as the float32 twin, by p50")
    lines += [f"not measured: {name}: {reason}" for name, reason in facts["left_out"].items()]
    if facts["plot"]:
        lines.append(f"drawn in {facts['plot']}")
    return Group(text(head), table, text(*lines))


def _check_target(target: Path) -> None:
    if target.suffix != ".png":
        raise typer.BadParameter(f"{str(target)!r} does not end in .png", param_hint="'--plot'")
    if not target.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {str(target.parent)!r}", param_hint="'--plot'")
    need("plot", "matplotlib")


def _plot(facts: dict[str, Any], target: Path) -> None:
    """Bars of the median for each number of threads, with a line up to the 99th percentile."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = facts["rows"]
    counts = sorted({row["threads"] for row in rows})
    names = list(dict.fromkeys(row["side"] for row in rows))
    largest = max(row["p50"] for row in rows)
    unit, scale = ("us", 1e6) if largest < 1e-3 else ("ms", 1e3) if largest < 1 else ("s", 1.0)
    figure = Figure(figsize=(2.5 + 1.8 * len(counts), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        mine = [row for row in rows if row["side"] == name]
        medians = [row["p50"] * scale for row in mine]
        tails = [(row["p99"] - row["p50"]) * scale for row in mine]
        where = [counts.index(row["threads"]) + (place - (len(names) - 1) / 2) * width for row in mine]
        label = f"{name} ({size_text(mine[0]['bytes'])})"
        bars = axes.bar(where, medians, 0.92 * width, yerr=[[0.0] * len(mine), tails], label=label, capsize=3)
        axes.bar_label(bars, [f"{median:.3g}" for median in medians], padding=2)
    axes.set_xticks(range(len(counts)), [f"{count} thread{'s' if count > 1 else ''}" for count in counts])
    axes.set_ylabel(f"latency, {unit} (median; line: to p99)")
    title = f"{visible(Path(facts['model']).name)}, ONNX Runtime {facts['onnxruntime']}, tier {facts['isa']}"
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
    with replacing(target) as temporary, temporary.open("wb") as file:
        figure.savefig(file, format="png", dpi=150)
