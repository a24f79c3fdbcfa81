"""Quantised models: their products of codes become layers with the file's weights, or are refused with the remedy.

ONNX Runtime's own products of unsigned by signed bytes may overflow on processors without VNNI, so where they occur the
expected results are computed in NumPy, from what the file stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

import lumina_onnx
from lumina_onnx import OpticalProfile
from lumina_onnx.exporter import rewrite, verify
from lumina_onnx.exporter.passes.replace_linears import ANEW, AS_FLOATS, KEPT

Floats = NDArray[np.float32]
MICROSOFT = "com.microsoft"
ANALOG = OpticalProfile(input_bits=0, weight_bits=0, output_bits=0)
CODES = OpticalProfile(input_bits=0, weight_bits=8, output_bits=0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 6)).astype(np.float32)
REMEDY = "give the file of floats that it was made from"


def node(kind: str, inputs: str, output: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(" "), output.split(), f"{kind}_{output}", domain=domain, **attributes)


def write(path: Path, content: Sequence[onnx.NodeProto], stored: dict[str, Any], width: int = 6) -> Path:
    graph = helper.make_graph(
        list(content),
        "graph",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["rows", width])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(MICROSOFT, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


@pytest.fixture
def floats(tmp_path: Path) -> Path:
    """A MatMul with a bias, a ReLU, a Gemm."""
    content = [
        node("MatMul", "X W1", "a"),
        node("Add", "a B1", "b"),
        node("Relu", "b", "r"),
        node("Gemm", "r W2 B2", "Y"),
    ]
    stored = {"W1": (6, 32), "B1": (32,), "W2": (32, 4), "B2": (4,)}
    arrays = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in stored.items()}
    return write(tmp_path / "floats.onnx", content, arrays)


def run(path: Path, x: Floats = X, *, optimised: bool = True) -> Floats:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    result: Floats = lumina_onnx.load(path, sess_options=options).run(None, {"X": x})[0]
    return result


def optimised(source: Path, path: Path) -> Path:
    """The file as ONNX Runtime writes it after its own optimisation."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(str(source), options)
    return path


def stored(path: Path) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", [QuantType.QInt8, QuantType.QUInt8])
def test_dynamic_quantisation(tmp_path: Path, floats: Path, kind: Any, per_channel: bool, fused: bool) -> None:
    """`MatMulInteger` with its `Cast` and `Mul`, and what ONNX Runtime makes of them: `DynamicQuantizeMatMul`."""
    source = tmp_path / "q.onnx"
    quantize_dynamic(floats, source, weight_type=kind, per_channel=per_channel)
    held = stored(source)
    weights = []
    for name in ("W1", "W2"):
        zero = held[f"{name}_zero_point"].astype(np.float64)
        weights.append((held[f"{name}_quantized"] - zero) * held[f"{name}_scale"])
    expected = np.maximum(X @ weights[0] + held["B1"], 0) @ weights[1] + held["B2"]
    if fused:
        source = optimised(source, tmp_path / "fused.onnx")
        assert MICROSOFT in {each.domain for each in onnx.load(source).graph.node}

    report = rewrite(source, tmp_path / "y.onnx", ANALOG)
    symmetric = kind == QuantType.QInt8
    assert report.left == []
    assert report.other_operators == {"Relu": 1}
    assert [(row.in_features, row.out_features, row.bias) for row in report.layers] == [
        (6, 32, "analog"),
        (32, 4, "analog"),
    ]
    names = "MatMul_a_quant, Gemm_Y_MatMul_quant"
    assert report.notes == [f"{names}: {AS_FLOATS}"]
    np.testing.assert_allclose(run(tmp_path / "y.onnx"), expected, rtol=1e-5, atol=1e-5)

    for profile, note in ((CODES.replace(weight_bits=4), ANEW), (CODES, KEPT if symmetric else ANEW)):
        assert rewrite(source, tmp_path / "codes.onnx", profile).notes == [f"{names}: {note}"]
    written = [array for array in stored(tmp_path / "codes.onnx").values() if array.dtype == np.int8]
    if symmetric:
        np.testing.assert_allclose(run(tmp_path / "codes.onnx"), expected, rtol=1e-5, atol=1e-5)
        for array, name in zip(written, ("W1", "W2"), strict=True):
            np.testing.assert_array_equal(array, held[f"{name}_quantized"].T)
    rewrite(source, tmp_path / "four.onnx", OpticalProfile(8, 4, 8, noise_additive=0.01), calibration=[[X]])
    for name in ("codes", "four"):
        assert verify(tmp_path / f"{name}.onnx", inputs=[X]).ok


