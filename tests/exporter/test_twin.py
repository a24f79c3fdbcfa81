"""The float32 twin: what it computes, what it holds, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import lumina_onnx
from lumina_onnx import nn as optical
from lumina_onnx.exporter import nodes
from lumina_onnx.exporter.twin import float_twin
from lumina_onnx.profile import OpticalProfile


def run(model: onnx.ModelProto, *arrays: np.ndarray) -> list[np.ndarray]:
    """Runs a model in a session without the operator's library."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 4, 8, 12])
@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_the_layers_on_the_dequantised_weights(prover: Any, bits: int, bias: bool) -> None:
    profile = OpticalProfile(input_bits=0, weight_bits=bits, output_bits=0)
    model = optical.convert(nn.Sequential(nn.Linear(9, 7, bias), nn.ReLU(), nn.Linear(7, 3, bias)), profile)
    prover.export(model, torch.randn(2, 9))
    twin = ir.to_proto(float_twin(prover.path))
    onnx.checker.check_model(twin, full_check=True)
    x = np.random.default_rng(bits).normal(size=(5, 9)).astype(np.float32)
    (expected,) = lumina_onnx.load(prover.path).run(None, {"input": x})
    np.testing.assert_allclose(run(twin, x)[0], expected, rtol=1e-4, atol=1e-5)
    assert nodes.operators(float_twin(prover.path)) == {"MatMul": 2, "Relu": 1} | ({"Add": 2} if bias else {})
    assert sorted(tuple(t.dims) for t in twin.graph.initializer if len(t.dims) == 2) == [(7, 3), (9, 7)]
    assert not twin.functions


def test_shared_weights_are_stored_once(prover: Any, noisy: OpticalProfile) -> None:
    layer = optical.OpticalLinear(6, 6, profile=noisy)
    prover.export(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(2, 6))
    twin = ir.to_proto(float_twin(prover.path))
    assert [tuple(tensor.dims) for tensor in twin.graph.initializer if len(tensor.dims) == 2] == [(6, 6)]
    assert run(twin, np.ones((2, 6), np.float32))[0].shape == (2, 6)


def nested(weight: np.ndarray, results: tuple[str, str] = ("then", "else")) -> onnx.ModelProto:
    """A model with a layer in both branches of an `If` and W stored in the enclosing graph; its output is Y."""
    shapes: Any = {"X": ["batch", 4], "Y": None}
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    branches = []
    for name in results:
        inner = helper.make_node(
            "OpticalLinear", ["X", "W", "S", "B"], [name], domain="lumina", weight_bits=8, output_bits=0
        )
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        branches.append(helper.make_graph([inner], name, [], [output]))
    choice = helper.make_node("If", ["C"], ["Y"], then_branch=branches[0], else_branch=branches[1])
    condition = helper.make_tensor_value_info("C", TensorProto.BOOL, [])
    stored = {"W": weight, "S": np.full(3, 0.5, np.float32), "B": np.ones(3, np.float32)}
    # A name that the twin would otherwise use.
    stored["W_float"] = np.zeros(1, np.float32)
    initializers = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph([choice], "nested", [x, condition], [y], initializers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("lumina", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def test_layers_in_subgraphs(tmp_path: Path) -> None:
    weight = np.arange(12, dtype=np.int8).reshape(3, 4)
    onnx.save(nested(weight), tmp_path / "nested.onnx")
    twin = ir.to_proto(float_twin(tmp_path / "nested.onnx"))
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    for condition in (True, False):
        (got,) = run(twin, x, np.array(condition))
        np.testing.assert_allclose(got, x @ (0.5 * weight.T) + 1, rtol=1e-5)
    assert {tensor.name for tensor in twin.graph.initializer} == {"B", "W_float", "W_float_"}


@pytest.mark.parametrize("results", [("then", "else"), ("Z", "Z")])
def test_branches_with_weights_of_their_own(tmp_path: Path, results: tuple[str, str]) -> None:
    """Both name it W: each branch keeps its own, which hides the W of the enclosing graph."""
    around, own = np.arange(12, dtype=np.int8).reshape(3, 4), np.full((3, 4), -5, np.int8)
    model = nested(around, results)
    branches = {attribute.name: attribute.g for attribute in model.graph.node[0].attribute}
    branches["else_branch"].initializer.append(numpy_helper.from_array(own, "W"))
    onnx.save(model, tmp_path / "own.onnx")
    held = ir.from_proto(model)
    found = [node.weight for node in nodes.optical_nodes(held)]
    stored = [weight.numpy().tolist() for weight in found if weight is not None]
    assert sorted(stored) == sorted([around.tolist(), own.tolist()])
    assert [layer.shared_with for layer in nodes.layers(held)] == ["", ""]
    twin = ir.to_proto(float_twin(tmp_path / "own.onnx"))
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    for condition, weight in ((True, around), (False, own)):
        (got,) = run(twin, x, np.array(condition))
        np.testing.assert_allclose(got, x @ (0.5 * weight.T) + 1, rtol=1e-5)


def test_computed_weights_are_refused(tmp_path: Path) -> None:
    model = nested(np.zeros((3, 4), np.int8))
    model.graph.initializer[0].name = "stored"
    model.graph.node.insert(0, helper.make_node("Identity", ["stored"], ["W"]))
    onnx.save(model, tmp_path / "computed.onnx")
    with pytest.raises(
        ValueError, match=r"node '(then|else)': its weights are computed in the graph, allowed are stored ones"
    ):
        float_twin(tmp_path / "computed.onnx")


def test_a_model_without_optical_layers(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph), tmp_path / "relu.onnx")
    with pytest.raises(ValueError, match=r"relu\.onnx': the model has no lumina::OpticalLinear node"):
        float_twin(tmp_path / "relu.onnx")
