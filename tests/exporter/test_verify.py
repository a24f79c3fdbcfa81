"""Verification finds differences, and reports show them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from torch import nn

import lumina_onnx
from lumina_onnx import nn as optical
from lumina_onnx import reference
from lumina_onnx.exporter import alone, comparing, export, files, inspect, onnx_schema, targets, verify
from lumina_onnx.profile import OpticalProfile
from lumina_onnx.schema import PARAMETERS, VERSION_ATTRIBUTE

verifying = sys.modules["lumina_onnx.exporter.verify"]


@pytest.fixture
def model(noisy: OpticalProfile) -> nn.Module:
    return optical.convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), noisy)


def test_a_layer_that_computes_something_else(prover: Any, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    prover.export(model, torch.randn(2, 6))
    right = reference.optical_linear

    def wrong(x: np.ndarray, *args: Any, **options: Any) -> np.ndarray:
        y = right(x, *args, **options)
        if options.get("stream") == 1 and y.shape[-1] == 3:
            y[0, 0] = np.nextafter(y[0, 0], np.float32(9))
        return y

    monkeypatch.setattr(reference, "optical_linear", wrong)
    report = verify(prover.path)
    assert not report.ok
    assert [(row.name, row.run) for row in report.comparisons if not row.ok] == [("2", 1)]
    assert "DIFFERENT" in str(report)
    assert "NOT ok" in str(report)


def test_a_function_body_whose_noise_is_not_finite(prover: Any) -> None:
    prover.export(
        optical.convert(nn.Linear(6, 8), OpticalProfile(output_bits=0, noise_relative=0.1)), torch.randn(2, 6)
    )
    broken = onnx.load(prover.path)
    branches = [attribute.g for node in broken.functions[0].node for attribute in node.attribute]
    inner = [node for branch in branches for part in files.graphs(branch) for node in part.node]
    sources = [node for node in inner if node.op_type == "RandomNormalLike"]
    assert sources
    for node in sources:
        node.attribute.append(helper.make_attribute("scale", float("inf")))
    onnx.save(broken, prover.path)
    report = verify(prover.path)
    wrong = [row for row in report.comparisons if not row.ok]
    assert wrong
    assert {(row.library, row.max_difference) for row in wrong} == {(False, float("inf"))}
    assert "NOT ok" in str(report)


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (
            "!utils::HasExternalDataInMemory(tensor_proto) was false.",
            r"onnxruntime = 1\.26\.0: .* do not load this file without the operator's library.*Allowed is",
        ),
        ("Protobuf parsing failed", "^Protobuf parsing failed$"),
    ],
)
def test_a_release_that_does_not_load_the_file_without_the_library(
    reason: str, message: str, prover: Any, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime 1.24 to 1.27 with a layer in an `If` whose condition they fold; the message is theirs."""
    prover.export(model, torch.randn(2, 6))
    right = onnxruntime.InferenceSession

    def choosy(*args: Any, sess_options: Any = None, **options: Any) -> Any:
        if sess_options is None:
            raise ValueError(reason)
        return right(*args, sess_options=sess_options, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", choosy)
    monkeypatch.setattr(onnxruntime, "__version__", "1.26.0")
    with pytest.raises((RuntimeError, ValueError), match=message):
        verify(prover.path)


def test_a_torch_model_with_another_weight(prover: Any, model: nn.Module) -> None:
    prover.export(model, torch.randn(2, 6))
    with torch.no_grad():
        model[0].weight.mul_(1.5)  # type: ignore[index]
    report = verify(prover.path, reference=model)
    assert not report.ok
    assert {row.against for row in report.comparisons if not row.ok} == {"torch"}
    assert max(row.max_difference for row in report.comparisons) > 0.01


def test_runs_draw_noise_of_their_own(prover: Any, model: nn.Module) -> None:
    prover.export(model, torch.randn(2, 6))
    session = lumina_onnx.load(prover.path)
    x = {"input": np.ones((2, 6), np.float32)}
    first, second = session.run(None, x)[0], session.run(None, x)[0]
    assert (first != second).any()
    np.testing.assert_array_equal(lumina_onnx.load(prover.path).run(None, x)[0], first)


def test_inputs_by_name_by_order_or_alone(prover: Any, model: nn.Module) -> None:
    prover.export(model, torch.randn(2, 6))
    x = np.ones((4, 6), np.float32)
    for inputs in (x, [x], {"input": x}, torch.ones(4, 6), None):
        report = verify(prover.path, inputs=inputs)  # type: ignore[arg-type]
        assert report.ok
        assert report.inputs == {"input": (2 if inputs is None else 4, 6)}


def test_training_mode_of_the_reference_is_restored(prover: Any, model: nn.Module) -> None:
    prover.export(model, torch.randn(2, 6))
    model.train()
    assert verify(prover.path, reference=model).ok
    assert model.training


def test_reports_print_as_tables_and_turn_into_json(prover: Any, model: nn.Module) -> None:
    written = prover.export(model, torch.randn(2, 6))
    found = inspect(prover.path)
    checked = verify(prover.path, reference=model)
    for report in (written, found, checked):
        text = str(report)
        assert str(prover.path) in text
        assert "│ 2 " in text
        with Path(os.devnull).open("w") as nowhere, Console(record=True, width=200, file=nowhere) as console:
            console.print(report)
        assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["path"] == str(prover.path)
    assert "8/4/8" in str(written)
    assert "additive 0.05" in str(found)
    assert found.layers == written.layers
    assert found.other_operators == written.other_operators == {"Relu": 1}
    assert (found.opset, found.ir_version) == (20, 9) == (written.opset, written.ir_version)
    assert checked.to_dict()["ok"] is True


def test_a_name_that_looks_like_markup_is_printed_as_it_is(prover: Any, noisy: OpticalProfile) -> None:
    model = optical.convert(nn.ModuleDict({"[red]": nn.Linear(3, 3)}), noisy)
    model.forward = lambda x: model["[red]"](x)
    prover.export(model, torch.randn(2, 3))
    assert "[red]" in str(inspect(prover.path))
    assert "[red]" in str(verify(prover.path))


def test_inspection_fills_in_what_a_node_omits(tmp_path: Path) -> None:
    node = helper.make_node("OpticalLinear", ["X", "W", "s"], ["Y"], domain="lumina")
    graph = helper.make_graph(
        [node],
        "plain",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["rows", 2])],
        [
            numpy_helper.from_array(np.ones((2, 3), np.float32), "W"),
            numpy_helper.from_array(np.ones(2, np.float32), "s"),
        ],
    )
    path = tmp_path / "plain.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("lumina", 1)])
    onnx.save(model, path)
    (layer,) = inspect(path).layers
    assert (layer.name, layer.in_features, layer.out_features, layer.bits) == ("Y", 3, 2, "-/-/8")
    assert (layer.output_range, layer.noise, layer.bias, layer.seed) == ((0.0,), "none", "", 0)


