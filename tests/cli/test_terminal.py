"""The contents of a file are data: the terminal must not obey them, and nothing in them is markup."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import lumina_onnx
from lumina_onnx import OpticalProfile, exporter
from lumina_onnx import nn as optical
from lumina_onnx._text import text, visible
from lumina_onnx.cli import timing

# Sets a title and a colour, reverses the writing direction, ends a line, and holds markup and a plot's math text.
EVIL = "\x1b]0;title\x07\x1b[31m\u202e\x9b2J\n[bold red]x[/] $\\frac$ é中"
SEEN = "\\x1b]0;title\\x07\\x1b[31m\\u202e\\x9b2J\\n[bold red]x[/] $\\frac$ é中"


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model [batch, 6] -> [batch, 6] in which every name is evil, and the file's own name too."""
    x, y = (helper.make_tensor_value_info(f"{name}{EVIL}", TensorProto.FLOAT, [f"n{EVIL}", 6]) for name in "xy")
    content = [
        helper.make_node("MatMul", [x.name, f"a{EVIL}"], [f"h{EVIL}"], name=f"first{EVIL}"),
        helper.make_node("Relu", [f"h{EVIL}"], [f"r{EVIL}"], name=f"relu{EVIL}"),
        helper.make_node("Einsum", [f"r{EVIL}", f"b{EVIL}"], [f"e{EVIL}"], name=f"einsum{EVIL}", equation="bi,ij->bj"),
        helper.make_node("MatMul", [f"e{EVIL}", f"b{EVIL}"], [y.name], name=f"second{EVIL}"),
    ]
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(6, 6)).astype(np.float32), f"{name}{EVIL}") for name in ("a", "b")
    ]
    graph = helper.make_graph(content, f"g{EVIL}", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.add(key=f"k{EVIL}", value=f"v{EVIL}")
    path = tmp_path_factory.mktemp("evil") / f"ready{EVIL.replace('/', '')}.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def optical_evil(evil: Path) -> Path:
    """The same with optical layers, and an initializer that ONNX Runtime warns about."""
    path = evil.with_name(f"optical{evil.name}")
    exporter.rewrite(evil, path, OpticalProfile(4, 4, 4, noise_additive=0.1))
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), f"unused{EVIL}"))
    onnx.save(model, path)
    return path


