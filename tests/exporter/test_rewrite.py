"""Rewriting existing files: what becomes a layer, what is left and why, and that the result computes the same."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import lumina_onnx
from lumina_onnx import nn as optical
from lumina_onnx.exporter import inspect, nodes, rewrite, verify
from lumina_onnx.profile import OpticalProfile

Floats = NDArray[np.float32]
ANALOG = OpticalProfile(input_bits=0, weight_bits=0, output_bits=0)
RNG = np.random.default_rng(0)
W = RNG.normal(size=(6, 4)).astype(np.float32)
"""``[K, N]``."""
ROW = RNG.normal(size=4).astype(np.float32)


def write(
    path: Path,
    content: Sequence[onnx.NodeProto],
    stored: dict[str, NDArray[Any]],
    *,
    shape: Sequence[int | str] = ("batch", 6),
    opset: int = 20,
    ir_version: int = 9,
    inputs: Sequence[str] = ("X",),
    dtype: int = TensorProto.FLOAT,
    domains: Sequence[str] = (),
) -> Path:
    """Writes a model from `inputs` to Y."""
    graph = helper.make_graph(
        list(content),
        "graph",
        [helper.make_tensor_value_info(name, dtype, shape) for name in inputs],
        [helper.make_tensor_value_info("Y", dtype, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=ir_version), path)
    return path


def run(path: Path, x: Floats, *, library: bool = False, exact: bool = False) -> Floats:
    """`exact`: without ONNX Runtime's optimisation, which multiplies by dequantised weights in 8 bits."""
    if library:
        session = lumina_onnx.load(path)
    else:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if exact:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    result: Floats = session.run(None, {session.get_inputs()[0].name: x})[0]
    return result


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=f"{kind}_{output}", **attributes)


FORMS: dict[str, tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]] = {
    "MatMul": ([node("MatMul", "X W", "Y")], {"W": W}),
    "bias after": ([node("MatMul", "X W", "z"), node("Add", "z B", "Y")], {"W": W, "B": ROW}),
    "bias before": ([node("MatMul", "X W", "z"), node("Add", "B z", "Y")], {"W": W, "B": ROW[None]}),
    "transposed weight": (
        [node("Transpose", "V", "W", perm=[1, 0]), node("MatMul", "X W", "z"), node("Add", "z B", "Y")],
        {"V": np.ascontiguousarray(W.T), "B": ROW},
    ),
    "dequantised weight": (
        [node("DequantizeLinear", "Q S", "W"), node("MatMul", "X W", "Y")],
        {"Q": np.arange(24, dtype=np.int8).reshape(6, 4), "S": np.float32(0.1)},
    ),
    "Gemm": ([node("Gemm", "X W", "Y")], {"W": W}),
    "Gemm, transB": ([node("Gemm", "X W B", "Y", transB=1)], {"W": np.ascontiguousarray(W.T), "B": ROW}),
    "Gemm, alpha and beta": ([node("Gemm", "X W B", "Y", alpha=0.5, beta=-2.0)], {"W": W, "B": ROW[None]}),
    "Gemm, one number": ([node("Gemm", "X W B", "Y")], {"W": W, "B": np.float32(3)}),
}


@pytest.mark.parametrize("opset", [11, 19, 21])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_layer(tmp_path: Path, form: str, opset: int) -> None:
    content, stored = FORMS[form]
    source = write(tmp_path / "source.onnx", content, stored, opset=opset, ir_version=min(9, opset - 4))
    if opset == 21:
        model = onnx.load(source)
        model.ir_version = 10
        onnx.save(model, source)
    before = source.read_bytes()
    x = RNG.normal(size=(5, 6)).astype(np.float32)
    expected = run(source, x, exact=True)

    report = rewrite(source, tmp_path / "analog.onnx", ANALOG)
    assert report.other_operators == {}
    assert report.left == []
    assert [(row.in_features, row.out_features) for row in report.layers] == [(6, 4)]
    assert report.opset == (opset if opset > 18 else 20)
    for library in (True, False):
        np.testing.assert_allclose(run(tmp_path / "analog.onnx", x, library=library), expected, rtol=1e-5, atol=1e-5)

    profile = OpticalProfile(8, 4, 8, noise_additive=0.1)
    rewrite(source, tmp_path / "noisy.onnx", profile, calibration=[[x]])
    checked = verify(tmp_path / "noisy.onnx", inputs=[x])
    assert checked.ok, str(checked)
    assert checked.body_bytes
    assert source.read_bytes() == before


