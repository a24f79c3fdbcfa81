"""The operator's table is stated once: signatures, stub, reference and documentation agree with it."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lumina_kernel
from lumina_onnx import reference, schema

ROOT = Path(__file__).parents[2]
# `optical_linear_forward` has other names for two parameters.
RENAMED = {"noise_std": "noise_relative", "bits": "output_bits"}
ATTRIBUTES = [row.name for row in schema.PARAMETERS if row.place == "attribute"]
# What a layer gets besides the fields of its profile.
NOT_PARAMS = {"seed", "in_features"}


def defaults(signature: inspect.Signature) -> dict[str, Any]:
    found = {}
    for name, parameter in signature.parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            found[RENAMED.get(name, name)] = parameter.default
    return found


def test_the_table_is_whole() -> None:
    for row in schema.PARAMETERS:
        assert schema.parameter(row.name) is row
        assert row.type in ("INT", "FLOAT", "FLOATS", "STRING")
        assert row.place in ("attribute", "input", "call")
        assert row.allowed
        assert row.meaning
        assert bool(row.choices) == (row.type == "STRING")
        if row.choices:
            assert row.default in row.choices
        elif row.default is not None and row.minimum is not None:
            assert row.minimum <= row.default  # type: ignore[operator]
    assert schema.parameter("seed").maximum == 2**63 - 1
    assert (schema.DOMAIN, schema.OPERATOR, schema.DOMAIN_VERSION, schema.VERSION) == ("lumina", "OpticalLinear", 1, 2)
    with pytest.raises(KeyError, match="gain"):
        schema.parameter("gain")


def test_params_are_the_attributes_of_the_table() -> None:
    found = defaults(inspect.signature(lumina_kernel.Params))
    expected = {name: schema.parameter(name).default for name in ATTRIBUTES if name not in NOT_PARAMS}
    assert found == expected
    assert list(found) == list(expected)
    params = lumina_kernel.Params()
    assert {name: getattr(params, name) for name in expected} == expected


@pytest.mark.parametrize("function", [lumina_kernel.optical_linear_forward, reference.optical_linear])
def test_functions_take_every_parameter_of_the_table(function: Any) -> None:
    parameters = inspect.signature(function).parameters
    names = {RENAMED.get(name, name) for name in parameters}
    wanted = {row.name for row in schema.PARAMETERS} - {"in_features"}
    assert wanted <= names
    assert names - wanted <= {"input", "weight", "bias", "out", "in_features", "rows"}
    for name, default in defaults(inspect.signature(function)).items():
        # Without a seed a call draws fresh noise, and the stream has no meaning.
        if name in wanted and not (name in ("seed", "stream") and default is None):
            assert default == schema.parameter(name).default, name


def stub_signature(name: str) -> inspect.Signature:
    """The signature that the stub gives a function, or a class's constructor."""
    tree = ast.parse((ROOT / "lumina_kernel.pyi").read_text(encoding="utf-8"))
    node = next(node for node in tree.body if getattr(node, "name", None) == name)
    if isinstance(node, ast.ClassDef):
        node = next(item for item in node.body if getattr(item, "name", None) == "__new__")
    assert isinstance(node, ast.FunctionDef)
    source = ast.unparse(ast.FunctionDef(node.name, node.args, [ast.Pass()], [], lineno=0))
    for argument in ast.walk(tree := ast.parse(source)):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    namespace: dict[str, Any] = {}
    exec(compile(tree, name, "exec"), namespace)
    signature = inspect.signature(namespace[node.name])
    return signature.replace(parameters=[p for p in signature.parameters.values() if p.name != "cls"])


@pytest.mark.parametrize(
    "name",
    # A `Saved` is made by `forward_train` alone.
    [name for name in lumina_kernel.__all__ if callable(getattr(lumina_kernel, name)) and name != "Saved"],
)
def test_the_stub_has_the_signatures_of_the_module(name: str) -> None:
    assert stub_signature(name) == inspect.signature(getattr(lumina_kernel, name))


def test_the_generated_pages_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_check_of_the_generated_pages_can_fail(tmp_path: Path) -> None:
    for name in ("README.md", "README.zh-CN.md", "CITATION.cff"):
        text = (ROOT / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(
            re.sub(r"(git clone |repository-code: )\S+", r"\1elsewhere", text), encoding="utf-8"
        )
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    cycles = Path("lumina_onnx", "cli", "boards.json")
    (tmp_path / cycles).parent.mkdir(parents=True)
    shutil.copy(ROOT / cycles, tmp_path / cycles)
    page = tmp_path / "docs" / "operator.md"
    page.write_text(page.read_text(encoding="utf-8").replace("0 (no ADC), 2..16", "0..16"), encoding="utf-8")
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--root", str(tmp_path)]
    check = subprocess.run([*command, "--check"], capture_output=True, text=True, check=False)
    assert check.returncode == 1
    for name in ("docs/operator.md", "README.md", "README.zh-CN.md", "CITATION.cff"):
        assert f"{name} is not as it is generated: run `make docs`" in check.stderr
    assert check.stderr.count("\n") == 4
    subprocess.run(command, check=True, capture_output=True)
    for name in ("docs/operator.md", "README.md", "CITATION.cff"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (ROOT / name).read_text(encoding="utf-8")
