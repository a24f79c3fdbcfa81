"""Whether gradients in fewer bits train as well as in float32: test accuracy over seeds at each precision.

Writes docs/measurements/precision.json (every figure) and the generated part of precision.md. `--check` trains nothing
and tells whether they agree.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import DRAWS, Recipe, with_part, wrapped
from mnist5k import RECIPES
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import lumina_kernel
import lumina_onnx
from lumina_onnx import nn as optical
from lumina_onnx.cli import classifier
from lumina_onnx.cli.classifier import Estimate

DOCS = Path(__file__).parents[1] / "docs" / "measurements"
BEGIN = "<!-- begin: results, written by export/precision.py -->"
END = "<!-- end: results -->"
#: "high" and "medium" are the same.
PRECISIONS = ("highest", "high", "8 bits")


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Sets the precision of gradients in the block: "8 bits", or one of ``torch.set_float32_matmul_precision``."""
    if name == "8 bits":
        with optical.gradient_bits(8):
            yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def measure(
    recipe: Recipe, data: classifier.Data, seed: int, epochs: int, draws: int, tick: Callable[[], object]
) -> dict[str, float]:
    """Accuracies of one seed by precision: trained once in float, then on from there with the noise at each."""
    plain = classifier.perceptron(data.pixels, seed)
    classifier.fit(plain, data, epochs=epochs, seed=seed, after_epoch=tick)
    start = optical.convert(plain, recipe.profile, seed=seed)
    optical.calibrate(start, data.train_x.split(500), method="mse", progress=False)
    found = {}
    for name in PRECISIONS:
        model = copy.deepcopy(start)
        with precision(name):
            classifier.fit(model, data, epochs=epochs, seed=seed + 1000, after_epoch=tick)
        results = classifier.outputs(model, data.test_x, draws=draws)
        found[name] = float(np.mean([classifier.accuracy(y, data.test_y) for y in results]))
    return found


def run(seeds: int, epochs: int, draws: int, images: int) -> dict[str, Any]:
    """Every figure: the settings, and for each recipe the accuracies of each seed by precision."""
    data = classifier.mnist5k()
    data = classifier.Data(
        data.name, data.title, data.train_x[:images], data.train_y[:images], data.test_x, data.test_y
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results = {}
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn()) as progress:
        total = seeds * (1 + len(PRECISIONS)) * epochs
        tasks = {recipe.name: progress.add_task(recipe.name, total=total) for recipe in RECIPES}
        for recipe in RECIPES:
            task = tasks[recipe.name]
            results[recipe.name] = [
                measure(recipe, data, seed, epochs, draws, lambda task=task: progress.advance(task))  # type: ignore[misc]
                for seed in range(seeds)
            ]
    return {
        "epochs": epochs,
        "draws": draws,
        "images": len(data.train_x),
        "tier": lumina_kernel.isa(),
        "versions": {"torch": torch.__version__.partition("+")[0], "lumina-onnx": lumina_onnx.__version__},
        "recipes": results,
    }


def summary(results: dict[str, Any]) -> list[dict[str, Any]]:
    """For each recipe and precision: the accuracy, the distance from "highest", and whether that is within error."""
    rows = []
    for name, seeds in results["recipes"].items():
        reference = Estimate.of([seed["highest"] for seed in seeds])
        for asked in PRECISIONS:
            rows.append(
                {
                    "recipe": name,
                    "precision": asked,
                    "accuracy": Estimate.of([seed[asked] for seed in seeds]),
                    "paired": Estimate.of([seed[asked] - seed["highest"] for seed in seeds]),
                    "within": abs(float(np.mean([seed[asked] for seed in seeds])) - reference.mean) <= reference.error,
                }
            )
    return rows


def section(results: dict[str, Any]) -> str:
    """The generated part of the page."""
    count = len(next(iter(results["recipes"].values())))
    lines = [
        wrapped(
            f"Test accuracy in per cent, mean ± standard error over {count} seeds, {results['draws']} draws of the "
            f"noise for each; {results['images']:,} images, {results['epochs']} epochs in float, then "
            f"{results['epochs']} with noise."
        ),
        "",
        '| model | precision | accuracy | difference from "highest", seed by seed | within a standard error |',
        "|---|---|---|---|---|",
    ]
    for row in summary(results):
        accuracy, paired = row["accuracy"], row["paired"]
        same = row["precision"] == "highest"
        cells = [row["recipe"], f'"{row["precision"]}"', f"{100 * accuracy.mean:.2f} ± {100 * accuracy.error:.2f}"]
        cells += ["", ""] if same else [_difference(paired), "yes" if row["within"] else "no"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Made with torch {results['versions']['torch']}, tier {results['tier']}."]
    return "\n".join(lines)


def _difference(paired: Estimate) -> str:
    if paired.mean == paired.error == 0:
        return "none: the same weights"
    return f"{100 * paired.mean:+.2f} ± {100 * paired.error:.2f}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measures whether gradients in fewer bits train as well.")
    parser.add_argument("--check", action="store_true", help="only compare the page with its figures")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=30, help="epochs of each training run")
    parser.add_argument("--draws", type=int, default=DRAWS, help="draws of the noise for each accuracy")
    parser.add_argument("--images", type=int, default=4000, help="number of training images")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder with precision.md")
    arguments = parser.parse_args()
    figures, page = arguments.docs / "precision.json", arguments.docs / "precision.md"
    text = page.read_text(encoding="utf-8")
    if arguments.check:
        results = json.loads(figures.read_text(encoding="utf-8"))
        if text != with_part(text, BEGIN, END, section(results)):
            sys.exit(f"{page.name} and {figures.name} disagree: run precision.py without --check")
        return
    results = run(arguments.seeds, arguments.epochs, arguments.draws, arguments.images)
    figures.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page.write_text(with_part(text, BEGIN, END, section(results)), encoding="utf-8")
    print(section(results))


if __name__ == "__main__":
    main()
