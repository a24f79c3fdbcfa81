"""The function body: a file runs without the operator's library and gives the operator's results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
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
from lumina_onnx import reference
from lumina_onnx.exporter import body, inspect, nodes, tolerance, verify
from lumina_onnx.profile import OpticalProfile
from lumina_onnx.schema import NOISE, PARAMETERS

LEVELS = onnxruntime.GraphOptimizationLevel
EVERY_LEVEL = [LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_BASIC, LEVELS.ORT_ENABLE_ALL]
Array = NDArray[Any]


def layer(
    k: int, n: int, storage: str, bits: int, *, bias: bool, seed: int, opset: Any = 20, **attributes: Any
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A model of one node with the function body, and the arguments of the reference."""
    rng = np.random.default_rng(seed)
    weight: Array = rng.normal(size=(n, k)).astype(np.float32)
    weight[0] = 0
    scale = np.ones(n, np.float32)
    if bits:
        codes, scale = reference.quantize_weight(weight, bits)
        if storage == "int8":
            weight = codes
        elif storage == "uint8":
            weight = reference.pack_weight(codes.astype(np.int8), bits)
            attributes["in_features"] = k
    arrays = {"W": weight, "W_scale": scale} | ({"B": rng.normal(size=n).astype(np.float32)} if bias else {})
    attributes["weight_bits"] = bits
    node = helper.make_node("OpticalLinear", ["X", *arrays], ["Y"], domain="lumina", **attributes)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("lumina", 1)]
    ir_version = 9 if opset < 21 else 10
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=[body.function(opset)])
    arguments = {"weight": weight, "bias": arrays.get("B"), "weight_scale": scale if bits else None}
    return model, {
        "output_bits": 8,
        "bias_stage": "analog",
        "input_bits": 0,
        "output_range": [0.0],
    } | attributes | arguments


@pytest.fixture
def exported(prover: Any, noisy: OpticalProfile) -> Path:
    """Two layers and a ReLU, with noise."""
    model = optical.convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), noisy)
    prover.export(model, torch.randn(2, 6))
    return Path(prover.path)


