"""onnx's own evaluator, checker and shape inference know the operator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import nn

import lumina_onnx
from lumina_onnx import exporter, reference
from lumina_onnx import nn as optical
from lumina_onnx.profile import OpticalProfile
from lumina_onnx.schema import DOMAIN, OPERATOR, VERSION_ATTRIBUTE

PROFILES = {
    "dynamic, packed": OpticalProfile(8, 4, 8, noise_additive=0.05),
    "static, digital bias": OpticalProfile(8, 8, 6, input_range=2.0, output_range=3.0, bias_stage="digital"),
    "analog": OpticalProfile(0, 0, 0, noise_relative=0.1),
    "an output range each": OpticalProfile(4, 1, 4, output_range=(1.0, 2.0, 3.0, 4.0, 5.0), noise_shot=0.1),
}


@pytest.mark.parametrize("name", PROFILES)
def test_the_evaluator_gives_the_bits_of_a_session(prover: Any, name: str) -> None:
    model = optical.convert(nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 5, bias=False)), PROFILES[name])
    x = torch.randn(3, 7)
    prover.export(model, x)
    session, evaluator = (
        lumina_onnx.load(prover.path),
        ReferenceEvaluator(str(prover.path), new_ops=exporter.reference_ops()),
    )
    feeds = {session.get_inputs()[0].name: x.numpy()}
    draws: list[Any] = [(evaluator.run(None, feeds), session.run(None, feeds)) for _ in range(3)]
    for (ours,), (theirs,) in draws:
        np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))
    fresh: Any = ReferenceEvaluator(str(prover.path), new_ops=exporter.reference_ops()).run(None, feeds)
    np.testing.assert_array_equal(fresh[0], draws[0][0][0])


def node(**attributes: Any) -> onnx.NodeProto:
    return helper.make_node(OPERATOR, ["x", "w", "s"], ["y"], domain=DOMAIN, **attributes)


def model_of(nodes: list[onnx.NodeProto], functions: list[onnx.FunctionProto] = []) -> onnx.ModelProto:  # noqa: B006
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None])],
        [
            onnx.numpy_helper.from_array(rng.standard_normal((3, 4)).astype(np.float32), "w"),
            onnx.numpy_helper.from_array(np.full(3, 0.1, np.float32), "s"),
        ],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=9)


def test_layers_of_a_function_once_it_is_inlined() -> None:
    layer = node(output_bits=0, weight_bits=0)
    attribute = onnx.AttributeProto(name="input_bits", type=onnx.AttributeProto.INT, ref_attr_name="bits")
    layer.attribute.append(attribute)
    function = helper.make_function(
        "local",
        "Layer",
        ["x", "w", "s"],
        ["y"],
        [layer],
        [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)],
        attributes=["bits"],
    )
    call = helper.make_node("Layer", ["x", "w", "s"], ["y"], domain="local", bits=3)
    model = model_of([call], [function])
    x = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)
    inlined = onnx.inliner.inline_selected_functions(model, [("local", "Layer")])
    (y,) = ReferenceEvaluator(inlined, new_ops=exporter.reference_ops()).run(None, {"x": x})
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_array_equal(y, reference.optical_linear(x, weight, input_bits=3, output_bits=0))


def test_a_later_version_of_the_operator_is_refused() -> None:
    evaluator = ReferenceEvaluator(model_of([node(**{VERSION_ATTRIBUTE: 9})]), new_ops=exporter.reference_ops())
    with pytest.raises(
        ValueError, match=rf"{VERSION_ATTRIBUTE} = 9: this lumina_onnx has versions 1 to 2 of the operator"
    ):
        evaluator.run(None, {"x": np.zeros((1, 4), np.float32)})


def test_a_value_that_is_not_allowed_is_named() -> None:
    evaluator = ReferenceEvaluator(model_of([node(output_bits=40)]), new_ops=exporter.reference_ops())
    with pytest.raises(ValueError, match="output_bits = 40"):
        evaluator.run(None, {"x": np.zeros((1, 4), np.float32)})


CHECK = """
import sys, onnx
from lumina_onnx import exporter
exporter.register_schema()
exporter.register_schema()
model = onnx.load(sys.argv[1])
onnx.checker.check_model(model, check_custom_domain=True)
inferred = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type
print([dim.dim_param or dim.dim_value for dim in inferred.shape.dim], inferred.elem_type)
"""


def test_the_registered_schema_checks_and_infers(tmp_path: Path) -> None:
    onnx.save(model_of([node(output_bits=8)]), tmp_path / "good.onnx")
    onnx.save(model_of([node(output_bits="eight")]), tmp_path / "bad.onnx")
    good, bad = (
        subprocess.run([sys.executable, "-c", CHECK, str(tmp_path / name)], capture_output=True, text=True, check=False)
        for name in ("good.onnx", "bad.onnx")
    )
    assert good.stdout == "['batch', 3] 1\n", good.stderr
    assert bad.returncode == 1
    assert "Mismatched attribute type in '" in bad.stderr
    assert "output_bits" in bad.stderr
