"""Layers inside `If`, `Loop`, `Scan` and functions are calibrated and verified like those of the main graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import lumina_onnx
from lumina_onnx import reference
from lumina_onnx.exporter import files, inspect, nodes, rewrite, verify, watching
from lumina_onnx.exporter.passes.show_layers import places
from lumina_onnx.exporter.twin import float_twin
from lumina_onnx.profile import OpticalProfile

RNG = np.random.default_rng(0)
W, V = ((RNG.normal(size=(4, 4)) / 2).astype(np.float32) for _ in range(2))
X = RNG.normal(size=(2, 4)).astype(np.float32)
NOISY = OpticalProfile(noise_additive=0.05)
STORED: dict[str, Any] = {"W": W, "V": V, "zero": np.float32(0), "two": np.int64(2), "none": np.int64(0)}


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), output.split(), name=output.split()[0], **attributes)


def value(name: str, kind: int = TensorProto.FLOAT, shape: Sequence[Any] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def graph(
    content: list[onnx.NodeProto], outputs: str, inputs: Sequence[onnx.ValueInfoProto] = (), **stored: Any
) -> onnx.GraphProto:
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()]
    results = [value(name) for name in outputs.split()]
    return helper.make_graph(content, f"graph_{outputs.split()[0]}", list(inputs), results, initializers)


def write(path: Path, content: list[onnx.NodeProto], outputs: str = "Y", *, opset: int = 20, **stored: Any) -> Path:
    """Writes a model from X with 4 columns."""
    main = graph(content, outputs, [value("X", shape=["batch", 4])], **(STORED | stored))
    version = helper.make_opsetid("", opset)
    onnx.save(helper.make_model(main, opset_imports=[version], ir_version=9 if opset > 18 else 7), path)
    return path


def choice(x: str, output: str, condition: str = "c") -> onnx.NodeProto:
    """x W if a condition holds, else x V: layers `output`_then and `output`_else."""
    branches = [
        graph([node("MatMul", f"{x} {w}", f"{output}_{b}")], f"{output}_{b}") for b, w in (("then", "W"), ("else", "V"))
    ]
    return helper.make_node("If", [condition], [output], then_branch=branches[0], else_branch=branches[1])


CONDITION = [node("ReduceSum", "X", "sum", keepdims=0), node("Greater", "sum zero", "c")]


def loop(count: int, *, stacked: bool = False) -> list[onnx.NodeProto]:
    """Y: tanh of x W in even iterations and of x V in odd ones; S all of them, if `stacked`."""
    content = [
        node("Mod", "i two", "m"),
        node("Equal", "m none", "c"),
        choice("x", "z"),
        node("Tanh", "z", "y"),
        node("Identity", "go", "on"),
    ]
    inputs = [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("x")]
    body = graph(content, "on y", inputs)
    body.output[0].CopyFrom(value("on", TensorProto.BOOL, []))
    outputs = ["Y"]
    if stacked:
        body.node.append(node("Neg", "y", "s"))
        body.output.append(value("s"))
        outputs.append("S")
    trips = numpy_helper.from_array(np.array(count))
    constant = helper.make_node("Constant", [], ["n"], value=trips)
    return [constant, helper.make_node("Loop", ["n", "", "X"], outputs, body=body)]


def scan(axis: int = 0, backwards: int = 0, out_axis: int = 0, out_backwards: int = 0) -> list[onnx.NodeProto]:
    """s' = tanh((s + t X) W) for t = 1, 2, 3; Y the last one, S all."""
    content = [node("Add", "s x", "a"), node("MatMul", "a W", "z"), node("Tanh", "z", "next"), node("Neg", "next", "o")]
    body = graph(content, "next o", [value("s"), value("x")])
    for each in body.output:
        each.CopyFrom(value(each.name, shape=[2, 4]))
    order = {0: [0, 1, 2], 1: [1, 0, 2], -1: [1, 2, 0]}[axis]
    return [
        node("Constant", "", "steps", value_floats=[1.0, 2.0, 3.0]),
        node("Constant", "", "shape", value_ints=[3, 1, 1]),
        node("Reshape", "steps shape", "t"),
        node("Mul", "X t", "q"),
        node("Transpose", "q", "Q", perm=order),
        helper.make_node(
            "Scan",
            ["X", "Q"],
            ["Y", "S"],
            body=body,
            num_scan_inputs=1,
            scan_input_axes=[axis],
            scan_input_directions=[backwards],
            scan_output_axes=[out_axis],
            scan_output_directions=[out_backwards],
        ),
    ]


