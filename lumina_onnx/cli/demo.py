"""`lumina demo`: train with the noise in the loop, export one .onnx, run it in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.table import Table

from lumina_onnx import OpticalProfile
from lumina_onnx._text import text
from lumina_onnx.cli import arrays, classifier, timing
from lumina_onnx.cli.classifier import Estimate
from lumina_onnx.cli.console import (
    Debug,
    Failure,
    Json,
    command,
    errors,
    need,
    output,
    progress,
    show,
    size_text,
    time_text,
)

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

EPILOG = "Example: lumina demo --output digits.onnx"

HARDWARE = OpticalProfile(input_bits=4, weight_bits=4, output_bits=4, noise_additive=0.1)
DRAWS = 20
SEED = 0


@dataclass(frozen=True)
class Result:
    """What the demo measured."""

    data: str
    images: int
    """Number of test images."""
    epochs: int
    float_accuracy: float
    naive: Estimate
    """Accuracy on the hardware, with the weights trained in float."""
    aware: Estimate
    """Accuracy on the hardware after noise-aware training, in ONNX Runtime."""
    path: str
    file_bytes: int
    float_bytes: int
    """Size of the weights in float32."""
    latency: dict[str, Any]
    """Latency of one image on one thread, in seconds."""
    onnxruntime: str
    compared: int
    """Numbers compared between PyTorch and ONNX Runtime."""
    different: int
    """How many of these differ in any bit."""

    @property
    def equal(self) -> bool:
        """Whether all bits were equal."""
        return self.compared > 0 and self.different == 0

    @property
    def won_back(self) -> float | None:
        """The fraction of the lost accuracy that noise-aware training won back; None where nothing was lost."""
        lost = self.float_accuracy - self.naive.mean
        return (self.aware.mean - self.naive.mean) / lost if lost > 0 else None


@command
def demo(
    target: Annotated[
        Path, typer.Option("--output", "-o", dir_okay=False, help="Where to write the trained model.")
    ] = Path("lumina-demo/digits.onnx"),
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs of each of the two training runs.")] = 60,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a digits classifier for noisy 4-bit optics, export it, and run it in ONNX Runtime.

    Takes well under two minutes. Exits with 1 if PyTorch and ONNX Runtime differ in a single bit.
    """
    if target.suffix != ".onnx":
        raise typer.BadParameter(f"{str(target)!r} does not end in .onnx", param_hint="'--output'")
    with errors().status("loading PyTorch"):
        need("demo", "torch", "onnx", "onnxscript", "sklearn", "onnxruntime")
    result = measure(target, epochs)
    facts = {**asdict(result), "won_back": result.won_back, "equal": result.equal}
    show(_table(result), facts, as_json)
    if not result.equal:
        raise Failure(
            f"PyTorch and ONNX Runtime differ in {result.different:,} of {result.compared:,} outputs: please report it "
            "with what lumina info prints"
        )
    if not as_json:
        _next_steps(target)


def measure(target: Path, epochs: int) -> Result:
    """Trains, exports to `target`, and measures."""
    import onnxruntime

    from lumina_onnx import exporter

    data = classifier.digits()
    plain, naive, aware = train(data, epochs)
    target.parent.mkdir(parents=True, exist_ok=True)
    exporter.export(aware, (data.test_x[:2],), target)

    x, labels = data.test_x, data.test_y
    pytorch = classifier.outputs(aware, x, DRAWS)
    onnx = onnx_outputs(target, x.numpy(), DRAWS)
    different = sum(int((p.view(np.uint32) != o.view(np.uint32)).sum()) for p, o in zip(pytorch, onnx, strict=True))
    return Result(
        data=data.title,
        images=len(x),
        epochs=epochs,
        float_accuracy=classifier.accuracy(classifier.outputs(plain, x)[0], labels),
        naive=Estimate.of([classifier.accuracy(y, labels) for y in classifier.outputs(naive, x, DRAWS)]),
        aware=Estimate.of([classifier.accuracy(y, labels) for y in onnx]),
        path=str(target),
        file_bytes=target.stat().st_size,
        float_bytes=sum(4 * parameter.numel() for parameter in plain.parameters()),
        latency=_latency(target, x[:1].numpy()),
        onnxruntime=onnxruntime.__version__,
        compared=sum(y.size for y in onnx),
        different=different,
    )


