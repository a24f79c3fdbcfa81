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
    """Every parameter of version 1 is off its default."""
    return OpticalProfile(**{row.name: value(row) for row in schema.LAYER if row.since == 1})


def profiles() -> list[OpticalProfile]:
    """Each parameter is off its default in one of them; none can have all, since some exclude others."""
    changed = unlike_defaults()
    light = changed.replace(
        noise_shot=0.0, photons=2.5, detection="balanced", photon_reference="mean", noise_read=0.25, weight_levels=2,
        tile_features=3, input_noise_relative=0.5, input_noise_additive=0.75,
    )  # fmt: skip
    return [changed, light, light.replace(output_range=0.0, output_bound=1.25)]


def test_each_parameter_is_off_its_default_somewhere() -> None:
    for row in schema.LAYER:
        assert any(getattr(profile, row.name) != row.default for profile in profiles()), row.name


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
    literals = {row.name: f"_{row.name.title().replace('_', '')}" for row in schema.LAYER if row.type == "STRING"}
    expected = {row.name: literals.get(row.name, PYTHON[row.type]) for row in schema.LAYER}
    assert {name: kind for name, kind in found.items() if not name.startswith("__")} == expected


def test_each_value_reaches_the_kernel() -> None:
    for profile in profiles():
        for row in schema.LAYER:
            assert getattr(profile.params(), row.name) == getattr(profile, row.name)
    defaults = lumina_kernel.Params()
    assert all(getattr(unlike_defaults(), row.name) != getattr(defaults, row.name) for row in schema.LAYER[:9])


@pytest.mark.parametrize(
    "profile", [*profiles(), unlike_defaults().replace(output_range=0.1), OpticalProfile()], ids=repr
)
def test_each_value_reaches_torchs_operators(profile: OpticalProfile) -> None:
    values = dataclasses.asdict(profile) | {"output_range": list(np.atleast_1d(profile.output_range))}
    expected = [values[name] for name in NAMES]
    given, options = _parameters.values_of(profile)
    later = {row.name: values[row.name] for row in schema.LAYER if row.since > 1}
    assert [*given, *(options.get(name, schema.parameter(name).default) for name in later)] == expected
    assert options == {name: each for name, each in later.items() if each != schema.parameter(name).default}
    assert _parameters.params_of_call(given, options) == _parameters.params_in(profile._text) == profile.params()
    assert schema.read(profile._text) == expected
    if not options:
        assert len(profile._text.split(" ")) == 9  # what a release that has version 1 alone reads
    assert _parameters.params_in(_parameters.text_of(profile.params())) == profile.params()


def test_quiet_is_without_any_noise() -> None:
    for noisy in profiles():
        profile = _parameters.quiet(noisy)
        assert not profile._has_noise
        changed = {name for name in NAMES if getattr(profile, name) != getattr(noisy, name)}
        read_by_noise = {"detection", "photon_reference"} | ({"weight_levels"} if not profile.output_bound else set())
        assert changed <= {*schema.NOISE, *read_by_noise}
        for name in schema.NOISE:
            assert profile.replace(**{name: 0.1})._has_noise
            assert name.removeprefix("noise_").removeprefix("input_noise_") in noise_text(
                profile.replace(**{name: 0.1})
            )


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
    values = dict(zip(NAMES, schema.read(profile._text), strict=True))
    for row in schema.LAYER:
        if row.since > 1 and values[row.name] == row.default:
            del values[row.name]
    return {name: pytest.approx(each) if isinstance(each, float) else each for name, each in values.items()}


@pytest.mark.parametrize("profile", profiles(), ids=repr)
def test_each_value_reaches_an_exported_node(profile: OpticalProfile, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = optical.OpticalLinear(4, 3, profile=profile)
    export(layer, (torch.randn(2, 4),), tmp_path / "model.onnx", fallback=not later(profile))
    found = attributes(tmp_path / "model.onnx")
    assert in_a_node(profile).items() <= found.items()
    assert found[schema.VERSION_ATTRIBUTE] == (2 if later(profile) else 1)
    assert set(found) - set(in_a_node(profile)) == {"seed", schema.VERSION_ATTRIBUTE}


def later(profile: OpticalProfile) -> list[str]:
    return schema.later(dataclasses.asdict(profile))


@pytest.mark.parametrize("profile", profiles(), ids=repr)
def test_each_value_reaches_the_report_of_a_file(profile: OpticalProfile, tmp_path: Path) -> None:
    layer_ = optical.OpticalLinear(4, 3, profile=profile)
    export(layer_, (torch.zeros(2, 4),), tmp_path / "model.onnx", fallback=not later(profile))
    (layer,) = inspect(tmp_path / "model.onnx").layers
    assert layer.bias == profile.bias_stage
    for name, each in dataclasses.asdict(profile).items():
        if name != "bias_stage":
            expected = tuple(np.atleast_1d(each)) if name == "output_range" else each
            assert getattr(layer, name) == pytest.approx(expected)
    assert layer.noise == noise_text(profile)


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
    assert {row.name for row in schema.LAYER if row.since == 1} <= declared


def test_a_text_of_another_number_of_words_is_refused() -> None:
    words = unlike_defaults()._text.split(" ")
    for wrong in (words[:-1], words + ["0"] * (len(schema.LATER) + 1)):
        with pytest.raises(ValueError, match="zip"):
            schema.read(" ".join(wrong))
