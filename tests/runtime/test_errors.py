"""Invalid nodes are refused with messages that name the node, the argument, its value and what is allowed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from onnx import AttributeProto, TensorProto, load_from_string, numpy_helper
from op_model import make_model, make_session, random_layer, run

import lumina_kernel
from lumina_onnx import schema

W = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
CODES = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
PACKED = np.array([[0x12, 0x34], [0x56, 0x78], [0x9A, 0xBC]], np.uint8)
ONES = np.ones(3, np.float32)
NODE = 'lumina::OpticalLinear node "fc1": '


def refused(library: str, w: Any = W, *args: Any, **more: Any) -> str:
    """The message with which ONNX Runtime refuses to create a session."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 (onnxruntime's exceptions are of several kinds)
        make_session(make_model(w, *args, **more), library)
    return str(caught.value)


BITS = "0 (analog), 2..16"
V2 = {"op_version": 2}
CODED = {**V2, "input_bits": 8, "weight_bits": 4}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"input_bits": 17}, f"attribute input_bits = 17: allowed is {BITS}"),
        ({"input_bits": 1}, f"attribute input_bits = 1: allowed is {BITS}"),
        ({"input_bits": -1}, f"attribute input_bits = -1: allowed is {BITS}"),
        ({"weight_bits": 17}, "attribute weight_bits = 17: allowed is 0 (analog), 1..16"),
        ({"output_bits": 1}, "attribute output_bits = 1: allowed is 0 (no ADC), 2..16"),
        ({"output_bits": 2**40}, f"attribute output_bits = {2**40}: allowed is 0 (no ADC), 2..16"),
        ({"input_range": -1.0, "input_bits": 8}, "attribute input_range = -1: allowed is a finite number >= 0"),
        ({"input_range": 2.0}, "attribute input_range = 2 would be ignored: with input_bits 0 there is no DAC"),
        ({"output_range": [1.0, 2.0]}, "attribute output_range has 2 elements: allowed is 1, or one for each of the N"),
        ({"output_range": [1.0, 0.0, 1.0]}, "attribute output_range[1] = 0: allowed is a single 0 (dynamic), or 1 or"),
        ({"output_range": [-1.0]}, "attribute output_range[0] = -1: allowed is a single 0 (dynamic), or 1 or N"),
        ({"noise_relative": -0.1}, "attribute noise_relative = -0.1: allowed is a finite number >= 0"),
        ({"input_range": float("nan"), "input_bits": 8}, "attribute input_range = NaN: allowed is a finite number"),
        ({"output_range": [float("nan")]}, "attribute output_range[0] = NaN: allowed is a single 0 (dynamic)"),
        ({"seed": -(2**63)}, f"attribute seed = {-(2**63)}: allowed is 0..2^63-1"),
        ({"noise_additive": float("nan")}, "attribute noise_additive = NaN: allowed is a finite number >= 0"),
        ({"noise_shot": float("inf")}, "attribute noise_shot = inf: allowed is a finite number >= 0"),
        ({"bias_stage": "optical"}, 'attribute bias_stage = "optical": allowed is "analog", "digital"'),
        ({"bias_stage": b"digital\0x"}, r'attribute bias_stage = "digital\0x": allowed is "analog", "digital"'),
        ({"bias_stage": b"analog\0"}, r'attribute bias_stage = "analog\0": allowed is "analog", "digital"'),
        ({"bias_stage": b"\0digital"}, r'attribute bias_stage = "\0digital": allowed is "analog", "digital"'),
        ({"bias_stage": b"\0"}, r'attribute bias_stage = "\0": allowed is "analog", "digital"'),
        ({"bias_stage": b""}, 'attribute bias_stage = "": allowed is "analog", "digital"'),
        ({"bias_stage": b"digital\xff"}, 'attribute bias_stage = "digital\N{REPLACEMENT CHARACTER}": allowed is "ana'),
        ({"bias_stage": "digital\x1b[2J"}, r'attribute bias_stage = "digital\u{1b}[2J": allowed is "analog"'),
        ({"seed": -5}, "attribute seed = -5: allowed is 0..2^63-1"),
        ({"in_features": 5}, "attribute in_features = 5: allowed is 4, the columns of W [3, 4], or none"),
        ({"in_features": 0}, "attribute in_features = 0: allowed is K >= 1"),
        ({"weight_bits": 4.0}, "attribute weight_bits is not of type INT: allowed is 0 (analog), 1..16"),
        ({"noise_relative": 1}, "attribute noise_relative is not of type FLOAT: allowed is a finite number >= 0"),
        ({"output_range": 1.0}, "attribute output_range is not of type FLOATS: allowed is a single 0 (dynamic)"),
        ({"output_range": 1}, "attribute output_range is not of type FLOATS: allowed is a single 0 (dynamic)"),
        ({"output_range": "1"}, "attribute output_range is not of type FLOATS: allowed is a single 0 (dynamic)"),
        ({"bias_stage": 1}, "attribute bias_stage is not of type STRING: allowed is \"analog\", \"digital\""),
        ({"seed": "7"}, "attribute seed is not of type INT: allowed is 0..2^63-1"),
        ({**V2, "tile_features": -1}, "attribute tile_features = -1: allowed is 0 (the whole row), 1..131072"),
        ({**V2, "tile_features": 2**40}, f"attribute tile_features = {2**40}: allowed is 0 (the whole row), 1"),
        ({**V2, "output_bound": 0.5}, "attribute output_bound = 0.5: allowed is 0 where input_bits (0)"),
        ({**CODED, "output_bound": 0.5}, 'attribute output_bound = 0.5: allowed is 0 where bias_stage is "analog"'),
        (
            {**CODED, "output_bound": 0.5, "output_range": [2.0]},
            "attribute output_bound = 0.5: allowed is 0 where output_range is given (2): both are the ADC's full scale",
        ),
        (
            {**CODED, "output_bound": 1e38, "bias_stage": "digital"},
            f"attribute output_bound = {10**38}: allowed is a number with which output_bound * weight_scale",
        ),
        ({**V2, "noise_read": 0.1}, "attribute noise_read = 0.1: allowed is 0 where input_bits (0) or"),
        ({**CODED, "noise_read": -0.1}, "attribute noise_read = -0.1: allowed is a finite number >= 0"),
        ({**CODED, "photons": 1e-7}, "attribute photons = 0.0000001: allowed is 0 (no shot noise of light)"),
        ({**CODED, "photons": 1.0, "noise_shot": 0.5}, "attribute noise_shot = 0.5: allowed is 0 where photons is"),
        ({**CODED, "detection": "balanced"}, 'attribute detection = "balanced" would be ignored: with photons 0 there'),
        ({**CODED, "detection": "both"}, 'attribute detection = "both": allowed is "offset", "balanced"'),
        ({**CODED, "photon_reference": "mean"}, 'attribute photon_reference = "mean" would be ignored: with'),
        ({**CODED, "photon_reference": "m"}, 'attribute photon_reference = "m": allowed is "full_scale"'),
        ({**CODED, "input_noise_relative": 1.5}, "attribute input_noise_relative = 1.5: allowed is 0..1"),
        ({**V2, "input_noise_relative": 0.5}, "attribute input_noise_relative = 0.5 would be ignored: with"),
        ({**CODED, "input_noise_additive": 2.0}, "attribute input_noise_additive = 2: allowed is 0..1"),
        ({**CODED, "input_noise_additive": 1e-3}, "attribute input_noise_additive = 0.001: allowed is 0, or at"),
        ({**CODED, "weight_levels": 7}, "attribute weight_levels = 7 would be ignored: without noise_read"),
        (
            {**CODED, "weight_levels": 8, "noise_read": 0.1},
            "attribute weight_levels = 8: allowed is 0 or 1..7, the largest code with weight_bits 4",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_attributes(library: str, attributes: dict[str, Any], message: str) -> None:
    assert NODE + message in refused(library, **attributes)


@pytest.mark.parametrize("others", [{}, {"input_bits": 99}])
def test_a_later_version(library: str, others: dict[str, int]) -> None:
    assert (
        f"{NODE}attribute op_version = 3: LuminaKernel {lumina_kernel.__version__} has versions 1 to 2 of the "
        "operator; a file of a later version needs a newer LuminaKernel"
    ) in refused(library, op_version=3, **others)
    assert f"{NODE}attribute op_version = 0: " in refused(library, op_version=0, **others)
    mistyped = f"{NODE}attribute op_version is not of type INT: allowed is 1..2 ("
    assert mistyped in refused(library, op_version=1.5, **others)
    for version in (1, 2):
        make_session(make_model(W, op_version=version), library)


LATER = {row.name: row.default for row in schema.PARAMETERS if row.since == 2}


@pytest.mark.parametrize("given", [{}, {"op_version": 1}])
def test_an_attribute_of_a_later_version_than_the_nodes(library: str, given: dict[str, int]) -> None:
    """An older library would not see it."""
    for name, default in LATER.items():
        value: Any = "mean" if isinstance(default, str) else 1.0 if isinstance(default, float) else 1
        shown = f'"{value}"' if isinstance(value, str) else f"{value:g}"
        message = (
            f"{NODE}attribute {name} = {shown}: allowed is {default if default else 0} in a node whose op_version is 1"
        )
        assert message in refused(library, **given, **{name: value})
        make_session(make_model(W, **given, **{name: default}), library)


def test_the_registered_version_is_that_of_the_domain(library: str) -> None:
    """Files of version 1 find the operator under a library that has version 2: it is registered for the domain's."""
    assert (schema.DOMAIN_VERSION, schema.VERSION) == (1, 2)
    make_session(make_model(W, op_version=2, tile_features=2), library)


def test_every_attribute_has_a_case() -> None:
    mark = next(mark for mark in test_attributes.pytestmark if mark.name == "parametrize")
    tried = {name for attributes, _ in mark.args[1] for name in attributes}
    assert tried - {"op_version"} == {row["name"] for row in lumina_kernel.schema() if row["place"] == "attribute"}


NOT_FINITE = W.copy()
NOT_FINITE[1, 2] = np.nan
CONSTANT = (
    "is not constant: allowed is an initializer that is not a graph input as well, before ONNX Runtime 1.29 one of the "
    "node's own graph"
)
VECTOR = "allowed is float32 [3], one for each output"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"w": W.astype(np.float64)}, "input W has type float64: allowed are float32, int8 codes (weight_bits 1..8) a"),
        ({"w": W.astype(np.float16)}, "input W has type float16: allowed are float32, int8 codes (weight_bits 1..8) a"),
        ({"w": W[0]}, "input W has shape [4]: allowed is [N, K], or [N, ceil(K*b/8)] where it is packed"),
        ({"w": W[None]}, "input W has shape [1, 3, 4]: allowed is [N, K], or [N, ceil(K*b/8)] where it is packed"),
        ({"w": W[:0]}, "input W: N (rows of weight) = 0: allowed is at least 1"),
        ({"w": W[:, :0]}, "input W: K (columns of weight) = 0: allowed is at least 1"),
        ({"w": NOT_FINITE}, "input W[1, 2] = NaN: allowed is a finite number"),
        ({"w": NOT_FINITE, "weight_bits": 8}, "input W[1, 2] = NaN: allowed is a finite number"),
        ({"w": CODES}, "attribute weight_bits = 0: allowed is 1..8 where W is codes in int8"),
        ({"w": CODES, "weight_bits": 9}, "attribute weight_bits = 9: allowed is 1..8 where W is codes in int8"),
        ({"w": CODES, "weight_bits": 3}, "input W[0, 0] = -6: allowed is a code -L..L with L = 2^(weight_bits-1)-1"),
        ({"w": CODES, "weight_bits": 1}, "input W[0, 0] = -6: allowed is a code -L..L with L = 2^(weight_bits-1)-1"),
        ({"w": PACKED, "weight_bits": 4}, "attribute in_features is missing: it must be K where W is packed in uint8"),
        ({"w": PACKED, "weight_bits": 8, "in_features": 2}, "attribute weight_bits = 8: allowed is 1, 2 or 4 where W"),
        ({"w": PACKED, "weight_bits": 0, "in_features": 2}, "attribute weight_bits = 0: allowed is 1, 2 or 4 where W"),
        ({"w": PACKED, "weight_bits": 4, "in_features": 5}, "input W has shape [3, 2]: allowed is [N, ceil(K*b/8)] ="),
        ({"w": PACKED, "weight_bits": 1, "in_features": 2**62}, "input W has shape [3, 2]: allowed is [N, ceil(K*b/8)"),
        ({"w": PACKED & 0xF0, "weight_bits": 4, "in_features": 4}, "input W[0, 0] = -8: allowed is a code -L..L with"),
        ({"w": PACKED, "weight_bits": 4, "in_features": 3}, "input W[0, 3] = 3: allowed is 0 in the bits that fill up"),
        ({"w_scale": np.full(3, 2, np.float32)}, "input W_scale[0] = 2: allowed is 1 where weight_bits is 0 (W is ana"),
        ({"w_scale": ONES[:1]}, f"input W_scale is float32 [1]: {VECTOR}"),
        ({"w_scale": ONES[:2], "weight_bits": 8}, f"input W_scale is float32 [2]: {VECTOR}"),
        ({"w_scale": ONES.reshape(3, 1)}, f"input W_scale is float32 [3, 1]: {VECTOR}"),
        ({"w_scale": ONES.astype(np.float64)}, f"input W_scale is float64 [3]: {VECTOR}"),
        ({"w_scale": -ONES, "weight_bits": 8}, "input W_scale[0] = -1: allowed is a finite number >= 0"),
        ({"w_scale": ONES * np.float32(np.inf), "weight_bits": 8}, "input W_scale[0] = inf: allowed is a finite numbe"),
        ({"w_scale": ONES * np.float32(3e38), "weight_bits": 8}, "whose full scale (weight_scale * L) is finite"),
        ({"b": ONES[:2]}, f"input B is float32 [2]: {VECTOR}"),
        ({"b": ONES.astype(np.int32)}, f"input B is int32 [3]: {VECTOR}"),
        ({"b": np.array([0, np.inf, 0], np.float32)}, "input B[1] = inf: allowed is a finite number"),
        ({"graph_inputs": ["W"]}, f"input W {CONSTANT}"),
        ({"graph_inputs": ["W_scale"]}, f"input W_scale {CONSTANT}"),
        ({"b": ONES, "graph_inputs": ["B"]}, f"input B {CONSTANT}"),
        ({"x_type": TensorProto.DOUBLE}, "input X has type float64: allowed is float32 [..., K] with K = 4"),
        ({"x_shape": ["batch", 5]}, "input X has shape [?, 5]: allowed is float32 [..., K] with K = 4"),
        ({"x_shape": [3]}, "input X has shape [3]: allowed is float32 [..., K] with K = 4"),
        (
            {"w": np.ones((1, 131_073), np.int8), "w_scale": ONES[:1], "weight_bits": 8, "input_bits": 8},
            "input W: K (columns of weight) = 131073: allowed is at most 131072 where input_bits (8) and weight_bits (",
        ),
    ],
    ids=lambda value: value[:70] if isinstance(value, str) else "",
)  # fmt: skip
def test_inputs(library: str, arguments: dict[str, Any], message: str) -> None:
    text = refused(library, **arguments)
    assert NODE in text
    assert message in text


