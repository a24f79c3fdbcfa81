"""The `lumina` application: all commands together."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import lumina_onnx
from lumina_onnx.cli import bench, convert, demo, info, models, profiles, sweep
from lumina_onnx.cli.process import ended_by_signals, guard_terminal

EPILOG = """
Examples:

  lumina demo                       a first model: train, export, run

  lumina convert model.onnx optical.onnx --profile edge

  lumina inspect model.onnx         what a file holds

  lumina verify model.onnx          its results against the reference

  lumina run model.onnx --input x.npy --output y.npz

  lumina sweep model.onnx --data test.npz --grid noise_additive=0,0.05,0.1 --seeds 20 --plot noise.png

  lumina bench model.onnx           latency in ONNX Runtime, against float32

  lumina info --json                what a bug report needs
"""

app = typer.Typer(
    name="lumina",
    help="Optical linear layers, noise and all: trained in PyTorch, run in ONNX Runtime.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    # --debug shows Python's own traceback, which is what a bug report needs.
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"lumina {lumina_onnx.__version__}\n")
        raise typer.Exit


@app.callback()
def _lumina(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command(epilog=demo.EPILOG)(demo.demo)
app.command(epilog=convert.EPILOG)(convert.convert)
app.command(epilog=models.INSPECT_EPILOG)(models.inspect)
app.command(epilog=models.VERIFY_EPILOG)(models.verify)
app.command(epilog=models.RUN_EPILOG)(models.run)
app.command(epilog=sweep.EPILOG)(sweep.sweep)
app.command(epilog=bench.EPILOG)(bench.bench)
app.command(epilog=profiles.EPILOG)(profiles.profiles)
app.command(epilog=info.EPILOG)(info.info)


def main() -> None:
    """The `lumina` command. Exits with 0, 1 (failed) or 2 (wrong usage); a signal ends it too."""
    guard_terminal()
    with ended_by_signals():
        app(prog_name="lumina")