def nested(depth: int) -> list[onnx.NodeProto]:
    """A choice nested inside `depth` others, each in the branch that is taken for a positive sum."""
    content = [choice("X", "y0")]
    for level in range(1, depth + 1):
        taken = graph(content, f"y{level - 1}")
        other = graph([node("Identity", "X", f"e{level}")], f"e{level}")
        content = [helper.make_node("If", ["c"], [f"y{level}"], then_branch=taken, else_branch=other)]
    return [*CONDITION, *content, node("Identity", f"y{depth}", "Y")]


def in_library(path: Path, x: NDArray[Any], runs: int = 1) -> list[NDArray[Any]]:
    session = lumina_onnx.load(path)
    return [session.run(["Y"], {"X": x})[0] for _ in range(runs)]


def layer(x: NDArray[Any], weight: NDArray[Any], seed: int, stream: int, **settings: Any) -> NDArray[np.float32]:
    profile = {"input_bits": 8, "weight_bits": 8, "output_bits": 8, "noise_additive": 0.05}
    return reference.optical_linear(x, weight.T.copy(), None, **(profile | settings), seed=seed, stream=stream)


def test_a_loop_with_a_choice_draws_a_stream_for_each_execution(tmp_path: Path) -> None:
    """The verification report and a session's results, against the loop written in Python."""
    source = write(tmp_path / "s.onnx", loop(5))
    report = rewrite(source, tmp_path / "y.onnx", NOISY)
    seeds = {row.name: row.seed for row in report.layers}
    checked = verify(tmp_path / "y.onnx", inputs=[X])
    assert checked.ok, str(checked)
    assert checked.not_checked == []
    counts = {(row.name, row.run, row.library): row.executions for row in checked.comparisons}
    assert counts == {
        (f"z_{branch}", run, library): executions
        for branch, executions in (("then", 3), ("else", 2))
        for run, library in ((0, True), (1, True), (0, False))
    }
    assert "[2, 4] x 3" in str(checked)
    even = odd = 0
    for got in in_library(tmp_path / "y.onnx", X, 2):
        x = X
        for i in range(5):
            if i % 2:
                z, odd = layer(x, V, seeds["z_else"], odd), odd + 1
            else:
                z, even = layer(x, W, seeds["z_then"], even), even + 1
            x = np.tanh(z)
        np.testing.assert_allclose(got, x, rtol=1e-6, atol=1e-6)


