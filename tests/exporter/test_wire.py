"""Large tensors are taken out of a file and put into one without being in memory; nothing else about a file changes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

import lumina_onnx
from lumina_onnx import OpticalProfile
from lumina_onnx.exporter import files, merge, raising, rewrite, verify, wire, writing
from lumina_onnx.exporter.twin import float_twin

RNG = np.random.default_rng(0)
LARGE = (128, 160)
W, V = (RNG.normal(size=LARGE).astype(np.float32) for _ in range(2))
X = RNG.normal(size=(3, 128)).astype(np.float32)


def as_stored(tensor: TensorProto, field: str) -> TensorProto:
    """The tensor with its elements in another field."""
    values = numpy_helper.to_array(tensor).ravel().tolist()
    tensor.ClearField("raw_data")
    getattr(tensor, field).extend(values)
    return tensor


def everywhere() -> ModelProto:
    """Large tensors in each place that a model has for one, in each form, between fields of every kind."""

    def tensor(name: str, **about: Any) -> TensorProto:
        made = numpy_helper.from_array(RNG.normal(size=LARGE).astype(np.float32), name)
        for key, value in about.items():
            setattr(made, key, value)
        return made

    def branch(name: str) -> GraphProto:
        inner = [
            helper.make_node("Constant", [], [f"{name}C"], value=tensor(f"{name}C")),
            helper.make_node("Add", ["z", f"{name}C"], [f"{name}s"]),
            helper.make_node("Add", [f"{name}s", f"{name}I"], [name]),
        ]
        return helper.make_graph(
            inner,
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
            [as_stored(tensor(f"{name}I"), "float_data")],
        )

    content = [
        helper.make_node("MatMul", ["X", "W"], ["x"], name="layer"),
        helper.make_node("Constant", [], ["C"], value=tensor("C")),
        helper.make_node("ReduceSum", ["C"], ["c"], keepdims=0),
        helper.make_node("Add", ["x", "c"], ["y"]),
        helper.make_node("Cast", ["D"], ["d"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["d"], ["total"], keepdims=0),
        helper.make_node("Add", ["y", "total"], ["w"]),
        helper.make_node("F", ["w"], ["f"], domain="own"),
        helper.make_node("Gather", ["I", "zero"], ["g"]),
        helper.make_node("Cast", ["g"], ["h"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "h"], ["v"]),
        helper.make_node("ReduceSum", ["v"], ["z"], keepdims=0),
        helper.make_node("Less", ["z", "limit"], ["below"]),
        helper.make_node("If", ["below"], ["Y"], then_branch=branch("t"), else_branch=branch("e")),
    ]
    body = [
        helper.make_node("Constant", [], ["u"], value=tensor("u")),
        helper.make_node("ReduceSum", ["u"], ["s"], keepdims=0),
        helper.make_node("Add", ["a", "s"], ["b"]),
    ]
    integers = numpy_helper.from_array(RNG.integers(0, 100, 10_000), "I")
    stored = [
        numpy_helper.from_array(W, "W"),
        as_stored(numpy_helper.from_array(RNG.normal(size=9000), "D"), "double_data"),
        as_stored(integers, "int64_data"),
        numpy_helper.from_array(np.array(0), "zero"),
        numpy_helper.from_array(np.float32(2), "limit"),
    ]
    stored[0].doc_string = "after raw_data, before external_data"
    stored[0].metadata_props.add(key="after", value="external_data")
    graph = helper.make_graph(
        content,
        "graph",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["batch", 128])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        stored,
    )
    function = helper.make_function("own", "F", ["a"], ["b"], body, [helper.make_opsetid("", 20)])
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    made = helper.make_model(graph, opset_imports=imports, ir_version=9, functions=[function], producer_name="é" * 70)
    training = made.training_info.add()
    training.algorithm.name = "training"
    training.algorithm.initializer.append(tensor("trained"))
    sparse = made.graph.sparse_initializer.add(dims=[10**6])
    sparse.values.CopyFrom(numpy_helper.from_array(RNG.normal(size=20_000).astype(np.float32), "sparse"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(20_000), "indices"))
    listed = made.graph.node[0].attribute.add(name="listed", type=AttributeProto.TENSORS)
    listed.tensors.extend([tensor("first"), tensor("second")])
    return made


def simple(weight: np.ndarray = W, **about: Any) -> ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["X", "W"], ["Y"], name="layer")],
        "graph",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["batch", weight.shape[0]])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["batch", weight.shape[1]])],
        [numpy_helper.from_array(weight, "W")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9, **about)


def interleaved() -> ModelProto:
    """Small tensors between large ones, in a graph that the version converter has to change."""
    model = simple(V)
    wide = RNG.normal(size=(160, 128)).astype(np.float32)
    first, last = (RNG.normal(size=size).astype(np.float32) for size in (160, 128))
    model.graph.initializer.insert(0, numpy_helper.from_array(first, "a"))
    model.graph.initializer.extend([numpy_helper.from_array(last, "b"), numpy_helper.from_array(wide, "wide")])
    del model.graph.node[:]
    model.graph.node.extend(
        [
            helper.make_node("MatMul", ["X", "W"], ["x"], name="layer"),
            helper.make_node("Add", ["x", "a"], ["y"]),
            helper.make_node("Softmax", ["y"], ["z"], axis=1),
            helper.make_node("MatMul", ["z", "wide"], ["v"], name="other"),
            helper.make_node("Add", ["v", "b"], ["u"]),
            helper.make_node("MatMul", ["u", "W"], ["Y"], name="again"),
        ]
    )
    return model


def write(path: Path, model: ModelProto | bytes) -> Path:
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def contents(model: ModelProto) -> dict[str, np.ndarray]:
    return {name: numpy_helper.to_array(tensor) for name, tensor in files.tensors(model)}


def referring(model: ModelProto) -> set[str]:
    return {name for name, tensor in files.tensors(model) if tensor.data_location == TensorProto.EXTERNAL}


def test_every_place_and_form_of_a_tensor(tmp_path: Path) -> None:
    model = everywhere()
    expected = contents(model)
    path = write(tmp_path / "model.onnx", model)
    outline = files.load(path, weights=False)
    # What is written as varints cannot be used where it is.
    assert set(expected) - referring(outline) == {"I", "zero", "limit"}
    assert outline.ByteSize() < 20_000
    whole = files.load(path)
    actual = contents(whole)
    assert list(actual) == list(expected)
    assert all(np.array_equal(actual[name], expected[name]) for name in expected)
    for each in (model, whole, outline):
        for _, tensor in files.tensors(each):
            for field in ("raw_data", "float_data", "double_data", "external_data", "data_location"):
                tensor.ClearField(field)
    assert outline == whole == model


def test_what_is_put_in_is_what_protobuf_writes(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", everywhere())
    files.write(files.load(path, weights=False), tmp_path / "copy.onnx")
    assert (tmp_path / "copy.onnx").read_bytes() == files.load(path).SerializeToString()


def test_a_place_may_lack_a_length(tmp_path: Path) -> None:
    model = files.load(write(tmp_path / "model.onnx", simple()), weights=False)
    (tensor,) = model.graph.initializer
    del tensor.external_data[2]
    assert [entry.key for entry in tensor.external_data] == ["location", "offset"]
    files.write(model, tmp_path / "copy.onnx")
    assert (tmp_path / "copy.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Within it, nothing is taken out of messages."""
    with monkeypatch.context() as patch:
        patch.setattr(wire, "_LEAST", 2**40)
        patch.setattr(writing, "_HELD", 2**40)
        patch.setattr(raising, "_SPARED", 2**40)
        yield patch


