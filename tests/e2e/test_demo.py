"""`lumina demo`, shortened and in full."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

import lumina_onnx
from lumina_onnx import exporter
from lumina_onnx.cli import app, demo


def test_shortened(tmp_path: Path) -> None:
    target = tmp_path / "new" / "digits.onnx"
    result = CliRunner().invoke(app, ["demo", "--epochs", "1", "--output", str(target)])
    assert result.exit_code == 0, result.output
    for words in ("in float", "as it is", "noise-aware training", "equal bit for bit", "90,000 numbers", "±"):
        assert words in result.stdout
    for line in ("inspect", "verify", "bench", "run"):
        assert f"lumina {line} {target}" in result.stdout
    assert "training with the noise" in result.stderr
    assert lumina_onnx.load(target).get_inputs()[0].shape == ["batch", 64]


def test_what_it_suggests_works(tmp_path: Path) -> None:
    target = tmp_path / "digits.onnx"
    result = CliRunner().invoke(app, ["demo", "--epochs", "1", "--output", str(target)])
    suggested = [line.split() for line in result.stdout.splitlines() if line.startswith("  lumina ")]
    assert len(suggested) == 5
    for words in suggested:
        arguments = words[1:3] if words[2] == str(target) else words[1:2]
        quick = ["--rounds", "1"] if arguments[0] == "bench" else []
        assert CliRunner().invoke(app, [*arguments, *quick]).exit_code == 0, words


def test_another_noise_seed_in_the_file_is_found_and_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = exporter.export

    def export(model: object, args: object, path: Path) -> None:
        real(model, args, path)  # type: ignore[arg-type]
        proto = onnx.load(path)
        last = [node for node in proto.graph.node if node.op_type == "OpticalLinear"][-1]
        next(attribute for attribute in last.attribute if attribute.name == "seed").i += 1
        onnx.save(proto, path)

    monkeypatch.setattr(exporter, "export", export)
    arguments = ["demo", "--epochs", "1", "--output", str(tmp_path / "digits.onnx")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "DIFFERENT" in result.stdout
    assert "equal bit for bit" not in result.stdout
    assert "PyTorch and ONNX Runtime differ in" in result.stderr

    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 1
    facts = json.loads(result.stdout)
    assert facts["equal"] is False
    assert 0 < facts["different"] <= facts["compared"]


def test_in_full(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from lumina_onnx.cli import main; main()", "demo", "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["equal"] is True
    assert facts["compared"] == demo.DRAWS * facts["images"] * 10
    assert facts["path"] == "lumina-demo/digits.onnx"
    path = tmp_path / facts["path"]
    assert facts["file_bytes"] == path.stat().st_size
    assert facts["file_bytes"] - exporter.inspect(path).body_bytes < facts["float_bytes"] / 4
    assert facts["float_accuracy"] > 0.95
    assert facts["naive"]["mean"] < facts["float_accuracy"] - 0.03
    assert facts["won_back"] > 0.6
    assert 0 < facts["aware"]["error"] < 0.01