def test_a_layer_of_a_loop_that_computes_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault is in the third execution, that of stream 2."""
    rewrite(write(tmp_path / "s.onnx", loop(5)), tmp_path / "y.onnx", NOISY)
    right = reference.optical_linear

    def wrong(x: np.ndarray, *args: Any, **options: Any) -> np.ndarray:
        y = right(x, *args, **options)
        if options.get("stream") == 2:
            y[0, 0] = np.nextafter(y[0, 0], np.float32(9))
        return y

    monkeypatch.setattr(reference, "optical_linear", wrong)
    report = verify(tmp_path / "y.onnx", inputs=[X])
    assert not report.ok
    assert {(row.name, row.run) for row in report.comparisons if not row.ok} == {("z_then", 0), ("z_else", 1)}


@pytest.mark.parametrize(
    "content",
    [
        loop(4, stacked=True),
        scan(),
        scan(1, 1, 0, 1),
        scan(-1, 0, 1, 0),
        scan(1, 1, -1, 1),
        nested(20),
    ],
    ids=["loop", "scan", "backwards", "axes", "both", "nested"],
)
def test_watching_changes_no_result(tmp_path: Path, content: list[onnx.NodeProto]) -> None:
    """The copy that shows what layers see gives the file's own outputs, and calibration and verification pass."""
    outputs = "Y S" if content[-1].output[-1] == "S" else "Y"
    source = write(tmp_path / "s.onnx", content, outputs)
    report = rewrite(source, tmp_path / "y.onnx", NOISY, calibration=[[X], [3 * X]], fallback=False)
    reached = [row for row in report.layers if row.input_range > 0]
    assert len(reached) == len(report.layers) - len(report.notes) >= 1
    model = ir.load(tmp_path / "y.onnx")
    watched = watching.Watched(model, range(len(nodes.optical_nodes(model))))
    assert watched.reasons == {}
    copy = lumina_onnx.load(ir.to_proto(watched.model).SerializeToString())
    original = lumina_onnx.load(tmp_path / "y.onnx")
    for _ in range(2):
        for ours, expected in zip(
            copy.run(outputs.split(), {"X": X}), original.run(outputs.split(), {"X": X}), strict=True
        ):
            np.testing.assert_array_equal(ours.view(np.uint32), expected.view(np.uint32))
    checked = verify(tmp_path / "y.onnx", inputs=[X])
    assert checked.ok, str(checked)
    assert {row.name for row in checked.comparisons} >= {row.name for row in reached} - {"y0_else"}


def test_a_scan_along_an_axis_that_nobody_describes(tmp_path: Path) -> None:
    content = scan(out_axis=1)
    body = next(attribute.g for attribute in content[-1].attribute if attribute.name == "body")
    body.output[1].CopyFrom(value("o"))
    source = write(tmp_path / "s.onnx", content, "Y S")
    report = rewrite(source, tmp_path / "y.onnx", NOISY, calibration=[[X]])
    reason = "it lies in a Scan, which stacks 'o' along axis 1, and nobody says how many dimensions it has"
    assert report.notes == [f"z: calibration does not see it, its ranges are the profile's ({reason})"]
    checked = verify(tmp_path / "y.onnx", inputs=[X])
    assert checked.ok
    assert [(left.name, left.reason) for left in checked.not_checked] == [("z", reason)]
    assert checked.comparisons == []
    assert "the file runs, but NOT ONE of its 1 layers was checked" in str(checked)


@pytest.mark.parametrize("method", ["max", "percentile", "mse"])
def test_calibration_in_a_loop_sees_what_the_unrolled_model_sees(tmp_path: Path, method: Any) -> None:
    """The ranges of the loop's layers equal those of layers in sequence, with each value counted in one histogram."""
    batches = [X, 2 * X]
    report = rewrite(
        write(tmp_path / "s.onnx", loop(5)),
        tmp_path / "y.onnx",
        NOISY,
        calibration=[[x] for x in batches],
        method=method,
    )
    ranges = {row.name: (row.input_range, *row.output_range) for row in report.layers}
    seen: dict[str, list[Any]] = {"z_then": [], "z_else": []}
    quiet = {"noise_additive": 0.0}
    for x in batches:
        for i in range(5):
            name, weight = (("z_then", W), ("z_else", V))[i % 2]
            seen[name].append((x, layer(x, weight, 0, 0, output_bits=0, **quiet)))
            x = np.tanh(layer(x, weight, 0, 0, **quiet))
    for name, pairs in seen.items():
        xs, ys = (np.concatenate(side) for side in zip(*pairs, strict=True))
        flat = helper.make_node("MatMul", ["X", "one"], ["Y"], name="flat")
        source = write(tmp_path / "flat.onnx", [flat], one=(W if name == "z_then" else V))
        (row,) = rewrite(source, tmp_path / "f.onnx", NOISY, calibration=[[xs]], method=method).layers
        got = (row.input_range, *row.output_range)
        assert got == pytest.approx(ranges[name], rel=1e-6)
        if method == "max":
            assert got == pytest.approx((np.abs(xs).max(), np.abs(ys).max()), rel=1e-6)