def session(model: bytes | str, level: Any = LEVELS.ORT_ENABLE_ALL, *, library: bool = False) -> Any:
    """A session with the operator's library or without it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if library:
        options.register_custom_ops_library(lumina_onnx.library_path())
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@st.composite
def layers(draw: st.DrawFn) -> tuple[onnx.ModelProto, dict[str, Any], Array]:
    k, n = draw(st.integers(1, 40)), draw(st.integers(1, 20))
    storage = draw(st.sampled_from(["float32", "int8", "uint8"]))
    bits = draw(
        {"float32": st.integers(0, 16), "int8": st.integers(1, 8), "uint8": st.sampled_from([1, 2, 4])}[storage]
    )
    full_scale = st.floats(0.125, 32, width=32)
    ranges = draw(
        st.one_of(st.just([0.0]), full_scale.map(lambda r: [r]), st.lists(full_scale, min_size=n, max_size=n))
    )
    input_bits = draw(st.sampled_from([0, *range(2, 17)]))
    attributes = {
        "input_bits": input_bits,
        "input_range": draw(st.one_of(st.just(0.0), full_scale)) if input_bits else 0.0,
        "output_bits": draw(st.sampled_from([0, *range(2, 17)])),
        "output_range": ranges,
        "bias_stage": draw(st.sampled_from(["analog", "digital"])),
    }
    seed = draw(st.integers(0, 2**32))
    model, arguments = layer(k, n, storage, bits, bias=draw(st.booleans()), seed=seed, **attributes)
    leading = draw(st.lists(st.integers(1, 4), max_size=2))
    x = np.random.default_rng(seed + 1).normal(size=(*leading, k)).astype(np.float32)
    for _ in range(draw(st.integers(0, 3))):
        special = draw(st.sampled_from([0.0, np.nan, np.inf, -np.inf, 1e30, 1e-42, -3.0]))
        x.reshape(-1)[draw(st.integers(0, x.size - 1))] = special
    if draw(st.booleans()):
        with np.errstate(invalid="ignore"):  # An infinity times 0.
            x.reshape(-1, k)[-1] *= draw(st.sampled_from([np.float32(0), np.float32(1e-38), np.float32(1e-10)]))
    return model, arguments, x


@settings(max_examples=100, deadline=None)
@given(case=layers(), level=st.sampled_from(EVERY_LEVEL))
def test_the_body_gives_what_the_operator_gives(case: Any, level: Any) -> None:
    model, arguments, x = case
    (got,) = session(model.SerializeToString(), level).run(None, {"X": x})
    expected, distance = tolerance.allowed(x, **arguments)
    assert got.shape == expected.shape
    assert tolerance.is_within(got, expected, distance), (arguments, got, expected, distance)


@pytest.mark.parametrize("opset", body.OPSETS)
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_every_version_of_the_standard_operators(opset: int, noise: float) -> None:
    options = {"input_bits": 8, "noise_additive": noise}
    model, arguments = layer(20, 6, "uint8", 4, bias=True, seed=0, opset=opset, **options)
    x = np.random.default_rng(0).normal(size=(3, 20)).astype(np.float32)
    for level in EVERY_LEVEL:
        (got,) = session(model.SerializeToString(), level).run(None, {"X": x})
        expected, distance = tolerance.allowed(x, **arguments)
        assert tolerance.is_within(got, expected, distance) == (noise == 0)


def test_every_process_makes_the_same_body() -> None:
    script = (
        "import hashlib; from lumina_onnx.exporter import body; "
        "print(hashlib.sha256(body.function(20).SerializeToString(deterministic=True)).hexdigest())"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(hashes) == 1


def test_every_attribute_is_declared_with_its_default() -> None:
    declared = {
        attribute.name: helper.get_attribute_value(attribute) for attribute in body.function(20).attribute_proto
    }
    for row in PARAMETERS:
        if row.place == "attribute" and row.default is not None and row.since == 1:
            default: Any = [row.default] if row.type == "FLOATS" else row.default
            value = declared.pop(row.name)
            assert (value.decode() if isinstance(value, bytes) else value) == default
    # 0 is not a valid in_features: it stands for weights that are not packed.
    assert declared == {"in_features": 0, "op_version": 1}


@pytest.mark.parametrize("k", [1, 7, 8, 300])
@pytest.mark.parametrize(("bits", "storage"), [(8, "int8"), (4, "uint8"), (2, "uint8"), (1, "uint8"), (1, "float32")])
def test_where_sums_are_integers_and_nothing_is_added_the_bits_are_equal(k: int, bits: int, storage: str) -> None:
    """Both sides use the largest codes: pairs of bytes whose sums do not fit into 16 bits."""
    x = np.random.default_rng(k).choice(np.float32([-1, 1, 0.5]), (5, k))  # type: ignore[arg-type]
    for ranges in ([0.0], [9.0]):
        model, arguments = layer(k, 6, storage, bits, bias=False, seed=k, input_bits=8, output_range=ranges)
        expected, _ = tolerance.allowed(x, **arguments)
        for level in EVERY_LEVEL:
            (got,) = session(model.SerializeToString(), level).run(None, {"X": x})
            np.testing.assert_array_equal(got, expected)


WAYS_TO_DRAW = [20, 22]
"""Below and from 22 on the body draws in two different ways."""

STORAGES = [(4, "uint8"), (8, "int8"), (1, "float32"), (12, "float32"), (0, "float32")]


@pytest.mark.parametrize("opset", body.OPSETS)
def test_branches_leave_nothing_large_to_be_folded(opset: int) -> None:
    """ONNX Runtime 1.24 to 1.27 load no file in which a constant of more than 127 bytes is folded in a branch."""
    function = body.function(opset)
    computed, large, branched = {"X"}, {"W", "W_scale", "B"}, []

    def follow(operations: Any, *, branch: bool) -> None:
        for node in operations:
            inputs = set(node.input)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    follow(attribute.g.node, branch=True)
                    inputs |= {output.name for output in attribute.g.output}
            if inputs & computed:
                computed.update(node.output)
                continue
            named = {attribute.ref_attr_name for attribute in node.attribute}
            if inputs & large or node.op_type in ("Expand", "Range", "ConstantOfShape") or "output_range" in named:
                large.update(node.output)
                if branch:
                    branched.append(node)

    follow(function.node, branch=False)
    assert "Y" in computed
    assert len(large) > 20
    assert not branched


def sharing(storage: str, bits: int) -> tuple[onnx.ModelProto, dict[str, dict[str, Any]]]:
    """A model of nodes that share only W, and the reference's arguments for the nodes without noise."""
    model, arguments = layer(48, 40, storage, bits, bias=True, seed=0, input_bits=8)
    node, quiet = model.graph.node.pop(), {}
    del model.graph.output[:]
    for index, others in enumerate(
        (
            {"output_range": [9.0], "bias_stage": "digital"},
            {"output_range": [float(n + 9) for n in range(40)], "output_bits": 6},
            {"input_range": 3.0},
            {"noise_additive": 0.1, "input_range": 4.0},
            {"noise_relative": 0.1, "noise_shot": 0.1, "output_range": [9.0], "input_range": 5.0, "output_bits": 0},
        )
    ):
        name = f"Y{index}"
        made: Any = model.graph.node.add()
        made.CopyFrom(node)
        made.output[:] = [name]
        made.attribute.extend(helper.make_attribute(key, value) for key, value in others.items())  # type: ignore[attr-defined]
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        if not set(NOISE) & set(others):  # type: ignore[call-overload]
            quiet[name] = arguments | others  # type: ignore[operator]
    return model, quiet


