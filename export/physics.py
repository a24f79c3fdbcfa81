"""How much accuracy noise-aware training wins back: test accuracy over seeds on both data sets.

Writes docs/measurements/physics.json (every figure), physics.png, and the generated part of physics.md. `--check` tells
whether that part and the figures agree; `--render` rewrites it and the plot. Neither trains anything.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import DOCS, Page, wrapped
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import lumina_onnx
from lumina_onnx import OpticalProfile
from lumina_onnx import nn as optical
from lumina_onnx.cli import classifier
from lumina_onnx.cli.classifier import Estimate

BITS = 4
NOISES = (0.05, 0.10)
METHODS = {"max": "maximum", "mse": "least error"}
"""The calibration methods for full scales, with their names on the page."""
SERIES = ("naive", "longer", "aware")


def measure(data: classifier.Data, seed: int, epochs: int, draws: int, tick: Callable[[], object]) -> dict[str, Any]:
    """Accuracies of one seed: {"float", "float_longer", "hardware": [{method, noise, clean, naive, longer, aware}]}.

    naive: trained in float. longer: trained in float for as many epochs as "aware" in total. aware: trained in float,
    calibrated, then trained with the noise; it keeps the full scales of the float model. clean: naive, noise off.
    """
    x, labels = data.test_x, data.test_y

    def mean(model: torch.nn.Module, **options: Any) -> float:
        results = classifier.outputs(model, x, **options)
        return float(np.mean([classifier.accuracy(y, labels) for y in results]))

    def calibrated(model: torch.nn.Module, profile: OpticalProfile, method: Any) -> torch.nn.Module:
        converted = optical.convert(model, profile, seed=seed)
        optical.calibrate(converted, data.train_x.split(500), method=method, progress=False)
        return converted

    plain = classifier.perceptron(data.pixels, seed)
    classifier.fit(plain, data, epochs=epochs, seed=seed, after_epoch=tick)
    longer = classifier.perceptron(data.pixels, seed)
    longer.load_state_dict(plain.state_dict())
    classifier.fit(longer, data, epochs=epochs, seed=seed + 1000, after_epoch=tick)
    hardware = []
    for method in METHODS:
        for noise in NOISES:
            profile = OpticalProfile(BITS, BITS, BITS, noise_additive=noise)
            naive = calibrated(plain, profile, method)
            row = {
                "method": method,
                "noise": noise,
                "clean": mean(naive, noise=False),
                "naive": mean(naive, draws=draws),
                "longer": mean(calibrated(longer, profile, method), draws=draws),
            }
            classifier.fit(naive, data, epochs=epochs, seed=seed + 1000, after_epoch=tick)
            hardware.append({**row, "aware": mean(naive, draws=draws)})
    return {"float": mean(plain), "float_longer": mean(longer), "hardware": hardware}


def run(names: Sequence[str], seeds: int, epochs: int, draws: int) -> dict[str, Any]:
    """Every figure: the settings, and for each data set the accuracies of each seed."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results: dict[str, Any] = {}
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn()) as progress:
        trainings = 2 + len(METHODS) * len(NOISES)
        tasks = {name: progress.add_task(name, total=seeds * trainings * epochs) for name in names}
        for name, task in tasks.items():
            data = classifier.DATA[name]()
            results[name] = {
                "title": data.title,
                "train": len(data.train_x),
                "test": len(data.test_x),
                "seeds": [
                    measure(data, seed, epochs, draws, lambda task=task: progress.advance(task))  # type: ignore[misc]
                    for seed in range(seeds)
                ],
            }
    return {
        "bits": BITS,
        "epochs": epochs,
        "draws": draws,
        "versions": {"torch": torch.__version__.partition("+")[0], "lumina-onnx": lumina_onnx.__version__},
        "data": results,
    }