def test_a_model_without_the_operator(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("X", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1])
    path = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(helper.make_graph([helper.make_node("Relu", ["X"], ["Y"])], "relu", [x], [y])), path)
    assert inspect(path).layers == []
    with pytest.raises(ValueError, match="the model has no lumina::OpticalLinear node to verify"):
        verify(path)


def test_onnx_infers_the_shape_of_the_operator(prover: Any, model: nn.Module) -> None:
    prover.export(model, torch.randn(2, 6))
    proto = onnx.load(prover.path)
    del proto.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in inferred.graph.value_info
    }
    assert shapes[proto.graph.node[0].output[0]] == ["batch", 8]


def test_the_schema_is_registered_once() -> None:
    onnx_schema.register()
    onnx_schema.register()
    schema = onnx.defs.get_schema("OpticalLinear", 1, "lumina")
    assert [formal.name for formal in schema.inputs] == ["X", "W", "W_scale", "B"]
    assert set(schema.attributes) == {row.name for row in PARAMETERS if row.place == "attribute"} | {VERSION_ATTRIBUTE}


@pytest.mark.parametrize("target", ["1.17", "1.18", "1.21", "1.23", "1.32"])
def test_every_target_gives_its_versions_and_the_same_bits(prover: Any, noisy: OpticalProfile, target: str) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
    model = optical.convert(layer, noisy)
    report = prover.export(model, torch.randn(2, 3, 8), target=target)
    found = inspect(prover.path)
    assert (found.opset, found.ir_version) == (report.opset, report.ir_version) == targets.TARGETS[target][1:]
    assert verify(prover.path, reference=model).ok


def test_inspection_and_verification_do_without_torch(prover: Any, model: nn.Module) -> None:
    prover.export(model, torch.randn(2, 6))
    script = (
        "import sys; sys.modules['torch'] = sys.modules['onnxscript'] = None\n"
        "from lumina_onnx.exporter import inspect, verify\n"
        "assert len(inspect(sys.argv[1]).layers) == 2\n"
        "assert verify(sys.argv[1]).ok\n"
    )
    subprocess.run([sys.executable, "-c", script, str(prover.path)], check=True)


def test_unknown_names_of_the_package() -> None:
    import lumina_onnx.exporter

    with pytest.raises(AttributeError, match=r"module 'lumina_onnx\.exporter' has no attribute 'rewrites'"):
        _ = lumina_onnx.exporter.rewrites
    assert lumina_onnx.exporter.export is export