class Batches(CalibrationDataReader):
    """Inputs for ONNX Runtime's static quantisation."""

    def __init__(self) -> None:
        self._left = iter([{"X": X}, {"X": 2 * X}])

    def get_next(self) -> Any:
        return next(self._left, None)


# ONNX Runtime's QLinearMatMul of unsigned by signed bytes may overflow, and nothing else computes what it should.
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(
    ("form", "activations", "weights"),
    [
        ("QOperator", "QInt8", "QInt8"),
        ("QOperator", "QUInt8", "QUInt8"),
        ("QDQ", "QInt8", "QInt8"),
        ("QDQ", "QUInt8", "QUInt8"),
        ("QDQ", "QUInt8", "QInt8"),
    ],
)
def test_static_quantisation(
    tmp_path: Path, floats: Path, form: str, activations: str, weights: str, per_channel: bool
) -> None:
    """`QLinearMatMul` and `QGemm`, or `MatMul` and `Gemm` between `QuantizeLinear` and `DequantizeLinear`."""
    source = tmp_path / "q.onnx"
    quantize_static(
        floats,
        source,
        Batches(),
        quant_format=QuantFormat[form],
        activation_type=QuantType[activations],
        weight_type=QuantType[weights],
        per_channel=per_channel,
    )
    report = rewrite(source, tmp_path / "y.onnx", ANALOG)
    assert report.left == []
    assert len(report.layers) == 2
    assert report.layers[1].bias == "analog"
    kept = weights == "QInt8"
    names = "MatMul_a_quant, Gemm_Y_quant" if form == "QOperator" else "MatMul_a, Gemm_Y"
    assert [note for note in report.notes if "quantised" in note] == [f"{names}: {AS_FLOATS}"]
    scale = max(stored(source)["Y_scale"].item(), 1e-9)
    for profile in (ANALOG, CODES) if kept else (ANALOG,):
        rewrite(source, tmp_path / "y.onnx", profile)
        expected, got = run(source, optimised=False), run(tmp_path / "y.onnx")
        # A value on the edge between two codes may fall to either, here and in the layer before.
        assert np.abs(got - expected).max() <= 2.01 * scale
        assert np.mean(np.abs(got - expected) > 0.5 * scale) < 0.2
    rewrite(source, tmp_path / "y.onnx", OpticalProfile(8, 4, 8, noise_additive=0.01), calibration=[[X]])
    assert verify(tmp_path / "y.onnx", inputs=[X]).ok


