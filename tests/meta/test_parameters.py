"""Each parameter of the table reaches every place that spells the parameters out: a forgotten one fails here.

`test_schema.py` has the signatures of the kernel, its stub and the reference.
"""

from __future__ import annotations

import ast
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

import lumina_kernel
from lumina_onnx import nn as optical
from lumina_onnx import schema
from lumina_onnx._text import noise_text
from lumina_onnx.exporter import export, inspect, rewrite
from lumina_onnx.exporter.body import function
from lumina_onnx.nn import _parameters
from lumina_onnx.profile import OpticalProfile

ROOT = Path(__file__).parents[2]
NAMES = [row.name for row in schema.LAYER]
PYTHON = {"INT": "int", "FLOAT": "float", "FLOATS": "float | tuple[float, ...]", "STRING": "str"}


def value(row: schema.Parameter) -> Any:
    """One that is no default, for a layer of 3 outputs."""
    if row.type == "INT":
        return row.default + 2 if row.default else 5  # type: ignore[operator]
    if row.type == "STRING":
        return row.choices[-1]
    return {"FLOAT": 0.375, "FLOATS": (1.5, 2.5, 3.5)}[row.type]


def unlike_defaults() -> OpticalProfile:
    return OpticalProfile(**{row.name: value(row) for row in schema.LAYER})


def test_the_layers_parameters_are_those_of_its_node() -> None:
    attributes = [row.name for row in schema.PARAMETERS if row.place == "attribute"]
    assert [name for name in attributes if name not in ("seed", "in_features")] == NAMES
    assert set(schema.NOISE) < set(NAMES)
    assert all(schema.parameter(name).default == 0 for name in schema.NOISE)


def test_a_profile_has_the_tables_fields() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(OpticalProfile)}
    assert fields == {row.name: PYTHON[row.type] for row in schema.LAYER}
    assert list(fields) == NAMES
    documented = (OpticalProfile.__doc__ or "").split("Args:")[1]
    assert all(f"        {name}: " in documented for name in NAMES)


def test_the_stub_has_a_property_for_each() -> None:
    tree = ast.parse((ROOT / "lumina_kernel.pyi").read_text(encoding="utf-8"))
    params = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Params")
    found = {node.name: ast.unparse(node.returns or node) for node in params.body if isinstance(node, ast.FunctionDef)}
    expected = {row.name: {**PYTHON, "STRING": "_BiasStage"}[row.type] for row in schema.LAYER}
    assert {name: kind for name, kind in found.items() if not name.startswith("__")} == expected


def test_each_value_reaches_the_kernel() -> None:
    profile, defaults = unlike_defaults(), lumina_kernel.Params()
    for row in schema.LAYER:
        assert getattr(profile.params(), row.name) == getattr(profile, row.name) != getattr(defaults, row.name)


@pytest.mark.parametrize("ranges", [(1.5, 2.5, 3.5), 0.1, 0.0])
def test_each_value_reaches_torchs_operators(ranges: Any) -> None:
    profile = unlike_defaults().replace(output_range=ranges)
    values = dataclasses.asdict(profile) | {"output_range": list(np.atleast_1d(ranges))}
    expected = [values[name] for name in NAMES]
    assert _parameters.values_of(profile) == expected
    assert _parameters.params_of(expected) == _parameters.params_in(profile._text) == profile.params()
    assert schema.read(profile._text) == expected
    assert _parameters.params_in(_parameters.text_of(profile.params())) == profile.params()


def test_quiet_is_without_any_noise() -> None:
    profile = _parameters.quiet(unlike_defaults())
    assert not profile._has_noise
    assert [name for name in NAMES if getattr(profile, name) != getattr(unlike_defaults(), name)] == [*schema.NOISE]
    for name in schema.NOISE:
        assert profile.replace(**{name: 0.1})._has_noise
        assert name.removeprefix("noise_") in noise_text(profile.replace(**{name: 0.1}))


def test_a_pickle_keeps_the_fields_alone() -> None:
    """What an older release computed from its own fields, or lacks, does not stay so."""
    profile = unlike_defaults()
    state = {**profile.__dict__, "_text": "1 2", "_params": None, "_words": "1"}
    del state["noise_shot"]
    read = OpticalProfile.__new__(OpticalProfile)
    read.__setstate__(state)
    assert read == profile.replace(noise_shot=0.0)
    assert read.params() == profile.replace(noise_shot=0.0).params()
    assert read._text == profile.replace(noise_shot=0.0)._text
    assert "_words" not in read.__dict__
    assert pickle.loads(pickle.dumps(profile))._text == profile._text


def attributes(path: Path) -> dict[str, Any]:
    (node,) = (node for node in onnx.load(path).graph.node if node.op_type == schema.OPERATOR)
    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: each.decode() if isinstance(each, bytes) else each for name, each in found.items()}


def in_a_node(profile: OpticalProfile) -> dict[str, Any]:
    values = dict(zip(NAMES, _parameters.values_of(profile), strict=True))
    return {name: pytest.approx(each) if isinstance(each, float) else each for name, each in values.items()}


def test_each_value_reaches_an_exported_node(tmp_path: Path) -> None:
    profile = unlike_defaults()
    torch.manual_seed(0)
    layer = optical.OpticalLinear(4, 3, profile=profile)
    export(layer, (torch.randn(2, 4),), tmp_path / "model.onnx")
    assert in_a_node(profile).items() <= attributes(tmp_path / "model.onnx").items()


def test_each_value_reaches_the_report_of_a_file(tmp_path: Path) -> None:
    profile = unlike_defaults()
    export(optical.OpticalLinear(4, 3, profile=profile), (torch.zeros(2, 4),), tmp_path / "model.onnx")
    (layer,) = inspect(tmp_path / "model.onnx").layers
    assert layer.bias == profile.bias_stage
    for name, each in dataclasses.asdict(profile).items():
        if name != "bias_stage":
            assert getattr(layer, name) == pytest.approx(each)
    assert all(name.removeprefix("noise_") in layer.noise for name in schema.NOISE)


def test_each_value_reaches_a_rewritten_node(tmp_path: Path) -> None:
    profile = unlike_defaults()
    arrays = {"w": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32)}
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer")],
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "x.onnx")
    rewrite(tmp_path / "x.onnx", tmp_path / "y.onnx", profile)
    assert in_a_node(profile).items() <= attributes(tmp_path / "y.onnx").items()


def test_the_function_body_declares_each() -> None:
    declared = {attribute.name for attribute in function(20).attribute_proto}
    assert set(NAMES) <= declared