def test_without_the_function_body_the_opset_stays(tmp_path: Path) -> None:
    source = write(tmp_path / "source.onnx", *FORMS["bias after"], opset=11, ir_version=6)
    report = rewrite(source, tmp_path / "y.onnx", ANALOG, fallback=False)
    assert (report.opset, report.ir_version, report.body_bytes, report.notes) == (11, 6, 0, [])
    assert "without the operator's library: does not run" in str(report)
    x = np.ones((2, 6), np.float32)
    np.testing.assert_allclose(run(tmp_path / "y.onnx", x, library=True), run(source, x), rtol=1e-5, atol=1e-5)


class Net(nn.Module):
    def __init__(self, widths: list[int], bias: bool) -> None:
        super().__init__()
        pairs = itertools.pairwise(widths)
        self.layers = nn.ModuleList([nn.Linear(k, n, bias) for k, n in pairs])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def plain_export(model: nn.Module, x: torch.Tensor, path: Path) -> Path:
    torch.onnx.export(model.eval(), (x,), path, dynamo=True, verbose=False, external_data=False)
    return path


@settings(max_examples=5, deadline=None)
@given(
    widths=st.lists(st.integers(1, 20), min_size=2, max_size=4),
    bias=st.booleans(),
    rank=st.integers(1, 3),
    bits=st.tuples(st.sampled_from([0, 4, 8]), st.sampled_from([0, 1, 2, 3, 4, 8]), st.sampled_from([0, 4, 8])),
    stage=st.sampled_from(["analog", "digital"]),
    method=st.sampled_from(["max", "percentile", "mse"]),
    per_output=st.booleans(),
)
def test_the_same_as_converting_in_torch(
    tmp_path_factory: pytest.TempPathFactory,
    widths: list[int],
    bias: bool,
    rank: int,
    bits: tuple[int, int, int],
    stage: str,
    method: Any,
    per_output: bool,
) -> None:
    """Checks the layers, their ranges and, with the noise off, every bit."""
    folder = tmp_path_factory.mktemp("rewrite")
    torch.manual_seed(sum(widths))
    model, x = Net(widths, bias), torch.randn(*(3,) * (rank - 1), widths[0])
    profile = OpticalProfile(*bits, bias_stage=stage)
    converted = optical.convert(model, profile)
    try:
        optical.calibrate(converted, [x], method=method, per_output=per_output, progress=False)
    except ValueError:
        return
    source = plain_export(model, x, folder / "source.onnx")
    report = rewrite(
        source, folder / "y.onnx", profile, calibration=[[x.numpy()]], method=method, per_output=per_output
    )
    layers = [layer for layer in converted.modules() if isinstance(layer, optical.OpticalLinear)]
    assert [(row.in_features, row.out_features) for row in report.layers] == [
        (layer.in_features, layer.out_features) for layer in layers
    ]
    for row, layer in zip(report.layers, layers, strict=True):
        assert row.input_range == pytest.approx(layer.profile.input_range, rel=1e-6)
        ranges = layer.profile.output_range
        assert row.output_range == pytest.approx(ranges if isinstance(ranges, tuple) else (ranges,), rel=1e-6)
    with torch.no_grad():
        expected = converted(x).numpy()
    got = run(folder / "y.onnx", x.numpy(), library=True)
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(
    "profile",
    [
        OpticalProfile(tile_features=4),
        OpticalProfile(8, 4, 8, tile_features=3, noise_additive=0.05),
        OpticalProfile(tile_features=4, output_bound=1.0, bias_stage="digital"),
        OpticalProfile(4, 2, 8, output_bound=0.5, bias_stage="digital", photons=9.0),
    ],
    ids=repr,
)
def test_what_tiles_see_is_calibrated_as_in_torch(profile: OpticalProfile, tmp_path: Path) -> None:
    """There weights are not yet quantised: the ranges are within a step of their codes."""
    torch.manual_seed(0)
    model, x = Net([10, 7, 3], True), torch.randn(40, 10)
    converted = optical.convert(model, profile)
    optical.calibrate(converted, [x], progress=False)
    source = plain_export(model, x, tmp_path / "source.onnx")
    report = rewrite(source, tmp_path / "y.onnx", profile, calibration=[[x.numpy()]], fallback=False)
    layers = [layer for layer in converted.modules() if isinstance(layer, optical.OpticalLinear)]
    coarse = 1.5 / 2 ** (profile.weight_bits - 1)
    for row, layer in zip(report.layers, layers, strict=True):
        assert row.input_range == pytest.approx(layer.profile.input_range, rel=coarse)
        assert row.output_range == pytest.approx((layer.profile.output_range,), rel=coarse)
        assert row.output_bound == pytest.approx(layer.profile.output_bound, rel=coarse)
        assert (row.output_bound != profile.output_bound) == (profile.output_bound != 0)
    assert verify(tmp_path / "y.onnx", inputs=[x.numpy()]).ok
    silent = rewrite(
        source, tmp_path / "z.onnx", profile, calibration=[[np.zeros((40, 10), np.float32)]], fallback=False
    )
    if profile.output_bound:
        assert silent.layers[0].output_bound == profile.output_bound
        assert "its output_bound stays" in str(silent)


