"""Help, exit codes, errors; profiles and info."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lumina_kernel
import lumina_onnx
from lumina_onnx import OpticalProfile
from lumina_onnx.cli import bench, console, info

COMMANDS = ("demo", "inspect", "verify", "run", "bench", "profiles", "info")


def test_help_names_every_command_and_has_examples(lumina: Any) -> None:
    result = lumina("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f" {name} " in result.stdout
    assert "lumina run model.onnx --input x.npy" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_each_help_has_an_example_and_the_common_options(lumina: Any, name: Any) -> None:
    result = lumina(name, "--help")
    assert result.exit_code == 0
    for words in (f"Example: lumina {name}", "--json", "--debug"):
        assert words in result.stdout


def test_version(lumina: Any) -> None:
    assert lumina("--version").stdout == f"lumina {lumina_onnx.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("inspect",),
        ("inspect", "missing.onnx"),
        ("inspect", "."),
        ("run", "missing.onnx"),
        ("bench", "missing.onnx"),
        ("profiles", "nonsense"),
        ("profiles", "--nonsense"),
        ("demo", "--epochs", "0"),
        ("demo", "--output", "digits.txt"),
    ],
)
def test_wrong_usage_exits_with_2(lumina: Any, arguments: Any) -> None:
    result = lumina(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize("option", ["--batch", "--threads", "--rounds"])
def test_sizes_start_at_1(lumina: Any, model: Any, option: str) -> None:
    assert lumina("bench", model, option, 0).exit_code == 2


def test_bench_starts_no_million_threads(lumina: Any, model: Any) -> None:
    result = lumina("bench", model, "--threads", bench.MAXIMUM_THREADS + 1)
    assert result.exit_code == 2
    assert str(bench.MAXIMUM_THREADS) in result.output


def test_exit_codes_of_the_process(process: Any, model: Any, tmp_path: Path) -> None:
    assert process("inspect", model).returncode == 0
    assert process("inspect", "missing.onnx").returncode == 2
    (tmp_path / "text.onnx").write_text("no model")
    failed = process("run", "text.onnx")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith("error: text.onnx: ONNX Runtime cannot load it: ")
    assert failed.stderr.count("\n") == 1


def test_debug_shows_the_traceback(process: Any, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    failed = process("inspect", "text.onnx", "--debug")
    assert failed.returncode == 1
    assert "Traceback (most recent call last)" in failed.stderr
    assert "not a readable ONNX model" in failed.stderr


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("inspect", "onnx", "train"),
        ("verify", "onnx", "train"),
        ("run", "onnxruntime", "train"),
        ("bench", "matplotlib", "plot"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    process: Any, model: Any, name: str, package: str, extra: str
) -> None:
    options = ("--plot", "latency.png") if package == "matplotlib" else ()
    failed = process(name, model, *options, hide=(package,))
    assert failed.returncode == 1
    assert f"needs the Python package {package}" in failed.stderr
    assert f'pip install "lumina-onnx[{extra}]"' in failed.stderr
    assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize("package", ["torch", "onnx", "onnxscript", "sklearn"])
def test_demo_names_what_it_lacks(process: Any, package: str) -> None:
    failed = process("demo", hide=(package,))
    assert failed.returncode == 1
    assert f"needs the Python package {package}" in failed.stderr
    assert 'pip install "lumina-onnx[demo]"' in failed.stderr


def test_what_needs_no_torch_runs_without_it(process: Any, model: Any) -> None:
    hide = ("torch", "onnx", "onnxscript", "sklearn")
    for arguments in (("run", model), ("bench", model, "--rounds", 1), ("profiles",), ("info",), ("--help",)):
        result = process(*arguments, hide=hide)
        assert result.returncode == 0, result.stderr
    result = process("inspect", model, hide=("torch", "onnxscript"))
    assert result.returncode == 0, result.stderr


def test_an_error_without_words_is_called_by_its_type() -> None:
    assert console._one_line(RuntimeError()) == "RuntimeError"
    assert console._one_line(RuntimeError("two\nlines")) == "RuntimeError: two lines"
    assert console._one_line(ValueError("why")) == "why"


def test_profiles_lists_every_preset(lumina: Any) -> None:
    listed = json.loads(lumina("profiles", "--json").stdout)["profiles"]
    assert [row["name"] for row in listed] == list(OpticalProfile.presets())
    text = lumina("profiles").stdout
    for name in OpticalProfile.presets():
        assert name in text


@pytest.mark.parametrize("name", list(OpticalProfile.presets()))
def test_one_profile_in_full(lumina: Any, name: Any) -> None:
    facts = json.loads(lumina("profiles", name, "--json").stdout)
    preset = OpticalProfile.presets()[name]
    assert OpticalProfile.from_json(json.dumps(facts["profile"])) == preset.profile
    page = " ".join(lumina("profiles", name).stdout.split())
    assert f'OpticalProfile.preset("{name}")' in page
    assert f"(grade {preset.grade})" in page


def test_an_unknown_profile_lists_the_known(lumina: Any) -> None:
    result = lumina("profiles", "nonsense")
    assert result.exit_code == 2
    for name in OpticalProfile.presets():
        assert name in result.stderr


def test_info(lumina: Any) -> None:
    facts = json.loads(lumina("info", "--json").stdout)
    assert facts["lumina"] == lumina_onnx.__version__
    assert facts["tier"] == lumina_kernel.isa()
    assert facts["library"] == lumina_onnx.library_path()
    assert facts["library in ONNX Runtime"].startswith("loads in onnxruntime ")
    assert facts["packages"]["torch"]
    assert set(facts["environment"]) == set(info.VARIABLES)
    text = lumina("info").stdout
    assert lumina_onnx.library_path() in text


def test_info_tells_what_fails(process: Any) -> None:
    result = process("info", "--json", hide=("onnxruntime",), LUMINA_ISA="nonsense")
    assert result.returncode == 0
    facts = json.loads(result.stdout)
    assert facts["tier"].startswith("FAILS: ")
    assert "nonsense" in facts["tier"]
    assert facts["library in ONNX Runtime"].startswith("FAILS: ")
    assert facts["environment"]["LUMINA_ISA"] == "nonsense"


def test_a_narrow_terminal_cuts_no_name_and_no_path(process: Any) -> None:
    names = process("profiles", COLUMNS="80").stdout
    for name in OpticalProfile.presets():
        assert f" {name} " in names
    text = process("info", COLUMNS="80").stdout
    assert lumina_onnx.library_path() in "".join(line.strip() for line in text.splitlines())
    assert "…" not in text
