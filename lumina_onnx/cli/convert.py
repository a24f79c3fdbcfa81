"""`lumina convert`: makes the linear layers of an existing .onnx file optical."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from lumina_onnx import OpticalProfile
from lumina_onnx._text import text
from lumina_onnx.cli import arrays
from lumina_onnx.cli.console import Debug, Failure, Json, Model, command, errors, need, progress, show

EPILOG = "Example: lumina convert model.onnx optical.onnx --profile edge --calibrate x.npy --skip '*head*'"

METHODS = ("max", "percentile", "mse")


@command
def convert(
    model: Model,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The .onnx file to write.", dir_okay=False)],
    profile: Annotated[
        str, typer.Option("--profile", "-p", help="The hardware: a preset (see lumina profiles), or a .json file.")
    ],
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            "--calibrate",
            "-c",
            exists=True,
            dir_okay=False,
            help="Inputs that set static full scales: a .npz or .npy for each batch; may be repeated.",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help=f"How full scales are found: {', '.join(METHODS)}.")
    ] = METHODS[0],
    percentile: Annotated[
        float, typer.Option("--percentile", help="Percentage of values within the range, for --method percentile.")
    ] = 99.9,
    per_output: Annotated[
        bool, typer.Option("--per-output/--per-layer", help="Whether each output gets an ADC full scale of its own.")
    ] = False,
    skip: Annotated[
        list[str] | None, typer.Option("--skip", help="Layers not to convert, by name: *, ?, [...]; may be repeated.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--override", help="PATTERN=PROFILE: other hardware for some layers; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of the noise.")] = 0,
    fallback: Annotated[
        bool,
        typer.Option("--fallback/--no-fallback", help="Whether the file also runs without the operator's library."),
    ] = True,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn the linear layers of an existing .onnx file into optical ones.

    lumina_onnx.nn.convert does the same to a PyTorch model, which can then be trained with the noise in the loop and
    exported. That wins back most of the accuracy.
    """
    hardware = _profile(profile, "--profile")
    others = {}
    for entry in overrides or ():
        pattern, equals, name = entry.rpartition("=")
        if not equals:
            raise typer.BadParameter(f"{entry!r}: allowed is PATTERN=PROFILE", param_hint="'--override'")
        others[pattern] = _profile(name, "--override")
    if method not in METHODS:
        raise typer.BadParameter(f"{method!r}: allowed is {', '.join(METHODS)}", param_hint="'--method'")
    need("train", "onnx", "onnx_ir", "onnxscript", "onnxruntime")
    from lumina_onnx import exporter

    report = exporter.rewrite(
        model,
        target,
        hardware,
        calibration=_batches(model, calibration) if calibration else None,
        method=method,  # type: ignore[arg-type]
        percentile=percentile,
        per_output=per_output,
        skip=skip or (),
        overrides=others,
        seed=seed,
        fallback=fallback,
    )
    show(report, report.to_dict(), as_json)


def _batches(model: Path, files: list[Path]) -> Iterator[dict[str, Any]]:
    from lumina_onnx import exporter

    names = list(exporter.inspect(model).inputs)
    with progress() as bar:
        for file in bar.track(files, description="calibrate"):
            batch = arrays.read(file, names)
            if set(batch) != set(names):
                held, wanted = (", ".join(map(repr, each)) for each in (batch, names))
                raise Failure(f"{file}: holds {held}; the model's inputs are {wanted}")
            yield batch


def _profile(name: str, option: str) -> OpticalProfile:
    """A preset, or the profile in a .json file. Effects that a preset does not model are listed on stderr."""
    if name.endswith(".json"):
        try:
            return OpticalProfile.from_json(Path(name).read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise typer.BadParameter(f"{name}: {error}", param_hint=repr(option)) from error
    presets = OpticalProfile.presets()
    if name not in presets:
        raise typer.BadParameter(
            f"{name!r}: allowed is the name of a .json file, or {', '.join(presets)}", param_hint=repr(option)
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        profile = OpticalProfile.preset(name)
    for warning in caught:
        errors().print(text(f"note: {warning.message}"), soft_wrap=True)
    return profile