@pytest.mark.parametrize("bits", [0, 4, 8, 12])
@pytest.mark.parametrize("opset", [11, 20])
def test_files_are_the_same_bytes_however_they_are_read(
    tmp_path: Path, whole: pytest.MonkeyPatch, bits: int, opset: int
) -> None:
    model = everywhere_plain() if opset == 20 else interleaved()
    model.opset_import[0].version = opset
    source = write(tmp_path / "model.onnx", model)
    profile = OpticalProfile(weight_bits=bits, noise_relative=0.01)
    for name in ("whole", "apart"):
        rewrite(source, tmp_path / f"{name}.onnx", profile, calibration=[[X]])
        assert verify(tmp_path / f"{name}.onnx", inputs=[X]).ok
        merge(tmp_path / f"{name}.onnx", tmp_path / f"{name}.onnx", tmp_path / f"{name}2.onnx", [], prefix2="b")
        whole.undo()
        whole.setattr(raising, "_SPARED", 0)
    for kind in ("", "2"):
        first, second = ((tmp_path / f"{name}{kind}.onnx").read_bytes() for name in ("whole", "apart"))
        assert first == second


def odd(case: str) -> bytes:
    """A model's bytes whose large tensor is written in a way that no exporter writes it."""
    model = simple()
    (tensor,) = model.graph.initializer
    if case == "a segment":
        tensor.segment.end = 4
    elif case == "another length":
        tensor.raw_data += b"\0"
    elif case == "two fields":
        tensor.float_data.append(1)
    elif case == "an unknown type":
        tensor.data_type = 99
    elif case == "a negative size":
        tensor.dims[:] = [-128, -160]
    elif case == "a place beside it":
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="elsewhere")
    elif case == "half of a place":
        tensor.external_data.add(key="length", value="7")
    elif case == "an unknown field":
        tensor.ParseFromString(tensor.SerializeToString() + b"\xfa\x7f\x03abc")
    serialized = model.SerializeToString()
    if case == "raw_data twice":
        graph = GraphProto(initializer=[TensorProto(raw_data=bytes(W.nbytes))])
        outer = ModelProto(graph=graph).SerializeToString()
        return serialized + outer
    return serialized + (b"\xa3\x06\xa4\x06" if case == "a group" else b"")


