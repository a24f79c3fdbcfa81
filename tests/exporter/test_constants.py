"""Which values are stored: deep graphs, shared constants, random draws, operators whose weights are left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

import lumina_onnx
from lumina_onnx import nn as optical
from lumina_onnx.exporter import calls, export, inspect, rewrite, torch_export, verify
from lumina_onnx.exporter.binding import Binding
from lumina_onnx.exporter.capture import Captured
from lumina_onnx.exporter.constants import ConstantError, Constants
from lumina_onnx.exporter.names import Names
from lumina_onnx.exporter.twin import float_twin
from lumina_onnx.nn import functional
from lumina_onnx.profile import OpticalProfile

ANALOG = OpticalProfile(input_bits=0, weight_bits=0, output_bits=0)
RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 4)).astype(np.float32)
X = RNG.normal(size=(2, 4)).astype(np.float32)
DEEP = 5000
TRUE, FALSE, HALF = np.bool_(True), np.bool_(False), np.float32(0.5)


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node; `_` in `inputs` stands for an omitted input."""
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), name=outputs.split()[0], **attributes)


def model(
    content: list[onnx.NodeProto], *, opset: int = 20, domains: tuple[str, ...] = (), **stored: Any
) -> onnx.ModelProto:
    """A model from X with 4 columns to Y."""
    graph = helper.make_graph(
        content,
        "graph",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in ({"W": W} | stored).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9 if opset > 18 else 6)


def write(path: Path, content: list[onnx.NodeProto], **options: Any) -> Path:
    onnx.save(model(content, **options), path)
    return path


def chain(kind: str, first: str, count: int) -> list[onnx.NodeProto]:
    """`count` nodes in sequence; the result of the last one is "end"."""
    names = [first, *(f"{kind}{i}" for i in range(count - 1)), "end"]
    return [node(kind, names[i], names[i + 1]) for i in range(count)]


def run(path: Path, x: NDArray[Any] = X) -> NDArray[Any]:
    return lumina_onnx.load(path).run(None, {"X": x})[0]


def test_a_weight_that_is_thousands_of_nodes_deep(tmp_path: Path) -> None:
    source = write(tmp_path / "s.onnx", [*chain("Neg", "W", DEEP + 1), node("MatMul", "X end", "Y")])
    report = rewrite(source, tmp_path / "y.onnx", ANALOG)
    assert (len(report.layers), report.other_operators) == (1, {})
    np.testing.assert_allclose(run(tmp_path / "y.onnx"), X @ -W, rtol=1e-5, atol=1e-5)


def test_layers_behind_thousands_of_nodes(tmp_path: Path) -> None:
    """The product at the end has two computed operands, as in attention: neither is stored."""
    content = [
        node("MatMul", "X W", "first"),
        *chain("Neg", "first", 2000),
        node("MatMul", "end W", "last"),
        node("Transpose", "last", "turned", perm=[1, 0]),
        node("MatMul", "last turned", "Y"),
    ]
    report = rewrite(write(tmp_path / "s.onnx", content), tmp_path / "y.onnx", ANALOG, calibration=[[X]])
    assert [row.name for row in report.layers] == ["first", "last"]
    assert report.other_operators == {"Neg": 2000, "Transpose": 1, "MatMul": 1}
    assert inspect(tmp_path / "y.onnx").layers == report.layers
    assert verify(tmp_path / "y.onnx", inputs=[X]).ok
    assert len(list(float_twin(tmp_path / "y.onnx").graph)) == 2004
    last = X @ W @ W
    np.testing.assert_allclose(run(tmp_path / "y.onnx"), last @ last.T, rtol=1e-3, atol=1e-3)


def test_a_constant_that_is_shared_at_each_step(tmp_path: Path) -> None:
    """Evaluating the constant once per use would take 2^64 steps."""
    names = ["small", *(f"c{i}" for i in range(1, 64)), "V"]
    ladder = [node("Add", f"{names[i]} {names[i]}", names[i + 1]) for i in range(64)]
    content = [node("Mul", "W scale", "small"), *ladder, node("MatMul", "X V", "z"), node("Add", "z row", "Y")]
    source = write(tmp_path / "s.onnx", content, scale=np.float32(2.0**-64), row=np.ones(4, np.float32))
    report = rewrite(source, tmp_path / "y.onnx", ANALOG)
    assert [row.bias for row in report.layers] == ["analog"]
    np.testing.assert_allclose(run(tmp_path / "y.onnx"), X @ W + 1, rtol=1e-5, atol=1e-5)


