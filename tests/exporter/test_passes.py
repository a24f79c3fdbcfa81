"""Tests each pass against its numbered rule, on models of a few nodes."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lumina_kernel
from lumina_onnx import reference
from lumina_onnx.exporter import nodes, passes
from lumina_onnx.exporter.calls import Call
from lumina_onnx.exporter.constants import Constants
from lumina_onnx.exporter.linears import linears
from lumina_onnx.exporter.passes import Pass, PassResult, run
from lumina_onnx.exporter.passes.attach_body import AttachBody
from lumina_onnx.exporter.passes.calibrate_ranges import CalibrateRanges
from lumina_onnx.exporter.passes.close_initializers import CloseInitializers
from lumina_onnx.exporter.passes.float_layers import FloatLayers
from lumina_onnx.exporter.passes.lower_format import LowerFormat
from lumina_onnx.exporter.passes.name_layers import NameLayers
from lumina_onnx.exporter.passes.optimize import Optimize
from lumina_onnx.exporter.passes.order_attributes import OrderAttributes
from lumina_onnx.exporter.passes.own_tensors import OwnTensors
from lumina_onnx.exporter.passes.remove_unused import RemoveUnused
from lumina_onnx.exporter.passes.replace_linears import ReplaceLinears
from lumina_onnx.exporter.passes.restore_calls import MODULE, RestoreCalls
from lumina_onnx.exporter.passes.scans_to_loops import ScansToLoops
from lumina_onnx.exporter.passes.separate_seeds import SeparateSeeds
from lumina_onnx.exporter.passes.show_layers import ShowLayers
from lumina_onnx.exporter.passes.silence_noise import SilenceNoise
from lumina_onnx.exporter.passes.stamp_metadata import StampMetadata
from lumina_onnx.exporter.passes.state_defaults import StateDefaults
from lumina_onnx.exporter.passes.store_weights import StoreWeights
from lumina_onnx.exporter.watching import Watched
from lumina_onnx.profile import OpticalProfile
from lumina_onnx.schema import NOISE, PARAMETERS, VERSION_ATTRIBUTE

W = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
X = np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32)


def stored(name: str, array: Any) -> ir.Value:
    tensor = ir.tensor(np.asarray(array), name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)  # type: ignore[arg-type]


def layer(x: ir.Value, name: str, weight: ir.Value, **attributes: Any) -> ir.Node:
    """An `OpticalLinear` with W in float32; its result is called y_NAME."""
    scale = stored(f"{name}.scale", np.ones(len(weight.const_value.numpy()), np.float32))  # type: ignore[union-attr]
    node = ir.Node("lumina", "OpticalLinear", [x, weight, scale], name=name)
    spec = {"input_bits": 8, "weight_bits": 8, "output_bits": 8, "input_range": 0.0, "output_range": (0.0,)}
    spec |= {**dict.fromkeys(NOISE, 0.0), "bias_stage": "analog", "seed": 0}
    nodes.set_attributes(node, **spec | attributes)
    node.outputs[0].name = f"y_{name}"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return node


def model(*content: ir.Node, outputs: list[ir.Value] | None = None, inputs: list[ir.Value] | None = None) -> ir.Model:
    """A model of these nodes; by default from X to the result of the last node."""
    given = [value for node in content for value in node.inputs if value is not None]
    initializers = list(dict.fromkeys(value for value in given if value.const_value is not None))
    entries = [value for value in dict.fromkeys(given) if value.producer() is None and value.const_value is None]
    results = list(content[-1].outputs) if outputs is None else outputs
    opsets = {"": 20, "lumina": 1}
    graph = ir.Graph(
        inputs or entries, results, nodes=content, initializers=initializers, opset_imports=opsets, name="g"
    )
    return ir.Model(graph, ir_version=9)


def x_value(name: str = "X") -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 4]))


def noisy_pair(**attributes: Any) -> ir.Model:
    """Two layers that share X and W."""
    x, weight = x_value(), stored("W", W)
    first, second = (layer(x, name, weight, noise_additive=0.1, **attributes) for name in ("a", "b"))
    return model(first, second, outputs=[first.outputs[0], second.outputs[0]])


def in_branches() -> ir.Model:
    """An `If` on C: a layer in the branch that is taken if C is true, X in the other; the weights are outside."""
    x, condition = x_value(), ir.Value(name="C", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    weight = stored("W", np.eye(4, dtype=np.float32))
    inner, other = layer(x, "inner", weight), ir.Node("", "Identity", [x], name="other")
    other.outputs[0].name = "y_other"
    branches = [
        ir.AttrGraph(name, ir.Graph([], node.outputs, nodes=[node], name=name))
        for name, node in (("then_branch", inner), ("else_branch", other))
    ]
    choice = ir.Node("", "If", [condition], branches, name="choice")
    choice.outputs[0].name, choice.outputs[0].type = "Y", ir.TensorType(ir.DataType.FLOAT)
    made = model(choice, inputs=[x, condition])
    for value in (weight, inner.inputs[2]):
        made.graph.register_initializer(value)  # type: ignore[arg-type]
    return made


def every_pass() -> list[type[Pass]]:
    found = []
    for info in pkgutil.iter_modules(passes.__path__):
        module = importlib.import_module(f"{passes.__name__}.{info.name}")
        own = [
            each
            for _, each in inspect.getmembers(module, inspect.isclass)
            if issubclass(each, Pass) and each.__module__ == module.__name__
        ]
        assert len(own) == 1, f"{info.name} holds {len(own)} passes; allowed is one"
        assert own[0].__name__.lower() == info.name.replace("_", "")
        found += own
    return sorted(found, key=lambda each: each.number)


def test_rules_are_numbered_stated_and_tested() -> None:
    rules = every_pass()
    assert [each.number for each in rules] == [f"P{number:02}" for number in range(1, len(rules) + 1)]
    for each in rules:
        for text in (each.__doc__, inspect.getmodule(each).__doc__):
            assert (text or "").startswith(f"{each.number}: "), f"{each.__name__} does not begin with its rule"
        assert any(name.startswith(f"test_{each.number.lower()}_") for name in globals()), f"{each.number} has no test"


def test_passes_run_in_their_order_and_give_notes() -> None:
    made = noisy_pair(seed=5)
    result, notes = run(made, ir.passes.common.RemoveUnusedNodesPass(), SeparateSeeds(), OrderAttributes())
    assert result is made
    assert len(notes) == 1
    assert isinstance(SeparateSeeds()(made), PassResult)
    assert not SeparateSeeds()(made).modified


def test_p01_an_initializer_is_no_input_up_to_ir_3() -> None:
    for version, left in ((3, ["X"]), (4, ["X", "W"])):
        x, weight = x_value(), stored("W", W.T)
        made = model(ir.Node("", "MatMul", [x, weight], name="m"), inputs=[x, weight])
        made.ir_version = version
        assert CloseInitializers()(made).modified is (version == 3)
        assert [value.name for value in made.graph.inputs] == left
        assert list(made.graph.initializers) == ["W"]


def test_p02_a_product_becomes_a_layer_of_its_name() -> None:
    product = ir.Node("", "MatMul", [x_value(), stored("W", W.T)], name="m")
    added = ir.Node("", "Add", [product.outputs[0], stored("B", np.ones(3, np.float32))], name="a")
    added.outputs[0].name = "Y"
    made = model(product, added)
    found, left = linears(made)
    assert left == []
    run(made, ReplaceLinears([(found[0], OpticalProfile(weight_bits=4, noise_shot=0.5))], seed=7))
    (only,) = nodes.optical_nodes(made)
    assert (only.name, only.node.outputs[0].name, [value.name for value in made.graph]) == ("m", "Y", ["m"])
    assert (only.attributes["weight_bits"], only.attributes["noise_shot"], only.attributes["seed"]) == (4, 0.5, 7)
    np.testing.assert_array_equal(only.node.inputs[1].const_value.numpy(), W)  # type: ignore[union-attr]
    np.testing.assert_array_equal(only.node.inputs[3].const_value.numpy(), np.ones(3))  # type: ignore[union-attr]


def test_p03_a_call_has_its_seed_and_its_computed_weight_back() -> None:
    import torch

    node = layer(x_value(), "a", stored("W", np.zeros_like(W)), seed=0)
    made = model(node)
    run(made, RestoreCalls([Call("block.fc", 42, {1: torch.from_numpy(W)})]))
    assert (node.attributes["seed"].as_int(), node.meta[MODULE]) == (42, "block.fc")
    np.testing.assert_array_equal(node.inputs[1].const_value.numpy(), W)  # type: ignore[union-attr]


def test_p04_layers_have_the_names_of_modules_and_no_other_node_has() -> None:
    made = noisy_pair()
    other = ir.Node("", "Relu", [made.graph.outputs[0]], name="fc")
    made.graph.append(other)
    for node in nodes.optical_nodes(made):
        node.node.meta[MODULE] = "fc"
    run(made, NameLayers(["fc", "fc_2"]))
    assert [node.name for node in made.graph] == ["fc", "fc_3", "fc__1"]


def test_p05_every_level_of_noise_is_0() -> None:
    made = noisy_pair(noise_shot=0.3)
    assert SilenceNoise()(made).modified
    assert not any(node.is_noisy for node in nodes.optical_nodes(made))
    assert not SilenceNoise()(made).modified


def test_p06_noisy_layers_with_one_seed_get_seeds_of_their_own() -> None:
    made = noisy_pair(seed=5)
    _, notes = run(made, SeparateSeeds())
    seeds = [node.attributes["seed"] for node in nodes.optical_nodes(made)]
    assert seeds[0] == 5 != seeds[1]
    assert notes == [
        f"b has the noise seed of a (5); in the file its seed is {seeds[1]}, so that the two do not share their noise"
    ]
    quiet, _ = run(noisy_pair(seed=5), SilenceNoise())
    assert run(quiet, SeparateSeeds())[1] == []
    assert [node.attributes["seed"] for node in nodes.optical_nodes(quiet)] == [5, 5]


def test_p07_constants_are_folded_and_draws_are_not() -> None:
    x, one = x_value(), stored("one", np.ones(4, np.float32))
    folded = ir.Node("", "Neg", [one], name="neg")
    drawn = [ir.Node("", "Bernoulli", [one], name=name) for name in ("d", "e")]
    parts = [folded, *drawn]
    for node in parts:
        node.outputs[0].name = f"y_{node.name}"
    total = ir.Node("", "Sum", [x, *(node.outputs[0] for node in parts)], name="sum")
    total.outputs[0].name = "Y"
    made = model(*parts, total)
    run(made, Optimize())
    kinds = [(node.domain, node.op_type) for node in made.graph]
    assert kinds.count(("", "Bernoulli")) == 2
    assert ("", "Neg") not in kinds


@pytest.mark.parametrize("bits", [0, 1, 3, 4, 8, 12])
def test_p08_weights_are_stored_at_their_bits_and_once(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    quantised = []
    quantize = lumina_kernel.quantize_weight
    monkeypatch.setattr(lumina_kernel, "quantize_weight", lambda *args: quantised.append(1) or quantize(*args))  # type: ignore[func-returns-value]
    made = noisy_pair(weight_bits=bits)
    run(made, StoreWeights(), RemoveUnused())
    first, second = nodes.optical_nodes(made)
    assert first.weight is second.weight is not None
    assert len(quantised) == (bits > 0)
    codes, scale = (W, np.ones(3, np.float32)) if bits == 0 else quantize(W, bits)
    expected = W if bits in (0, 12) else lumina_kernel.pack_weight(codes, bits) if bits in (1, 4) else codes
    np.testing.assert_array_equal(first.weight.numpy(), expected)  # type: ignore[union-attr]
    assert first.weight_scale is not None
    np.testing.assert_array_equal(first.weight_scale.numpy(), scale)
    assert first.attributes.get("in_features") == (4 if bits in (1, 4) else None)
    assert set(made.graph.initializers.values()) == {first.node.inputs[1], first.node.inputs[2]}


@pytest.mark.parametrize(
    ("weight", "attributes", "message"),
    [
        (np.zeros((0, 4), np.float32), {}, "a: N (rows of weight) = 0: allowed is at least 1"),
        (np.zeros((3, 0), np.float32), {}, "a: K (columns of weight) = 0: allowed is at least 1"),
        (np.zeros((3, 4, 1), np.float32), {}, "a: weight has shape"),
        (W, {"output_range": (1.0, 2.0)}, "a: output_range has 2 elements"),
        (W, {"input_bits": 1}, "a: input_bits = 1: allowed is 0 (analog), 2..16"),
        (np.zeros((2, 140_000), np.float32), {}, "a: K (columns of weight) = 140000: allowed is at most"),
    ],
)
def test_p08_refuses_what_a_session_would(weight: Any, attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        run(model(layer(x_value(), "a", stored("W", weight), **attributes)), StoreWeights())
    assert str(caught.value).startswith(message)


def test_p09_what_nothing_reads_goes_in_subgraphs_too() -> None:
    made = in_branches()
    branch = next(node for node in made.graph).attributes["else_branch"].as_graph()
    branch.register_initializer(stored("spare", W))
    made.graph.register_initializer(stored("more", W))
    made.graph.append(ir.Node("", "Neg", [made.graph.inputs[0]], name="idle"))
    assert RemoveUnused()(made).modified
    assert list(made.graph.initializers) == ["W", "inner.scale"]
    assert not branch.initializers
    assert [node.name for node in made.graph.all_nodes()] == ["choice", "inner", "other"]
    assert not RemoveUnused()(made).modified


def test_p09_an_input_that_replaced_what_a_layer_took_over_goes() -> None:
    made = in_branches()
    names = [value.name for value in made.graph.inputs]
    for name in ("spare", "taken"):
        made.graph.register_initializer(stored(name, W))
        made.graph.inputs.append(made.graph.initializers[name])
    assert RemoveUnused(["taken"])(made).modified
    assert [value.name for value in made.graph.inputs] == [*names, "spare"]
    assert "taken" not in made.graph.initializers
    assert "spare" in made.graph.initializers


def test_p10_full_scales_are_what_layers_see() -> None:
    made = noisy_pair(bias_stage="digital")
    run(made, StoreWeights(), RemoveUnused())
    before = [value.name for value in made.graph.outputs]
    _, notes = run(made, CalibrateRanges([{"X": X}, {"X": np.zeros_like(X)}], "max", 1.0))
    clean = reference.optical_linear(X, W, None, input_bits=8, weight_bits=8, output_bits=0)
    assert notes == []
    for node in nodes.optical_nodes(made):
        assert node.attributes["input_range"] == np.abs(X).max()
        assert node.attributes["output_range"] == [np.abs(clean).max()]
        assert node.attributes["noise_additive"] == 0.1
    assert [value.name for value in made.graph.outputs] == before


def test_p10_each_output_can_have_a_full_scale_of_its_own() -> None:
    made = noisy_pair()
    run(made, StoreWeights(), RemoveUnused())
    _, notes = run(made, CalibrateRanges([{"X": X}, {"X": -2 * X}], "max", 1.0, per_output=True))
    assert notes == []
    for node in nodes.optical_nodes(made):
        clean = [reference.optical_linear(x, W, None, input_bits=8, weight_bits=8, output_bits=0) for x in (X, -2 * X)]
        assert node.attributes["output_range"] == list(np.abs(np.concatenate(clean)).max(axis=0))


def test_p10_says_what_was_always_0() -> None:
    made = noisy_pair()
    run(made, StoreWeights())
    _, notes = run(made, CalibrateRanges([[np.zeros_like(X)]], "mse", 1.0))
    assert notes[:2] == [
        "a: its input was always 0: dynamic",
        "a: its output was always 0: dynamic",
    ]


def test_p11_the_format_is_the_oldest_that_does() -> None:
    for version, fallback, expected in ((3, False, 4), (3, True, 9), (8, True, 9), (9, False, 9), (11, True, 9)):
        made = noisy_pair()
        made.ir_version = version
        run(made, LowerFormat(fallback))
        assert made.ir_version == expected
    made = noisy_pair()
    made.ir_version = 11
    made.graph.opset_imports[""] = 21
    assert not LowerFormat(fallback=True)(made).modified
    small = noisy_pair()
    small.ir_version = 11
    small.graph.inputs[0].type = ir.TensorType(ir.DataType.INT4)
    assert not LowerFormat(fallback=True)(small).modified


def test_p12_every_default_is_stated() -> None:
    made = noisy_pair()
    bare = made.graph[0]
    bare.attributes.clear()
    assert StateDefaults()(made).modified
    assert set(bare.attributes) == {row.name for row in PARAMETERS if row.place == "attribute"} - {"in_features"}
    assert bare.attributes["output_bits"].as_int() == 8
    assert not StateDefaults()(made).modified


def test_p13_attributes_have_the_order_of_the_table() -> None:
    made = noisy_pair()
    node = made.graph[0]
    turned = list(node.attributes.values())[::-1]
    node.attributes.clear()
    node.attributes.update({attribute.name: attribute for attribute in turned})
    assert OrderAttributes()(made).modified
    order = [row.name for row in PARAMETERS]
    *names, last = node.attributes
    assert names == sorted(names, key=order.index)
    assert (last, node.attributes[last].as_int()) == (VERSION_ATTRIBUTE, 1)
    assert not OrderAttributes()(made).modified


def test_p14_metadata_say_which_hardware_runs_which_layers() -> None:
    made = noisy_pair()
    nodes.set_attributes(made.graph[1], weight_bits=2)
    made.metadata_props.update({"lumina.profile.old": "{}", "mine": "kept"})
    run(made, StampMetadata())
    told = {key: value for key, value in made.metadata_props.items() if key.startswith("lumina.profile.")}
    assert sorted(json.loads(text)["layers"] for text in told.values()) == [["a"], ["b"]]
    assert sorted(json.loads(text)["weight_bits"] for text in told.values()) == [2, 8]
    assert made.metadata_props["mine"] == "kept"
    assert (made.producer_name, made.opset_imports["lumina"]) == ("lumina_onnx", 1)
    named = noisy_pair()
    named.producer_name = "another"
    run(named, StampMetadata())
    assert named.producer_name == "another"


def test_p15_the_body_is_one_of_the_files_opset() -> None:
    made = noisy_pair()
    made.graph.opset_imports[""] = 21
    run(made, AttachBody())
    (body,) = made.functions.values()
    assert (body.domain, body.name, body.opset_imports[""]) == ("lumina", "OpticalLinear", 21)
    assert nodes.body_bytes(made) > 0


def test_p16_a_scan_with_a_layer_is_a_loop() -> None:
    """The rows of X backwards, with a carried sum; `test_subgraphs` checks the results."""
    carried, row = x_value("s"), x_value("row")
    carried.shape = row.shape = ir.Shape([1, 4])
    weight = stored("W", np.eye(4, dtype=np.float32))
    inner = layer(row, "inner", weight)
    total = ir.Node("", "Add", [carried, inner.outputs[0]], name="total")
    total.outputs[0].name, total.outputs[0].type = "t", ir.TensorType(ir.DataType.FLOAT)
    results = [total.outputs[0], inner.outputs[0]]
    body = ir.Graph([carried, row], results, nodes=[inner, total], initializers=[weight, inner.inputs[2]], name="body")  # type: ignore[list-item]
    start, rows = stored("start", np.zeros((1, 4), np.float32)), x_value("rows")
    attributes = [
        ir.AttrGraph("body", body),
        ir.AttrInt64("num_scan_inputs", 1),
        ir.AttrInt64s("scan_input_directions", [1]),
    ]
    scan = ir.Node("", "Scan", [start, rows], attributes, num_outputs=2, name="scan")
    scan.outputs[0].name, scan.outputs[1].name = "S", "Y"
    made = model(scan)
    count = iter(range(100))
    assert ScansToLoops(lambda: f"new_{next(count)}")(made).modified
    assert [node.op_type for node in made.graph] == ["Shape", "Constant", "Gather", "Constant", "Sub", "Loop"]
    assert [value.name for value in made.graph.outputs] == ["S", "Y"]
    assert [node.op_type for node in body] == ["Identity", "Sub", "Gather", "OpticalLinear", "Add"]
    assert len(body.inputs) == len(body.outputs) == 3


def test_p17_outputs_show_each_execution() -> None:
    watched = Watched(in_branches(), {0})
    with watched.sessions() as fresh:
        execute = fresh()
    assert watched.reasons == {}
    ((x, y),) = execute({"X": X, "C": np.array(True)})[0]
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, reference.optical_linear(X, np.eye(4, dtype=np.float32), None, input_bits=8))
    assert execute({"X": X, "C": np.array(False)}) == [[]]


def test_p17_shows_what_is_asked_for() -> None:
    made, count = noisy_pair(), iter(range(100))
    show = ShowLayers({1}, lambda: f"new_{next(count)}")
    run(made, show)
    assert [len(shown.outputs) for shown in show.shown] == [0, 2]
    assert len(made.graph.outputs) == 4


def test_p18_layers_are_products_of_floats() -> None:
    made = noisy_pair(weight_bits=4)
    run(made, StoreWeights(), RemoveUnused(), AttachBody(), FloatLayers())
    assert [node.op_type for node in made.graph] == ["MatMul", "MatMul"]
    ((name, weight),) = made.graph.initializers.items()
    assert name == "W_int4_float"
    codes, scale = lumina_kernel.quantize_weight(W, 4)
    np.testing.assert_array_equal(weight.const_value.numpy(), (codes * scale[:, None]).T)  # type: ignore[union-attr]
    assert not made.functions
    assert Constants(made).is_constant(weight)


def test_p19_a_changed_model_holds_nothing_of_the_message() -> None:
    words = onnx.numpy_helper.from_array(np.array(["a", "b"], object), "words")
    half = onnx.numpy_helper.from_array(np.array([0.5, 1.5], np.float16), "half")
    inside = onnx.helper.make_node("Constant", [], ["C"], value=onnx.numpy_helper.from_array(W))
    graph = onnx.helper.make_graph([inside], "g", [], [], [words, half])
    message = onnx.helper.make_model(graph)
    made = ir.serde.deserialize_model(message)
    assert OwnTensors()(made).modified
    tensors = [value.const_value for value in made.graph.initializers.values()]
    tensors += [attribute.value for node in made.graph for attribute in node.attributes.values()]
    assert len(tensors) == 3
    assert not any(isinstance(each, ir.serde.TensorProtoTensor) for each in tensors)
    again = ir.to_proto(made)
    assert onnx.numpy_helper.to_array(again.graph.initializer[1]).tolist() == [0.5, 1.5]
    assert [tensor.name for tensor in again.graph.initializer] == ["words", "half"]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(again.graph.node[0].attribute[0].t), W)
    assert list(again.graph.initializer[0].string_data) == [b"a", b"b"]
    assert not OwnTensors()(made).modified
