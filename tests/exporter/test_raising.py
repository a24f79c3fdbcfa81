"""Files of older opsets keep their meaning or are refused; a note says what cannot be compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import lumina_onnx
from lumina_onnx import OpticalProfile
from lumina_onnx.exporter import inspect, raising, rewrite
from lumina_onnx.exporter.report import RewriteReport

ANALOG = OpticalProfile(input_bits=0, weight_bits=0, output_bits=0)
FLOAT, INT32, INT64, BOOL, UINT8 = (
    TensorProto.FLOAT,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.BOOL,
    TensorProto.UINT8,
)
RNG = np.random.default_rng(0)
SHAPE = (2, 3, 4, 5)
X = RNG.normal(size=SHAPE).astype(np.float32)
Nodes = list[onnx.NodeProto]


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(" "), output.split(), name=output.split()[0], **attributes)


def one(kind: str, inputs: str = "X", **attributes: Any) -> Callable[[str], Nodes]:
    """A single operator whose first output is the case's."""
    return lambda name: [node(kind, inputs, name, **attributes)]


def then(kind: str, **attributes: Any) -> Callable[[str], Nodes]:
    """An operator whose result is not a float."""
    return lambda name: [node(kind, "X", f"{name}_", **attributes), node("Cast", f"{name}_", name, to=FLOAT)]


def on(shape: str, kind: str, inputs: str = "", **attributes: Any) -> Callable[[str], Nodes]:
    """An operator on X, reshaped."""
    return lambda name: [
        node("Reshape", f"X {shape}", f"{name}_"),
        node(kind, f"{name}_ {inputs}".strip(), name, **attributes),
    ]


STORED = {
    "W": RNG.normal(size=(5, 5)).astype(np.float32),
    "S1": np.array([1, 2, 6, 10]),
    "S2": np.array([1, 8, 3, 5]),
    "S3": np.array([12, 2, 5]),
    "S4": np.array([1, 3, 1, 40]),
    "larger": floats(1, 1, 2, 3),
    "half": floats(1, 1, 0.5, 0.5),
    "less": floats(1, 1, 0.6, 0.7),
    "more": floats(1, 1, 1.5, 1.3),
    "none": np.zeros(0, np.float32),
    "scale": floats(1, 2, 3),
    "shift": floats(1, 0, -1),
    "mean": floats(0.1, 0.2, 0.3),
    "var": floats(1, 2, 0.5),
    "two": np.array([2]),
    "third": np.int32(1),
    "least": np.float32(-0.3),
    "most": np.float32(0.4),
    "picked": np.array([0, 2]),
    "kernel": np.ones((2, 3, 2, 2), np.float32),
    "slope": np.full((3, 1, 1), 0.2, np.float32),
    "step": np.float32(0.1),
    "zero": np.uint8(128),
    "lstm_w": RNG.normal(size=(1, 16, 5)).astype(np.float32),
    "lstm_r": RNG.normal(size=(1, 16, 4)).astype(np.float32),
    "gru_w": RNG.normal(size=(1, 12, 5)).astype(np.float32),
    "gru_r": RNG.normal(size=(1, 12, 4)).astype(np.float32),
}

