"""Inputs for run, bench and verify: random ones that a model rejects, strings, and paths that are not files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lumina_onnx import exporter
from lumina_onnx.cli import timing


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "BURST", 1e-3)


@pytest.mark.parametrize("name", ["run", "bench"])
def test_random_inputs_that_do_not_do(lumina: Any, model: Any, tmp_path: Path, quick: Any, name: str) -> None:
    """They report the error as verify does, with a way to give other inputs."""
    proto = onnx.load(model)
    node = onnx.helper.make_node("Reshape", ["flat", "shape"], [proto.graph.input[0].name])
    proto.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("flat", onnx.TensorProto.FLOAT, ["n"]))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([5, 6]), "shape"))
    proto.graph.node.insert(0, node)
    path = tmp_path / "flat.onnx"
    onnx.save(proto, path)
    options = ("--rounds", "1", "--threads", "1") if name == "bench" else ()
    result = lumina(name, path, *options)
    assert result.exit_code == 1
    words = "it does not run on random inputs, which it gets where there are no others (flat float32[1]): give inputs"
    assert words in result.stderr
    assert "--input, or sizes, --batch. ONNX Runtime says: " in result.stderr
    np.save(tmp_path / "x.npy", np.ones(30, np.float32))
    assert lumina(name, path, *options, "--input", tmp_path / "x.npy").exit_code == 0
    np.save(tmp_path / "x.npy", np.ones(29, np.float32))
    result = lumina(name, path, *options, "--input", tmp_path / "x.npy")
    assert result.exit_code == 1
    assert "ONNX Runtime cannot run it: " in result.stderr
    assert "random inputs" not in result.stderr


def written(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.fixture
def strings(model: Any, tmp_path: Path) -> Path:
    """A model that also passes strings through, beside its layers."""
    proto = onnx.load(model)
    proto.graph.node.append(onnx.helper.make_node("Identity", ["words"], ["same"]))
    for values, name in ((proto.graph.input, "words"), (proto.graph.output, "same")):
        values.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.STRING, ["n"]))
    onnx.save(proto, tmp_path / "strings.onnx")
    return tmp_path / "strings.onnx"


def test_strings_come_from_a_file(lumina: Any, model: Any, strings: Any, tmp_path: Path) -> None:
    (first,) = exporter.inspect(model).inputs
    for name in ("run", "bench", "verify"):
        result = lumina(name, strings)
        assert result.exit_code == 1
        assert "input 'words' holds strings, for which there are no random ones: give " in result.stderr
    given = written(tmp_path / "in.npz", **{first: np.ones((2, 6), np.float32), "words": np.array(["a\x1b", "b c"])})
    assert lumina("verify", strings, "-i", given).exit_code == 0
    result = lumina("run", strings, "-i", given, "-o", tmp_path / "out.npz")
    assert result.exit_code == 0, result.output
    assert "'b c'" in result.stdout
    assert "\x1b" not in result.stdout
    with np.load(tmp_path / "out.npz") as content:
        assert content["same"].tolist() == ["a\x1b", "b c"]
    assert lumina("run", strings, "-i", given, "--json").exit_code == 0
    missing = written(tmp_path / "bytes.npz", **{first: np.ones((2, 6), np.float32), "words": np.array([b"a"])})
    assert "'words' has dtype |S1; the model takes object" in lumina("run", strings, "-i", missing).stderr


def test_an_output_that_is_no_tensor(lumina: Any, model: Any, tmp_path: Path) -> None:
    proto = onnx.load(model)
    proto.graph.node.append(onnx.helper.make_node("SequenceConstruct", [proto.graph.output[0].name], ["many"]))
    proto.graph.output.append(onnx.helper.make_tensor_sequence_value_info("many", onnx.TensorProto.FLOAT, None))
    onnx.save(proto, tmp_path / "many.onnx")
    result = lumina("run", tmp_path / "many.onnx")
    assert result.exit_code == 1
    assert "its output 'many' is no tensor: allowed are tensors" in result.stderr


@pytest.mark.parametrize("name", ["run", "bench", "verify", "inspect"])
def test_what_is_no_file_is_not_read(lumina: Any, model: Any, tmp_path: Path, name: str) -> None:
    """Reading a FIFO without a writer, or a device, would never end."""
    os.mkfifo(tmp_path / "fifo")
    for path, kind in ((tmp_path / "fifo", "FIFO"), (Path("/dev/zero"), "device")):
        result = lumina(name, path)
        assert result.exit_code == 1
        assert f"= '{path}' is a {kind}; allowed is a file" in " ".join(result.stderr.split())
        if name != "inspect":
            result = lumina(name, model, "--input", path)
            assert f"--input = '{path}' is a {kind}; allowed is a file" in " ".join(result.stderr.split())
