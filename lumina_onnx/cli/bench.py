"""`lumina bench`: how long a file takes in ONNX Runtime."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

import lumina_kernel
from lumina_onnx.cli import arrays
from lumina_onnx.cli.console import Batch, Debug, Json, Model, command, progress, show, size_text, time_text

EPILOG = "Example: lumina bench model.onnx --batch 32 --threads 4"

PERCENTILES = (50, 90, 99)
MINIMUM_RUNS = 20
# Sessions spin while they wait: a slip of the finger would start a million threads and take the machine with it.
MAXIMUM_THREADS = 1024


@command
def bench(
    model: Model,
    batch: Batch = 1,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", min=1, max=MAXIMUM_THREADS, help="The most threads tried. [default: the usable cores]"
        ),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, help="Time to measure for each row.")] = 1.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a file's latency in ONNX Runtime with 1, 2 ... threads, on random inputs."""
    most = threads or usable_cores()
    table = Table("threads", *(f"p{p}" for p in PERCENTILES), "runs/s", "runs")
    rows = []
    with progress() as bar:
        for count in bar.track(thread_counts(most), description="measure"):
            row = {"threads": count, **measure(model, batch=batch, threads=count, seconds=seconds)}
            rows.append(row)
            table.add_row(
                str(count),
                *(time_text(row[f"p{p}"]) for p in PERCENTILES),
                f"{row['runs'] / row['total']:,.0f}",
                str(row["runs"]),
            )
    session = arrays.load_model(model)
    inputs = ", ".join(arrays.shape_text(value) for value in session.get_inputs())
    size = model.stat().st_size
    import onnxruntime

    # The table is too narrow for them.
    heading = f"{model}, {size_text(size)}: latency of a run with symbolic sizes = {batch}"
    footing = f"ONNX Runtime {onnxruntime.__version__}, tier {lumina_kernel.isa()}, inputs {inputs}"
    facts = {
        "model": str(model),
        "bytes": size,
        "batch": batch,
        "onnxruntime": onnxruntime.__version__,
        "isa": lumina_kernel.isa(),
        "unit": "seconds",
        "rows": rows,
    }
    show(Group(Text(heading), table, Text(footing)), facts, as_json)


def measure(model: Path, *, batch: int, threads: int, seconds: float) -> dict[str, Any]:
    """Percentiles of a run's latency in seconds, in a session of its own with `threads` threads."""
    session = arrays.load_model(model, threads)
    feeds = arrays.feeds(session, None, batch=batch, seed=0)
    for _ in range(MINIMUM_RUNS):
        session.run(None, feeds)
    latencies: list[float] = []
    begin = time.perf_counter()
    while len(latencies) < MINIMUM_RUNS or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        session.run(None, feeds)
        latencies.append(time.perf_counter() - start)
    values = np.percentile(latencies, PERCENTILES)
    return {
        **{f"p{p}": float(value) for p, value in zip(PERCENTILES, values, strict=True)},
        "runs": len(latencies),
        "total": sum(latencies),
    }


def thread_counts(most: int) -> list[int]:
    """1, 2, 3 ... `most`; above 8 the powers of two and `most` itself."""
    if most <= 8:
        return list(range(1, most + 1))
    powers = [1 << shift for shift in range(most.bit_length())]
    return sorted({*powers, most})


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