def test_a_transformer(tmp_path: Path) -> None:
    """Projections are layers; attention's products of two computed tensors are not."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, dropout=0.0)
    x = torch.randn(2, 5, 16)
    source = plain_export(layer, x, tmp_path / "source.onnx")
    products = nodes.operators(ir.load(source))
    report = rewrite(source, tmp_path / "y.onnx", ANALOG)
    sizes = sorted((row.in_features, row.out_features) for row in report.layers)
    assert sizes[-3:] == [(16, 24), (16, 48), (24, 16)]
    assert report.other_operators["MatMul"] == products["MatMul"] + products.get("Gemm", 0) - len(report.layers) > 0
    expected = run(source, x.numpy())
    np.testing.assert_allclose(run(tmp_path / "y.onnx", x.numpy(), library=True), expected, rtol=1e-4, atol=1e-5)


LEFT: dict[str, tuple[list[onnx.NodeProto], dict[str, NDArray[Any]], str]] = {
    "transposed input": (
        [node("Gemm", "V W", "Y", transA=1)],
        {"W": np.ones((6, 4), np.float32)},
        "transA: its input is transposed",
    ),
    "on the left": ([node("MatMul", "W V", "Y")], {"W": W.T.copy()}, "its stored matrix is on the left of the product"),
    "several matrices": (
        [node("MatMul", "V W", "Y")],
        {"W": np.ones((2, 6, 6), np.float32)},
        "its stored side has shape [2, 6, 6]; a layer's is a matrix",
    ),
    "a vector": (
        [node("MatMul", "V W", "Y")],
        {"W": np.ones(6, np.float32)},
        "its stored side has shape [6]; a layer's is a matrix",
    ),
    "a matrix C": (
        [node("Gemm", "V W C", "Y")],
        {"W": np.ones((6, 6), np.float32), "C": np.ones((6, 6), np.float32)},
        "its C is no row of floats",
    ),
    "a computed C": (
        [node("Gemm", "V W V", "Y")],
        {"W": np.ones((6, 6), np.float32)},
        "its C is computed, or an input of the model",
    ),
    "a convolution": (
        [node("Reshape", "V shape", "v"), node("Conv", "v F", "Y")],
        {"shape": np.array([1, 1, 6, 6]), "F": np.ones((2, 1, 3, 3), np.float32)},
        "neither a MatMul nor a Gemm of floats",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_and_why(tmp_path: Path, case: str) -> None:
    content, stored, reason = LEFT[case]
    layer = node("MatMul", "X layer", "V")
    source = write(
        tmp_path / "s.onnx", [layer, *content], stored | {"layer": np.eye(6, dtype=np.float32)}, shape=(6, 6)
    )
    report = rewrite(source, tmp_path / "y.onnx", ANALOG)
    assert [row.name for row in report.layers] == ["MatMul_V"]
    assert [row.reason for row in report.left] == [reason]
    assert reason in str(report)
    x = RNG.normal(size=(6, 6)).astype(np.float32)
    np.testing.assert_allclose(run(tmp_path / "y.onnx", x, library=True), run(source, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "inputs"), [("MatMul", ["", "W"]), ("MatMul", ["V"]), ("Gemm", ["", "W", "W"])])
def test_a_product_without_an_input_is_left(tmp_path: Path, kind: str, inputs: list[str]) -> None:
    broken = helper.make_node(kind, inputs, ["unread"], name="broken")
    content = [node("MatMul", "X W", "V"), broken, node("Relu", "V", "Y")]
    report = rewrite(write(tmp_path / "s.onnx", content, {"W": W}), tmp_path / "y.onnx", ANALOG)
    assert [(row.name, row.reason) for row in report.left] == [("broken", "an input of it is absent")]


def test_an_add_that_is_no_bias_stays(tmp_path: Path) -> None:
    """The product is read twice or is an output, or the `Add` adds something else."""
    cases = {
        "twice": ([node("MatMul", "X W", "z"), node("Add", "z B", "a"), node("Mul", "a z", "Y")], ROW),
        "one number": ([node("MatMul", "X W", "z"), node("Add", "z B", "Y")], np.float32(2)),
        "rows": ([node("MatMul", "X W", "z"), node("Add", "z B", "Y")], np.ones((3, 4), np.float32)),
        "itself": ([node("MatMul", "X W", "z"), node("Add", "z z", "Y")], ROW),
    }
    x = RNG.normal(size=(3, 6)).astype(np.float32)
    for name, (content, row) in cases.items():
        source = write(tmp_path / f"{name}.onnx", content, {"W": W, "B": row})
        report = rewrite(source, tmp_path / "y.onnx", ANALOG)
        assert report.layers[0].bias == ""
        assert report.other_operators["Add"] == 1
        got, expected = run(tmp_path / "y.onnx", x, library=True), run(source, x)
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [[1, 4], [1, 1, 4]])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("behind", ["", "Relu", "Scaler", "Unknown"])
def test_a_bias_of_more_dimensions(tmp_path: Path, behind: str, rank: int, shape: list[int]) -> None:
    """It belongs to the layer; the result has the dimensions that the sum had, also where nobody says X's."""
    x = RNG.normal(size=(2, 3, 6)[3 - rank :]).astype(np.float32)
    before = {
        "": [],
        "Relu": [node("Relu", "X", "x")],
        "Scaler": [helper.make_node("Scaler", ["X"], ["x"], domain="ai.onnx.ml", offset=[0.5], scale=[2.0])],
        "Unknown": [node("Reshape", "X S", "x")],
    }[behind]
    content = [*before, node("MatMul", "x W" if before else "X W", "z"), node("Add", "z B", "Y")]
    stored = {"W": W, "B": ROW.reshape(shape)}
    domains = ["ai.onnx.ml"] if behind == "Scaler" else []
    dims = [*"ab"[3 - rank :], 6] if behind != "Unknown" else list(x.shape)
    source = write(tmp_path / "s.onnx", content, stored, shape=dims, domains=domains)
    if behind == "Unknown":
        model = onnx.load(source)
        model.graph.input.append(helper.make_tensor_value_info("S", TensorProto.INT64, ["rank"]))
        onnx.save(model, source)
    report = rewrite(source, tmp_path / "y.onnx", ANALOG)
    assert [row.bias for row in report.layers] == ["analog"]
    assert report.other_operators.get("Expand", 0) == (len(shape) > rank or behind == "Unknown")
    feeds = {"X": x} | ({"S": np.array(x.shape)} if behind == "Unknown" else {})
    expected = onnxruntime.InferenceSession(str(source)).run(None, feeds)[0]
    got = lumina_onnx.load(tmp_path / "y.onnx").run(None, feeds)[0]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert verify(tmp_path / "y.onnx", inputs=feeds).ok


