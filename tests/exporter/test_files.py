"""A model's external data: read only from beside its file, checked, and never shared with another model."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import lumina_onnx
from lumina_onnx import OpticalProfile
from lumina_onnx import nn as optical
from lumina_onnx.exporter import export, files, inspect, rewrite, verify
from lumina_onnx.exporter.twin import float_twin

ANALOG = OpticalProfile(input_bits=0, weight_bits=0, output_bits=0)
RNG = np.random.default_rng(0)
W, V = (RNG.normal(size=(40, 40)).astype(np.float32) for _ in range(2))
X = RNG.normal(size=(3, 40)).astype(np.float32)


def beside(array: np.ndarray, name: str, location: str, folder: Path | None, **where: Any) -> TensorProto:
    """A tensor with external data, which are appended to a file in the folder if one is given."""
    tensor = numpy_helper.from_array(array, name)
    if folder is not None:
        with (folder / location).open("ab") as data:
            where = {"offset": data.tell(), "length": array.nbytes} | where
            data.write(array.tobytes())
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **where}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def model(stored: list[TensorProto], content: list[onnx.NodeProto] | None = None, **extras: Any) -> onnx.ModelProto:
    """A model X [batch, 40] -> Y; by default a MatMul with W."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 40]) for name in "XY")
    content = content or [helper.make_node("MatMul", ["X", "W"], ["Y"], name="layer")]
    graph = helper.make_graph(content, "graph", [x], [y], stored)
    imports = [helper.make_opsetid("", extras.pop("opset", 20)), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9, **extras)


def write(path: Path, content: onnx.ModelProto) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.SerializeToString())
    return path


def simple(folder: Path, name: str = "model", location: str = "", weight: np.ndarray = W) -> Path:
    folder.mkdir(exist_ok=True)
    location = location or f"{name}.onnx.data"
    return write(folder / f"{name}.onnx", model([beside(weight, "W", location, folder)]))


def run(path: Path) -> np.ndarray:
    return lumina_onnx.load(path).run(None, {"X": X})[0]


def references(path: Path) -> set[str]:
    proto = onnx.load(path, load_external_data=False)
    return {entry.value for _, each in files.tensors(proto) for entry in each.external_data if entry.key == "location"}


@pytest.mark.parametrize("opset", [11, 20])
def test_the_result_needs_the_source_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opset: int) -> None:
    """Even if other data of the same name are beside the result and in the current folder."""
    source = tmp_path / "a" / "model.onnx"
    source.parent.mkdir()
    write(source, model([beside(W, "W", "model.onnx.data", source.parent)], opset=opset))
    target, here = tmp_path / "b" / "model.onnx", tmp_path / "c"
    for folder in (target.parent, here):
        folder.mkdir()
        (folder / "model.onnx.data").write_bytes((10 * V).tobytes())
    monkeypatch.chdir(here)
    report = rewrite(source, target, OpticalProfile(weight_bits=0, output_bits=12), calibration=[[X]])
    expected = X.astype(np.float64) @ W
    assert report.layers[0].output_range[0] == pytest.approx(np.abs(expected).max(), rel=0.01)
    assert report.source_bytes == source.stat().st_size + W.nbytes
    assert report.file_bytes == target.stat().st_size == inspect(target).file_bytes > W.nbytes
    assert references(target) == set()
    np.testing.assert_allclose(run(target), expected, atol=0.2)
    shutil.rmtree(source.parent)
    np.testing.assert_allclose(run(target), expected, atol=0.2)
    assert verify(target).ok
    assert (target.parent / "model.onnx.data").read_bytes() == (10 * V).tobytes()
    assert sorted(file.name for file in target.parent.iterdir()) == ["model.onnx", "model.onnx.data"]


def test_the_result_in_the_source_s_folder(tmp_path: Path) -> None:
    source = simple(tmp_path / "a")
    target = source.with_name("optical.onnx")
    rewrite(source, target, ANALOG)
    source.with_name("model.onnx.data").write_bytes(bytes(W.nbytes))
    np.testing.assert_allclose(run(target), X.astype(np.float64) @ W, atol=1e-4)