def summary(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Means and standard errors over the seeds, one row for each data set, calibration and noise."""
    rows = []
    for name, data in results["data"].items():
        seeds = data["seeds"]
        reference = [seed["float"] for seed in seeds]
        for position, setting in enumerate(seeds[0]["hardware"]):
            series = {key: [seed["hardware"][position][key] for seed in seeds] for key in ("clean", *SERIES)}
            means = {key: float(np.mean(values)) for key, values in series.items()}
            longer = [seed["float_longer"] for seed in seeds]
            rows.append(
                {
                    "data": name,
                    "method": setting["method"],
                    "noise": setting["noise"],
                    "float": Estimate.of(reference),
                    "float_longer": Estimate.of(longer),
                    **{key: Estimate.of(values) for key, values in series.items()},
                    "won": _won(float(np.mean(reference)), means["naive"], means["aware"]),
                    "won_longer": _won(float(np.mean(longer)), means["longer"], means["aware"]),
                }
            )
    return rows


def _won(reference: float, before: float, after: float) -> float | None:
    """The fraction of the accuracy lost on the hardware that was won back; None if none was lost."""
    return (after - before) / (reference - before) if reference > before else None


def section(results: dict[str, Any]) -> str:
    """The generated part of the page."""
    rows = summary(results)
    count = len(next(iter(results["data"].values()))["seeds"])
    lines = [
        wrapped(
            f"Test accuracy in per cent, mean ± standard error over {count} seeds (each seed: another initialisation, "
            f"order of batches and noise; {results['draws']} draws of the noise for each accuracy). "
            f"{results['epochs']} epochs in float, then {results['epochs']} more where a column says so."
        ),
        "",
        "| data | full scales | noise | float | float, twice as long | 4 bits, no noise | on the hardware, trained in "
        "float | ... in float, twice as long | ... noise-aware | won back | ... against twice as long |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["data"], METHODS[row["method"]], f"{100 * row['noise']:g} %"]
        cells += [_cell(row[key]) for key in ("float", "float_longer", "clean", *SERIES)]
        cells += ["-" if row[key] is None else f"{100 * row[key]:.0f} %" for key in ("won", "won_longer")]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Made with torch {results['versions']['torch']}."]
    return "\n".join(lines)


def _cell(estimate: Estimate) -> str:
    return f"{100 * estimate.mean:.1f} ± {100 * estimate.error:.1f}"


def plot(results: dict[str, Any], path: Path) -> None:
    """Plots the three training runs on the hardware and a line for float, in one panel for each data set."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = summary(results)
    names = list(results["data"])
    figure, axes = plt.subplots(1, len(names), figsize=(5.2 * len(names), 3.8), sharey=True, squeeze=False)
    labels = ("trained in float", "in float, twice as long", "noise-aware")
    for axis, name in zip(axes[0], names, strict=True):
        mine = [row for row in rows if row["data"] == name]
        for offset, (key, label, colour) in enumerate(
            zip(SERIES, labels, ("#8c96a8", "#3f5f8f", "#d9822b"), strict=True)
        ):
            axis.errorbar(
                np.arange(len(mine)) + 0.15 * (offset - 1),
                [100 * row[key].mean for row in mine],
                yerr=[100 * row[key].error for row in mine],
                fmt="o",
                capsize=3,
                label=label,
                color=colour,
            )
        axis.axhline(
            100 * mine[0]["float"].mean, color="black", linewidth=1, linestyle="--", label="float, no hardware"
        )
        ticks = [f"{METHODS[row['method']]}\n{row['noise']:.0%} noise" for row in mine]
        axis.set_xticks(np.arange(len(mine)), ticks, fontsize=8)
        axis.set_title(name)
        axis.grid(axis="y", linewidth=0.4)
    axes[0][0].set_ylabel("test accuracy, %")
    handles, texts = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, texts, fontsize=8, loc="lower center", ncols=4)
    figure.suptitle(
        f"{results['bits']}-bit hardware with additive noise, by calibration of the full scales", fontsize=10
    )
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    # Without date and version the same figures give the same file.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


PAGE = Page("physics", section, plot)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measures what noise-aware training wins back.")
    parser.add_argument("--check", action="store_true", help="only compare the page with its figures")
    parser.add_argument("--render", action="store_true", help="write page and plot from the figures; trains nothing")
    parser.add_argument("--data", nargs="+", choices=list(classifier.DATA), default=list(classifier.DATA))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30, help="epochs of each training run")
    parser.add_argument("--draws", type=int, default=10, help="draws of the noise for each accuracy")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder with physics.md")
    arguments = parser.parse_args()
    if arguments.check:
        PAGE.check(arguments.docs)
        return
    if not arguments.render:
        PAGE.keep(run(arguments.data, arguments.seeds, arguments.epochs, arguments.draws), arguments.docs)
    PAGE.render(arguments.docs)


if __name__ == "__main__":
    main()