HALF = {np.float16: TensorProto.FLOAT16, np.float64: TensorProto.DOUBLE}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_other_floats_are_computed_in_float32(tmp_path: Path, kind: str, dtype: Any) -> None:
    last = [node("MatMul", "X W", "z"), node("Add", "z B", "Y")] if kind == "MatMul" else [node("Gemm", "X W B", "Y")]
    stored = {"W": W.astype(dtype), "B": ROW.astype(dtype)}
    source = write(tmp_path / "s.onnx", last, stored, dtype=HALF[dtype])
    report = rewrite(source, tmp_path / "y.onnx", ANALOG)
    name = "MatMul_z" if kind == "MatMul" else "Gemm_Y"
    assert report.notes == [f"{name}: computed in float32, between Casts, since the file's is {np.dtype(dtype)}"]
    assert report.other_operators == {"Cast": 2}
    assert [(row.name, row.bias, row.weight_bits) for row in report.layers] == [(name, "analog", 0)]
    x = RNG.normal(size=(5, 6)).astype(dtype)
    expected = (x.astype(np.float64) @ stored["W"].astype(np.float64) + stored["B"]).astype(dtype)
    for library in (True, False):
        got = run(tmp_path / "y.onnx", x, library=library)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected, rtol=2e-3 if dtype == np.float16 else 1e-5, atol=1e-5)
    rewrite(source, tmp_path / "y.onnx", OpticalProfile(8, 4, 8, noise_additive=0.1), calibration=[[x]])
    assert verify(tmp_path / "y.onnx", inputs=[x]).ok


def test_bfloat16_is_computed_in_float32(tmp_path: Path) -> None:
    """ONNX Runtime has no product of bfloat16 on CPUs: the file runs there only once it is rewritten."""
    weight = helper.make_tensor("W", TensorProto.BFLOAT16, W.shape, W.astype(ml_dtypes.bfloat16).tobytes(), raw=True)
    content = [node("Cast", "X", "x", to=TensorProto.BFLOAT16), node("MatMul", "x W", "y")]
    source = write(tmp_path / "s.onnx", [*content, node("Cast", "y", "Y", to=TensorProto.FLOAT)], {})
    model = onnx.load(source)
    model.graph.initializer.append(weight)
    onnx.save(model, source)
    report = rewrite(source, tmp_path / "y.onnx", ANALOG)
    assert report.notes == ["MatMul_y: computed in float32, between Casts, since the file's is bfloat16"]
    x = RNG.normal(size=(5, 6)).astype(np.float32)
    rounded = [each.astype(ml_dtypes.bfloat16).astype(np.float64) for each in (x, W)]
    expected = (rounded[0] @ rounded[1]).astype(np.float32).astype(ml_dtypes.bfloat16)
    got = run(tmp_path / "y.onnx", x, library=True).astype(ml_dtypes.bfloat16)
    np.testing.assert_allclose(got.astype(np.float32), expected.astype(np.float32), rtol=2**-7, atol=2**-7)


