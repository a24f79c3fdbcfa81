"""What the recipes share: train in float, calibrate, train with the noise, export, verify, and write the models' cards.

A recipe runs from the checkout. `--check` tells whether models/ holds what the cards state. `--body` trains nothing; it
gives the existing files the current function body, with which they run without the operator's library.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from rich.progress import Progress

import lumina_onnx
from lumina_onnx import OpticalProfile, exporter
from lumina_onnx import nn as optical
from lumina_onnx.cli import classifier
from lumina_onnx.cli.classifier import Estimate
from lumina_onnx.exporter import body
from lumina_onnx.exporter.passes import run
from lumina_onnx.exporter.passes.silence_noise import SilenceNoise

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "measurements"
MODELS = ROOT / "models"
LARGE = MODELS / "large"
"""Files that are too large for the repository."""
CARDS = MODELS / "README.md"
MEASURED = ("minilm", "ocr")
"""Recipes that write into `LARGE`; their cards show figures from their pages of measurements."""
DRAWS = 20
METADATA = "lumina.recipe."
HEAD = """# Models

Small classifiers of handwritten digits for optical hardware, trained with its noise in the loop. Each file runs in
plain ONNX Runtime; with the operator's library it is faster, and its noise repeats:

```python
import numpy as np

import lumina_onnx

images = np.random.default_rng(0).random((3, 64), dtype=np.float32)
session = lumina_onnx.load("models/digits-4bit.onnx")
logits = session.run(None, {session.get_inputs()[0].name: images})[0]
```

