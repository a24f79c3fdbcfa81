"""Writes the generated parts of docs/ and both READMEs, or with --check names the files that are out of date.

The operator's table of parameters comes from the kernel, the page of profiles from the presets, the page of commands
from the command line itself, the pages of measurements from the rows beside them, and the address of the repository
from pyproject.toml. From the page of boards come also the cycles in lumina_onnx/cli/boards.json. `--plots` redraws the
plots of measurements as well.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from hooks import address
from rich.text import Text

from lumina_onnx import OpticalProfile
from lumina_onnx.cli import app
from lumina_onnx.profile import Preset
from lumina_onnx.schema import PARAMETERS, Parameter

ROOT = Path(__file__).parents[1]
MEASUREMENTS = Path("docs/measurements")
#: The kind of page for each file of measurements, a key of `benchmarks.questions.PAGES`.
KINDS = {
    "kernel": "",
    "kernel-amx": "",
    "training": "training",
    "training-avx2": "training",
    "onnxruntime": "edge",
    "onnxruntime-avx2": "edge",
}
BEGIN, END = "<!-- begin: {name}, written by docs/generate.py -->", "<!-- end: {name} -->"


def row(*cells: str) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# The operator's parameters


def parameters(_: Path) -> str:
    """The operator's table of parameters."""

    def line(parameter: Parameter) -> str:
        default = "" if parameter.default is None else str(parameter.default)
        name = f"`{parameter.name}`"
        since = str(parameter.since)
        return row(name, parameter.type, parameter.place, parameter.allowed, default, since, parameter.meaning)

    head = ["| name | type | place | allowed | default | since version | meaning |", "|---|---|---|---|---|---|---|"]
    return "\n".join(head + [line(parameter) for parameter in PARAMETERS])


# The hardware profiles


def noise(profile: OpticalProfile) -> str:
    """The laws of a profile's noise."""
    laws = {law: getattr(profile, f"noise_{law}") for law in ("relative", "additive", "shot")}
    return ", ".join(f"{law} {level:g}" for law, level in laws.items() if level) or "none"


def profiles(_: Path) -> str:
    """A table of the presets, and where each comes from."""
    presets = OpticalProfile.presets()
    lines = [row("preset", "hardware", "bits in / weight / out", "noise", "grade"), "|---|---|---|---|---|"]
    for name, preset in presets.items():
        profile = preset.profile
        bits = "/".join(str(b or "-") for b in (profile.input_bits, profile.weight_bits, profile.output_bits))
        lines.append(row(f"[`{name}`](#{name})", preset.title, bits, noise(profile), preset.grade))
    return "\n".join([*lines, *(line for name, preset in presets.items() for line in origin(name, preset))])


def origin(name: str, preset: Preset) -> Iterator[str]:
    """Where the numbers of a preset come from."""
    facts = {"Published": preset.published, "Parameters": preset.derivation}
    if preset.source is not None:
        source = preset.source
        told = f"{source.authors}, [{source.title}]({source.link}), {source.venue}, {source.year}"
        facts = {"Source": told, **facts}
    if preset.not_modelled:
        facts["Not modelled"] = "; ".join(preset.not_modelled)
    yield from ("", f"### {name}", "", f"{preset.title}.", "")
    for word, fact in facts.items():
        yield wrapped(f"- **{word}**: {fact.rstrip('.')}.")