def test_a_matrix_of_no_floats_is_left(tmp_path: Path) -> None:
    content = [node("MatMul", "X W", "Y")]
    source = write(tmp_path / "s.onnx", content, {"W": W.astype(np.int32)}, dtype=TensorProto.INT32)
    message = r"\(left: MatMul_Y \(MatMul\): its matrix is int32; allowed are float32, float16, bfloat16, float64\)"
    with pytest.raises(ValueError, match=message):
        rewrite(source, tmp_path / "y.onnx", ANALOG)
    assert not (tmp_path / "y.onnx").exists()


def test_weights_that_float32_cannot_hold(tmp_path: Path) -> None:
    content = [node("MatMul", "X W", "Y")]
    source = write(tmp_path / "s.onnx", content, {"W": np.full((6, 4), 1e300)}, dtype=TensorProto.DOUBLE)
    with pytest.raises(ValueError, match=r"MatMul_Y: weight\[0, 0\] = inf; allowed is a finite number"):
        rewrite(source, tmp_path / "y.onnx", ANALOG)


def replaceable(path: Path, ir_version: int) -> Path:
    source = write(path, *FORMS["MatMul"], opset=8 if ir_version == 3 else 20, ir_version=ir_version)
    model = onnx.load(source)
    model.graph.input.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, W.shape))
    onnx.save(model, source)
    return source


def test_a_weight_that_callers_may_replace_is_fixed(tmp_path: Path) -> None:
    """Exporters of some years ago listed every stored tensor as an input."""
    source = replaceable(tmp_path / "s.onnx", 9)
    report = rewrite(source, tmp_path / "y.onnx", ANALOG)
    assert report.notes == ["W: stored in layers, where callers can no longer replace it by an input"]
    assert list(inspect(tmp_path / "y.onnx").inputs) == ["X"]
    assert [value.name for value in onnx.load(tmp_path / "y.onnx").graph.input] == ["X"]
    x = np.ones((2, 6), np.float32)
    np.testing.assert_allclose(run(tmp_path / "y.onnx", x, library=True), x @ W, rtol=1e-5)
    assert verify(tmp_path / "y.onnx").ok


def test_what_no_layer_reads_stays_replaceable(tmp_path: Path) -> None:
    content = [
        node("Transpose", "W", "V"),
        node("MatMul", "X V", "z"),
        node("Add", "z B", "a"),
        node("Mul", "a s", "Y"),
    ]
    stored = {"W": W.T.copy(), "B": ROW, "s": np.float32(2)}
    source = write(tmp_path / "s.onnx", content, stored)
    model = onnx.load(source)
    for name, array in stored.items():
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
    onnx.save(model, source)
    report = rewrite(source, tmp_path / "y.onnx", ANALOG)
    assert report.notes == ["W, B: stored in layers, where callers can no longer replace it by an input"]
    assert [value.name for value in onnx.load(tmp_path / "y.onnx").graph.input] == ["X", "s"]
    x = RNG.normal(size=(3, 6)).astype(np.float32)
    session = lumina_onnx.load(tmp_path / "y.onnx")
    for factor in (None, 3):
        feeds = {"X": x} | ({} if factor is None else {"s": np.array(factor, np.float32)})
        expected = onnxruntime.InferenceSession(str(source)).run(None, feeds)[0]
        np.testing.assert_allclose(session.run(None, feeds)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [0, 4, 8])
def test_a_matrix_that_is_used_in_several_shapes(tmp_path: Path, bits: int) -> None:
    content = [
        node("MatMul", "X W", "a"),
        node("Transpose", "W", "V"),
        node("MatMul", "a V", "b"),
        node("Reshape", "W S", "U"),
        node("MatMul", "a U", "c"),
        node("Gather", "W first", "row"),
        node("Gemm", "b W row", "d", alpha=0.5),
        node("MatMul", "c W", "e"),
        node("Add", "d e", "Y"),
    ]
    source = write(tmp_path / "s.onnx", content, {"W": W, "S": np.array([4, 6]), "first": np.array(0)})
    report = rewrite(source, tmp_path / "y.onnx", OpticalProfile(0, bits, 0))
    assert [(row.in_features, row.out_features) for row in report.layers] == [(6, 4), (4, 6), (4, 6), (6, 4), (6, 4)]
    assert verify(tmp_path / "y.onnx").ok
    x = RNG.normal(size=(3, 6)).astype(np.float32)
    error = np.abs(run(tmp_path / "y.onnx", x, library=True) - run(source, x)).max()
    assert error < np.abs(run(source, x)).max() * (1e-5 if not bits else 0.5 if bits == 4 else 0.03)