def everywhere(folder: Path) -> Path:
    """External data of a layer, of a subgraph, and of `Constant` nodes in the main graph, a subgraph and a function."""
    folder.mkdir()

    def tensor(name: str, scale: float) -> TensorProto:
        return beside(np.full(40, scale, np.float32), name, f"{name}.bin", folder)

    def branch(name: str) -> onnx.GraphProto:
        inner = [
            helper.make_node("Constant", [], [f"{name}C"], value=tensor(f"{name}C", 3)),
            helper.make_node("Add", ["z", f"{name}C"], [f"{name}s"]),
            helper.make_node("Add", [f"{name}s", f"{name}I"], [name]),
        ]
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph(inner, name, [], [out], [tensor(f"{name}I", 5)])

    content = [
        helper.make_node("MatMul", ["X", "W"], ["x"], name="layer"),
        helper.make_node("Constant", [], ["C"], value=tensor("C", 7)),
        helper.make_node("Add", ["x", "C"], ["y"]),
        helper.make_node("ReduceMax", ["X"], ["m"], keepdims=0),
        helper.make_node("Less", ["m", "limit"], ["c"]),
        helper.make_node("Mul", ["y", "limit"], ["w"]),
        helper.make_node("F", ["w"], ["z"], domain="own"),
        helper.make_node("If", ["c"], ["Y"], then_branch=branch("t"), else_branch=branch("e")),
    ]
    body = [
        helper.make_node("Constant", [], ["v"], value=tensor("v", 11)),
        helper.make_node("Add", ["a", "v"], ["b"]),
    ]
    function = helper.make_function("own", "F", ["a"], ["b"], body, [helper.make_opsetid("", 20)])
    limit = numpy_helper.from_array(np.float32(2), "limit")
    proto = model([beside(W, "W", "W.bin", folder), limit], content, functions=[function])
    return write(folder / "model.onnx", proto)


@pytest.mark.parametrize("limit", [None, 6000])
def test_every_place_of_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None) -> None:
    source, target = everywhere(tmp_path / "a"), tmp_path / "b" / "model.onnx"
    target.parent.mkdir()
    expected = 2 * (X.astype(np.float64) @ W + 7) + 11 + 3 + 5
    np.testing.assert_allclose(run(source), expected, rtol=1e-4)
    if limit:
        monkeypatch.setattr(files, "_MAXIMUM_PROTOBUF", limit)
        monkeypatch.setattr(files, "_LEAST_BESIDE", 100)
    report = rewrite(source, target, ANALOG, fallback=False)
    assert report.left == []
    shutil.rmtree(source.parent)
    data = sorted(file.name for file in target.parent.iterdir())
    assert data == (["model.onnx", "model.onnx.data"] if limit else ["model.onnx"])
    assert references(target) == ({"model.onnx.data"} if limit else set())
    assert report.file_bytes == sum(file.stat().st_size for file in target.parent.iterdir())
    np.testing.assert_allclose(run(target), expected, rtol=1e-4)