def test_each_node_is_evaluated_once_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every constant of a chain is a layer's matrix; an intermediate value is kept no longer than it is read."""
    content = [node("Neg", "W", "w0"), *(node("Neg", f"w{i}", f"w{i + 1}") for i in range(40))]
    layers = [node("MatMul", f"{f'y{i - 1}' if i else 'X'} w{2 * i}", f"y{i}") for i in range(20)]
    proto = model([*content, *layers, node("Identity", "y19", "Y")])
    graph = ir.from_proto(proto)
    known, evaluated, held = Constants(graph), [], []
    right = Constants._evaluate

    def counted(self: Constants, each: ir.Node) -> None:
        right(self, each)
        evaluated.append(each.name)
        held.append(len(self._arrays))

    monkeypatch.setattr(Constants, "_evaluate", counted)
    products = [each for each in graph.graph if each.op_type == "MatMul"]
    for number, each in enumerate(products):
        weight = each.inputs[1]
        assert weight is not None
        np.testing.assert_array_equal(known.array(weight), -W)
        assert held[-1] <= number + 2
    assert len(evaluated) == len(set(evaluated)) == 39


def test_a_value_that_depends_on_itself_is_no_constant() -> None:
    graph = ir.from_proto(model([node("Add", "W b", "a"), node("Neg", "a", "b"), node("MatMul", "X b", "Y")]))
    known = Constants(graph)
    value = next(each for each in graph.graph if each.op_type == "MatMul").inputs[1]
    assert value is not None
    assert not known.is_constant(value)
    with pytest.raises(ConstantError, match="computed from the model's inputs"):
        known.array(value)


def test_numbers_that_are_computed(tmp_path: Path) -> None:
    """onnx's evaluator returns some of them as numpy scalars."""
    content = [node("ReduceSum", "W", "sum", keepdims=0), node("Mul", "sum half", "C"), node("Gemm", "X W C", "Y")]
    report = rewrite(write(tmp_path / "s.onnx", content, half=HALF), tmp_path / "y.onnx", ANALOG)
    assert [row.bias for row in report.layers] == ["analog"]
    np.testing.assert_allclose(run(tmp_path / "y.onnx"), X @ W + W.sum() / 2, rtol=1e-4, atol=1e-5)


def test_many_layers_of_one_name_and_seed(tmp_path: Path) -> None:
    content = [node("MatMul", "X W", "same")]
    for i in range(300):
        content.append(helper.make_node("MatMul", ["same" if not i else f"y{i}", "W"], [f"y{i + 1}"], name="same"))
    content[-1].output[0] = "Y"
    source = write(tmp_path / "s.onnx", content)
    report = rewrite(source, tmp_path / "y.onnx", OpticalProfile(noise_additive=0.1), fallback=False)
    assert [row.name for row in report.layers] == ["same", *(f"same_{i}" for i in range(2, 302))]
    assert [row.seed for row in report.layers] == [i * 0x9E3779B97F4A7C15 % 2**63 for i in range(301)]
    assert {row.shared_with for row in report.layers} == {"", "same"}


def test_unused_names_are_given_once() -> None:
    names = Names(["a", "a_3"])
    assert [names.unused("a") for _ in range(3)] == ["a_2", "a_4", "a_5"]
    assert [names.unused("b", first=1) for _ in range(3)] == ["b", "b_1", "b_2"]
    assert names.unused("a_2") == "a_2_2"


DRAWN: dict[str, tuple[list[onnx.NodeProto], str]] = {
    "RandomNormalLike": (
        [node("RandomNormalLike", "W", "e"), node("Mul", "e half", "s"), node("Add", "W s", "V")],
        "RandomNormalLike",
    ),
    "RandomUniformLike": ([node("RandomUniformLike", "W", "e"), node("Mul", "W e", "V")], "RandomUniformLike"),
    "RandomNormal": ([node("RandomNormal", "", "V", shape=[4, 4])], "RandomNormal"),
    "RandomUniform, seeded": ([node("RandomUniform", "", "V", shape=[4, 4], seed=1.0)], "RandomUniform"),
    "Bernoulli": (
        [node("Mul", "W zero", "p"), node("Bernoulli", "p", "m"), node("Add", "W m", "V")],
        "Bernoulli",
    ),
    "Multinomial": (
        [node("Multinomial", "W", "m", sample_size=4), node("Cast", "m", "V", to=TensorProto.FLOAT)],
        "Multinomial",
    ),
    "Dropout": ([node("Dropout", "W half true", "V")], "Dropout"),
    "Dropout, computed": ([node("Not", "false", "t"), node("Dropout", "W half t", "V")], "Dropout"),
    "Dropout, by an input": (
        [node("ReduceSum", "X", "s", keepdims=0), node("Greater", "s half", "t"), node("Dropout", "W half t", "V")],
        "Dropout",
    ),
}