def test_a_node_without_a_name_is_told_by_its_output(library: str) -> None:
    message = 'lumina::OpticalLinear node without a name (output "Y"): attribute seed = -1: allowed is 0..2^63-1'
    assert message in refused(library, name="", seed=-1)


def test_names_that_hold_a_nul(library: str) -> None:
    assert r'lumina::OpticalLinear node "fc\01": attribute seed = -1' in refused(library, name="fc\0001", seed=-1)
    # A bias whose name begins with a NUL must not be taken for one that is left out.
    model = load_from_string(make_model(W, b=np.array([0, np.inf, 0], np.float32)))
    model.graph.node[0].input[3] = model.graph.initializer[2].name = "\0B"
    with pytest.raises(Exception, match=re.escape("input B[1] = inf: allowed is a finite number")):
        make_session(model.SerializeToString(), library)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        (AttributeProto(name="output_range", type=AttributeProto.FLOATS), "attribute output_range is not of type FLOA"),
        (AttributeProto(name="seed", type=AttributeProto.TENSOR, t=numpy_helper.from_array(W)), "seed is not of type"),
    ],
    ids=["empty", "tensor"],
)  # fmt: skip
def test_attributes_of_other_kinds(library: str, attribute: AttributeProto, message: str) -> None:
    model = load_from_string(make_model(W))
    model.graph.node[0].attribute.append(attribute)
    with pytest.raises(Exception, match=message):
        make_session(model.SerializeToString(), library)