@pytest.mark.parametrize("level", EVERY_LEVEL[1:])
@pytest.mark.parametrize(("bits", "storage"), STORAGES)
def test_nodes_on_one_weight_unpack_it_once(bits: int, storage: str, level: Any, tmp_path: Path) -> None:
    model, quiet = sharing(storage, bits)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    made = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    left = onnx.load(options.optimized_model_filepath).graph
    (unpacked,) = (tensor.name for tensor in left.initializer if len(tensor.dims) == 2 and min(tensor.dims) > 1)
    assert sum(unpacked in node.input for node in left.node) >= 4
    x = np.random.default_rng(1).normal(size=(5, 48)).astype(np.float32)
    for name, got in zip(quiet, made.run(list(quiet), {"X": x}), strict=True):
        expected, distance = tolerance.allowed(x, **quiet[name])
        assert tolerance.is_within(got, expected, distance), name


SCALES = {
    "static": {"input_range": 3.0, "output_range": [9.0]},
    "dynamic": {},
    "per output": {"input_range": 3.0, "output_range": [9.0] * 8},
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("input_bits", "storage", "bits", "product", "stored"),
    [
        (8, "uint8", 4, "MatMulInteger", TensorProto.INT8),
        (8, "int8", 8, "MatMulInteger", TensorProto.UINT8),
        (8, "float32", 1, "MatMulInteger", TensorProto.INT8),
        (8, "float32", 12, "MatMul", TensorProto.FLOAT),
        (12, "int8", 8, "MatMul", TensorProto.FLOAT),
        (0, "float32", 0, "MatMul", TensorProto.FLOAT),
    ],
)
def test_optimised_a_node_is_its_converters_and_one_product(
    input_bits: int, storage: str, bits: int, product: str, stored: int, scale: str, tmp_path: Path
) -> None:
    """Weights are unpacked, and attribute-dependent choices made, when the session is created."""
    attributes = SCALES[scale] if input_bits else {"output_range": SCALES[scale].get("output_range", [0.0])}
    model, _ = layer(64, 8, storage, bits, bias=True, seed=0, input_bits=input_bits, **attributes)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    left = onnx.load(options.optimized_model_filepath)
    counts = nodes.operators(ir.from_proto(left))
    # MatMul also preserves the rows' NaN and multiplies the steps.
    allowed = {"Add", "Cast", "Clip", "Gemm", "MatMul", "MatMulInteger", "Mul", "QuantizeLinear", "Round"}
    assert set(counts) <= allowed | ({"Abs", "Div", "Max", "ReduceMax"} if scale == "dynamic" else set())
    # A dynamic full scale takes four nodes: the magnitudes, their maximum, a lower bound for it and a division.
    assert sum(counts.values()) <= (22 if scale == "dynamic" else 14)
    (weight,) = (tensor for tensor in left.graph.initializer if tuple(tensor.dims) == (64, 8))
    assert weight.data_type == stored
    assert [node.op_type for node in left.graph.node if weight.name in node.input] == [product]


@pytest.mark.parametrize("opset", WAYS_TO_DRAW)
def test_no_rows_through_the_body(opset: int) -> None:
    model, _ = layer(20, 6, "int8", 8, bias=True, seed=0, opset=opset, input_bits=8, noise_relative=0.1)
    for level in EVERY_LEVEL:
        (got,) = session(model.SerializeToString(), level).run(None, {"X": np.zeros((0, 20), np.float32)})
        assert got.shape == (0, 6)


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("ranges", [[0.0], [40.0]])
@pytest.mark.parametrize(
    "laws",
    [
        {"noise_relative": 0.1},
        {"noise_additive": 0.05},
        {"noise_shot": 0.2},
        {"noise_relative": 0.1, "noise_additive": 0.05, "noise_shot": 0.2},
    ],
    ids="+".join,
)
@pytest.mark.parametrize("opset", WAYS_TO_DRAW)
def test_the_noise_has_the_operators_statistics(
    opset: int, laws: dict[str, float], ranges: list[float], level: Any
) -> None:
    """Divided by the operator's sigma, the added noise is standard normal in every row and column."""
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(4, 20)).astype(np.float32), 1000, axis=0)
    options = {"input_bits": 8, "output_bits": 0, "output_range": ranges}
    _, arguments = layer(20, 16, "int8", 8, bias=True, seed=1, **options)
    model, _ = layer(20, 16, "int8", 8, bias=True, seed=1, opset=opset, **options, **laws)
    z, _ = tolerance.allowed(rows, **arguments)
    scale = np.abs(z).max(axis=1, keepdims=True) if ranges == [0.0] else np.float32(ranges)  # type: ignore[arg-type]
    variance = (laws.get("noise_relative", 0) * z) ** 2 + (laws.get("noise_additive", 0) * scale) ** 2
    sigma = np.sqrt(variance + laws.get("noise_shot", 0) ** 2 * np.abs(z) * scale)
    (got,) = session(model.SerializeToString(), level).run(None, {"X": rows})
    eps = ((got - z) / sigma).astype(np.float64)
    assert abs(eps.mean()) < 5 / np.sqrt(eps.size)
    assert abs(eps.var() - 1) < 5 * np.sqrt(2 / eps.size)
    assert abs((eps**3).mean()) < 5 * np.sqrt(15 / eps.size)
    assert abs((eps**4).mean() - 3) < 5 * np.sqrt(96 / eps.size)
    for group in eps.reshape(4, 1000, 16):
        assert abs(group.mean(axis=0)).max() < 5 / np.sqrt(1000)
        correlations = np.corrcoef(group.T) - np.eye(16)
        assert abs(correlations).max() < 5.5 / np.sqrt(1000)


