"""Existing files that cannot become optical, with a message and a way out, and what is kept of those that can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import lumina_onnx
from lumina_onnx import OpticalProfile
from lumina_onnx.exporter import files, inspect, rewrite, verify
from lumina_onnx.exporter.twin import float_twin

W = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
FLOAT = TensorProto.FLOAT


def model(content: list[onnx.NodeProto] | None = None, imports: dict[str, int] | None = None, **extras: Any) -> Any:
    """A model X [batch, 6] -> Y; by default a MatMul."""
    x, y = (helper.make_tensor_value_info(name, FLOAT, ["batch", 6]) for name in "XY")
    content = content or [helper.make_node("MatMul", ["X", "W"], ["Y"], name="layer")]
    graph = helper.make_graph(content, "graph", [x], [y], [numpy_helper.from_array(W, "W")])
    opsets = [helper.make_opsetid(*entry) for entry in (imports or {"": 20}).items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, **extras)


def rewritten(path: Path, proto: onnx.ModelProto, **options: Any) -> Any:
    onnx.save(proto, path)
    return rewrite(path, path.with_name("y.onnx"), OpticalProfile(), **options)


def refused(path: Path, proto: onnx.ModelProto, message: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=rf"^source = '.*s\.onnx'{message}"):
        rewritten(path, proto, **options)
    assert not path.with_name("y.onnx").exists()


@pytest.mark.parametrize("nested", [False, True])
def test_maps(tmp_path: Path, nested: bool) -> None:
    """Maps as in scikit-learn classifiers."""
    proto = model(imports={"": 20, "ai.onnx.ml": 3})
    proto.graph.node.append(
        helper.make_node("ZipMap", ["Y"], ["Z"], domain="ai.onnx.ml", classlabels_int64s=list(range(6)))
    )
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
    )
    proto.graph.output.append(helper.make_value_info("Z", helper.make_optional_type_proto(kind) if nested else kind))
    message = (
        ": 'Z' is a map, or a sequence of maps, which onnx_ir, the library that changes the model, does not support; "
        r'allowed are tensors: skl2onnx gives them with options=\{"zipmap": False\}$'
    )
    refused(tmp_path / "s.onnx", proto, message)
    shown = "sequence(map(int64, float[]))"
    assert inspect(tmp_path / "s.onnx").outputs["Z"] == (f"optional({shown})" if nested else shown)


def test_sparse_tensors(tmp_path: Path) -> None:
    values, indices = numpy_helper.from_array(W[0], "S"), numpy_helper.from_array(np.arange(6), "S_indices")
    proto = model()
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [6, 6]))
    refused(tmp_path / "s.onnx", proto, ": its tensor 'S' is sparse; allowed are dense tensors$")
    constant = helper.make_node("Constant", [], ["C"], sparse_value=proto.graph.sparse_initializer[0])
    onnx.save(model([constant, helper.make_node("MatMul", ["X", "C"], ["Y"])]), tmp_path / "c.onnx")
    assert inspect(tmp_path / "c.onnx").other_operators == {"Constant": 1, "MatMul": 1}


@pytest.mark.parametrize("axes", [False, True])
def test_a_layer_beside_a_sparse_tensor(tmp_path: Path, axes: bool) -> None:
    """ONNX Runtime runs such a file, so it can be verified and has a twin."""
    rewritten(tmp_path / "s.onnx", model())
    proto = onnx.load(tmp_path / "y.onnx")
    places = np.array([[0, 1], [1, 3], [2, 5]]) if axes else np.array([1, 9, 17])
    values = numpy_helper.from_array(np.array([0.5, -1.0, 2.0], np.float32), "S")
    indices = numpy_helper.from_array(places.astype(np.int64), "S_indices")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 6]))
    proto.graph.node.append(helper.make_node("Add", ["S", "S"], ["Z"]))
    proto.graph.output.append(helper.make_tensor_value_info("Z", FLOAT, [3, 6]))
    onnx.save(proto, tmp_path / "y.onnx")
    assert verify(tmp_path / "y.onnx").ok
    files.write(ir.to_proto(float_twin(tmp_path / "y.onnx")), tmp_path / "twin.onnx")
    x = {"X": np.zeros((1, 6), np.float32)}
    theirs = onnxruntime.InferenceSession(tmp_path / "twin.onnx").run(["Z"], x)[0]
    expected = np.zeros((3, 6), np.float32)
    expected[[0, 1, 2], [1, 3, 5]] = [1.0, -2.0, 4.0]
    np.testing.assert_array_equal(theirs, expected)


def test_a_layer_beside_a_map(tmp_path: Path) -> None:
    """Another tool may have added the map to one of our files: its layers are verified, and it has a twin."""
    rewritten(tmp_path / "s.onnx", model())
    proto = onnx.load(tmp_path / "y.onnx")
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    proto.graph.node.append(
        helper.make_node("ZipMap", ["Y"], ["Z"], domain="ai.onnx.ml", classlabels_int64s=list(range(6)))
    )
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
    proto.graph.output.append(helper.make_value_info("Z", helper.make_sequence_type_proto(kind)))
    onnx.save(proto, tmp_path / "y.onnx")
    assert verify(tmp_path / "y.onnx").ok
    files.write(ir.to_proto(float_twin(tmp_path / "y.onnx")), tmp_path / "twin.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "twin.onnx")
    assert [value.name for value in session.get_outputs()] == ["Y", "Z"]


def test_a_reader_s_error_tells_its_cause(tmp_path: Path) -> None:
    """The message does not say where in the reader the error occurred."""
    values, indices = numpy_helper.from_array(W[0], "S"), numpy_helper.from_array(np.arange(6), "S_indices")
    constant = helper.make_node("Constant", [], ["C"], sparse_value=helper.make_sparse_tensor(values, indices, [6, 6]))
    content = [constant, helper.make_node("MatMul", ["X", "C"], ["Y"])]
    message = ": onnx_ir, the library that changes the model, cannot read it: Sparse tensors are not supported"
    refused(tmp_path / "s.onnx", model(content), message)


def test_a_file_without_standard_operators(tmp_path: Path) -> None:
    content = [helper.make_node("Normalizer", ["X"], ["Y"], domain="ai.onnx.ml", norm="L2")]
    proto = model(content, {"ai.onnx.ml": 3})
    for fallback in (True, False):
        refused(tmp_path / "s.onnx", proto, ": it holds no MatMul or Gemm to convert", fallback=fallback)
    assert inspect(tmp_path / "s.onnx").opset == 0
    assert "no standard operators, IR 9" in str(inspect(tmp_path / "s.onnx"))


def test_a_file_that_does_not_say_its_opset(tmp_path: Path) -> None:
    message = r": opset_import names no version of the standard operators, and 'layer' \(MatMul\) is one$"
    for fallback in (True, False):
        refused(tmp_path / "s.onnx", model(imports={"ai.onnx.ml": 3}), message, fallback=fallback)


@pytest.mark.parametrize("opset", [11, 20])
def test_the_other_name_of_the_standard_operators(tmp_path: Path, opset: int) -> None:
    report = rewritten(tmp_path / "s.onnx", model(imports={"ai.onnx": opset}))
    assert report.opset == 20
    x = np.ones((2, 6), np.float32)
    assert lumina_onnx.load(tmp_path / "y.onnx").run(None, {"X": x})[0].shape == (2, 6)


def test_training_is_left_out_with_a_note(tmp_path: Path) -> None:
    proto = model()
    proto.training_info.add()
    assert rewritten(tmp_path / "s.onnx", proto).notes == ["training_info is left out: it trains the model as it was"]


@pytest.mark.parametrize("producer", ["", "someone"])
def test_who_made_the_file_stays(tmp_path: Path, producer: str) -> None:
    proto = model(producer_name=producer, producer_version="3" if producer else "", doc_string="words", model_version=7)
    proto.metadata_props.add(key="names", value="a,b")
    rewritten(tmp_path / "s.onnx", proto)
    written = onnx.load(tmp_path / "y.onnx")
    expected = (producer, "3") if producer else ("lumina_onnx", lumina_onnx.__version__)
    assert (written.producer_name, written.producer_version) == expected
    assert (written.doc_string, written.model_version) == ("words", 7)
    metadata = {entry.key: entry.value for entry in written.metadata_props}
    assert metadata["names"] == "a,b"
    assert metadata["lumina.version"] == lumina_onnx.__version__