def test_up_to_ir_3_every_stored_tensor_is_an_input(tmp_path: Path) -> None:
    source = replaceable(tmp_path / "s.onnx", 3)
    for fallback in (True, False):
        report = rewrite(source, tmp_path / "y.onnx", ANALOG, fallback=fallback)
        assert len(report.layers) == 1
        assert list(inspect(tmp_path / "y.onnx").inputs) == ["X"]
        x = np.ones((2, 6), np.float32)
        np.testing.assert_allclose(run(tmp_path / "y.onnx", x, library=True), x @ W, rtol=1e-5)


def chain(path: Path, count: int = 3) -> Path:
    """Layers named a, b, c that share their weight, with a ReLU between them."""
    names = [chr(ord("a") + i) for i in range(count)]
    content = []
    for index, name in enumerate(names):
        content.append(
            helper.make_node("MatMul", ["X" if not index else f"r{index - 1}", "W"], [f"z{index}"], name=name)
        )
        content.append(helper.make_node("Relu", [f"z{index}"], ["Y" if index == count - 1 else f"r{index}"]))
    return write(path, content, {"W": RNG.normal(size=(6, 6)).astype(np.float32)})


def test_patterns_seeds_and_shared_weights(tmp_path: Path) -> None:
    noisy, other = OpticalProfile(noise_relative=0.1), OpticalProfile(input_bits=4, noise_relative=0.1)
    report = rewrite(
        chain(tmp_path / "s.onnx", 4),
        tmp_path / "y.onnx",
        noisy,
        skip="b",
        overrides={"[cd]": other, "d": noisy},
        seed=7,
    )
    assert [(row.name, row.input_bits) for row in report.layers] == [("a", 8), ("c", 4), ("d", 8)]
    assert [(row.name, row.reason) for row in report.left] == [("b", "skip 'b'")]
    seeds = [row.seed for row in report.layers]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3
    assert [row.shared_with for row in report.layers] == ["", "a", "a"]
    # Only b needs the float matrix.
    assert sorted(t.data_type for t in onnx.load(tmp_path / "y.onnx").graph.initializer) == [1, 1, 3]
    again = rewrite(
        tmp_path / "s.onnx", tmp_path / "z.onnx", noisy, skip="b", overrides={"[cd]": other, "d": noisy}, seed=7
    )
    assert again.layers == report.layers
    assert (tmp_path / "z.onnx").read_bytes() == (tmp_path / "y.onnx").read_bytes()


def test_layers_in_subgraphs_and_functions(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["X", "W"], ["b"], name="inner")],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["V"], ["i"])],
        "other",
        [],
        [helper.make_tensor_value_info("i", TensorProto.FLOAT, None)],
    )
    content = [
        helper.make_node("Layer", ["X", "W"], ["V"], domain="local", name="call"),
        helper.make_node("ReduceSum", ["V"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["Y"], then_branch=branch, else_branch=other),
    ]
    square = RNG.normal(size=(6, 6)).astype(np.float32)
    source = write(tmp_path / "s.onnx", content, {"W": square, "zero": np.float32(0)}, domains=["local"])
    model = onnx.load(source)
    function = helper.make_function(
        "local", "Layer", ["x", "w"], ["y"], [node("MatMul", "x w", "y")], [helper.make_opsetid("", 20)]
    )
    model.functions.append(function)
    onnx.save(model, source)
    x = RNG.normal(size=(2, 6)).astype(np.float32)
    x *= np.sign((x @ square).sum(axis=1, keepdims=True))  # so that a layer of 8 bits has the sum's sign too
    report = rewrite(source, tmp_path / "y.onnx", ANALOG)
    assert len(report.layers) == 2
    for sign in (1, -1):
        got, expected = run(tmp_path / "y.onnx", sign * x, library=True), run(source, sign * x)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    # Before 1.29, ONNX Runtime shows a custom operator only the constants of its own graph.
    for bits in (0, 4, 12):
        rewrite(source, tmp_path / "y.onnx", OpticalProfile(weight_bits=bits))
        graph = onnx.load(tmp_path / "y.onnx").graph
        (choice,) = (node for node in graph.node if node.op_type == "If")
        (inner,) = (attribute.g for attribute in choice.attribute if attribute.name == "then_branch")
        for owner in (graph, inner):
            (layer,) = (node for node in owner.node if node.op_type == "OpticalLinear")
            assert set(layer.input[1:]) <= {tensor.name for tensor in owner.initializer}
        names = [tensor.name for owner in (graph, inner) for tensor in owner.initializer]
        assert len(set(names)) == len(names)
    positive = (x @ square).sum() > 0
    for sign, reached in ((1, positive), (-1, not positive)):
        report = rewrite(source, tmp_path / "y.onnx", OpticalProfile(), calibration=[{"X": sign * x}])
        note = "inner: no batch of the calibration reaches it, its ranges are the profile's"
        assert report.notes == ([] if reached else [note])
        assert {row.name: row.input_range > 0 for row in report.layers}["inner"] == reached


def test_sizes_that_exporters_write_as_minus_1(tmp_path: Path) -> None:
    source = write(tmp_path / "s.onnx", *FORMS["bias after"], shape=(-1, 6))
    report = rewrite(source, tmp_path / "y.onnx", OpticalProfile(), calibration=[[np.ones((3, 6), np.float32)]])
    assert report.layers[0].input_range == 1
    assert verify(tmp_path / "y.onnx").ok


def test_it_does_without_torch(tmp_path: Path) -> None:
    source = chain(tmp_path / "s.onnx")
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from lumina_onnx import OpticalProfile\n"
        "from lumina_onnx.exporter import rewrite\n"
        "x = np.ones((2, 6), np.float32)\n"
        "assert len(rewrite(sys.argv[1], sys.argv[2], OpticalProfile(), calibration=[[x]]).layers) == 3\n"
    )
    subprocess.run([sys.executable, "-c", script, str(source), str(tmp_path / "y.onnx")], check=True, timeout=60)


