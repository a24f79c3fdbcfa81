"""Merging two files: the operator stays the operator, or a message says that it does not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.compose
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import lumina_onnx
from lumina_onnx import OpticalProfile
from lumina_onnx import nn as optical
from lumina_onnx.exporter import export, files, inspect, merge, rewrite, verify

NOISY = OpticalProfile(weight_bits=4, noise_additive=0.05)
PAIR = [("output", "input")]


@pytest.fixture(scope="module")
def models() -> tuple[nn.Module, nn.Module]:
    """Two models whose layers have the same seeds."""
    torch.manual_seed(0)
    first, second = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Sequential(nn.Linear(8, 3))
    return optical.convert(first, NOISY), optical.convert(second, OpticalProfile(noise_relative=0.1))


@pytest.fixture(scope="module")
def folder(models: tuple[nn.Module, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("merge")
    for name, model, k in zip("ab", models, (6, 8), strict=True):
        export(model, torch.zeros(2, k), made / f"{name}.onnx")
        needy = onnx.load(made / f"{name}.onnx")
        del needy.functions[:]
        onnx.save(needy, made / f"{name}-needy.onnx")
    newer = onnx.load(made / "b.onnx")
    for imports in (newer.opset_import, newer.functions[0].opset_import):
        next(entry for entry in imports if not entry.domain).version = 21
    newer.ir_version = 10
    onnx.save(newer, made / "b-21.onnx")
    return made


def proven(path: Path, models: tuple[nn.Module, nn.Module], *, body: bool = True) -> None:
    """Asserts that both layers are the operator and give torch's bits."""
    x = torch.randn(4, 6)
    report = verify(path, inputs=[x.numpy()], reference=nn.Sequential(*models))
    assert report.ok, str(report)
    assert {row.against for row in report.comparisons} == {"reference", "torch"}
    assert all(row.equal and row.required for row in report.comparisons if row.library), str(report)
    assert any(not row.library for row in report.comparisons) == body
    onnx.checker.check_model(path, full_check=True)


@pytest.mark.parametrize(("suffixes", "body"), [(("", ""), True), (("", "-needy"), True), (("-needy",) * 2, False)])
def test_two_files_become_one(
    tmp_path: Path, folder: Path, models: tuple[nn.Module, nn.Module], suffixes: tuple[str, str], body: bool
) -> None:
    sources: Any = [folder / f"{name}{suffix}.onnx" for name, suffix in zip("ab", suffixes, strict=True)]
    path = tmp_path / "c.onnx"
    report = merge(*sources, path, PAIR, prefix2="b/")  # type: ignore[arg-type, call-arg, misc]
    assert (report.inputs, report.outputs) == ({"input": "float[batch, 6]"}, {"b/output": "float[batch, 3]"})
    assert [layer.name for layer in report.layers] == ["0", "b/0"]
    assert (report.body_bytes > 0) == body
    assert len({layer.seed for layer in report.layers}) == 2
    assert [note.split(" has the noise seed of 0 ")[0] for note in report.notes] == ["b/0"]
    profiles = [value for key, value in report.metadata.items() if key.startswith("lumina.profile.")]
    assert sorted(text.partition('"layers": ')[2] for text in profiles) == ['["0"]}', '["b/0"]}']
    assert report.metadata["lumina.version"] == lumina_onnx.__version__
    proven(path, models, body=body)