# The opsets in which an operator has this form, and its nodes. Axes of -1 came with opset 11.
CASES: dict[str, tuple[range, Callable[[str], Nodes]]] = {
    **{
        f"{kind} {axis}": (range(11 if axis == -1 else 7, 13), one(kind, **({} if axis is None else {"axis": axis})))  # type: ignore[arg-type]
        for kind in ("Softmax", "LogSoftmax", "Hardmax")
        for axis in (None, 0, 1, 2, 3, -1)
    },
    **{
        f"Upsample {mode} {opset}": (
            range(7, 9) if opset == 7 else range(9, 10),
            one("Upsample", mode=mode, scales=[1.0, 1.0, 2.0, 3.0])
            if opset == 7
            else one("Upsample", "X larger", mode=mode),
        )
        for mode in ("nearest", "linear")
        for opset in (7, 9)
    },
    **{
        f"Resize {mode} {scales}": (range(10, 11), on("S1", "Resize", scales, mode=mode))
        for mode in ("nearest", "linear")
        for scales in ("larger", "half", "less", "more")
    },
    **{
        f"{kind} {'all' if axes is None else axes}": (
            range(7, 13),
            one(kind, **({} if axes is None else {"axes": axes, "keepdims": 0})),  # type: ignore[arg-type]
        )
        for kind in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSumExp")
        for axes in (None, [1, 2])
    },
    "Resize 11": (range(11, 13), one("Resize", "X none larger", mode="linear")),
    "Squeeze": (range(7, 13), on("S4", "Squeeze", axes=[0])),
    "Squeeze all": (range(7, 13), on("S4", "Squeeze")),
    "Unsqueeze": (range(7, 13), one("Unsqueeze", axes=[0, 2])),
    "Clip": (range(7, 11), one("Clip", min=-0.3, max=0.4)),
    "Clip min": (range(7, 11), one("Clip", min=-0.3)),
    "Clip 11": (range(11, 13), one("Clip", "X least most")),
    "Slice": (range(7, 10), one("Slice", axes=[1, 3], starts=[1, 0], ends=[3, -1])),
    "Slice first": (range(7, 10), one("Slice", starts=[0, 1], ends=[3, 2])),
    "TopK": (range(7, 10), lambda name: [node("TopK", "X", f"{name} {name}i", k=2, axis=1)]),
    "TopK 10": (range(10, 13), lambda name: [node("TopK", "X two", f"{name} {name}i", axis=1)]),
    "Pad": (range(7, 11), one("Pad", pads=[0, 0, 1, 1, 0, 0, 2, 2], value=1.5)),
    "Pad reflect": (range(7, 11), one("Pad", pads=[0, 0, 1, 1, 0, 0, 2, 2], mode="reflect")),
    "Dropout": (range(7, 12), one("Dropout", ratio=0.5)),
    "Dropout mask": (range(7, 12), lambda name: [node("Dropout", "X", f"{name} {name}m", ratio=0.5)]),
    "BatchNormalization": (range(7, 13), one("BatchNormalization", "X scale shift mean var")),
    "AveragePool": (range(7, 13), one("AveragePool", kernel_shape=[2, 2], pads=[1, 1, 0, 0])),
    "AveragePool all": (
        range(7, 13),
        one("AveragePool", kernel_shape=[2, 2], pads=[1, 1, 0, 0], count_include_pad=1),
    ),
    "AveragePool up": (range(10, 13), one("AveragePool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)),
    "MaxPool": (range(7, 13), one("MaxPool", kernel_shape=[2, 2], strides=[2, 2])),
    "Cast": (range(7, 13), then("Cast", to=INT32)),
    "CumSum": (range(11, 13), one("CumSum", "X third")),
    "Split": (range(7, 13), lambda name: [node("Split", "X", f"{name} {name}s", axis=1, split=[1, 2])]),
    "Split alike": (range(7, 13), lambda name: [node("Split", "X", f"{name} {name}s", axis=0)]),
    "Gather": (range(7, 13), one("Gather", "X picked", axis=1)),
    "Flatten": (range(7, 13), one("Flatten")),
    "Sum": (range(8, 13), one("Sum", "X X X")),
    "Max": (range(8, 13), one("Max", "X least")),
    "PRelu": (range(7, 13), one("PRelu", "X slope")),
    "LRN": (range(7, 13), one("LRN", size=3)),
    "InstanceNormalization": (range(7, 13), one("InstanceNormalization", "X scale shift")),
    "ArgMax": (range(7, 13), then("ArgMax", axis=1)),
    "Shape": (range(7, 13), then("Shape")),
    "NonZero": (range(9, 13), then("NonZero")),
    "DepthToSpace": (range(7, 13), on("S2", "DepthToSpace", blocksize=2)),
    "Conv": (range(7, 13), one("Conv", "X kernel")),
    "LSTM": (range(7, 13), on("S3", "LSTM", "lstm_w lstm_r", hidden_size=4)),
    "GRU": (range(7, 13), on("S3", "GRU", "gru_w gru_r", hidden_size=4)),
    "ThresholdedRelu": (range(10, 13), one("ThresholdedRelu", alpha=0.3)),
    "MeanVarianceNormalization": (range(9, 13), one("MeanVarianceNormalization")),
    "Einsum": (range(12, 13), one("Einsum", equation="abcd->dcba")),
    "Quantize": (
        range(10, 13),
        lambda name: [
            node("QuantizeLinear", "X step zero", f"{name}_"),
            node("DequantizeLinear", f"{name}_ step zero", name),
        ],
    ),
}


def branch(name: str, content: Nodes, stored: dict[str, np.ndarray] | None = None) -> onnx.GraphProto:
    tensors = [numpy_helper.from_array(array, key) for key, array in (stored or {}).items()]
    return helper.make_graph(content, name, [], [helper.make_tensor_value_info(name, FLOAT, None)], tensors)


def old(
    path: Path,
    opset: int,
    content: Nodes,
    outputs: list[str],
    stored: dict[str, np.ndarray] | None = None,
    shape: Any = SHAPE,
) -> Path:
    """Writes a model from X to the outputs, with a layer beside them."""
    stored = {**STORED, **(stored or {})}
    graph = helper.make_graph(
        [node("MatMul", "X W", "layer"), *content],
        "graph",
        [helper.make_tensor_value_info("X", FLOAT, shape)],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in ("layer", *outputs)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3 if opset < 9 else 7)
    if opset < 9:
        proto.graph.input.extend(
            helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in proto.graph.initializer
        )
    onnx.save(proto, path)
    return path


def outputs(session: onnxruntime.InferenceSession, x: np.ndarray = X) -> dict[str, np.ndarray]:
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, {"X": x}), strict=True))