def test_a_branch_that_no_input_reaches(tmp_path: Path) -> None:
    positive, negative = np.abs(X), -np.abs(X)
    source = write(tmp_path / "s.onnx", [*CONDITION, choice("X", "Y")])
    report = rewrite(source, tmp_path / "y.onnx", NOISY, calibration=[[positive]])
    assert report.notes == ["Y_else: no batch of the calibration reaches it, its ranges are the profile's"]
    assert {row.name: row.input_range for row in report.layers} == {"Y_then": np.abs(X).max(), "Y_else": 0}
    for x, reached, other in ((positive, "Y_then", "Y_else"), (negative, "Y_else", "Y_then")):
        checked = verify(tmp_path / "y.onnx", inputs=[x])
        assert checked.ok
        assert {row.name for row in checked.comparisons} == {reached}
        assert [(left.name, left.reason) for left in checked.not_checked] == [
            (other, "it lies in a subgraph that these inputs do not reach")
        ]
        assert "without it within the tolerance, but 1 layer NOT CHECKED: see above" in str(checked)
    both = rewrite(source, tmp_path / "y.onnx", NOISY, calibration=[[positive], [negative]])
    assert both.notes == []


def test_before_opset_13_subgraphs_are_not_looked_into(tmp_path: Path) -> None:
    content = [node("ReduceSum", "X", "sum", keepdims=0), node("Greater", "sum zero", "c"), choice("X", "Y")]
    source = write(tmp_path / "s.onnx", content, opset=11)
    report = rewrite(source, tmp_path / "y.onnx", NOISY, calibration=[[X]], fallback=False)
    reason = "it lies in a subgraph, which can be looked into from opset 13 on; the file has 11"
    notes = [f"Y_{b}: calibration does not see it, its ranges are the profile's ({reason})" for b in ("else", "then")]
    assert sorted(report.notes) == notes
    checked = verify(tmp_path / "y.onnx", inputs=[X])
    assert checked.ok
    assert {left.reason for left in checked.not_checked} == {reason}


def test_a_layer_in_another_kind_of_subgraph(tmp_path: Path) -> None:
    body = graph([node("MatMul", "x W", "z")], "z", [value("x")])
    content = [
        node("MatMul", "X W", "first"),
        node("SequenceConstruct", "first first", "sequence"),
        helper.make_node("SequenceMap", ["sequence"], ["mapped"], body=body),
        node("ConcatFromSequence", "mapped", "Y", axis=0),
    ]
    source = write(tmp_path / "s.onnx", content)
    report = rewrite(source, tmp_path / "y.onnx", NOISY, calibration=[[X]], fallback=False)
    reason = "it lies in a subgraph of SequenceMap"
    assert report.notes == [f"z: calibration does not see it, its ranges are the profile's ({reason})"]
    checked = verify(tmp_path / "y.onnx", inputs=[X])
    assert checked.ok
    assert [left.reason for left in checked.not_checked] == [reason]
    assert {row.name for row in checked.comparisons} == {"first"}


def test_weights_lie_in_the_graph_of_their_layer(tmp_path: Path) -> None:
    """Older releases of ONNX Runtime do not show a custom operator in a subgraph the enclosing graphs' constants."""
    for bits in (0, 4, 8, 12):
        profile = OpticalProfile(8, bits, 8)
        content = [node("MatMul", "X W", "x"), *loop(3)]
        content[-1].input[2] = "x"
        rewrite(write(tmp_path / "s.onnx", content), tmp_path / "y.onnx", profile)
        found = list(places(ir.load(tmp_path / "y.onnx").graph))
        assert [len(place.steps) for place in found] == [0, 2, 2]
        for place in found:
            assert set(place.graph.initializers.values()) >= set(place.node.inputs[1:])