@pytest.mark.parametrize("case", DRAWN)
def test_a_drawn_matrix_stays_drawn(tmp_path: Path, case: str) -> None:
    content, by = DRAWN[case]
    layer = node("MatMul", "X W", "x")
    stored = {"half": HALF, "true": TRUE, "false": FALSE, "zero": np.float32(0)}
    source = write(tmp_path / "s.onnx", [layer, *content, node("MatMul", "x V", "Y")], **stored)
    report = rewrite(source, tmp_path / "y.onnx", ANALOG)
    assert [row.name for row in report.layers] == ["x"]
    assert [(row.name, row.reason) for row in report.left] == [("Y", f"its matrix is drawn anew in each run, by {by}")]
    assert report.other_operators[by] == report.other_operators["MatMul"] == 1


def test_two_runs_draw_two_matrices(tmp_path: Path) -> None:
    content, _ = DRAWN["RandomNormalLike"]
    source = write(tmp_path / "s.onnx", [node("MatMul", "X W", "x"), *content, node("MatMul", "x V", "Y")], half=HALF)
    rewrite(source, tmp_path / "y.onnx", ANALOG)
    session = lumina_onnx.load(tmp_path / "y.onnx")
    first, second = (session.run(None, {"X": X})[0] for _ in range(2))
    assert (first != second).any()


NOT_DRAWN: dict[str, tuple[list[onnx.NodeProto], int]] = {
    "no mode": ([node("Dropout", "W", "V")], 20),
    "mode left out": ([node("Dropout", "W half", "V")], 20),
    "mode false": ([node("Dropout", "W half false", "V")], 20),
    "mode computed": ([node("Not", "true", "f"), node("Dropout", "W half f", "V")], 13),
    "before 12": ([node("Dropout", "W", "V", ratio=0.5)], 11),
}


@pytest.mark.parametrize("case", NOT_DRAWN)
def test_dropout_at_rest_is_nothing(tmp_path: Path, case: str) -> None:
    content, opset = NOT_DRAWN[case]
    stored = {"half": HALF, "true": TRUE, "false": FALSE}
    source = write(tmp_path / "s.onnx", [*content, node("MatMul", "X V", "Y")], opset=opset, **stored)
    report = rewrite(source, tmp_path / "y.onnx", ANALOG, fallback=opset >= 19)
    assert (len(report.layers), report.left) == (1, [])
    np.testing.assert_allclose(run(tmp_path / "y.onnx"), X @ W, rtol=1e-5, atol=1e-5)


def test_dropout_before_opset_7_drops_unless_it_is_a_test() -> None:
    for attributes, draws in (({}, True), ({"is_test": 0}, True), ({"is_test": 1}, False)):
        proto = model([node("Dropout", "W", "V", **attributes), node("MatMul", "X V", "Y")], opset=6)
        graph = ir.from_proto(proto)
        assert Constants(graph).draws(graph.graph[0]) is draws


def test_a_drawn_bias_stays_and_a_drawn_input_is_one(tmp_path: Path) -> None:
    """A drawn bias after a MatMul or as C of a Gemm stays; a layer on a drawn X, as in a decoder, is a normal layer."""
    row = node("RandomNormal", "", "B", shape=[4])
    source = write(tmp_path / "s.onnx", [node("MatMul", "X W", "z"), row, node("Add", "z B", "Y")])
    report = rewrite(source, tmp_path / "y.onnx", ANALOG)
    assert [layer.bias for layer in report.layers] == [""]
    assert report.other_operators == {"Add": 1, "RandomNormal": 1}

    source = write(tmp_path / "s.onnx", [node("MatMul", "X W", "z"), row, node("Gemm", "z W B", "Y")])
    report = rewrite(source, tmp_path / "y.onnx", ANALOG)
    assert [left.reason for left in report.left] == ["its C is drawn anew in each run, by RandomNormal"]

    latent = node("RandomNormal", "", "l", shape=[2, 4])
    source = write(tmp_path / "s.onnx", [latent, node("MatMul", "l W", "z"), node("Add", "X z", "Y")])
    report = rewrite(source, tmp_path / "y.onnx", ANALOG)
    assert ([row.name for row in report.layers], report.left) == (["z"], [])