def plain(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def check(source: Path, target: Path, x: np.ndarray = X, **options: Any) -> RewriteReport:
    report = rewrite(source, target, ANALOG, **options)
    expected, got = outputs(plain(source), x), outputs(lumina_onnx.load(target), x)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert got[name].shape == value.shape, name
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-4, err_msg=name)
    return report


@pytest.mark.parametrize("opset", range(7, 13))
def test_every_operator_means_the_same(tmp_path: Path, opset: int) -> None:
    cases = {name.replace(" ", "_"): make for name, (opsets, make) in CASES.items() if opset in opsets}
    content = [made for name, make in cases.items() for made in make(name)]
    report = check(old(tmp_path / "s.onnx", opset, content, list(cases)), tmp_path / "y.onnx")
    assert report.opset == 20
    assert report.notes == [f"opset {opset} was raised to 20, which the function body needs"]


def test_operators_in_subgraphs(tmp_path: Path) -> None:
    """Operators for which the converter has no adapter are fixed in subgraphs too."""
    content = [
        node("ReduceMax", "X", "max", keepdims=0),
        node("Cast", "max", "any", to=BOOL),
        helper.make_node(
            "If",
            ["any"],
            ["Y"],
            then_branch=branch("t", [node("Hardmax", "X", "t")]),
            else_branch=branch("e", [node("Softmax", "X", "e")]),
        ),
        node("Not", "any", "other"),
        helper.make_node(
            "If",
            ["other"],
            ["Z"],
            then_branch=branch("u", [node("Upsample", "X larger", "u", mode="nearest")]),
            else_branch=branch("f", [node("Upsample", "X again", "f", mode="linear")], {"again": STORED["larger"]}),
        ),
    ]
    check(old(tmp_path / "s.onnx", 9, content[:3], ["Y"]), tmp_path / "y.onnx")
    check(old(tmp_path / "s.onnx", 9, [*content[:2], *content[3:]], ["Z"]), tmp_path / "y.onnx")


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[onnx.NodeProto], None]], None]:
    """Replaces the converter by one that changes an operator of the model."""
    convert = onnx.version_converter.convert_version

    def change(kind: str, how: Callable[[onnx.NodeProto], None]) -> None:
        def converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
            result = convert(model, opset)
            how(next(each for each in result.graph.node if each.op_type == kind))
            return result

        monkeypatch.setattr(onnx.version_converter, "convert_version", converted)

    return change


def refused(source: Path, reason: str) -> None:
    message = (
        rf"s\.onnx' has opset 11, the function body needs 19 or newer, and {reason}; allowed is fallback=False, which "
        "leaves the function body out$"
    )
    with pytest.raises(ValueError, match=message):
        rewrite(source, source.with_name("y.onnx"), ANALOG)
    assert not source.with_name("y.onnx").exists()
    assert rewrite(source, source.with_name("left.onnx"), ANALOG, fallback=False).opset == 11


def test_what_would_mean_something_else_is_refused(tmp_path: Path, wrong: Any) -> None:
    changed = "raised to 20 by onnx's converter the file computes something else: "
    content = [node("Relu", "X", "a"), node("LeakyRelu", "X", "b", alpha=0.5), then("Cast", to=INT32)("c")[0]]
    graph = old(tmp_path / "s.onnx", 11, content[:2], ["a", "b"])

    def set_alpha(alpha: float) -> Callable[[onnx.NodeProto], None]:
        return lambda each: each.attribute[0].CopyFrom(helper.make_attribute("alpha", alpha))

    wrong("LeakyRelu", set_alpha(0.25))
    refused(graph, changed + r"output 'b' is off by up to 0\.\d+, its largest value [\d.]+")
    wrong("LeakyRelu", set_alpha(0.5001))
    refused(graph, changed + r"output 'b' is off by up to 0\.000\d+, its largest value [\d.]+")
    wrong("LeakyRelu", set_alpha(float("nan")))
    refused(graph, changed + r"output 'b' is off by up to inf, its largest value [\d.]+")
    wrong("LeakyRelu", set_alpha(0.5000001))
    assert rewrite(graph, tmp_path / "y.onnx", ANALOG).notes == [
        "opset 11 was raised to 20, which the function body needs"
    ]