def test_the_limit_counts_every_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only the main graph's initializers: this model's large tensor is a `Constant`."""
    content = [
        helper.make_node("MatMul", ["X", "W"], ["x"], name="layer"),
        helper.make_node("Constant", [], ["C"], value=numpy_helper.from_array(np.ones((3, 40, 40), np.float32))),
        helper.make_node("MatMul", ["x", "C"], ["Y"], name="left"),
    ]
    source = write(tmp_path / "s.onnx", model([numpy_helper.from_array(W, "W")], content))
    monkeypatch.setattr(files, "_MAXIMUM_PROTOBUF", 20_000)
    report = rewrite(source, tmp_path / "y.onnx", ANALOG)
    assert "keep y.onnx.data beside it" in str(report.notes)
    np.testing.assert_allclose(run(tmp_path / "y.onnx"), run(source), rtol=1e-3, atol=1e-3)
    assert verify(tmp_path / "y.onnx").ok


def test_typed_elements_move_out_too(tmp_path: Path) -> None:
    typed = helper.make_tensor("W", TensorProto.FLOAT, W.shape, W.ravel())
    halves = helper.make_tensor("H", TensorProto.FLOAT16, [1000], np.arange(1000, dtype=np.float16))
    nibbles = helper.make_tensor("N", TensorProto.INT4, [3001], [i % 16 - 8 for i in range(3001)])
    proto = model([typed, halves, nibbles])
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    files._move_out(proto, tmp_path / "d")
    write(tmp_path / "y.onnx", proto)
    assert all(tensor.data_location == TensorProto.EXTERNAL for tensor in proto.graph.initializer)
    for tensor in files.load(tmp_path / "y.onnx").graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), before[tensor.name])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowers the limit so that every model is too large for one file."""
    monkeypatch.setattr(files, "_MAXIMUM_PROTOBUF", 5_000)


def test_data_of_others_are_never_overwritten(tmp_path: Path, small: None) -> None:
    """A taken name is not used; the data file of the replaced model is, unless a copy of the model refers to it."""
    source = simple(tmp_path / "a", location="y.onnx.data")
    target, own = source.with_name("y.onnx"), source.with_name("y.onnx.2.data")
    for _ in range(2):
        (note,) = rewrite(source, target, ANALOG, fallback=False).notes
        assert "keep y.onnx.2.data beside it" in note
        assert references(target) == {"y.onnx.2.data"}
    content = own.read_bytes()
    copy = shutil.copy(target, source.with_name("copy.onnx"))
    other = simple(tmp_path / "b", weight=V)
    rewrite(other, target, ANALOG, fallback=False)
    assert references(target) == {"y.onnx.3.data"}
    assert own.read_bytes() == content
    for path, weight in ((source, W), (copy, W), (target, V)):
        np.testing.assert_allclose(run(path), X.astype(np.float64) @ weight, atol=1e-4)  # type: ignore[arg-type]
    source.with_name("y.onnx.4.data").mkdir()
    source.with_name("y.onnx.5.data").symlink_to("nowhere")
    shutil.copy(target, source.with_name("copy.2.onnx"))
    rewrite(other, target, ANALOG, fallback=False)
    assert references(target) == {"y.onnx.6.data"}


def test_a_link_to_the_source_s_data_is_not_followed(tmp_path: Path, small: None) -> None:
    source = simple(tmp_path / "a")
    target = tmp_path / "y.onnx"
    tmp_path.joinpath("y.onnx.data").symlink_to(source.with_name("model.onnx.data"))
    rewrite(source, target, ANALOG, fallback=False)
    assert references(target) == {"y.onnx.2.data"}
    np.testing.assert_allclose(run(source), X.astype(np.float64) @ W, atol=1e-4)