def test_a_law_that_is_off_adds_nothing_to_large_signals() -> None:
    """Shot noise would be the root of |z| * range, which overflows float32 here."""
    laws = {"noise_relative": 0.1, "noise_additive": 0.05}
    model, _ = layer(20, 6, "int8", 8, bias=False, seed=0, input_bits=8, output_bits=0, **laws)
    (got,) = session(model.SerializeToString()).run(None, {"X": np.full((3, 20), 2e19, np.float32)})
    assert np.isfinite(got).all()


def test_a_session_of_a_new_opset_draws_anew_in_each_run() -> None:
    model, _ = layer(20, 6, "int8", 8, bias=False, seed=0, opset=22, output_bits=0, noise_additive=0.1)
    opened = session(model.SerializeToString())
    first, second = (opened.run(None, {"X": np.ones((3, 20), np.float32)})[0] for _ in range(2))
    assert (first != second)[:, 1:].all()
    assert (first[0] != first[1])[1:].all()


def test_runs_and_layers_draw_noise_of_their_own(exported: Path) -> None:
    first = session(str(exported))
    x = {"input": np.ones((2, 6), np.float32)}
    assert (first.run(None, x)[0] != first.run(None, x)[0]).any()


def test_with_the_library_the_kernel_runs(exported: Path) -> None:
    """The noise shows what ran: a fresh session with the library reproduces the operator's own noise."""
    x = np.ones((2, 6), np.float32)
    for level in EVERY_LEVEL:
        got = session(str(exported), level, library=True).run(None, {"input": x})[0]
        np.testing.assert_array_equal(got, lumina_onnx.load(exported).run(None, {"input": x})[0])


def test_a_file_of_a_later_version_is_refused_in_words_where_the_library_is(exported: Path) -> None:
    model = onnx.load(exported)
    for node in model.graph.node:
        if node.op_type == "OpticalLinear":
            next(entry for entry in node.attribute if entry.name == "op_version").i = 3
    message = r'node "0": attribute op_version = 3: LuminaKernel .* has versions 1 to 2 of the operator'
    with pytest.raises(Exception, match=message):
        lumina_onnx.load(model.SerializeToString())
    onnx.save(model, exported)
    for look in (inspect, verify):
        with pytest.raises(
            ValueError, match=r"node '0': op_version = 3: this lumina_onnx has versions 1 to 2 of the operator"
        ):
            look(exported)
    assert session(str(exported)).run(None, {"input": np.ones((2, 6), np.float32)})[0].shape == (2, 3)


def test_without_a_body_a_file_needs_the_library(prover: Any, noisy: OpticalProfile) -> None:
    report = prover.export(optical.convert(nn.Linear(6, 3), noisy), torch.randn(2, 6), fallback=False)
    assert report.body_bytes == inspect(prover.path).body_bytes == 0
    assert "without the operator's library: does not run" in str(report)
    with pytest.raises(Exception, match=r"OpticalLinear"):
        session(str(prover.path))
    checked = verify(prover.path)
    assert checked.ok
    assert all(row.library for row in checked.comparisons)
    assert "without it the file does not run" in str(checked)


def test_verify_finds_a_body_that_computes_something_else(exported: Path) -> None:
    model = onnx.load(exported)
    (function,) = model.functions
    next(node for node in function.node if node.op_type == "Max").op_type = "Min"  # the DAC's largest code
    onnx.save(model, exported)
    report = verify(exported)
    assert not report.ok
    assert all(row.equal for row in report.comparisons if row.library)
    assert [row.name for row in report.comparisons if not row.ok and not row.library]
    assert "DIFFERENT" in str(report)
