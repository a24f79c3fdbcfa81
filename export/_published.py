"""What the recipes for published models share: their texts, files side by side, and the plot of accuracy by noise."""

from __future__ import annotations

import hashlib
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from _common import wrapped
from numpy.typing import NDArray

import lumina_kernel
from lumina_onnx.cli import arrays, machine, timing

WORDS = range(6, 41)
"""How many words a sentence has."""
COLOURS = ("#3f5f8f", "#d9822b", "#8c96a8")
"""Of the lines of a plot."""


def sentences() -> list[str]:
    """The sentences of CPython's own help texts (``pydoc_data.topics``), each once, in a fixed random order.

    They are those of paragraphs that are neither code nor grammar nor tables.
    """
    found: dict[str, None] = {}
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name].strip("\n")):
            lines = paragraph.split("\n")
            indents = {len(line) - len(line.lstrip()) for line in lines}
            if len(indents) == 1 and "|" not in paragraph:
                text = " ".join(line.strip() for line in lines)
                found.update(dict.fromkeys(re.split(r"(?<=[.!?])\s+(?=[A-Z])", text)))
    chosen = [text for text in found if len(text.split()) in WORDS and text[0].isupper() and text.endswith(".")]
    return [chosen[place] for place in np.random.default_rng(0).permutation(len(chosen))]


def texts() -> dict[str, str]:
    """Which texts :func:`sentences` took: they differ from one release of Python to the next."""
    content = "\n".join(sorted(sentences()))
    return {"python": platform.python_version(), "sha256": hashlib.sha256(content.encode()).hexdigest()}


def facts(weights: Path, *packages: str) -> dict[str, Any]:
    """What :func:`made` tells, for results: call it last, since it ends with the processor's time so far."""
    return {
        "texts": texts(),
        "source": weights.name,
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "versions": versions(*packages),
        "processor_minutes": time.process_time() / 60,
    }


def folder_of(package: str) -> Path:
    """Where a package with a model is installed; it is not imported, since nothing but its files is needed.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    spec = util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"{package} is not installed: allowed is what pip install '.[recipes]' installs, with a Python that the "
            "package supports (rapidocr_onnxruntime: older than 3.13)"
        )
    return Path(spec.submodule_search_locations[0])


def versions(*packages: str) -> dict[str, str]:
    """The versions of the installed packages, without what says how they were built."""
    return {name: metadata.version(name).partition("+")[0] for name in ("lumina-onnx", "onnxruntime", *packages)}


def dynamic_int8(source: Path, path: Path) -> None:
    """Writes what ONNX Runtime's own dynamic quantisation makes of a float file, with a scale for each output."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, path, per_channel=True)


def compare(paths: Mapping[str, Path], feeds: Mapping[str, NDArray[Any]], rounds: int) -> dict[str, Any]:
    """Sizes of files, and latencies of their runs on one thread, which take turns: {"machine", "files": [...]}."""
    calls = [timing.Bound(arrays.load_model(path, 1, resting=True), dict(feeds)) for path in paths.values()]
    latencies = timing.measure(calls, rounds)
    return {
        "machine": {"processor": machine.processor(), "tier": lumina_kernel.isa()},
        "files": [
            {"name": name, "bytes": path.stat().st_size, **latency}
            for (name, path), latency in zip(paths.items(), latencies, strict=True)
        ],
    }


def comparison(results: Mapping[str, Any], what: str) -> list[str]:
    """The table of :func:`compare`, with `what` ran; speeds are ratios to the first file."""
    machine, first = results["machine"], results["files"][0]
    runs = min(file["runs"] for file in results["files"])
    text = f"{what} on one thread, {machine['processor']}, tier {machine['tier']}; medians of {runs} runs or more:"
    lines = [wrapped(text), "", "| file | size | times as fast as float | ms |", "|---|---:|---:|---:|"]
    for file in results["files"]:
        speed, size = first["p50"] / file["p50"], file["bytes"] / 1e6
        lines.append(f"| {file['name']} | {size:.1f} MB | {speed:.2f} | {1e3 * file['p50']:.1f} |")
    return lines


def made(results: Mapping[str, Any]) -> str:
    """What the figures were made with."""
    packages = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    python, sentences_of = results["texts"]["python"], results["texts"]["sha256"]
    return wrapped(
        f"Made with {packages}; sentences of CPython {python}, sha256 `{sentences_of}`; weights from "
        f"`{results['source']}`, sha256 `{results['weights']}`."
    )


def curve(axis: Any, noises: Sequence[float], values: Sequence[float], style: str, **look: Any) -> None:
    """Draws values by noise."""
    axis.plot([100 * noise for noise in noises], values, style, **look)
    axis.set_xlabel("additive noise, % of full scale")
    axis.grid(linewidth=0.4)


def draw(path: Path, fill: Callable[[Sequence[Any]], None], panels: int) -> None:
    """Writes a .png of panels side by side that `fill` draws, with one legend below."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, panels, figsize=(4.2 * panels, 3.8), squeeze=False)
    fill(axes[0])
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="lower center", ncols=len(labels))
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    # Without date and version the same figures give the same file.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