def wrapped(text: str) -> str:
    """An entry of a list, wrapped to the width of the pages."""
    return textwrap.fill(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


# The command line


def plain(markup: str | None) -> str:
    """Help without rich's markup, one line for each paragraph."""
    paragraphs = re.split(r"\n\s*\n", Text.from_markup(markup or "").plain.replace("\f", "").strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def commands(_: Path) -> str:
    """Every command with its arguments, options and examples."""
    group: Any = typer.main.get_command(app)
    lines: list[str] = []
    for name, command in group.commands.items():
        shown = [parameter for parameter in command.params if not parameter.hidden]
        places = [
            parameter.name.upper() if parameter.required else f"[{parameter.name.upper()}]"
            for parameter in shown
            if parameter.param_type_name == "argument"
        ]
        usage = " ".join(["lumina", name, *places, "[OPTIONS]"])
        lines += [f"## lumina {name}", "", plain(command.help), "", "```text", usage, "```", ""]
        lines += ["| argument or option | meaning |", "|---|---|"]
        for parameter in shown:
            is_place = parameter.param_type_name == "argument"
            names = [parameter.name.upper()] if is_place else [*parameter.opts, *parameter.secondary_opts]
            lines.append(row(", ".join(f"`{each}`" for each in names), plain(parameter.help) + default(parameter)))
        examples = re.findall(r"lumina .*", command.epilog or "")
        lines += ["", "```sh", *(line.rstrip() for line in examples), "```", ""] if examples else [""]
    return "\n".join(lines).strip()


def default(parameter: Any) -> str:
    """An option's default in brackets; nothing for a switch."""
    value = parameter.default
    told = parameter.show_default and isinstance(value, (str, int, float, Path)) and not isinstance(value, bool)
    return f" [default: {value}]" if told else ""


# Speed, in the READMEs


def speed(root: Path, language: str) -> str:
    """The README's table of speed."""
    from benchmarks import front

    return front.table(root / MEASUREMENTS, language)


# What is predicted for boards

BOARDS = MEASUREMENTS / "boards.json"


def board_facts(root: Path) -> dict[str, Any]:
    """What tests/board/speed.py wrote."""
    return json.loads((root / BOARDS).read_text(encoding="utf-8"))


def board_loops(root: Path) -> str:
    """The page's table of loops."""
    from benchmarks import boards

    return boards.loops(board_facts(root))


def board_times(root: Path) -> str:
    """The page's tables of predicted times."""
    from benchmarks import boards

    return boards.times(board_facts(root))


def board_cycles(root: Path) -> str:
    """The cycles from which `lumina bench --layers` predicts the time of a layer."""
    from benchmarks import boards

    return json.dumps(boards.cycles(board_facts(root)), indent=2) + "\n"


PARTS: list[tuple[str, str, Callable[[Path], str]]] = [
    ("docs/operator.md", "parameters", parameters),
    ("docs/reference/profiles.md", "profiles", profiles),
    ("docs/reference/command-line.md", "commands", commands),
    ("README.md", "speed", lambda root: speed(root, "en")),
    ("README.zh-CN.md", "speed", lambda root: speed(root, "zh")),
    ("docs/measurements/boards.md", "loops", board_loops),
    ("docs/measurements/boards.md", "times", board_times),
]


def with_part(page: Path, text: str, name: str, part: str) -> str:
    """`text` with the generated part `name` replaced by `part`.

    Raises:
        ValueError: The page lacks the marks of that part.
    """
    begin, end = BEGIN.format(name=name), END.format(name=name)
    before, first, rest = text.partition(begin)
    _, second, after = rest.partition(end)
    if not (first and second):
        raise ValueError(f"{page.name} lacks the marks {begin!r} and {end!r}")
    return f"{before}{begin}\n\n{part}\n\n{end}{after}"


# The repository's address

ADDRESS = re.compile(r"(git clone |^repository-code: )\S+(?:\ncd \S+)?", re.MULTILINE)


def addressed(match: re.Match[str]) -> str:
    """The matched lines with the repository's address and the folder that a clone creates."""
    folder = "" if "\n" not in match[0] else f"\ncd {address().rsplit('/', 1)[1]}"
    return match[1] + address() + folder


ADDRESSED = ("README.md", "README.zh-CN.md", "docs/index.md", "CITATION.cff")


def wanted(root: Path) -> dict[Path, str]:
    """The correct content of every file that is generated in whole or in part."""
    from benchmarks import pages
    from benchmarks.questions import PAGES
    from benchmarks.report import Report

    found: dict[Path, str] = {}

    def text(name: str) -> str:
        return found.get(root / name) or (root / name).read_text(encoding="utf-8")

    for name, part, make in PARTS:
        found[root / name] = with_part(root / name, text(name), part, make(root))
    for name in ADDRESSED:
        found[root / name] = ADDRESS.sub(addressed, text(name))
    for stem, kind in KINDS.items():
        report = Report.of_files([root / MEASUREMENTS / f"{stem}.json"])
        found[root / MEASUREMENTS / f"{stem}.md"] = pages.markdown(report, PAGES[kind], stem)
    found[root / "lumina_onnx/cli/boards.json"] = board_cycles(root)
    return found


def draw(root: Path) -> None:
    """Draws the plots of measurements."""
    from benchmarks import boards, plots
    from benchmarks.questions import PAGES
    from benchmarks.report import Report

    reports = {stem: Report.of_files([root / MEASUREMENTS / f"{stem}.json"]) for stem in KINDS}
    for stem, report in reports.items():
        plots.draw(report, PAGES[KINDS[stem]], root / MEASUREMENTS / f"{stem}.svg")
    plots.front(reports["training"], reports["onnxruntime"], root / "docs" / "images" / "speed.svg")
    boards.draw(board_facts(root), root / MEASUREMENTS / "boards.svg")


def main() -> int:
    """Writes the files, or checks them; returns 1 if a check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where something would change")
    parser.add_argument("--plots", action="store_true", help="draw the plots of measurements too")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    stale = {
        path: text
        for path, text in wanted(options.root).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }
    if options.check:
        for path in stale:
            print(f"{path.relative_to(options.root)} is not as it is generated: run `make docs`", file=sys.stderr)
        return int(bool(stale))
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(options.root)}")
    if options.plots:
        draw(options.root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