def test_other_ways_to_differ(tmp_path: Path, wrong: Any) -> None:
    changed = "raised to 20 by onnx's converter the file "
    content = [node("ArgMax", "X", "i", axis=1), node("Identity", "i", "Y")]
    source = old(tmp_path / "s.onnx", 11, content, ["Y"])
    proto = onnx.load(source)
    proto.graph.output[1].type.tensor_type.elem_type = INT64
    onnx.save(proto, source)
    wrong("ArgMax", lambda each: each.attribute.append(helper.make_attribute("select_last_index", 1)))
    assert rewrite(source, tmp_path / "y.onnx", ANALOG).opset == 20
    tmp_path.joinpath("y.onnx").unlink()
    wrong("ArgMax", lambda each: setattr(each, "op_type", "ArgMin"))
    refused(source, changed + r"computes something else: output 'Y' differs in \d+ of 40 elements")
    wrong("ArgMax", lambda each: each.attribute[0].CopyFrom(helper.make_attribute("axis", 2)))
    refused(
        source,
        changed + r"computes something else: output 'Y' is int64 \[2, 3, 1, 5\] in place of int64 \[2, 1, 4, 5\]",
    )
    wrong("ArgMax", lambda each: setattr(each, "op_type", "Nothing"))
    refused(source, changed + r"does not run \(.*Nothing.*\)")


def test_models_that_draw_are_said_not_to_be_comparable(tmp_path: Path) -> None:
    content = [node("RandomNormalLike", "X", "n"), node("Add", "X n", "Y")]
    note = (
        "ONNX Runtime could not be asked whether it computes the same, since two runs of the source differ: it draws "
        "random numbers"
    )
    assert note in rewrite(old(tmp_path / "s.onnx", 11, content, ["Y"]), tmp_path / "y.onnx", ANALOG).notes


def test_models_that_do_not_run_are_said_not_to_be_comparable(tmp_path: Path) -> None:
    content = [node("Nothing", "X", "Y")]
    content[0].domain = "own"
    source = old(tmp_path / "s.onnx", 11, content, ["Y"])
    proto = onnx.load(source)
    proto.opset_import.add(domain="own", version=1)
    onnx.save(proto, source)
    notes = rewrite(source, tmp_path / "y.onnx", ANALOG).notes
    start = "ONNX Runtime could not be asked whether it computes the same, since it does not run the source: "
    assert [note.startswith(start) and "Nothing" in note for note in notes] == [False, True]


def test_symbolic_sizes_are_tried_until_the_model_runs(tmp_path: Path) -> None:
    """A 7 x 7 convolution does not run on 3 x 4; other models need multiples of 16, or sizes from calibration."""
    stored = {"wide": np.ones((1, 1, 7, 7), np.float32), "S": np.array([-1, 1, 5, 16])}
    content = [node("Conv", "X wide", "c"), node("Hardmax", "c", "Y", axis=1)]
    source = old(tmp_path / "s.onnx", 11, content, ["Y"], stored, ["batch", 1, "height", 5])
    x = RNG.normal(size=(2, 1, 8, 5)).astype(np.float32)
    wide = onnx.load(source)
    wide.graph.node[1].attribute.append(helper.make_attribute("pads", [0, 1, 0, 1]))
    onnx.save(wide, source)
    assert len(check(source, tmp_path / "y.onnx", x).notes) == 1
    source = old(tmp_path / "s.onnx", 11, [node("Reshape", "X S", "Y")], ["Y"], stored, ["batch", "size", 5])
    x = RNG.normal(size=(2, 16, 5)).astype(np.float32)
    assert len(check(source, tmp_path / "y.onnx", x).notes) == 1
    stored["S"] = np.array([-1, 23, 5])
    content = [node("Identity", "X", "x"), node("Concat", "x x", "xx", axis=1), node("Reshape", "xx S", "Y")]
    source = old(tmp_path / "s.onnx", 11, content, ["Y"], stored, [1, "size", 5])
    x = RNG.normal(size=(1, 46, 5)).astype(np.float32)
    assert len(check(source, tmp_path / "y.onnx", x).notes) == 2
    assert len(check(source, tmp_path / "y.onnx", x, calibration=iter([[x], [x]])).notes) == 1