def train(data: classifier.Data, epochs: int) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    """Three models: trained in float; the same on the hardware; and that one trained further, with the noise on."""
    import torch

    from lumina_onnx import nn as optical

    plain = classifier.perceptron(data.pixels, SEED)
    with progress() as bar:
        _fit(plain, data, epochs, bar.add_task("training in float", total=epochs), bar.advance)
        naive = optical.convert(plain, HARDWARE, seed=SEED)
        optical.calibrate(naive, torch.split(data.train_x, 500), method="mse", progress=False)
        aware = optical.convert(naive, HARDWARE)
        _fit(aware, data, epochs, bar.add_task("training with the noise", total=epochs), bar.advance)
    return plain, naive, aware


def _fit(model: torch.nn.Module, data: classifier.Data, epochs: int, task: Any, advance: Callable[[Any], None]) -> None:
    classifier.fit(model, data, epochs=epochs, seed=SEED, after_epoch=lambda: advance(task))


def onnx_outputs(path: Path, x: NDArray[np.float32], draws: int) -> list[NDArray[np.float32]]:
    """The outputs of `draws` runs of one fresh session: run r draws the noise of stream r."""
    session = arrays.load_model(path)
    name = session.get_inputs()[0].name
    return [session.run(None, {name: x})[0] for _ in range(draws)]


def _latency(path: Path, x: NDArray[np.float32]) -> dict[str, Any]:
    session = arrays.load_model(path, 1)
    (latency,) = timing.measure([timing.Bound(session, {session.get_inputs()[0].name: x})])
    return latency


def _table(result: Result) -> Table:
    bits, noise = HARDWARE.input_bits, HARDWARE.noise_additive
    table = Table(
        "",
        "",
        title=f"{result.data}: {result.images} images that training never saw",
        title_justify="left",
        show_header=False,
    )
    won = result.won_back
    table.add_row("[bold]Accuracy[/]", "")
    table.add_row("  in float, on a digital computer", f"{result.float_accuracy:.1%}".replace("%", " %"))
    table.add_row(f"  on noisy {bits}-bit optics, as it is", result.naive.percent())
    table.add_row(f"  on noisy {bits}-bit optics, after noise-aware training", result.aware.percent())
    if won is not None:
        table.add_row("  won back, of what the optics cost", f"{won:.0%}".replace("%", " %"), end_section=True)
    table.add_row(f"[bold]The file[/], in ONNX Runtime {result.onnxruntime}", "")
    table.add_row("  model", text(result.path))
    table.add_row("  size", f"{size_text(result.file_bytes)} ({size_text(result.float_bytes)} of weights in float)")
    table.add_row(
        "  latency of one image, one thread",
        f"{time_text(result.latency['p50'])} (median), {time_text(result.latency['p99'])} (99 of 100 runs)",
    )
    verdict = (
        "[green]equal bit for bit[/], noise on"
        if result.equal
        else f"[red]DIFFERENT[/] in {result.different:,} outputs"
    )
    table.add_row("  its outputs and PyTorch's", f"{verdict} ({result.compared:,} numbers)")
    table.caption = (
        f"optics: {bits}-bit inputs, weights and outputs with fixed full scales; at each output noise of {noise:.0%} "
        f"of full scale. ±: standard error over {result.aware.count} draws of the noise."
    ).replace("%", " %")
    table.caption_justify = "left"
    return table


def _next_steps(path: Path) -> None:
    lines = (
        ("lumina inspect", "what the file holds"),
        ("lumina verify", "its layers against the reference, bit for bit"),
        ("lumina bench", "latency with the library, without it, and in float32"),
        ("lumina run", "its outputs for an input of yours: --input x.npy"),
    )
    grid = Table.grid(padding=(0, 2))
    for name, meaning in lines:
        grid.add_row(text(f"  {name} {path}", style="bold"), meaning)
    grid.add_row(text("  lumina profiles", style="bold"), "hardware that has been published")
    console = output()
    console.print("\nWhat to try next:")
    console.print(grid)