Inputs are float32 `[batch, pixels]` in 0..1, outputs one number per digit. Every accuracy below is that of the file
itself in ONNX Runtime on the test images, except the one in float, which was measured in training. The noise is in the
file: each run draws its own. The recipes write this page (`python export/NAME.py`), and `--check` compares it with the
files. At its end are [recipes for larger models](#larger-models), whose files are not in the repository.
"""
LARGER = """## Larger models

These recipes take published models, and their files are too large for the repository: a recipe writes them into
`models/large/`. Its packages are installed with

```sh
pip install '.[recipes]'
```

after PyTorch, of which the [CPU build](../README.md#install) is all that is needed. The packages hold the models, and a
recipe downloads nothing.
"""
Results = dict[str, Any]
"""What a page of measurements shows, as it is in the JSON file beside it."""


@dataclass(frozen=True)
class Recipe:
    """How one file of models/ is made."""

    name: str
    """The file's name, without .onnx."""
    data: str
    """A key of `classifier.DATA`."""
    profile: OpticalProfile
    """Bits and noise; the full scales come from calibration."""
    epochs: int = 30
    """Epochs of each of the two training runs."""
    seed: int = 0


def main(script: str, recipes: Sequence[Recipe]) -> None:
    """The command line of a recipe: makes its models and the cards, or checks them."""
    parser = argparse.ArgumentParser(description=f"Makes {', '.join(recipe.name for recipe in recipes)} in models/.")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--check", action="store_true", help="only compare models/ with its cards")
    only.add_argument("--body", action="store_true", help="only replace the files' function body with the current one")
    arguments = parser.parse_args()
    if not arguments.check:
        for recipe in recipes:
            path = MODELS / f"{recipe.name}.onnx"
            if arguments.body:
                renew_body(path)
            else:
                make(recipe, Path(script).name, path)
        CARDS.write_text(page(), encoding="utf-8")
        print(f"wrote {CARDS}")
    elif CARDS.read_text(encoding="utf-8") != page():
        sys.exit(f"{CARDS.name} does not state what the files are: run {Path(script).name} without --check")


def make(recipe: Recipe, script: str, path: Path) -> None:
    """Trains, exports to `path` and verifies.

    Raises:
        RuntimeError: ONNX Runtime, the reference and PyTorch disagree in some bit.
    """
    data = classifier.DATA[recipe.data]()
    plain = classifier.perceptron(data.pixels, recipe.seed)
    with Progress() as progress:
        task = progress.add_task(recipe.name, total=2 * recipe.epochs)

        def fit(model: torch.nn.Module) -> None:
            classifier.fit(
                model, data, epochs=recipe.epochs, seed=recipe.seed, after_epoch=lambda: progress.advance(task)
            )

        fit(plain)
        model = optical.convert(plain, recipe.profile, seed=recipe.seed)
        ranges = optical.calibrate(model, data.train_x.split(500), method="mse", progress=False)
        fit(model)
    print(ranges)
    print(exporter.export(model, (data.test_x[:2],), path))
    _state(
        path,
        script=script,
        data=recipe.data,
        float_accuracy=repr(classifier.accuracy(classifier.outputs(plain, data.test_x)[0], data.test_y)),
        trained_with=f"torch {torch.__version__.partition('+')[0]}, lumina-onnx {lumina_onnx.__version__}",
    )
    report = exporter.verify(path, inputs=[data.test_x[:50].numpy()], reference=model)
    print(report)
    if not report.ok:
        raise RuntimeError(f"{path} does not verify")


def renew_body(path: Path) -> None:
    """Gives a file the current function body. The rest of the file stays, and so do its results with the library."""
    model = onnx.load(path)
    (function,) = model.functions
    (opset,) = (entry.version for entry in model.opset_import if not entry.domain)
    function.CopyFrom(body.function(opset))
    onnx.save(model, path)


def _state(path: Path, **facts: str) -> None:
    """Stores in the file's metadata what is known only during training."""
    model = onnx.load(path)
    for key, value in facts.items():
        model.metadata_props.add(key=METADATA + key, value=value)
    onnx.save(model, path)


def page() -> str:
    """What models/README.md should be, from the files in models/ and the measurements of the larger models."""
    larger = [
        table(f"### {title}", rows)
        for recipe in map(importlib.import_module, MEASURED)
        for title, rows in recipe.cards(recipe.PAGE.figures()).items()
    ]
    return "\n".join([HEAD, *map(card, sorted(MODELS.glob("*.onnx"))), LARGER, *larger])


def table(heading: str, rows: Mapping[str, str]) -> str:
    """A card: its heading and its rows."""
    return "\n".join([heading, "", "| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items()), ""])


def card(path: Path) -> str:
    """A model's card; everything in it is read from the file or measured with it."""
    facts = {
        entry.key.removeprefix(METADATA): entry.value
        for entry in onnx.load(path).metadata_props
        if entry.key.startswith(METADATA)
    }
    data = classifier.DATA[facts["data"]]()
    layers = exporter.inspect(path).layers
    noisy, quiet = accuracies(path, data)
    sizes = [layers[0].in_features, *(layer.out_features for layer in layers)]
    content = path.read_bytes()
    rows = {
        "recipe": f"`python export/{facts['script']}`, {facts['trained_with']}",
        "data": f"{data.title}: {len(data.train_x):,} to train, {len(data.test_x):,} to test",
        "network": f"{'-'.join(map(str, sizes))}, ReLU between the layers",
        "optics": f"bits of input/weight/output {layers[0].bits}, fixed full scales; noise: {layers[0].noise}",
        "accuracy in float": Estimate(float(facts["float_accuracy"]), 0.0, 1).percent(),
        "accuracy quantised, without noise": quiet.percent(),
        f"accuracy quantised, with noise ({noisy.count} draws, ± standard error)": noisy.percent(),
        "size": f"{len(content):,} bytes (weights in float32: {sum(layer.float_bytes for layer in layers):,})",
        "sha256": f"`{hashlib.sha256(content).hexdigest()}`",
    }
    return table(f"## {path.name}", rows)


@dataclass(frozen=True)
class Page:
    """A page of docs/measurements, NAME.md, with a part that export/NAME.py writes from the figures in NAME.json."""

    name: str
    section: Callable[[Results], str]
    """The generated part."""
    plot: Callable[[Results, Path], None] | None = None
    """Draws NAME.png."""

    @property
    def begin(self) -> str:
        """The line before the generated part."""
        return f"<!-- begin: results, written by export/{self.name}.py -->"

    end = "<!-- end: results -->"

    def figures(self, folder: Path = DOCS) -> Results:
        """The figures that were kept."""
        return json.loads((folder / f"{self.name}.json").read_text(encoding="utf-8"))

    def keep(self, results: Results, folder: Path = DOCS) -> None:
        """Writes the figures."""
        (folder / f"{self.name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    def render(self, folder: Path = DOCS) -> None:
        """Writes the page and the plot from the figures, and prints the generated part."""
        results = self.figures(folder)
        (folder / f"{self.name}.md").write_text(self._text(results, folder), encoding="utf-8")
        if self.plot:
            self.plot(results, folder / f"{self.name}.png")
        print(self.section(results))

    def check(self, folder: Path = DOCS) -> None:
        """Ends the program with a message if page and figures disagree."""
        if (folder / f"{self.name}.md").read_text(encoding="utf-8") != self._text(self.figures(folder), folder):
            sys.exit(f"{self.name}.md and {self.name}.json disagree: run {self.name}.py without --check")

    def _text(self, results: Results, folder: Path) -> str:
        page = (folder / f"{self.name}.md").read_text(encoding="utf-8")
        return with_part(page, self.begin, self.end, self.section(results))


def command(page_of: Page, run: Callable[[Path], Results], description: str) -> None:
    """The command line of a recipe in `MEASURED`: measures and writes its page, or checks it."""
    parser = argparse.ArgumentParser(description=description)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--check", action="store_true", help="only compare the page with its figures")
    only.add_argument("--render", action="store_true", help="write page, plot and cards from the figures alone")
    arguments = parser.parse_args()
    if arguments.check:
        page_of.check()
        return
    if not arguments.render:
        LARGE.mkdir(exist_ok=True)
        page_of.keep(run(LARGE))
    page_of.render()
    CARDS.write_text(page(), encoding="utf-8")


def with_part(text: str, begin: str, end: str, part: str) -> str:
    """The page `text` with `part` between its marks `begin` and `end`.

    Raises:
        ValueError: the page lacks the marks.
    """
    before, mark, rest = text.partition(begin)
    _, closing, after = rest.partition(end)
    if not (mark and closing):
        raise ValueError(f"the page lacks the marks {begin!r} and {end!r}")
    return f"{before}{begin}\n\n{part}\n\n{end}{after}"


def wrapped(text: str) -> str:
    """A paragraph wrapped to the width of the pages."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def accuracies(path: Path, data: classifier.Data) -> tuple[Estimate, Estimate]:
    """Accuracy on the test images in ONNX Runtime, with the file's noise and with the noise removed."""
    noisy = onnx.load(path)
    quiet, _ = run(ir.from_proto(noisy), SilenceNoise())
    return _accuracy(noisy, data, DRAWS), _accuracy(ir.to_proto(quiet), data, 1)


def _accuracy(model: onnx.ModelProto, data: classifier.Data, draws: int) -> Estimate:
    session = lumina_onnx.load(model.SerializeToString())
    feeds = {session.get_inputs()[0].name: data.test_x.numpy()}
    return Estimate.of([classifier.accuracy(session.run(None, feeds)[0], data.test_y) for _ in range(draws)])