def test_large_tensors_are_spared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not converted, but they are compared."""
    monkeypatch.setattr(raising, "_SPARED", 0)
    monkeypatch.setattr(raising, "_LARGE", 90)
    sizes: list[int] = []
    convert = onnx.version_converter.convert_version

    def converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        sizes.append(max(len(each.raw_data) for each in model.graph.initializer))
        return convert(model, opset)

    monkeypatch.setattr(onnx.version_converter, "convert_version", converted)
    for opset, inputs in ((7, ["X"]), (11, ["X", "kernel"])):
        source = old(tmp_path / "s.onnx", opset, [node("Conv", "X kernel", "c"), node("Hardmax", "c", "Y")], ["Y"])
        if opset == 11:
            proto = onnx.load(source)
            proto.graph.input.append(helper.make_tensor_value_info("kernel", FLOAT, (2, 3, 2, 2)))
            onnx.save(proto, source)
        assert len(check(source, tmp_path / "y.onnx").notes) == 1
        # What callers may replace stays replaceable.
        assert [value.name for value in onnx.load(tmp_path / "y.onnx").graph.input] == inputs
    assert max(sizes) < 90


def test_what_the_converter_adds_and_drops(tmp_path: Path) -> None:
    content = [node("Sin", f"r{i - 1}" if i else "X", f"r{i}") for i in range(20)] + [node("Softmax", "r19", "Y")]
    source = old(tmp_path / "s.onnx", 11, content, ["Y"])
    proto = onnx.load(source)
    proto.producer_name, proto.producer_version, proto.domain, proto.doc_string = "someone", "3", "d", "words"
    proto.graph.value_info.append(helper.make_tensor_value_info("r3", FLOAT, SHAPE))
    proto.graph.quantization_annotation.add(tensor_name="r3").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="step"
    )
    proto.metadata_props.add(key="names", value="a\nb")
    proto.graph.output[1].type.tensor_type.ClearField("shape")
    onnx.save(proto, source)
    rewrite(source, tmp_path / "y.onnx", ANALOG)
    written = onnx.load(tmp_path / "y.onnx")
    computed = {each for made in written.graph.node for each in made.output}
    assert [value.name for value in written.graph.value_info if value.name in computed] == ["r3"]
    assert not written.graph.output[1].type.tensor_type.HasField("shape")
    assert [each.tensor_name for each in written.graph.quantization_annotation] == ["r3"]
    assert (written.producer_name, written.producer_version, written.domain) == ("someone", "3", "d")
    metadata = {entry.key: entry.value for entry in written.metadata_props}
    assert metadata["names"] == "a\nb"
    assert metadata["lumina.version"] == lumina_onnx.__version__


def test_functions_are_put_in_place_before(tmp_path: Path) -> None:
    """The converter would drop the functions."""
    source = old(tmp_path / "s.onnx", 11, [node("F", "X", "Y")], ["Y"])
    proto = onnx.load(source)
    proto.graph.node[1].domain = "own"
    proto.opset_import.add(domain="own", version=1)
    imports = [helper.make_opsetid("", 11)]
    proto.functions.append(
        helper.make_function("own", "F", ["a"], ["b"], [node("ReduceSum", "a", "b", axes=[1])], imports)
    )
    proto.ir_version = 8
    onnx.save(proto, source)
    assert len(check(source, tmp_path / "y.onnx").notes) == 1
    proto.functions[0].opset_import[0].version = 12
    onnx.save(proto, source)
    with pytest.raises(
        ValueError, match=r"its functions cannot be put in the place of their calls: Opset mismatch when"
    ):
        rewrite(source, tmp_path / "z.onnx", ANALOG)


def test_inputs_that_are_no_tensors(tmp_path: Path) -> None:
    at = node("SequenceAt", "L least_index", "Y")
    source = old(tmp_path / "s.onnx", 11, [at], ["Y"], {"least_index": np.array(0)})
    proto = onnx.load(source)
    proto.graph.input.append(helper.make_tensor_sequence_value_info("L", FLOAT, None))
    onnx.save(proto, source)
    (_, note) = rewrite(source, tmp_path / "y.onnx", ANALOG).notes
    assert note == "ONNX Runtime could not be asked whether it computes the same, since its input 'L' is no tensor"
    assert inspect(source).inputs["L"] == "sequence(float[])"
