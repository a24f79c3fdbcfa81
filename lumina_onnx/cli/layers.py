"""`lumina bench --layers`: single layers in ONNX Runtime, and a block of text with the figures to send to us."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

import lumina_kernel
import lumina_onnx
from lumina_onnx._text import text
from lumina_onnx.cli import arrays, boards, machine, timing
from lumina_onnx.cli.console import Failure, time_text
from lumina_onnx.schema import DOMAIN, OPERATOR, VERSION

#: Inputs and outputs of the layers.
SIZES = (256, 1024, 4096)
BITS = (8, 4, 2, 1)
BATCHES = (1, 32)
BEGIN, END = "----- lumina bench --layers: begin -----", "----- lumina bench --layers: end -----"
COLUMNS = ("size", "bits", "batch", "threads", "p50_us", "p99_us", "predicted_us", "predicted_memory_us")


def combinations(batches: Sequence[int], threads: Sequence[int]) -> int:
    """How often :func:`measure` measures all widths of weights side by side."""
    return len(SIZES) * len(batches) * len(threads)


def measure(
    folder: Path, batches: Sequence[int], threads: Sequence[int], rounds: int, after_round: Callable[[], None]
) -> dict[str, Any]:
    """Facts of the machine, and a row for each size, width of weights, batch and number of threads.

    Args:
        folder: Where models are written.
        batches: Rows of X in a run.
        threads: Threads of a session.
        rounds: Rounds of each measurement.
        after_round: Called after each.

    Raises:
        Failure: The package onnx is missing.
    """
    here = machine.facts()
    board = boards.find(here["board"], here["processor"])
    if board is not None and board.tier != lumina_kernel.isa():
        board = None
    facts: dict[str, Any] = {
        "versions": _versions(),
        "isa": lumina_kernel.isa(),
        "machine": here,
        "before": machine.state(),
        "read_gb_per_s": {
            str(count): round(machine.read_bandwidth(count) / 1e9, 2) for count in sorted({1, max(threads)})
        },
        "predicted_for": board.name if board else None,
        "rounds": rounds,
        "rows": [],
    }
    for size in SIZES:
        paths = {bits: write_layer(folder, size, bits) for bits in BITS}
        for count in threads:
            sessions = {bits: arrays.load_model(path, count, resting=True) for bits, path in paths.items()}
            for batch in batches:
                x = np.random.default_rng(size).standard_normal((batch, size), np.float32)
                calls = [timing.Bound(session, {"X": x}) for session in sessions.values()]
                for bits, latency in zip(sessions, timing.measure(calls, rounds, after_round), strict=True):
                    predicted = _predicted(board, here["clock_mhz"], (bits, batch, size, size, count))
                    figures = [latency["p50"], latency["p99"], *predicted]
                    micro = [None if seconds is None else round(seconds * 1e6, 1) for seconds in figures]
                    facts["rows"].append(dict(zip(COLUMNS, (size, bits, batch, count, *micro), strict=True)))
    facts["after"] = machine.state()
    return facts


def write_layer(folder: Path, size: int, bits: int) -> Path:
    """Writes a model of one layer with random weights of `bits` bits, stored as an exporter stores them; returns it.

    Raises:
        Failure: The package onnx is missing.
    """
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise Failure(f"--layers writes models with the Python package onnx, which is missing: {error}") from error
    largest = max(2 ** (bits - 1) - 1, 1)
    codes = np.random.default_rng(bits).integers(-largest, largest + 1, (size, size), np.int8)
    if bits == 1:
        codes[codes == 0] = 1
    weight = codes if bits == 8 else lumina_kernel.pack_weight(codes, bits)
    attributes: dict[str, Any] = {"input_bits": 8, "weight_bits": bits, "output_bits": 8} | (
        {} if bits == 8 else {"in_features": size}
    )
    node = helper.make_node(OPERATOR, ["X", "W", "W_scale"], ["Y"], name="layer", domain=DOMAIN, **attributes)
    tensors = [
        numpy_helper.from_array(weight, "W"),
        numpy_helper.from_array(np.ones(size, np.float32), "W_scale"),
    ]
    x = helper.make_tensor_value_info("X", TensorProto.FLOAT, ("batch", size))
    y = helper.make_tensor_value_info("Y", TensorProto.FLOAT, ("batch", size))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(helper.make_graph([node], "layer", [x], [y], tensors), opset_imports=opsets, ir_version=8)
    path = folder / f"layer-{size}-{bits}.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def page(facts: dict[str, Any]) -> Group:
    """The medians as a table, and the block to send."""
    rows = facts["rows"]
    counts = sorted({row["threads"] for row in rows})
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("size", "batch", "bits"):
        table.add_column(name, justify="right", no_wrap=True)
    for count in counts:
        table.add_column(_threads(count), justify="right", no_wrap=True)
    if facts["predicted_for"]:
        table.add_column(f"predicted, {_threads(counts[0])}", justify="right")
        table.add_column("memory", justify="right", no_wrap=True)
    places = list(dict.fromkeys((row["size"], row["batch"], row["bits"]) for row in rows))
    for index, (size, batch, bits) in enumerate(places):
        mine = {row["threads"]: row for row in rows if (row["size"], row["batch"], row["bits"]) == (size, batch, bits)}
        if index and places[index - 1][:2] != (size, batch):
            table.add_section()
        first = mine[counts[0]]
        predicted = [first["predicted_us"], first["predicted_memory_us"]] if facts["predicted_for"] else []
        times = [*(mine[count]["p50_us"] for count in counts), *predicted]
        table.add_row(f"{size} x {size}", str(batch), str(bits), *(time_text(each * 1e-6) for each in times))
    here = facts["machine"]
    read = ", ".join(f"{each} GB/s ({_threads(int(count))})" for count, each in facts["read_gb_per_s"].items())
    lines = [
        f"{here['board'] or 'no known board'}, {here['processor']}, tier {facts['isa']}; memory read at {read}",
        f"median time of a run in ONNX Runtime {facts['versions']['onnxruntime']}",
    ]
    if facts["predicted_for"]:
        lines.append(f"predicted for {facts['predicted_for']} by llvm-mca, not measured: docs/measurements/boards.md")
        lines.append("a layer that fits no cache takes no less than memory needs to read its weights")
    return Group(text(*lines), table, text("Please send us the following, for example in an issue:"))


def block(facts: dict[str, Any]) -> list[str]:
    """Lines with all figures as JSON between two marks. They are short, so that they survive being pasted."""
    head = [f'"{name}": {json.dumps(value)},' for name, value in facts.items() if name != "rows"]
    rows = [json.dumps([row[name] for name in COLUMNS], separators=(",", ":")) for row in facts["rows"]]
    body = [*(f"{row}," for row in rows[:-1]), *rows[-1:]]
    return [BEGIN, "{", *head, f'"columns": {json.dumps(COLUMNS)},', '"rows": [', *body, "]", "}", END]


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _versions() -> dict[str, str]:
    import onnxruntime

    return {
        "lumina": lumina_onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _predicted(
    board: boards.Board | None, megahertz: int | None, layer: tuple[int, int, int, int, int]
) -> tuple[float | None, float | None]:
    """Seconds for the arithmetic, and to read the weights from memory."""
    if board is None:
        return None, None
    predicted = boards.predict(board, *layer, hertz=megahertz * 1e6 if megahertz else None)
    return predicted.compute, predicted.memory
