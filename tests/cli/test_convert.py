"""`lumina convert`: an existing file becomes an optical one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lumina_onnx import OpticalProfile, exporter


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A model [batch, 6] -> [batch, 6] with layers named first and second and a ReLU between them."""
    content = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"], name="second"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 6]) for name in "xy")
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(size=(6, 6)).astype(np.float32), name) for name in "ab"]
    graph = helper.make_graph(content, "ready", [x], [y], weights)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "ready.onnx")
    np.save(tmp_path / "x.npy", rng.normal(size=(3, 6)).astype(np.float32))
    return tmp_path / "ready.onnx"


def test_it_converts_and_verifies(lumina: Any, ready: Any, tmp_path: Path) -> None:
    target = tmp_path / "optical.onnx"
    (tmp_path / "mine.json").write_text(OpticalProfile(4, 4, 4, noise_additive=0.1).to_json())
    options = ("--profile", tmp_path / "mine.json", "--override", "second=datacenter", "--method", "mse")
    result = lumina("convert", ready, target, *options, "-c", tmp_path / "x.npy", "-c", tmp_path / "x.npy", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["report"] == "RewriteReport"
    assert [(row["name"], row["weight_bits"], row["output_bits"]) for row in facts["layers"]] == [
        ("first", 4, 4),
        ("second", 12, 12),
    ]
    assert facts["layers"][0]["input_range"] > 0
    assert facts["opset"] == 20
    assert facts["body_bytes"] > 0
    assert facts["layers"] == json.loads(json.dumps(exporter.inspect(target).to_dict()["layers"]))
    assert lumina("verify", target).exit_code == 0


def test_it_shows_what_it_did(lumina: Any, ready: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = lumina("convert", ready, tmp_path / "y.onnx", "-p", "pace", "--skip", "sec*", "--no-fallback")
    assert result.exit_code == 0
    assert "note: preset 'pace' does not model: " in result.stderr
    text = " ".join(result.stdout.split())
    for words in ("1 OpticalLinear", "opset 17", "does not run", "first: K 6, N 6", "skip 'sec*'"):
        assert words in text
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-p", "nonsense"), "'nonsense': allowed is the name of a .json file, or lightening-transformer,"),
        (("-p", "missing.json"), "No such file or directory"),
        (("-p", "bad.json"), "unknown 'bits': allowed is input_bits,"),
        (("-p", "edge", "--override", "first"), "'first': allowed is PATTERN=PROFILE"),
        (("-p", "edge", "--override", "first=nonsense"), "'nonsense': allowed is"),
        (("-p", "edge", "--method", "best"), "'best': allowed is max, percentile, mse"),
        ((), "Missing option '--profile'"),
    ],
)
def test_wrong_usage(
    lumina: Any, ready: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text('{"bits": 4}')
    result = lumina("convert", ready, tmp_path / "y.onnx", *options)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "y.onnx").exists()


def test_what_fails_says_so_in_a_line(lumina: Any, ready: Any, model: Any, tmp_path: Path) -> None:
    def message(*arguments: object) -> str:
        result = lumina("convert", *arguments, "-p", "edge")
        assert result.exit_code == 1
        assert result.stdout == ""
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        return line

    target = tmp_path / "y.onnx"
    assert "has OpticalLinear nodes already" in message(model, target)
    assert "allowed is a name that ends in .onnx" in message(ready, tmp_path / "y.txt")
    assert "skip pattern 'third' matches no layer: there are first, second" in message(ready, target, "--skip", "third")
    np.savez(tmp_path / "z.npz", z=np.zeros((1, 6), np.float32))
    assert "z.npz: holds 'z'; the model's inputs are 'x'" in message(ready, target, "-c", tmp_path / "z.npz")
    np.save(tmp_path / "x.npy", np.zeros((1, 5), np.float32))
    assert "has shape [1, 5]; allowed is [batch, 6]" in message(ready, target, "-c", tmp_path / "x.npy")
    assert not target.exists()