def is_harmless(written: str) -> bool:
    return not [
        character for character in written if unicodedata.category(character) in ("Cc", "Cf") and character != "\n"
    ]


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")  # The plot's font has no glyph for the Chinese character.
@pytest.mark.parametrize(
    ("command", "columns"),
    [("inspect", 60), *((command, 160) for command in ("inspect", "verify", "run", "bench", "convert"))],
)
def test_names_are_seen_and_not_obeyed(
    lumina: Any,
    optical_evil: Any,
    evil: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: Any,
    columns: Any,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(timing, "BURST", 1e-3)
    options = {
        "run": ["--output", tmp_path / f"y{EVIL.replace('/', '')}.npz"],
        "bench": ["--threads", 1, "--rounds", 1, "--plot", tmp_path / f"y{EVIL.replace('/', '')}.png"],
        "convert": [tmp_path / "y.onnx", "--profile", "pace", "--skip", "first*"],
    }
    result = lumina(command, evil if command == "convert" else optical_evil, *options.get(command, []))
    assert result.exit_code == 0, result.output
    logged = capfd.readouterr()
    assert logged.out + logged.err == ""
    for written in (result.stdout, result.stderr):
        assert is_harmless(written)
    if columns == 160:
        assert SEEN in result.stdout.replace("\n", "")
    assert "[boldred]x[/]" in re.sub(r"\s", "", result.stdout)


def test_json_is_lossless(lumina: Any, optical_evil: Any) -> None:
    written = lumina("inspect", optical_evil, "--json").stdout
    assert is_harmless(written)
    facts = json.loads(written)
    assert [layer["name"] for layer in facts["layers"]] == [f"first{EVIL}", f"second{EVIL}"]
    assert facts["inputs"] == {f"x{EVIL}": f"float[n{EVIL}, 6]"}
    assert facts["path"] == str(optical_evil)
    assert facts["metadata"][f"k{EVIL}"] == f"v{EVIL}"
    facts = json.loads(lumina("run", optical_evil, "--json").stdout)
    assert [row["name"] for row in facts["tensors"]] == [f"x{EVIL}", f"y{EVIL}"]


def test_errors_show_names(lumina: Any, evil: Any, optical_evil: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "z.npz", **{f"z{EVIL}": np.zeros((1, 6), np.float32)})  # type: ignore[arg-type]
    (tmp_path / f"bad{EVIL.replace('/', '')}.json").write_text("{}}")
    broken = tmp_path / "broken.onnx"
    model = onnx.load(optical_evil)
    next(node for node in model.graph.node if node.domain).attribute.add(name="in_features", i=-1, type=2)
    onnx.save(model, broken)
    cases = [
        ("run", optical_evil, "--input", tmp_path / "z.npz"),
        ("convert", evil, tmp_path / "y.onnx", "-p", "edge", "--skip", "nothing"),
        ("convert", evil, tmp_path / "y.onnx", "-p", "edge", "--skip", "*"),
        ("convert", evil, tmp_path / "y.onnx", "-p", tmp_path / f"bad{EVIL.replace('/', '')}.json"),
        ("convert", evil, tmp_path / "y.onnx", "-p", "edge", "-c", tmp_path / "z.npz"),
        ("verify", evil),
        ("run", broken),
        ("inspect", tmp_path / f"missing{EVIL}.onnx"),
        ("run", broken, "--debug"),
        ("run", optical_evil, "--output", tmp_path / f"no{EVIL}" / "y.npz"),
        ("bench", optical_evil, "--plot", tmp_path / f"y.{EVIL}"),
        ("profiles", EVIL),
        (EVIL,),
    ]
    for arguments in cases:
        result = lumina(*arguments)
        assert result.exit_code in (1, 2), arguments
        assert is_harmless(result.output), result.output
        assert "\\x1b" in re.sub("[ │\n]", "", result.stderr), result.stderr


def test_what_libraries_log_and_warn_is_seen(process: Any) -> None:
    script = (
        "import logging, warnings\nfrom lumina_onnx.cli.process import guard_terminal\nguard_terminal()\n"
        f"logging.getLogger('onnx_ir').warning('log %s', {EVIL!r})\nwarnings.warn('warning ' + {EVIL!r})\n"
        "print('\\udcff')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert is_harmless(done.stderr)
    assert f"log {SEEN}".replace("\\n", "\n") in done.stderr
    assert f"UserWarning: warning {SEEN}".replace("\\n", "\n") in done.stderr
    assert done.stdout == "\\udcff\n"


def test_text_for_consoles_is_made_in_one_place() -> None:
    package = Path(lumina_onnx.__file__).parent
    makers = [path.name for path in package.rglob("*.py") if re.search(r"rich\.text\b|\bmarkup\b", path.read_text())]
    assert makers == ["_text.py"]


def test_a_terminal_without_unicode_shows_escapes(process: Any, optical_evil: Any) -> None:
    done = process("inspect", optical_evil, PYTHONIOENCODING="ascii", COLUMNS="160")
    assert done.returncode == 0
    assert "\\xe9\\u4e2d" in done.stdout


def test_reports_of_torch_models() -> None:
    model = optical.convert(
        nn.ModuleDict({EVIL.replace(".", ""): nn.Linear(3, 3), "b": nn.Conv1d(1, 1, 1)}), OpticalProfile()
    )
    written = str(optical.report(model))
    assert is_harmless(written)
    assert SEEN in written
    calibrated = optical.calibrate(model, [torch.ones(2, 3)], forward=lambda m, x: m[EVIL](x), progress=False)  # type: ignore[index]
    assert is_harmless(str(calibrated))


@pytest.mark.parametrize(
    "character", [chr(code) for code in (*range(32), *range(127, 160), 0xAD, 0x61C, 0x200B, 0x200D)]
)
def test_what_cannot_be_seen_becomes_an_escape(character: str) -> None:
    assert visible(f"a{character}b") == f"a{character.encode('unicode_escape').decode()}b"


@pytest.mark.parametrize(
    "code", [0x200E, 0x2028, 0x2029, 0x202A, 0x202E, 0x2066, 0x2069, 0xD800, 0xE000, 0xFEFF, 0xE0001]
)
def test_further_ones(code: int) -> None:
    assert visible(chr(code)) == (f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def test_what_can_be_seen_stays() -> None:
    words = "layer.0/MatMul [bold] é 中文 \u3000\xa0 ∑ 🙂 \\x1b"
    assert visible(words) == words
    assert text(words).plain == words
    assert text("a\tb", "c\nd").plain == "a\\tb\nc\\nd"
    assert visible("a\tb\nc", keep="\n\t") == "a\tb\nc"
    assert not text("[red]a[/]", style="bold").spans