X = np.ones((2, 6), np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"skip": "nope*"}, ValueError, r"skip pattern 'nope\*' matches no layer: there are a, b, c$"),
        ({"overrides": {"d": ANALOG}}, ValueError, "overrides pattern 'd' matches no layer: there are a, b, c"),
        ({"skip": ["a", "b", "c"]}, ValueError, r"no MatMul or Gemm to convert, .*\(left: a \(MatMul\): skip 'a'"),
        ({"profile": "edge"}, TypeError, "profile is a str; allowed is a lumina_onnx.OpticalProfile"),
        ({"seed": -1}, ValueError, r"seed = -1: allowed is 0\.\.2\^63-1"),
        ({"method": "min"}, ValueError, "method = 'min': allowed is 'max', 'percentile', 'mse'"),
        ({"percentile": 0}, ValueError, "percentile = 0: allowed is a number above 0, at most 100"),
        ({"calibration": []}, ValueError, "calibration is empty: allowed is at least one batch"),
        ({"calibration": [{"Z": X}]}, ValueError, r"inputs has the names \['Z'\]; allowed are \['X'\]"),
        ({"calibration": [[X[:, :5]]]}, ValueError, r"inputs\['X'\] has shape \[2, 5\]; allowed is \[batch, 6\]"),
        ({"calibration": [[X * np.nan]]}, ValueError, "calibration: the input of a holds a value that is not finite"),
        ({"profile": OpticalProfile(output_range=(1.0, 2.0))}, ValueError, "a: output_range"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, Any], error: Any, message: str) -> None:
    profile = arguments.pop("profile", OpticalProfile())
    with pytest.raises(error, match=message):
        rewrite(chain(tmp_path / "s.onnx"), tmp_path / "y.onnx", profile, **arguments)
    assert not (tmp_path / "y.onnx").exists()


def test_a_batch_on_which_the_model_does_not_run(tmp_path: Path) -> None:
    content = [node("Reshape", "X shape", "x"), node("MatMul", "x W", "Y")]
    source = write(tmp_path / "s.onnx", content, {"W": W, "shape": np.array([2, 6])}, shape=("n",))
    batches = [[np.ones(12, np.float32)], [np.ones(11, np.float32)]]
    message = r"calibration: the model does not run on batch 1 \(X float32\[11\]\); ONNX Runtime says: .*Reshape"
    with pytest.raises(ValueError, match=message):
        rewrite(source, tmp_path / "y.onnx", OpticalProfile(), calibration=batches)


def test_wrong_files(tmp_path: Path) -> None:
    source = chain(tmp_path / "s.onnx")
    with pytest.raises(ValueError, match=r"s\.onnx' is the source itself; allowed is another file"):
        rewrite(source, source, ANALOG)
    with pytest.raises(FileNotFoundError, match=r"missing\.onnx': there is no such file"):
        rewrite(tmp_path / "missing.onnx", tmp_path / "y.onnx", ANALOG)
    rewrite(source, tmp_path / "y.onnx", ANALOG)
    with pytest.raises(ValueError, match=r"y\.onnx' has OpticalLinear nodes already; allowed is a file without"):
        rewrite(tmp_path / "y.onnx", tmp_path / "z.onnx", ANALOG)
    newer = write(tmp_path / "n.onnx", *FORMS["MatMul"], opset=27, ir_version=10)
    with pytest.raises(
        ValueError, match=r"has opset 27, and the function body needs 19\.\.26; allowed is fallback=False"
    ):
        rewrite(newer, tmp_path / "z.onnx", ANALOG)
    assert rewrite(newer, tmp_path / "z.onnx", ANALOG, fallback=False).opset == 27