def branch(name: str) -> onnx.GraphProto:
    content = [node("RandomNormalLike", "W", f"e{name}"), node("Add", f"W e{name}", f"w{name}")]
    content.append(node("MatMul", f"x w{name}", name))
    return helper.make_graph(content, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])


def test_what_draws_in_functions_and_subgraphs(tmp_path: Path) -> None:
    function = helper.make_function(
        "local",
        "Bayes",
        ["m"],
        ["w"],
        [node("RandomNormalLike", "m", "e"), node("Add", "m e", "w")],
        [helper.make_opsetid("", 20)],
    )
    content = [node("MatMul", "X W", "x"), node("Bayes", "W", "V", domain="local"), node("MatMul", "x V", "Y")]
    proto = model(content, domains=("local",))
    proto.functions.append(function)
    onnx.save(proto, tmp_path / "s.onnx")
    report = rewrite(tmp_path / "s.onnx", tmp_path / "y.onnx", ANALOG)
    assert [row.reason for row in report.left] == ["its matrix is drawn anew in each run, by RandomNormalLike"]

    condition = [node("ReduceSum", "X", "s", keepdims=0), node("Greater", "s half", "c")]
    choice = helper.make_node("If", ["c"], ["Y"], then_branch=branch("yes"), else_branch=branch("no"))
    source = write(tmp_path / "s.onnx", [content[0], *condition, choice], half=HALF)
    report = rewrite(source, tmp_path / "y.onnx", ANALOG)
    assert {(row.name, row.reason) for row in report.left} == {
        (name, "its matrix is drawn anew in each run, by RandomNormalLike") for name in ("yes", "no")
    }