def test_with_both_prefixed_and_data_beside(
    tmp_path: Path, folder: Path, models: tuple[nn.Module, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_MAXIMUM_PROTOBUF", 100)
    monkeypatch.setattr(files, "_LEAST_BESIDE", 24)
    once = tmp_path / "once.onnx"
    merge(folder / "a.onnx", folder / "b.onnx", once, PAIR, prefix1="a/", prefix2="b/")
    proven(once, models)
    assert once.with_name("once.onnx.data").exists()
    # One of them has external data, which the result does not need.
    twice = tmp_path / "twice.onnx"
    monkeypatch.setattr(files, "_MAXIMUM_PROTOBUF", 10**6)
    export(optical.convert(nn.Linear(3, 6), NOISY, seed=9), torch.zeros(2, 3), tmp_path / "c.onnx")
    report = merge(once, tmp_path / "c.onnx", twice, [("b/output", "input")], prefix2="c/")
    for file in (once, once.with_name("once.onnx.data")):
        file.unlink()
    assert len(report.layers) == 3
    assert verify(twice).ok


def test_one_of_them_may_be_plain(tmp_path: Path, folder: Path) -> None:
    y, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("scores", "Z"))
    graph = helper.make_graph([helper.make_node("Softmax", ["scores"], ["Z"])], "plain", [y], [z])
    plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx", 20)], ir_version=10)
    plain.metadata_props.add(key="classes", value="a,b,c")
    onnx.save(plain, tmp_path / "plain.onnx")
    report = merge(folder / "b.onnx", tmp_path / "plain.onnx", tmp_path / "c.onnx", [("output", "scores")])
    assert report.metadata["classes"] == "a,b,c"
    assert (report.notes, report.ir_version) == ([], 10)
    assert verify(tmp_path / "c.onnx").ok


def test_metadata_of_two(tmp_path: Path, folder: Path) -> None:
    for name in "ab":
        proto = onnx.load(folder / f"{name}.onnx")
        proto.metadata_props.add(key="author", value=name)
        proto.metadata_props.add(key="licence", value="same")
        onnx.save(proto, tmp_path / f"{name}.onnx")
    report = merge(tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "c.onnx", PAIR, prefix2="b/")
    assert (report.metadata["author"], report.metadata["licence"]) == ("a", "same")
    assert report.notes[0] == "metadata 'author' of the second is left out: the first has another value"


def test_attributes_that_a_node_omits(tmp_path: Path, folder: Path) -> None:
    proto = onnx.load(folder / "a.onnx")
    for node in proto.graph.node:
        if node.op_type == "OpticalLinear":
            kept = [entry for entry in node.attribute if entry.name in ("weight_bits", "in_features")]
            del node.attribute[:]
            node.attribute.extend(kept)
    onnx.save(proto, tmp_path / "a.onnx")
    merge(tmp_path / "a.onnx", folder / "b.onnx", tmp_path / "c.onnx", PAIR, prefix2="b/")
    assert verify(tmp_path / "c.onnx").ok


def test_onnx_s_own_call(tmp_path: Path, folder: Path, models: tuple[nn.Module, nn.Module]) -> None:
    """With at most one body and no shared seed, our metadata do not prevent it."""
    first, second = onnx.load(folder / "a.onnx"), onnx.load(folder / "b-needy.onnx")
    onnx.save(onnx.compose.merge_models(first, second, io_map=PAIR, prefix2="b/"), tmp_path / "c.onnx")
    report = verify(tmp_path / "c.onnx")
    assert report.ok
    assert len(inspect(tmp_path / "c.onnx").layers) == 2
    prefixed = onnx.compose.add_prefix(onnx.load(folder / "b.onnx"), "b/", rename_functions=False)
    onnx.save(prefixed, tmp_path / "d.onnx")
    assert [layer.name for layer in inspect(tmp_path / "d.onnx").layers] == ["b/0"]
    assert inspect(tmp_path / "d.onnx").notes == []


@pytest.mark.filterwarnings("ignore:model. its function:UserWarning")
def test_a_renamed_operator_is_seen(tmp_path: Path, folder: Path) -> None:
    """`add_prefix` renames the operator with its function, and nothing else shows that the library is not called."""
    path = tmp_path / "p.onnx"
    prefixed = onnx.compose.add_prefix(onnx.load(folder / "b.onnx"), "far/away/" * 9)
    onnx.save(prefixed, path)
    name = "far/away/" * 9 + "OpticalLinear"
    words = "a renamed copy of the operator's function, as onnx.compose.add_prefix makes it: it runs without the"
    (note,) = inspect(path).notes
    assert f"({name}): {words}" in note
    assert words in str(inspect(path))
    assert "does not run" not in str(inspect(path))
    with pytest.raises(ValueError, match=rf"no lumina::OpticalLinear node to verify \('{name}' is {words}"):
        verify(path)
    for model in (path, str(path), path.read_bytes()):
        with pytest.warns(UserWarning, match=rf"its function '{name}' is a renamed copy of lumina::OpticalLinear"):
            lumina_onnx.load(model)
    with pytest.raises(ValueError, match="has OpticalLinear nodes already"):
        rewrite(path, tmp_path / "y.onnx", NOISY)
    with pytest.raises(ValueError, match=rf"second = '.*p\.onnx' calls {words}"):
        merge(folder / "a.onnx", path, tmp_path / "y.onnx", [("output", "b/input")])
    merged = onnx.compose.merge_models(onnx.load(folder / "a.onnx"), onnx.load(folder / "b.onnx"), PAIR, prefix2="b/")
    onnx.save(merged, path)
    report = verify(path)
    assert not report.ok
    assert [(left.name, left.kind) for left in report.bypassing] == [("b/0", "b/OpticalLinear")]
    with pytest.warns(UserWarning, match="its function 'b/OpticalLinear' is a renamed copy"):
        lumina_onnx.load(path)


def test_files_as_they_are_loaded_without_a_word(tmp_path: Path, folder: Path) -> None:
    merge(folder / "a.onnx", folder / "b.onnx", tmp_path / "c.onnx", PAIR, prefix2="b/")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in (*folder.glob("*.onnx"), tmp_path / "c.onnx"):
            lumina_onnx.load(path)
            lumina_onnx.load(path.read_bytes())


def function(name: str) -> onnx.FunctionProto:
    content = [helper.make_node("Relu", ["a"], ["b"])]
    return helper.make_function("own", name, ["a"], ["b"], content, [helper.make_opsetid("", 20)])


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (
            ("a", "b"),
            {},
            r"io_map = .*: .*overlapping names.*output.*; allowed are names of their own: give prefix1 or",
        ),
        (("a", "b"), {"io_map": [("y", "input")], "prefix2": "b/"}, "io_map = .*: Output y is not present in g1$"),
        (("a", "b"), {"io_map": [("output", "x")], "prefix2": "b/"}, "io_map = .*: Input b/x is not present in g2$"),
        (
            ("a", "b-21"),
            {"prefix2": "b/"},
            "first has version 20 of the operators of 'ai.onnx', second 21; allowed are",
        ),
        (
            ("own", "own"),
            {"prefix2": "b/"},
            "first and second have a function own::F each; allowed are names of its own",
        ),
        (("plain", "plain"), {}, "first and second hold no lumina::OpticalLinear; allowed is at least one"),
        (
            ("a", "b"),
            {"path": "a.onnx", "prefix2": "b/"},
            r"path = '.*a\.onnx' is first itself; allowed is another file",
        ),
    ],
)
def test_what_does_not_fit(tmp_path: Path, folder: Path, names: Any, options: dict[str, Any], message: str) -> None:
    for name in ("a", "b", "b-21"):
        tmp_path.joinpath(f"{name}.onnx").write_bytes((folder / f"{name}.onnx").read_bytes())
    own = onnx.load(folder / "a.onnx")
    own.functions.append(function("F"))
    onnx.save(own, tmp_path / "own.onnx")
    x, y = (helper.make_tensor_value_info(each, TensorProto.FLOAT, [6]) for each in ("input", "output"))
    stored = [numpy_helper.from_array(np.ones(6, np.float32), "w")]
    graph = helper.make_graph([helper.make_node("Add", ["input", "w"], ["output"])], "plain", [x], [y], stored)
    onnx.save(helper.make_model(graph, ir_version=9), tmp_path / "plain.onnx")
    path = tmp_path / options.pop("path", "c.onnx")
    with pytest.raises(ValueError, match=message):
        merge(*(tmp_path / f"{name}.onnx" for name in names), path, options.pop("io_map", PAIR), **options)  # type: ignore[arg-type, call-arg]
    assert not (tmp_path / "c.onnx").exists()
    with pytest.raises(FileNotFoundError, match=r"second = '.*no\.onnx': there is no such file"):
        merge(tmp_path / "a.onnx", tmp_path / "no.onnx", tmp_path / "c.onnx", PAIR)