def test_a_matrix_of_codes_that_is_transposed(tmp_path: Path) -> None:
    codes = RNG.integers(-127, 128, (4, 6)).astype(np.int8)
    scale = RNG.uniform(0.01, 0.1, 4).astype(np.float32)
    forms = {
        "Transpose": [
            node("DequantizeLinear", "Q S", "V", axis=0),
            node("Transpose", "V", "W", perm=[1, 0]),
            node("MatMul", "X W", "Y"),
        ],
        "Gemm": [node("DequantizeLinear", "Q S", "V", axis=0), node("Gemm", "X V", "Y", transB=1)],
    }
    for name, content in forms.items():
        source = write(tmp_path / f"{name}.onnx", content, {"Q": codes, "S": scale})
        assert rewrite(source, tmp_path / "y.onnx", CODES).notes == [f"{content[-1].name}: {KEPT}"]
        held = stored(tmp_path / "y.onnx")
        (array,) = (array for array in held.values() if array.dtype == np.int8)
        np.testing.assert_array_equal(array, codes)
        expected = X.astype(np.float64) @ (codes * scale[:, None].astype(np.float64)).T
        np.testing.assert_allclose(run(tmp_path / "y.onnx"), expected, rtol=1e-5, atol=1e-5)
    # Steps along the inputs of the layer are none of the operator's.
    content = [node("DequantizeLinear", "Q S", "V", axis=0), node("MatMul", "X V", "Y")]
    scale = RNG.uniform(0.01, 0.1, 6).astype(np.float32)
    source = write(tmp_path / "rows.onnx", content, {"Q": codes.T.copy(), "S": scale})
    assert rewrite(source, tmp_path / "y.onnx", CODES).notes == [f"{content[-1].name}: {ANEW}"]
    assert rewrite(source, tmp_path / "y.onnx", ANALOG).notes == [f"{content[-1].name}: {AS_FLOATS}"]
    np.testing.assert_allclose(run(tmp_path / "y.onnx"), run(source, optimised=False), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_weights_in_blocks(tmp_path: Path, symmetric: bool, bits: int) -> None:
    """`MatMulNBits`: each block of 16 columns of a row has a scale, and maybe a zero."""
    n, k, block = 5, 40, 16
    count = -(-k // block)
    codes = RNG.integers(0, 2**bits, (n, count, block)).astype(np.uint8)
    zeros = np.full((n, count), 2 ** (bits - 1)) if symmetric else RNG.integers(0, 2**bits, (n, count))
    scales = RNG.uniform(0.01, 0.1, (n, count)).astype(np.float32)
    weight = ((codes - zeros[..., None].astype(np.float64)) * scales[..., None]).reshape(n, -1)[:, :k]

    def packed(fields: NDArray[Any]) -> NDArray[np.uint8]:
        each = 8 // bits
        padded = np.pad(fields, [(0, 0)] * (fields.ndim - 1) + [(0, -fields.shape[-1] % each)]).astype(np.uint8)
        parts = padded.reshape(*fields.shape[:-1], -1, each)
        return np.asarray(np.bitwise_or.reduce(parts << (bits * np.arange(each)).astype(np.uint8), axis=-1))

    held = {"Q": packed(codes), "S": scales} | ({} if symmetric else {"Z": packed(zeros)})
    inputs = "X Q S" if symmetric else "X Q S Z"
    attributes = {"K": k, "N": n, "bits": bits, "block_size": block}
    content = [node("MatMulNBits", inputs, "z", MICROSOFT, **attributes), node("Add", "z B", "Y")]
    bias = RNG.normal(size=n).astype(np.float32)
    source = write(tmp_path / "s.onnx", content, held | {"B": bias}, k)
    report = rewrite(source, tmp_path / "y.onnx", ANALOG)
    assert report.notes == [f"MatMulNBits_z: {AS_FLOATS}"]
    assert [(row.in_features, row.out_features, row.bias) for row in report.layers] == [(k, n, "analog")]
    x = RNG.normal(size=(3, k)).astype(np.float32)
    np.testing.assert_allclose(run(tmp_path / "y.onnx", x), x @ weight.T + bias, rtol=1e-4, atol=1e-4)


def test_weights_that_onnxruntime_puts_into_blocks(tmp_path: Path) -> None:
    weight = RNG.normal(size=(64, 48)).astype(np.float32)
    source = write(tmp_path / "s.onnx", [node("MatMul", "X W", "Y")], {"W": weight}, 64)
    quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=32, is_symmetric=False)
    quantizer.process()
    quantizer.model.save_model_to_file(str(tmp_path / "q.onnx"))
    assert rewrite(tmp_path / "q.onnx", tmp_path / "y.onnx", ANALOG).left == []
    x = RNG.normal(size=(3, 64)).astype(np.float32)
    expected = run(tmp_path / "q.onnx", x)
    assert np.abs(run(tmp_path / "y.onnx", x) - expected).max() < 1e-3 * np.abs(expected).max()


Q = np.ones((6, 4), np.int8)
S = np.float32(0.1)
Z = np.int8(0)
QUANTISE = node("DynamicQuantizeLinear", "X", "x xs xz")
CODE = node("QuantizeLinear", "X S Z", "x")
BACK = node("DequantizeLinear", "y S Z", "Y")
REFUSED: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], str]] = {
    "no scales": (
        [QUANTISE, node("MatMulInteger", "x Q xz", "i"), node("Cast", "i", "Y", to=1)],
        {},
        "its result is not multiplied with its scales",
    ),
    "another factor": (
        [
            QUANTISE,
            node("MatMulInteger", "x Q xz", "i"),
            node("Cast", "i", "f", to=1),
            node("Mul", "f xs", "g"),
            node("ReduceSum", "X", "h"),
            node("Mul", "g h", "Y"),
        ],
        {},
        "it is multiplied with something else than its scales",
    ),
    "codes from elsewhere": (
        [node("Cast", "X", "x", to=3), node("MatMulInteger", "x Q", "i"), node("Cast", "i", "Y", to=1)],
        {},
        "its input is not quantised by DynamicQuantizeLinear",
    ),
    "rows of different scales": (
        [node("QuantizeLinear", "X S Z", "x"), node("QLinearMatMul", "x R Z Q S Z S Z", "y"), BACK],
        {"R": np.ones(5, np.float32)},
        "the scale of its input has shape [5]",
    ),
    "a transposed input": (
        [node("QuantizeLinear", "X S Z", "x"), node("QGemm", "x S Z Q S Z _ S Z", "y", MICROSOFT, transA=1), BACK],
        {"_": np.zeros(4, np.int32)},
        "transA: its input is transposed",
    ),
    "a scale that is computed": (
        [CODE, node("ReduceMax", "X", "m", keepdims=0), node("QLinearMatMul", "x S Z Q m Z S Z", "y"), BACK],
        {},
        "the scale of its weight is computed",
    ),
    "three bits": (
        [node("MatMulNBits", "X P S", "Y", MICROSOFT, K=6, N=4, bits=3, block_size=16)],
        {"P": np.ones((4, 1, 6), np.uint8)},
        "its weight has 3 bits; allowed are 2, 4 and 8",
    ),
    "reordered columns": (
        [node("MatMulNBits", "X P S  G", "Y", MICROSOFT, K=6, N=4, bits=4, block_size=16)],
        {"P": np.ones((4, 1, 8), np.uint8), "G": np.zeros(16, np.int32)},
        "its columns are reordered by g_idx",
    ),
    "too few codes": (
        [node("MatMulNBits", "X P R", "Y", MICROSOFT, K=6, N=4, bits=4, block_size=16)],
        {"P": np.ones((4, 1, 7), np.uint8), "R": np.ones(4, np.float32)},
        "the matrix has 28 elements in place of 32",
    ),
    "a convolution": (
        [
            node("Reshape", "X shape", "r"),
            node("DynamicQuantizeLinear", "r", "x xs xz"),
            node("ConvInteger", "x F xz", "i"),
            node("Cast", "i", "Y", to=1),
        ],
        {"shape": np.array([-1, 1, 1, 6]), "F": np.ones((2, 1, 1, 1), np.uint8)},
        "neither a MatMul nor a Gemm, and quantised",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_left_and_what_to_do(tmp_path: Path, case: str) -> None:
    content, more, reason = REFUSED[case]
    source = write(tmp_path / "s.onnx", content, {"Q": Q, "S": S, "Z": Z} | more)
    with pytest.raises(ValueError, match="it holds no MatMul or Gemm to convert, with a stored matrix") as caught:
        rewrite(source, tmp_path / "y.onnx", ANALOG)
    assert f"{reason}; {REMEDY})" in str(caught.value)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_scale_with_more_dimensions_than_the_product(tmp_path: Path, rank: int) -> None:
    held: dict[str, Any] = {
        "W": RNG.integers(-127, 128, (6, 4)).astype(np.int8),
        "S": RNG.uniform(0.01, 0.02, (1,) * (rank - 1) + (4,)).astype(np.float32),
    }
    content = [
        node("DynamicQuantizeLinear", "X", "q s z"),
        node("MatMulInteger", "q W z", "i"),
        node("Cast", "i", "f", to=TensorProto.FLOAT),
        node("Mul", "f s", "g"),
        node("Mul", "g S", "Y"),
    ]
    source = write(tmp_path / "s.onnx", content, held)
    rewrite(source, tmp_path / "y.onnx", ANALOG)
    expected = (X @ (held["W"] * held["S"].reshape(-1))).reshape((1,) * max(rank - 2, 0) + (5, 4))
    np.testing.assert_allclose(run(tmp_path / "y.onnx"), expected, rtol=1e-5, atol=1e-5)