@pytest.mark.parametrize("opset", [22, 23, 24, 25, 26])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_newer_opsets_have_a_body(tmp_path: Path, opset: int, noise: float) -> None:
    content = [node("Transpose", "V", "W"), node("MatMul", "X W", "z"), node("Add", "z B", "a")]
    content += [node("RMSNormalization" if opset > 22 else "LayerNormalization", "a S", "Y")]
    stored = {"V": W.T.copy(), "B": ROW, "S": np.ones(4, np.float32)}
    source = write(tmp_path / "s.onnx", content, stored, opset=opset, ir_version=10)
    x = RNG.normal(size=(3, 6)).astype(np.float32)
    report = rewrite(source, tmp_path / "y.onnx", OpticalProfile(8, 8, 8, noise_additive=noise), calibration=[[x]])
    assert (report.opset, report.notes) == (opset, [])
    assert report.body_bytes
    assert verify(tmp_path / "y.onnx", inputs=[x]).ok
    for library in (True, False):
        error = np.abs(run(tmp_path / "y.onnx", x, library=library) - run(source, x)).max()
        assert error < (0.05 if not noise else 2.0)


def test_a_file_that_onnx_cannot_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no adapter\nfor this")

    monkeypatch.setattr(onnx.version_converter, "convert_version", fail)
    old = write(tmp_path / "o.onnx", *FORMS["MatMul"], opset=11, ir_version=6)
    message = (
        r"o\.onnx' has opset 11, the function body needs 19 or newer, and onnx cannot convert the file "
        r"\(no adapter for this\); allowed is fallback=False"
    )
    with pytest.raises(ValueError, match=message):
        rewrite(old, tmp_path / "z.onnx", ANALOG)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    bad = W.copy()
    bad[1, 2] = np.inf
    source = write(tmp_path / "s.onnx", [node("MatMul", "X W", "Y")], {"W": bad})
    with pytest.raises(ValueError, match=r"MatMul_Y: weight\[2, 1\] = inf; allowed is a finite number"):
        rewrite(source, tmp_path / "y.onnx", OpticalProfile())


@pytest.mark.parametrize("bias_stage", ["analog", "digital"])
@pytest.mark.parametrize("tile", [0, 2, 4])
@pytest.mark.parametrize("bits", [0, 1, 4, 8, 12])
def test_both_calibrations_agree_on_tiles_and_bounds(tmp_path: Path, bits: int, tile: int, bias_stage: str) -> None:
    x = RNG.normal(size=(16, 6)).astype(np.float32)
    profile = OpticalProfile(bits and 8, bits, tile_features=tile, bias_stage=bias_stage)
    profiles = [profile] + ([profile.replace(output_bound=1.0)] if bits and bias_stage == "digital" else [])
    source = write(
        tmp_path / "x.onnx",
        [helper.make_node("Gemm", ["X", "W", "B"], ["Y"], name="a")],
        {"W": W, "B": ROW},
    )
    for each, per_output in itertools.product(profiles, (False, True)):
        linear = nn.Linear(6, 4)
        linear.weight.data, linear.bias.data = torch.from_numpy(W.T.copy()), torch.from_numpy(ROW.copy())
        model: Any = optical.convert(nn.Sequential(linear), each)
        optical.calibrate(model, [torch.from_numpy(x)], per_output=per_output, progress=False)
        report = rewrite(source, tmp_path / "y.onnx", each, calibration=[[x]], per_output=per_output, fallback=False)
        (layer,), wanted = report.layers, model[0].profile
        ranges = wanted.output_range if isinstance(wanted.output_range, tuple) else (wanted.output_range,)
        assert layer.output_range == pytest.approx(ranges, rel=1e-5)
        assert (layer.input_range, layer.tile_features) == (wanted.input_range, wanted.tile_features)
        assert layer.output_bound == pytest.approx(wanted.output_bound, rel=1e-5)
        assert layer.output_bound != 1
        verify(tmp_path / "y.onnx")


def test_a_later_version_of_the_operator_has_no_fallback(tmp_path: Path) -> None:
    source = write(tmp_path / "x.onnx", [helper.make_node("MatMul", ["X", "W"], ["Y"], name="a")], {"W": W})
    message = (
        "fallback = True: allowed is False for layers with tile_features, such as 'a': the function body of standard"
    )
    with pytest.raises(ValueError, match=message):
        rewrite(source, tmp_path / "y.onnx", OpticalProfile(tile_features=2))
    assert not (tmp_path / "y.onnx").exists()
