"""Whether gradients in fewer bits train as well as in float32: test accuracy over seeds at each precision.

Writes docs/measurements/precision.json (every figure) and the generated part of precision.md. `--resume` keeps the
figures of a run that was stopped, and `--check` trains nothing and tells whether page and figures agree.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import DOCS, DRAWS, Page, Recipe, wrapped
from _networks import mixer, vision_transformer
from mnist5k import RECIPES
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import lumina_kernel
import lumina_onnx
from lumina_onnx import nn as optical
from lumina_onnx.cli import classifier
from lumina_onnx.cli.classifier import Estimate

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


Tick = Callable[[], object]
"""Called after each epoch."""


@dataclass(frozen=True)
class Training:
    """What is trained once at each precision."""

    name: str
    epochs: int
    start: Callable[[classifier.Data, int, int, Tick], torch.nn.Module]
    """The optical model that training at each precision starts from: of the data, the seed and the epochs."""
    before: int = 0
    """How often `start` trains for as many epochs."""


def pretrained(recipe: Recipe, data: classifier.Data, seed: int, epochs: int, tick: Tick) -> torch.nn.Module:
    """A perceptron trained in float, then calibrated."""
    plain = classifier.perceptron(data.pixels, seed)
    classifier.fit(plain, data, epochs=epochs, seed=seed, after_epoch=tick)
    model = optical.convert(plain, recipe.profile, seed=seed)
    optical.calibrate(model, data.train_x.split(500), method="mse", progress=False)
    return model


def untrained(
    network: Callable[[int], torch.nn.Module], data: classifier.Data, seed: int, epochs: int, tick: Tick
) -> torch.nn.Module:
    """`network` as it is initialised, with 8 bits, noise and dynamic ranges."""
    return optical.convert(network(seed), RECIPES[0].profile, seed=seed)


TRAININGS = (
    *(Training(recipe.name, recipe.epochs, partial(pretrained, recipe), before=1) for recipe in RECIPES),
    Training("vit-8bit", 16, partial(untrained, vision_transformer)),
    Training("mixer-8bit", 16, partial(untrained, mixer)),
)


def measure(
    training: Training, data: classifier.Data, seed: int, epochs: int, draws: int, tick: Tick
) -> dict[str, float]:
    """Accuracies of one seed by precision, each trained from the same start with the same batches and noise."""
    start = training.start(data, seed, epochs, tick)
    found = {}
    for name in PRECISIONS:
        model = copy.deepcopy(start)
        with precision(name):
            classifier.fit(model, data, epochs=epochs, seed=seed + 1000, after_epoch=tick)
        results = classifier.outputs(model, data.test_x, draws=draws)
        found[name] = float(np.mean([classifier.accuracy(y, data.test_y) for y in results]))
    return found


def settings(data: classifier.Data, epochs: int | None, draws: int) -> dict[str, Any]:
    """How the figures are measured; `run` adds the accuracies of each seed by precision, for each training."""
    return {
        "epochs": {training.name: epochs or training.epochs for training in TRAININGS},
        "draws": draws,
        "images": len(data.train_x),
        "tier": lumina_kernel.isa(),
        "versions": {"torch": torch.__version__.partition("+")[0], "lumina-onnx": lumina_onnx.__version__},
        "trainings": {training.name: [] for training in TRAININGS},
    }


def run(data: classifier.Data, results: dict[str, Any], seeds: int, keep: Callable[[], object]) -> None:
    """Adds the seeds that `results` lacks, and calls `keep` after each."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn()) as progress:
        tasks = []
        for training in TRAININGS:
            epochs, found = results["epochs"][training.name], results["trainings"][training.name]
            left = range(len(found), seeds)
            total = len(left) * epochs * (training.before + len(PRECISIONS))
            tasks.append((training, epochs, found, left, progress.add_task(training.name, total=total)))
        for training, epochs, found, left, task in tasks:
            for seed in left:
                tick = partial(progress.advance, task)
                found.append(measure(training, data, seed, epochs, results["draws"], tick))
                keep()


def summary(results: dict[str, Any]) -> list[dict[str, Any]]:
    """For each training and precision: the accuracy, the distance from "highest", and whether that is within error."""
    rows = []
    for name, seeds in results["trainings"].items():
        reference = Estimate.of([seed["highest"] for seed in seeds])
        for asked in PRECISIONS:
            rows.append(
                {
                    "training": name,
                    "precision": asked,
                    "accuracy": Estimate.of([seed[asked] for seed in seeds]),
                    "paired": Estimate.of([seed[asked] - seed["highest"] for seed in seeds]),
                    "within": abs(float(np.mean([seed[asked] for seed in seeds])) - reference.mean) <= reference.error,
                }
            )
    return rows


def section(results: dict[str, Any]) -> str:
    """The generated part of the page."""
    count = len(next(iter(results["trainings"].values())))
    lines = [
        wrapped(
            f"Test accuracy in per cent, mean ± standard error over {count} seeds, {results['draws']} draws of the "
            f"noise for each; {results['images']:,} images."
        ),
        "",
        '| training | epochs | precision | accuracy | difference from "highest", seed by seed '
        "| within a standard error |",
        "|---|---|---|---|---|---|",
    ]
    for row in summary(results):
        accuracy, paired = row["accuracy"], row["paired"]
        same = row["precision"] == "highest"
        cells = [row["training"], str(results["epochs"][row["training"]]), f'"{row["precision"]}"']
        cells += [f"{100 * accuracy.mean:.2f} ± {100 * accuracy.error:.2f}"]
        cells += ["", ""] if same else [_difference(paired), "yes" if row["within"] else "no"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Made with torch {results['versions']['torch']}, tier {results['tier']}."]
    return "\n".join(lines)


def _difference(paired: Estimate) -> str:
    if paired.mean == paired.error == 0:
        return "none: the same weights"
    return f"{100 * paired.mean:+.2f} ± {100 * paired.error:.2f}"


PAGE = Page("precision", section)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measures whether gradients in fewer bits train as well.")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--check", action="store_true", help="only compare the page with its figures")
    only.add_argument("--resume", action="store_true", help="keep the seeds in precision.json, and measure the others")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--epochs", type=int, help="epochs of each training run, in place of its own")
    parser.add_argument("--draws", type=int, default=DRAWS, help="draws of the noise for each accuracy")
    parser.add_argument("--images", type=int, default=4000, help="number of training images")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder with precision.md")
    arguments = parser.parse_args()
    if arguments.check:
        PAGE.check(arguments.docs)
        return
    full, images = classifier.mnist5k(), arguments.images
    data = replace(full, train_x=full.train_x[:images], train_y=full.train_y[:images])
    results = settings(data, arguments.epochs, arguments.draws)
    if arguments.resume:
        kept = PAGE.figures(arguments.docs)
        differing = [key for key in results if key != "trainings" and kept.get(key) != results[key]]
        if differing:
            sys.exit(f"{PAGE.name}.json was measured with other {', '.join(differing)}: run without --resume")
        results["trainings"].update(kept["trainings"])
    run(data, results, arguments.seeds, lambda: PAGE.keep(results, arguments.docs))
    PAGE.render(arguments.docs)


if __name__ == "__main__":
    main()