def test_a_subgraphs_own_weights_go(tmp_path: Path) -> None:
    """The matrix and the constants that it was computed from are removed at each depth."""
    size = 64
    big = RNG.normal(size=(size, size)).astype(np.float32)
    content = [
        node("Transpose", "own", "turned"),
        node("Mul", "turned half", "w"),
        node("MatMul", "x w", "z"),
        node("Constant", "", "half", value_float=0.5),
    ]
    content = [content[3], *content[:3]]
    inner = graph(content, "z", own=big)
    other = graph([node("Identity", "x", "e")], "e", unused=big)
    deep = graph([helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=other)], "d")
    second = graph([node("Identity", "x", "e2")], "e2")
    main = [
        *CONDITION,
        node("Concat", "X X X X X X X X X X X X X X X X", "x", axis=1),
        helper.make_node("If", ["c"], ["Y"], then_branch=deep, else_branch=second),
    ]
    source = write(tmp_path / "s.onnx", main)
    report = rewrite(source, tmp_path / "y.onnx", OpticalProfile(8, 8, 8), fallback=False)
    graphs = files.graphs(onnx.load(tmp_path / "y.onnx").graph)
    stored = [tensor for each in graphs for tensor in each.initializer if np.prod(tensor.dims) >= size]
    assert sorted((tensor.data_type, tuple(tensor.dims)) for tensor in stored) == [
        (TensorProto.FLOAT, (size,)),
        (TensorProto.INT8, (size, size)),
    ]
    assert "Transpose" not in report.other_operators
    assert report.file_bytes < report.stored_bytes + 3000
    x = np.ones((2, 4), np.float32)
    plain = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"]).run(None, {"X": x})[0]
    np.testing.assert_allclose(in_library(tmp_path / "y.onnx", x)[0], plain, atol=0.3)


def test_layers_in_functions(tmp_path: Path) -> None:
    """They are read, verified and converted to float as if they were inlined."""
    rewrite(write(tmp_path / "s.onnx", [node("MatMul", "X W", "Y")]), tmp_path / "y.onnx", NOISY)
    model = onnx.load(tmp_path / "y.onnx")
    (inner,) = model.graph.node
    arguments = list(inner.input[1:])
    function = helper.make_function(
        "local",
        "Layer",
        ["X", *arguments],
        ["Y"],
        [inner],
        [helper.make_opsetid("", 20), helper.make_opsetid("lumina", 1)],
    )
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    del model.graph.node[:]
    for x, y in (("X", "middle"), ("middle", "Y")):
        model.graph.node.append(helper.make_node("Layer", [x, *arguments], [y], domain="local", name=y))
    onnx.save(model, tmp_path / "f.onnx")
    assert len(inspect(tmp_path / "f.onnx").layers) == 2
    checked = verify(tmp_path / "f.onnx", inputs=[X])
    assert checked.ok, str(checked)
    assert len({row.name for row in checked.comparisons}) == 2
    assert nodes.operators(float_twin(tmp_path / "f.onnx")) == {"MatMul": 2}
    with pytest.raises(ValueError, match=r"f\.onnx' has OpticalLinear nodes already"):
        rewrite(tmp_path / "f.onnx", tmp_path / "z.onnx", NOISY)


def test_names_of_the_model_that_look_like_ours(tmp_path: Path) -> None:
    content = [
        *CONDITION,
        choice("X", "watched_0"),
        node("Identity", "watched_0", "watched_1"),
        node("Neg", "watched_1", "Y"),
    ]
    rewrite(write(tmp_path / "s.onnx", content), tmp_path / "y.onnx", NOISY, calibration=[[X]])
    checked = verify(tmp_path / "y.onnx", inputs=[X])
    assert checked.ok, str(checked)
    assert len(checked.comparisons) == 3