CASES = [
    *("a segment", "another length", "two fields", "an unknown type", "a negative size", "half of a place"),
    *("an unknown field", "raw_data twice", "a group"),
]


@pytest.mark.parametrize("case", CASES)
def test_odd_files_are_read_as_onnx_reads_them(tmp_path: Path, case: str) -> None:
    path = write(tmp_path / "model.onnx", odd(case))
    expected = onnx.load(path, load_external_data=False)
    outline = files.load(path, weights=False)
    assert bool(referring(outline)) == (case in ("an unknown field", "raw_data twice"))
    whole = files.load(path)
    assert whole == expected or case == "half of a place"


def test_a_tensor_that_lies_elsewhere_is_left_there(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", odd("a place beside it"))
    with pytest.raises(FileNotFoundError, match=r"its tensor 'W' lies in '.*elsewhere'"):
        files.load(path, weights=False)


def test_files_that_are_cut_off(tmp_path: Path) -> None:
    serialized = everywhere().SerializeToString()
    for length in range(1, len(serialized), len(serialized) // 97):
        path = write(tmp_path / "model.onnx", serialized[:length])
        with pytest.raises(ValueError, match=r"^path = '.*model.onnx': not a readable ONNX model \(.+\)"):
            files.load(path, weights=False)
        with pytest.raises(ValueError, match=r"^source = '.*model.onnx': not a readable ONNX model \(.+\)"):
            rewrite(path, tmp_path / "y.onnx", OpticalProfile())
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


SMALL = simple(np.eye(5, dtype=np.float32)).SerializeToString()


@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=5))
def test_damaged_files_are_read_as_onnx_reads_them(tmp_path_factory: pytest.TempPathFactory, changes: Any) -> None:
    damaged = bytearray(SMALL)
    for place, value in changes:
        damaged[place] = value
    path = write(tmp_path_factory.getbasetemp() / "damaged.onnx", bytes(damaged))
    try:
        expected = onnx.load(path, load_external_data=False)
    except Exception:
        with pytest.raises(ValueError, match="not a readable ONNX model"):
            files.load(path)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "_LEAST", 1)
        outline = files._outlined(path)
    if outline is not None:
        for _, tensor in files.tensors(outline):
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if entries.get("location") == path.name:
                start, length = int(entries["offset"]), int(entries["length"])
                tensor.raw_data = bytes(damaged[start : start + length])
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
        assert outline.SerializeToString() == expected.SerializeToString()


def nested(depth: int) -> bytes:
    """A graph in an attribute of a node of a graph ..., around enough bytes for each to be examined."""

    def field(number: int, value: bytes) -> bytes:
        return bytes([number << 3 | 2]) + wire._varint(len(value)) + value

    graph = field(10, b"d" * 2**17)
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))
    return field(7, graph)


@pytest.mark.parametrize("depth", [2, 500])
def test_graphs_within_graphs(tmp_path: Path, depth: int) -> None:
    path = write(tmp_path / "model.onnx", nested(depth))
    if depth == 2:
        assert files.load(path, weights=False).HasField("graph")
        return
    with pytest.raises(ValueError, match="not a readable ONNX model"):
        files.load(path, weights=False)


@pytest.mark.parametrize(
    "name", ["a b.onnx", "'\"\\\n\x1b[31m.onnx", "模型.onnx", "in memory", os.fsdecode(b"\xff.onnx")]
)
def test_names(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, simple())
    rewrite(path, tmp_path / "y.onnx", OpticalProfile(weight_bits=0, input_bits=0, output_bits=0))
    result = lumina_onnx.load(tmp_path / "y.onnx").run(None, {"X": X})[0]
    np.testing.assert_allclose(result, X @ W, atol=1e-4)
    # A message cannot hold the last one.
    assert bool(referring(files.load(path, weights=False))) == (name != os.fsdecode(b"\xff.onnx"))