def looked_up(path: Path, kind: int, dims: list[Any], *content: onnx.NodeProto, **stored: Any) -> Path:
    """Writes a model with X of this type, some nodes that end in x, and a layer on x."""
    layer = helper.make_node("OpticalLinear", ["x", "W", "s"], ["Y"], domain="lumina", name="layer")
    tensors = {"W": np.eye(4, dtype=np.float32), "s": np.ones(4, np.float32)} | stored
    graph = helper.make_graph(
        [*content, layer],
        "g",
        [helper.make_tensor_value_info("X", kind, dims)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("lumina", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def test_random_inputs_that_do_not_do(tmp_path: Path) -> None:
    """The error says what the inputs were and how to give others; with the user's inputs it is ONNX Runtime's own."""
    content = [helper.make_node("Cast", ["X"], ["shape"], to=TensorProto.INT64)]
    content += [helper.make_node("Reshape", ["twelve", "shape"], ["x"])]
    path = looked_up(tmp_path / "m.onnx", TensorProto.FLOAT, [2], *content, twelve=np.ones(12, np.float32))
    message = (
        r"m\.onnx': the model does not run on random inputs, which it gets where there are no others "
        r"\(X float32\[2\]\): give inputs of yours, inputs=\.\.\. or --input, of X float\[2\]\. ONNX Runtime says: "
        r".*Reshape"
    )
    with pytest.raises(ValueError, match=message):
        verify(path)
    assert verify(path, inputs=[np.array([3, 4], np.float32)]).ok
    with pytest.raises(Exception, match="Reshape") as caught:
        verify(path, inputs=[np.array([3, 5], np.float32)])
    assert not isinstance(caught.value, ValueError)


def test_a_sample_of_rows(prover: Any, noisy: OpticalProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first and the last row are recomputed, and a wrong one among the rest is found if all are."""
    prover.export(optical.convert(nn.Linear(6, 8), noisy), torch.randn(2, 6))
    x = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    sampled: list[set[int]] = []
    counts: list[int] = []
    right = reference.optical_linear

    def watched(x: np.ndarray, *args: Any, rows: Any = None, **options: Any) -> np.ndarray:
        counts.append(len(x))
        if rows is not None:
            sampled.append(set(rows.tolist()))
        return right(x, *args, rows=rows, **options)

    monkeypatch.setattr(reference, "optical_linear", watched)
    report = verify(prover.path, inputs=[x], rows=7)
    assert report.ok
    assert set(counts) == {7}
    assert all({0, 199} < rows and max(rows) < 200 and len(rows) == 7 for rows in sampled)
    assert {row.rows for row in report.comparisons} == {7}
    assert {row.shape for row in report.comparisons} == {(200, 8)}
    assert "[200, 8], 7 rows" in str(report)
    assert "note: 7 rows of each layer were recomputed; rows=None or --all-rows takes all" in str(report)
    whole = verify(prover.path, inputs=[x], rows=None)
    assert whole.ok
    assert {row.rows for row in whole.comparisons} == {None}
    assert "rows of each layer" not in str(whole)
    assert {row.rows for row in verify(prover.path, inputs=[x], rows=200).comparisons} == {None}
    place = next(row for row in range(200) if all(row not in rows for rows in sampled))
    monkeypatch.setattr(reference, "optical_linear", right)

    def wrong(x: np.ndarray, *args: Any, **options: Any) -> np.ndarray:
        y = right(x, *args, **options)
        if len(y) == 200:
            y[place, 0] += 1
        return y

    monkeypatch.setattr(reference, "optical_linear", wrong)
    assert verify(prover.path, inputs=[x], rows=7).ok
    assert not verify(prover.path, inputs=[x], rows=None).ok


def test_rows_that_are_not_allowed(prover: Any, model: nn.Module) -> None:
    prover.export(model, torch.randn(2, 6))
    with pytest.raises(ValueError, match="rows = 0: allowed is at least 1, or None for all"):
        verify(prover.path, rows=0)


def test_layers_of_a_large_file_run_one_by_one(prover: Any, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    prover.export(model, torch.randn(2, 6))
    whole = verify(prover.path)
    monkeypatch.setattr(verifying, "LARGE", 0)

    def wrong(node: Any, executions: Any, rows: Any) -> Any:
        return comparing.compare_body(node, [(x, y + 1) for x, y in executions], rows)

    for at_once in (1, 2**24):
        monkeypatch.setattr(alone, "_AT_ONCE", at_once)
        streamed = verify(prover.path)
        assert streamed.ok
        rows = [(row.name, row.library, row.shape) for row in streamed.comparisons]
        assert rows == [(row.name, row.library, row.shape) for row in whole.comparisons]
        assert streamed.notes == [
            "without the library the layers ran one by one: a session of the whole file takes much memory"
        ]
        with monkeypatch.context() as patch:
            patch.setattr(alone, "compare_body", wrong)
            report = verify(prover.path)
        assert [row.name for row in report.comparisons if not row.ok] == ["0", "2"]


def test_noise_of_the_body_is_tried_for_each_kind_of_layer(prover: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of one kind differ in sizes and seeds alone."""
    layers = [nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 9)]
    profiles = {"0": OpticalProfile(noise_additive=0.1), "1": OpticalProfile(noise_additive=0.1)}
    net = optical.convert(nn.Sequential(*layers), OpticalProfile(noise_shot=0.2), overrides=profiles)
    prover.export(net, torch.randn(2, 6))
    tried: list[str] = []

    def watched(node: Any, *rest: Any) -> Any:
        tried.append(node.name)
        return comparing.compare_noisy_body(node, *rest)

    monkeypatch.setattr(alone, "compare_noisy_body", watched)
    assert verify(prover.path).ok
    assert tried == ["1", "2"]


def test_inputs_that_hold_strings(tmp_path: Path) -> None:
    equal = helper.make_node("Equal", ["X", "words"], ["e"])
    cast = helper.make_node("Cast", ["e"], ["x"], to=TensorProto.FLOAT)
    words = np.array(["a", "b", "c", "d"], dtype=object)
    path = looked_up(tmp_path / "m.onnx", TensorProto.STRING, ["n", 1], equal, cast, words=words)
    message = (
        r"input 'X' holds strings, for which there are no random ones: give inputs of yours, inputs=\.\.\. or --input"
    )
    with pytest.raises(ValueError, match=message):
        verify(path)
    assert verify(path, inputs=[np.array([["a"], ["d"]])]).ok


def test_inputs_that_are_no_tensors(tmp_path: Path) -> None:
    path = looked_up(
        tmp_path / "m.onnx", TensorProto.FLOAT, [], helper.make_node("ConcatFromSequence", ["X"], ["x"], axis=0)
    )
    model = onnx.load(path)
    model.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("X", TensorProto.FLOAT, None))
    onnx.save(model, path)
    with pytest.raises(ValueError, match="the model's input 'X' is a sequence; allowed are tensors"):
        verify(path)


def test_a_layer_with_a_computed_weight_is_said_to_be_unchecked(tmp_path: Path) -> None:
    path = looked_up(
        tmp_path / "m.onnx",
        TensorProto.FLOAT,
        [2, 4],
        helper.make_node("Identity", ["X"], ["x"]),
        helper.make_node("Neg", ["V"], ["W"]),
        V=np.eye(4, dtype=np.float32),
    )
    model = onnx.load(path)
    del model.graph.initializer[0]
    onnx.save(model, path)
    report = verify(path)
    assert report.ok
    assert [(left.name, left.reason) for left in report.not_checked] == [("layer", "its W is not an initializer")]
    assert "NOT ONE of its 1 layers was checked" in str(report)


@pytest.mark.parametrize("name", ["s", "b"])
@pytest.mark.parametrize("maker", ["Constant", "Identity", "Add"])
def test_a_layer_with_a_computed_scale_or_bias_is_said_to_be_unchecked(tmp_path: Path, maker: str, name: str) -> None:
    """The layer cannot be recomputed without them, but the file is valid and ONNX Runtime runs it."""
    stored = {"s": np.full(4, 0.25, np.float32), "b": np.arange(4, dtype=np.float32)}
    value = stored.pop(name)
    if maker == "Constant":
        node = helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
    else:
        stored["half"] = value / 2 if maker == "Add" else value  # type: ignore[assignment]
        node = helper.make_node(maker, ["half"] * (2 if maker == "Add" else 1), [name])
    path = looked_up(
        tmp_path / "m.onnx", TensorProto.FLOAT, [2, 4], helper.make_node("Identity", ["X"], ["x"]), node, **stored
    )
    model = onnx.load(path)
    layer = model.graph.node[-1]
    layer.input.extend(["b"])
    layer.attribute.extend([helper.make_attribute("weight_bits", 8)])
    kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, path)
    report = verify(path)
    reason = f"its {'W_scale' if name == 's' else 'B'} is not an initializer"
    assert [(left.name, left.reason) for left in report.not_checked] == [("layer", reason)]
    assert report.ok


def test_an_attribute_that_is_no_text(tmp_path: Path) -> None:
    """The operator refuses the attribute's bytes, with its own message."""
    path = looked_up(tmp_path / "m.onnx", TensorProto.FLOAT, [2, 4], helper.make_node("Identity", ["X"], ["x"]))
    model = onnx.load(path)
    model.graph.node[-1].attribute.add(name="bias_stage", s=b"\xff", type=onnx.AttributeProto.STRING)
    onnx.save(model, path)
    with pytest.raises(Exception, match=r'attribute bias_stage = .*: allowed is "analog", "digital"'):
        verify(path)