@pytest.mark.parametrize("inputs", [["X", "W"], ["X", "W", "W_scale", "W_scale", "W_scale"]], ids=len)
def test_too_few_or_many_inputs(library: str, inputs: list[str]) -> None:
    model = load_from_string(make_model(W))
    model.graph.node[0].input[:] = inputs
    # The message is ONNX Runtime's own.
    with pytest.raises(Exception, match=rf"fc1.* has input size {len(inputs)} not in range \[min=3, max=4\]"):
        make_session(model.SerializeToString(), library)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((2, 5), np.float32), "input X has shape [2, 5]: allowed is float32 [..., K] with K = 4"),
        (np.ones((0, 5), np.float32), "input X has shape [0, 5]: allowed is float32 [..., K] with K = 4"),
        (np.ones((), np.float32), "input X has no dimension (it is a scalar): allowed is float32 [..., K] with K = 4"),
    ],
)
def test_x_of_a_run(library: str, x: Any, message: str) -> None:
    session = make_session(make_model(W, x_shape=None), library)
    with pytest.raises(Exception, match=re.escape(NODE + message)):
        run(session, x)


def test_an_unknown_tier_is_refused(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUMINA_ISA", "abacus")
    assert "LUMINA_ISA = abacus: this processor has portable" in refused(library)


def test_what_is_right_is_not_refused(library: str) -> None:
    layer = random_layer(3, 4, weight_bits=2, storage="uint8", input_bits=2, output_bits=2)
    assert run(make_session(layer.model(), library), np.ones((1, 4), np.float32)).shape == (1, 3)