OTHERS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], str]] = {
    "an operator of another domain makes it": (
        [node("Weights", "W", "V", domain="vendor"), node("MatMul", "x V", "Y")],
        {},
        "its matrix is computed by vendor::Weights, which cannot be evaluated here",
    ),
    "one without inputs makes it": (
        [node("Weights", "", "V", domain="vendor"), node("MatMul", "x V", "Y")],
        {},
        "its matrix is computed by vendor::Weights, which cannot be evaluated here",
    ),
    "one of ONNX Runtime's that drops": (
        [node("BitmaskDropout", "W half true", "V m", domain="com.microsoft"), node("MatMul", "x V", "Y")],
        {"half": HALF, "true": TRUE},
        "its matrix is computed by com.microsoft::BitmaskDropout, which cannot be evaluated here",
    ),
    "an If makes it": (
        [
            helper.make_node(
                "If",
                ["true"],
                ["V"],
                then_branch=helper.make_graph(
                    [node("Neg", "W", "a")], "a", [], [helper.make_tensor_value_info("a", 1, None)]
                ),
                else_branch=helper.make_graph(
                    [node("Abs", "W", "b")], "b", [], [helper.make_tensor_value_info("b", 1, None)]
                ),
            ),
            node("MatMul", "x V", "Y"),
        ],
        {"true": TRUE},
        "its matrix is computed by If, which cannot be evaluated here",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_matrix_that_cannot_be_evaluated_is_listed(tmp_path: Path, case: str) -> None:
    content, stored, reason = OTHERS[case]
    source = write(
        tmp_path / "s.onnx", [node("MatMul", "X W", "x"), *content], domains=("vendor", "com.microsoft"), **stored
    )
    report = rewrite(source, tmp_path / "y.onnx", ANALOG)
    assert [(row.name, row.reason) for row in report.left] == [("Y", reason)]


def test_a_matrix_that_a_sequence_of_tensors_leads_to(tmp_path: Path) -> None:
    content = [
        node("SplitToSequence", "W", "parts", axis=0),
        node("ConcatFromSequence", "parts", "V", axis=0),
        node("MatMul", "X V", "Y"),
    ]
    assert len(rewrite(write(tmp_path / "s.onnx", content), tmp_path / "y.onnx", ANALOG).layers) == 1
    np.testing.assert_allclose(run(tmp_path / "y.onnx"), X @ W, rtol=1e-5, atol=1e-5)


MICROSOFT = "com.microsoft"
BYTES = np.ones((4, 4), np.uint8)
WEIGHTED: dict[str, onnx.NodeProto] = {
    "DynamicQuantizeLSTM": node("DynamicQuantizeLSTM", "x Q Q _ _ _ _ _ s z s z", "Y", domain=MICROSOFT, hidden_size=4),
    "MoE": node("MoE", "x x W3 _ W3", "Y", domain=MICROSOFT),
    "FusedConv": node("FusedConv", "x W4", "Y", domain=MICROSOFT),
    "GemmFastGelu": node("GemmFastGelu", "x W", "Y", domain=MICROSOFT),
    "QOrderedMatMul": node("QOrderedMatMul", "x s Q s s", "Y", domain=MICROSOFT),
    "Attention": node("Attention", "x W", "Y", domain=MICROSOFT),
    "NewlyInvented": node("NewlyInvented", "x W", "Y", domain=MICROSOFT),
    "of a vendor": node("Anything", "x W", "Y", domain="vendor"),
    "LSTM": node("LSTM", "x W3 W3", "Y", hidden_size=4),
    "ConvTranspose": node("ConvTranspose", "x W4", "Y"),
    "DeformConv": node("DeformConv", "x W4 x", "Y"),
    "Einsum, on the left": node("Einsum", "W x", "Y", equation="ij,bj->bi"),
    "a drawn Conv": node("Conv", "x drawn", "Y"),
}
NONE: dict[str, onnx.NodeProto] = {
    "a lookup": node("GatherBlockQuantized", "Q x s", "Y", domain=MICROSOFT),
    "rotations": node("RotaryEmbedding", "x x W W", "Y", domain=MICROSOFT),
    "element by element": node("QLinearAdd", "x s z Q s z s z", "Y", domain=MICROSOFT),
    "a row": node("SkipLayerNormalization", "x x s", "Y", domain=MICROSOFT),
    "both sides computed": node("FusedMatMul", "x x", "Y", domain=MICROSOFT),
    "QLinearMatMul of two computed": node("QLinearMatMul", "x s z x s z s z", "Y"),
    "Gather": node("Gather", "W x", "Y"),
    "a sum": node("Add", "x W", "Y"),
}


def left_of(folder: Path, last: onnx.NodeProto) -> list[tuple[str, str]]:
    """What a rewrite leaves of a model with a layer and a node after it; the model is never run."""
    stored = {"Q": BYTES, "s": np.ones(1, np.float32), "z": np.zeros(1, np.uint8)}
    stored |= {"W3": np.ones((1, 4, 4), np.float32), "W4": np.ones((4, 4, 1, 1), np.float32)}
    content = [node("RandomNormal", "", "drawn", shape=[1, 1, 1, 1]), node("MatMul", "X W", "x"), last]
    source = write(folder / "s.onnx", content, domains=(MICROSOFT, "vendor", "ai.onnx.ml"), **stored)
    report = rewrite(source, folder / "y.onnx", ANALOG)
    assert [row.name for row in report.layers] == ["x"]
    return [(row.kind, row.reason) for row in report.left]


@pytest.mark.parametrize("case", WEIGHTED)
def test_every_operator_with_stored_weights_is_listed(tmp_path: Path, case: str) -> None:
    last = WEIGHTED[case]
    reason = "neither a MatMul nor a Gemm of floats"
    if "Q" in last.input:
        reason = "neither a MatMul nor a Gemm, and quantised; give the file of floats that it was made from"
    assert left_of(tmp_path, last) == [(last.op_type, reason)]


@pytest.mark.parametrize("case", NONE)
def test_operators_without_weights_are_not(tmp_path: Path, case: str) -> None:
    assert left_of(tmp_path, NONE[case]) == []


def test_linear_models_of_scikit_learn_are_listed(tmp_path: Path) -> None:
    for kind in ("LinearClassifier", "LinearRegressor", "SVMClassifier", "SVMRegressor"):
        last = node(kind, "x", "Y", domain="ai.onnx.ml", coefficients=[1.0, 2.0, 3.0, 4.0])
        assert left_of(tmp_path, last) == [(kind, "its weights are attributes of the node")]


def test_sparse_tensors_are_refused(tmp_path: Path) -> None:
    """onnx_ir would drop them, and the result would lack a weight."""
    values, places = (
        helper.make_tensor("V", TensorProto.FLOAT, [2], [1.0, 2.0]),
        helper.make_tensor("i", 7, [2], [0, 5]),
    )
    sparse = helper.make_sparse_tensor(values, places, [4, 4])
    content = [node("MatMul", "X W", "x"), node("MatMul", "x V", "Y")]
    proto = model(content)
    proto.graph.sparse_initializer.append(sparse)
    onnx.save(proto, tmp_path / "s.onnx")
    write(tmp_path / "t.onnx", [helper.make_node("Constant", [], ["V"], sparse_value=sparse), *content])
    messages = {
        "s.onnx": "its tensor 'V' is sparse; allowed are dense tensors",
        "t.onnx": "Sparse tensors are not supp",
    }
    for name, message in messages.items():
        with pytest.raises(ValueError, match=message):
            rewrite(tmp_path / name, tmp_path / "y.onnx", ANALOG)


class Drawing(nn.Module):
    """A layer and products with randomly drawn matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.matrix = nn.Parameter(torch.rand(4, 4))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.layer(x)
        dropped, again = (F.dropout(self.matrix, 0.5, training=True) for _ in range(2))
        masked = self.matrix * torch.bernoulli(torch.full((4, 4), 0.5))
        moved = self.matrix + 0.1 * torch.randn_like(self.matrix)
        return [x @ dropped, x @ again, x @ masked, x @ moved]


def test_torchs_draws_stay_draws(tmp_path: Path) -> None:
    """The optimiser would treat a mask as a constant and merge two equal draws."""
    report = export(optical.convert(Drawing(), ANALOG), torch.randn(2, 4), tmp_path / "y.onnx", fallback=False)
    assert {"Dropout": 2, "Bernoulli": 1, "RandomNormalLike": 1}.items() <= report.other_operators.items()
    assert sorted(row.reason for row in report.left) == [
        f"its weight is drawn anew in each run, by {by}"
        for by in ("Bernoulli", "Dropout", "Dropout", "RandomNormalLike")
    ]
    session = lumina_onnx.load(tmp_path / "y.onnx")
    feeds = {session.get_inputs()[0].name: X}
    runs = [session.run(None, feeds) for _ in range(5)]
    for results in zip(*runs, strict=True):
        assert len({result.tobytes() for result in results}) > 1


def test_an_optical_layer_with_a_drawn_weight_is_refused(tmp_path: Path) -> None:
    class Bayes(Drawing):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            weight = self.matrix + torch.randn_like(self.matrix)
            return functional.optical_linear(x, weight, None, OpticalProfile())

    message = (
        "its weight is drawn at random, so that it is another one in each call; allowed is a parameter, a buffer or"
    )
    with pytest.raises(ValueError, match=message):
        export(Bayes(), torch.randn(2, 4), tmp_path / "y.onnx")


def test_torch_graphs_that_are_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep before a layer, after it and in its weight. torch itself would take a minute to capture such a graph."""
    profile = {
        "input_bits": 8,
        "weight_bits": 8,
        "output_bits": 8,
        "input_range": 0.0,
        "output_range": [0.0],
        "seed": 0,
    }
    laws = {"noise_relative": 0.0, "noise_additive": 0.0, "noise_shot": 0.0, "bias_stage": "analog"}
    content = [
        *chain("Abs", "X", 600),
        *chain("Neg", "W", 601)[:-1],
        node("OpticalLinear", "end Neg599 ones", "y", domain="lumina", **profile, **laws),
        *(node("Floor", f"r{i - 1}" if i else "y", f"r{i}") for i in range(600)),
        node("Transpose", "r599", "t", perm=[1, 0]),
        node("MatMul", "r599 t", "Y"),
    ]
    proto = model(content, domains=("lumina",), ones=np.ones(4, np.float32))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["batch", "batch"]))
    call = calls.Call("", 0, {})
    captured = Captured(ir.from_proto(proto), ["X"], [call], Binding("", [], [], plain=True))
    monkeypatch.setattr(torch_export, "capture", lambda *_, **__: captured)
    report = export(nn.Identity(), torch.randn(2, 4), tmp_path / "y.onnx", fallback=False)
    assert (len(report.layers), report.left) == (1, [])
    assert report.other_operators["Floor"] == 600
    y = run(tmp_path / "y.onnx")
    bits: dict[str, Any] = {"input_bits": 8, "weight_bits": 8, "output_bits": 8}
    expected = np.floor(lumina_onnx.reference.optical_linear(np.abs(X), W, None, **bits))
    np.testing.assert_allclose(y, expected @ expected.T, rtol=1e-5, atol=1e-5)
