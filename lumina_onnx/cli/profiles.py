"""`lumina profiles`: the presets of optical hardware."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.table import Column, Table

from lumina_onnx import OpticalProfile
from lumina_onnx._text import bits_text, noise_text, text
from lumina_onnx.cli.console import Debug, Json, command, show
from lumina_onnx.profile import Preset

EPILOG = "Example: lumina profiles pace"


@command
def profiles(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One preset in full.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the presets of optical hardware, with their sources; or show one in full."""
    presets = OpticalProfile.presets()
    if name is not None and name not in presets:
        raise typer.BadParameter(f"{name!r}: allowed is {', '.join(presets)}", param_hint="'NAME'")
    if name is not None:
        show(_page(presets[name]), _facts(presets[name]), as_json)
        return
    table = Table(Column("name", no_wrap=True), "hardware", "bits in/w/out", "noise", "grade", "source")
    for preset in presets.values():
        source = preset.source
        table.add_row(
            text(preset.name),
            text(preset.title),
            bits_text(preset.profile),
            noise_text(preset.profile),
            preset.grade,
            text(f"{source.authors.split(',')[0]}, {source.venue}, {source.year}" if source else "-"),
        )
    table.caption = (
        "bits: - = analog or absent. grade: A = read in the paper or its code, B = second-hand, C = from memory, "
        "design = a target."
    )
    show(table, {"profiles": [_facts(preset) for preset in presets.values()]}, as_json)


def _facts(preset: Preset) -> dict[str, Any]:
    facts = dataclasses.asdict(preset)
    return {**facts, "profile": json.loads(preset.profile.to_json()), "not_modelled": list(preset.not_modelled)}


def _page(preset: Preset) -> Group:
    grid = Table.grid(padding=(0, 2))
    for name, value in (
        ("published", preset.published),
        ("derivation", preset.derivation),
        ("not modelled", "; ".join(preset.not_modelled) or "-"),
        ("source", f"{preset.source or '-'} (grade {preset.grade})"),
        ("in Python", f'OpticalProfile.preset("{preset.name}")'),
    ):
        grid.add_row(text(name), text(value))
    return Group(text(preset.title, style="bold"), grid, text(*preset.profile.to_json().splitlines()))