@pytest.mark.parametrize("failing", ["y.onnx.data", "y.onnx"])
def test_a_write_that_fails_leaves_no_model_with_other_weights(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    target = tmp_path / "y.onnx"
    rewrite(simple(tmp_path / "a"), target, ANALOG, fallback=False)
    other = simple(tmp_path / "b", weight=V)
    before, replace = target.read_bytes(), os.replace

    def fail(source: Any, destination: Any) -> None:
        if Path(destination).name == failing and "before" not in Path(source).name:
            raise OSError("no space left")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        rewrite(other, target, ANALOG, fallback=False)
    if failing == "y.onnx":
        assert not target.exists()
    else:
        assert target.read_bytes() == before
        np.testing.assert_allclose(run(target), X.astype(np.float64) @ W, atol=1e-4)
    assert not [file for file in tmp_path.iterdir() if file.name.startswith("tmp")]


def test_an_export_in_two_files_is_checked_and_replaced(tmp_path: Path, small: None) -> None:
    layer = optical.convert(torch.nn.Linear(64, 64), OpticalProfile(weight_bits=8))
    for _ in range(2):
        report = export(layer, torch.zeros(2, 64), tmp_path / "y.onnx", fallback=False)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["y.onnx", "y.onnx.data"]
        assert report.file_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    x = torch.randn(3, 64)
    (got,) = lumina_onnx.load(tmp_path / "y.onnx").run(None, {"input": x.numpy()})
    np.testing.assert_array_equal(got, layer(x).detach().numpy())


def test_what_no_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = simple(tmp_path / "a")
    monkeypatch.setattr(files, "_message", lambda model: None)
    with pytest.raises(ValueError, match=r"y\.onnx': protobuf ends at 2 GiB, and the model takes more without data"):
        rewrite(source, tmp_path / "y.onnx", ANALOG)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def nothing(path: Path) -> None:
    pass


def short(path: Path) -> None:
    path.write_bytes(W.tobytes()[:-1])


def whole(path: Path) -> None:
    path.write_bytes(W.tobytes())


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        # The path of a socket must be short, and pytest's folders have long paths.
        before = Path.cwd()
        os.chdir(path.parent)
        made.bind(path.name)
        os.chdir(before)


EXPECTED = r"; expected are 6400 bytes from byte 0 on$"
INSIDE = r"; allowed is a file in the model's folder, by a name relative to it$"
BAD: dict[str, tuple[Callable[[Path], Any], str, dict[str, Any], type[Exception], str]] = {
    "missing": (nothing, "w", {}, FileNotFoundError, r"lies in '.*/m/w', and there is no such file" + EXPECTED),
    "no folder": (nothing, "d/w", {}, FileNotFoundError, r"lies in '.*/m/d/w', and there is no such file" + EXPECTED),
    "short": (short, "w", {}, ValueError, r"lies in '.*/m/w', which has 6399 bytes" + EXPECTED),
    "offset": (whole, "w", {"offset": 4}, ValueError, r"which has 6400 bytes; expected are 6400 bytes from byte 4 on$"),
    "length": (whole, "w", {"length": 6396}, ValueError, r"w', 6396 bytes of it; its shape \[40, 40\] takes 6400$"),
    "bad offset": (whole, "w", {"offset": "x"}, ValueError, r"has offset 'x'; allowed is a number from 0$"),
    "negative": (whole, "w", {"length": "-1"}, ValueError, r"has length '-1'; allowed is a number from 0$"),
    "a folder": (os.mkdir, "w", {}, ValueError, r"lies in '.*/m/w', a folder; allowed is a regular file$"),
    "a FIFO": (os.mkfifo, "w", {}, ValueError, r"lies in '.*/m/w', a FIFO; allowed is a regular file$"),
    "a socket": (a_socket, "w", {}, ValueError, r"lies in '.*/m/w', a socket; allowed is a regular file$"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "w", {}, ValueError, "'w', which is '/dev/zero'" + INSIDE),
    "a link out": (
        lambda path: (whole(path.parent.parent / "w"), path.symlink_to("../w")),  # type: ignore[func-returns-value]
        "w",
        {},
        ValueError,
        r"lies in 'w', which is '.*/w'" + INSIDE,
    ),
    "a link to itself": (lambda path: path.symlink_to("w"), "w", {}, Exception, "tensor 'W' lies in"),
    "above": (
        lambda path: whole(path.parent.parent / "w"),
        "../w",
        {},
        ValueError,
        r"'\.\./w', which is '.*/w'" + INSIDE,
    ),
    "absolute": (nothing, "/etc/passwd", {}, ValueError, "lies in '/etc/passwd'" + INSIDE),
    "no name": (nothing, "", {}, ValueError, "lies in ''" + INSIDE),
    "a NUL": (nothing, "w\0", {}, ValueError, r"lies in 'w\\x00'" + INSIDE),
}


@pytest.mark.parametrize("case", BAD)
def test_data_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Whatever the current folder contains. Nothing waits for a FIFO."""
    make, location, where, error, message = BAD[case]
    folder = tmp_path / "m"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    if location:
        make(folder / location.replace("\0", ""))
    path = write(folder / "m.onnx", model([beside(W, "W", location, None, **where)]))
    for function in (
        lambda: rewrite(path, tmp_path / "y.onnx", ANALOG, calibration=[[X]]),
        lambda: inspect(path),
        lambda: verify(path),
        lambda: float_twin(path),
    ):
        with pytest.raises(error, match=message) as caught:
            function()
        assert re.match(r"(path|source) = '.*m\.onnx': its tensor 'W' ", str(caught.value))
    assert not (tmp_path / "y.onnx").exists()


def test_data_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = simple(tmp_path / "a")
    opened = Path.open

    def refuse(self: Path, *arguments: Any) -> Any:
        if self.suffix == ".data":
            raise PermissionError(13, "Permission denied")
        return opened(self, *arguments)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        PermissionError, match=r"model\.onnx\.data', which cannot be read \(Permission denied\); expect"
    ):
        rewrite(path, tmp_path / "y.onnx", ANALOG)


def test_types_and_shapes_that_cannot_lie_beside_a_file(tmp_path: Path) -> None:
    tensor = beside(W, "W", "w", tmp_path)
    tensor.data_type = TensorProto.STRING
    with pytest.raises(ValueError, match="its tensor 'W' is of type STRING, which cannot lie beside the file"):
        inspect(write(tmp_path / "m.onnx", model([tensor])))
    tensor.data_type, tensor.dims[0] = TensorProto.FLOAT, -40
    with pytest.raises(ValueError, match=r"its tensor 'W' has shape \[-40, 40\]; allowed are sizes from 0"):
        inspect(write(tmp_path / "m.onnx", model([tensor])))


def test_data_that_vanish_are_no_reason_to_leave_a_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = simple(tmp_path / "a"), tmp_path / "a" / "model.onnx.data"
    load = files.load

    def gone(*arguments: Any, **options: Any) -> Any:
        read = load(*arguments, **options)
        data.unlink()
        return read

    monkeypatch.setattr(files, "load", gone)
    with pytest.raises(FileNotFoundError, match=r"model\.onnx\.data"):
        rewrite(path, tmp_path / "y.onnx", ANALOG)


def test_links_within_a_folder_and_of_a_cache(tmp_path: Path) -> None:
    """Hard links, links that stay in the folder, and a linked model with its data beside its target are all read, as in
    ONNX Runtime."""
    folder = tmp_path / "a"
    path = simple(folder, location="real")
    folder.joinpath("w").symlink_to("real")
    os.link(folder / "real", folder / "hard")
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    shutil.copy(folder / "real", blobs / "2")
    write(blobs / "1", model([beside(W, "W", "data", None, offset=0)]))
    snapshot.joinpath("m.onnx").symlink_to("../blobs/1")
    snapshot.joinpath("data").symlink_to("../blobs/2")
    folder.joinpath("d").mkdir()
    paths = [
        write(folder / "soft.onnx", model([beside(W, "W", "w", None)])),
        write(folder / "hard.onnx", model([beside(W, "W", "hard", None)])),
        write(folder / "dots.onnx", model([beside(W, "W", "d/../real", None)])),
        snapshot / "m.onnx",
    ]
    for source in (path, *paths):
        rewrite(source, tmp_path / "y.onnx", ANALOG)
        np.testing.assert_allclose(run(tmp_path / "y.onnx"), X.astype(np.float64) @ W, atol=1e-4)
        np.testing.assert_allclose(run(source), X.astype(np.float64) @ W, atol=1e-4)


def test_a_part_of_a_longer_file(tmp_path: Path) -> None:
    """The source's size counts every file that it refers to once."""
    folder = tmp_path
    folder.joinpath("both").write_bytes(b"head" * 16 + W.tobytes() + V.tobytes() + b"tail")
    tensors = [beside(W, "W", "both", None, offset=64), beside(V, "V", "both", None, offset=64 + W.nbytes)]
    content = [
        helper.make_node("MatMul", ["X", "W"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "V"], ["Y"], name="second"),
    ]
    path = write(folder / "m.onnx", model(tensors, content))
    report = rewrite(path, folder / "y.onnx", ANALOG)
    assert report.source_bytes == path.stat().st_size + folder.joinpath("both").stat().st_size
    np.testing.assert_allclose(run(folder / "y.onnx"), X.astype(np.float64) @ W @ V, rtol=1e-3, atol=1e-3)


def test_inspect_reads_no_weights(tmp_path: Path) -> None:
    """The data file is sparse and has many gigabytes."""
    rows = 2**27
    tensor = TensorProto(name="W", data_type=TensorProto.FLOAT, dims=[rows, 40], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w")
    with (tmp_path / "w").open("wb") as data:
        data.truncate(4 * 40 * rows)
    path = write(tmp_path / "m.onnx", model([tensor]))
    assert inspect(path).file_bytes == path.stat().st_size + 4 * 40 * rows


def test_bytes_that_refer_to_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = simple(tmp_path / "a")
    monkeypatch.chdir(path.parent)
    content = path.read_bytes()
    message = (
        rf"model = {len(content)} bytes that refer to data in 'model\.onnx\.data', which ONNX Runtime would take from "
        r"the current folder; allowed are the model's path, or bytes with all data in them"
    )
    with pytest.raises(ValueError, match=message):
        lumina_onnx.load(content)
    long = write(tmp_path / "n.onnx", model([beside(W, "W", "d/" * 70 + "w", None)])).read_bytes()
    with pytest.raises(ValueError, match="bytes that refer to data in"):
        lumina_onnx.load(long)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    loaded = lumina_onnx.load(content, sess_options=options).run(None, {"X": X})[0]
    np.testing.assert_allclose(loaded, X.astype(np.float64) @ W, atol=1e-4)
    held = onnx.load(path)
    held.metadata_props.add(key="location", value="Bern")
    np.testing.assert_array_equal(lumina_onnx.load(held.SerializeToString()).run(None, {"X": X})[0], loaded)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"not a readable ONNX model \(the file is empty\)"),
        (b"\x08", r"not a readable ONNX model \(Error parsing message.*\)"),
        (b"hello, world\n", r"not a readable ONNX model \("),
        (b"{}", r"not a readable ONNX model \("),
        (onnx.ModelProto(ir_version=9).SerializeToString(), r"not a readable ONNX model \(it holds no graph\)"),
        (model([numpy_helper.from_array(W, "W")]).SerializeToString()[:-100], r"not a readable ONNX model \("),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    for name, function in (("path", inspect), ("path", verify), ("source", rewritten)):
        with pytest.raises(ValueError, match=rf"{name} = '.*m\.onnx': {message}") as caught:
            function(path)
        assert "\n" not in str(caught.value)


def rewritten(path: Path) -> None:
    rewrite(path, path.with_name("y.onnx"), ANALOG)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.onnx")
    for name, function in (("path", inspect), ("path", verify), ("source", rewritten)):
        with pytest.raises(ValueError, match=rf"{name} = '.*' is a folder; allowed is a file"):
            function(tmp_path)
        with pytest.raises(ValueError, match=rf"{name} = '.*fifo\.onnx' is a FIFO; allowed is a file"):
            function(tmp_path / "fifo.onnx")
        with pytest.raises(FileNotFoundError, match=rf"{name} = '.*no\.onnx': there is no such file"):
            function(tmp_path / "no.onnx")
    with (tmp_path / "large.onnx").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(
        ValueError, match=r"large\.onnx': not a readable ONNX model \(2\.00 GiB: protobuf ends at 2 GiB"
    ):
        inspect(tmp_path / "large.onnx")