def test_a_link_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    real = write(folder / "real.onnx", simple())
    (tmp_path / "link.onnx").symlink_to(real)
    monkeypatch.chdir(tmp_path)
    assert {
        place.path for _, each in files.tensors(files.load("link.onnx", weights=False)) if (place := files.placed(each))
    } == {real}
    rewrite("link.onnx", "y.onnx", OpticalProfile())


def test_other_formats_are_left_to_onnx(tmp_path: Path) -> None:
    onnx.save(simple(), tmp_path / "model.json")
    assert files.load(tmp_path / "model.json", weights=False) == simple()


@pytest.mark.parametrize("change", ["replaced", "shorter", "gone"])
def test_a_source_that_changes_meanwhile(tmp_path: Path, change: str) -> None:
    """Its weights are read last of all; those of two models must not be mixed."""
    source, target = write(tmp_path / "model.onnx", simple()), tmp_path / "y.onnx"
    target.write_bytes(b"before")

    def batches() -> Iterator[list[np.ndarray]]:
        yield [X]
        if change == "replaced":
            os.replace(write(tmp_path / "other.onnx", simple(V)), source)
        elif change == "shorter":
            write(source, b"")
        else:
            source.unlink()

    profile = OpticalProfile(weight_bits=0, input_bits=0, output_bits=8)
    message = "has been changed while it was read|cannot be read any more|has become shorter"
    with pytest.raises(OSError, match=message):
        rewrite(source, target, profile, calibration=batches())
    assert target.read_bytes() == b"before"
    assert not list(tmp_path.glob(".lumina*"))


def test_the_twin_is_independent_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "y.onnx"
    rewrite(write(tmp_path / "model.onnx", everywhere_plain()), path, OpticalProfile(), fallback=False)
    twin = float_twin(path)
    path.write_bytes(b"")
    assert not referring(ir.to_proto(twin))
    onnx.save(ir.to_proto(twin), tmp_path / "twin.onnx")
    assert lumina_onnx.load(tmp_path / "twin.onnx").run(None, {"X": X})[0].shape == LARGE


def everywhere_plain() -> ModelProto:
    """:func:`everywhere` without what the exporter does not convert."""
    model = everywhere()
    model.ClearField("training_info")
    del model.graph.sparse_initializer[:]
    del model.graph.node[0].attribute[:]
    return model


def test_what_is_said_of_a_tensor_stays(tmp_path: Path) -> None:
    """Whether it is large or not."""
    model = interleaved()
    for tensor in model.graph.initializer:
        tensor.doc_string = f"about {tensor.name}"
        tensor.metadata_props.add(key="key", value="value")
    rewrite(write(tmp_path / "x.onnx", model), tmp_path / "y.onnx", OpticalProfile(), skip="other")
    kept = {tensor.name: tensor for tensor in onnx.load(tmp_path / "y.onnx").graph.initializer}
    for name in ("b", "wide"):
        assert kept[name].doc_string == f"about {name}"
        assert [(entry.key, entry.value) for entry in kept[name].metadata_props] == [("key", "value")]


CONVERSION = """
import re, sys
from pathlib import Path
from lumina_onnx import OpticalProfile
from lumina_onnx.exporter import rewrite

def status(name):
    return int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

small, large, bits = sys.argv[1:]
profile = OpticalProfile(weight_bits=int(bits))
rewrite(small, f"{small}.y.onnx", profile)  # what is loaded once
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
rewrite(large, f"{large}.y.onnx", profile)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_memory(tmp_path: Path, bits: int) -> None:
    """A conversion takes at most one and a half times as much memory as the file."""
    rng = np.random.default_rng(0)

    def model(count: int) -> ModelProto:
        steps = [helper.make_node("MatMul", [f"x{i}", f"W{i}"], [f"x{i + 1}"], name=f"layer{i}") for i in range(count)]
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1024]) for name in ("x0", f"x{count}"))
        stored = [numpy_helper.from_array(rng.standard_normal((1024, 1024), np.float32), f"W{i}") for i in range(count)]
        graph = helper.make_graph(steps, "graph", [x], [y], stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)

    small, large = write(tmp_path / "small.onnx", model(2)), write(tmp_path / "large.onnx", model(40))
    command = [sys.executable, "-c", CONVERSION, str(small), str(large), str(bits)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 1.5 * large.stat().st_size
