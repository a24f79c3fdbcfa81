"""Models broken in one place, with what the refusal must say, and files that are not models at all."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import fuzz_page as page
import numpy as np
from fuzz_models import LARGEST, Array, Case, F, Layer, Random, initializers, layer, model, node, pick, value
from onnx import AttributeProto, GraphProto, TensorProto, helper, numpy_helper


def broken(rng: Random, what: str) -> Case:
    """A chain in which one layer, or its input, is broken in one place."""
    layers: list[Layer] = []
    for index in range(int(rng.integers(1, 4))):
        layers.append(layer(rng, f"l{index}", k=layers[-1].n if layers else None))
    place = int(rng.integers(len(layers)))
    worse, words = BREAKS[what](rng, layers[place])
    if worse.k != layers[place].k:
        # Nothing else may be wrong.
        layers, place = [worse], 0
    layers[place] = worse
    edges = ["X", *(f"y{index}" for index in range(len(layers)))]
    nodes = [node(one, edges[index], edges[index + 1]) for index, one in enumerate(layers)]
    graph = helper.make_graph(nodes, "broken", [value("X")], [value(edges[-1])], initializers(layers))
    escaped = worse.name.replace('"', '\\"').replace("\x1b", "\\u{1b}")
    label = f'node "{escaped}"' if worse.name else f'without a name (output "y{place}")'
    if what in AROUND:
        words = AROUND[what](rng, graph, place)
        if what == "too few or too many inputs":
            label = worse.name  # In ONNX Runtime's own words.
    return Case(f"broken: {what}", model(graph), layers, refusal=(label, *words))


Broken = tuple[Layer, tuple[str, ...]]


def with_attribute(one: Layer, name: str, content: Any, **more: Any) -> Broken:
    return replace(one, attributes=one.attributes | more | {name: content}), (f"attribute {name}",)


def bad_number(rng: Random, one: Layer) -> Broken:
    name = pick(rng, ["input_bits", "weight_bits", "output_bits", "seed", "in_features", "op_version"])
    wrong = [-1, 17, 2**31, 2**40, -(2**63), LARGEST] + ([1] if name in ("input_bits", "output_bits") else [])
    if name == "seed":
        wrong = [-1, -(2**63)]
    if name == "in_features":
        wrong = [0, -1, one.k + 1 + 8 * one.k, LARGEST]
    if name == "op_version":
        wrong = [0, 3, -1, LARGEST]
    changed, words = with_attribute(one, name, int(pick(rng, wrong)))
    # With another K, it is the packed W that does not fit.
    return (changed, ("in_features",)) if name == "in_features" and one.w.dtype == np.uint8 else (changed, words)


def bad_float(rng: Random, one: Layer) -> Broken:
    name = pick(rng, ["noise_relative", "noise_additive", "noise_shot", "input_range"])
    wrong = pick(rng, [-1.0, -1e-45, np.nan, np.inf, -np.inf])
    more = {"input_bits": 8} if name == "input_range" else {}
    return with_attribute(one, name, AttributeProto(name=name, type=AttributeProto.FLOAT, f=wrong), **more)


def bad_output_range(rng: Random, one: Layer) -> Broken:
    wrong = pick(rng, [[-1.0], [np.nan], [np.inf], [], [1.0] * (one.n + 1), [1.0] * one.n + [0.0], [0.0] * (one.n + 1)])
    return with_attribute(one, "output_range", wrong)


def bad_element_of_output_range(rng: Random, one: Layer) -> Broken:
    ranges = [1.0] * one.n
    ranges[int(rng.integers(one.n))] = pick(rng, [-1.0, np.nan, np.inf, -np.inf] + ([0.0] if one.n > 1 else []))
    return with_attribute(one, "output_range", ranges)


def bad_word(rng: Random, one: Layer) -> Broken:
    wrong = pick(rng, ["", "optical", "Analog", "digital ", "\u200banalog", "analog,digital", b"\xff\xfe", "x" * 1000])
    return with_attribute(one, "bias_stage", wrong)


def bad_type(rng: Random, one: Layer) -> Broken:
    kinds = {
        **dict.fromkeys(("input_bits", "weight_bits", "output_bits", "seed", "in_features", "op_version"), "INT"),
        **dict.fromkeys(("input_range", "noise_relative", "noise_additive", "noise_shot"), "FLOAT"),
        "output_range": "FLOATS",
        "bias_stage": "STRING",
    }
    name = pick(rng, list(kinds))
    others: list[Any] = [
        AttributeProto(name=name, type=AttributeProto.INT, i=1),
        AttributeProto(name=name, type=AttributeProto.FLOAT, f=1.0),
        AttributeProto(name=name, type=AttributeProto.STRING, s=b"analog"),
        AttributeProto(name=name, type=AttributeProto.FLOATS, floats=[1.0]),
        AttributeProto(name=name, type=AttributeProto.INTS, ints=[1]),
        AttributeProto(name=name, type=AttributeProto.TENSOR, t=numpy_helper.from_array(np.ones(1, F))),
    ]
    kind = AttributeProto.AttributeType.Value(kinds[name])
    return with_attribute(one, name, pick(rng, [other for other in others if other.type != kind]))


def ignored_parameter(rng: Random, one: Layer) -> Broken:
    if rng.random() < 0.5:
        return with_attribute(one, "input_range", 2.0, input_bits=0)
    scale = np.full(one.n, 2, F)
    analog = {name: each for name, each in one.attributes.items() if name not in ("weight_bits", "in_features")}
    return replace(one, w=np.ones((one.n, one.k), F), w_scale=scale, attributes=analog), ("input W_scale[0]", "= 2")


def bad_w(rng: Random, one: Layer) -> Broken:
    """A W of another type or shape, or with elements that are not finite."""
    floats = np.ones((one.n, one.k), F)
    attributes = {name: each for name, each in one.attributes.items() if name != "in_features"}
    match pick(rng, ["type", "rank", "empty", "not finite"]):
        case "type":
            kinds = [np.float64, np.float16, np.int32, np.int64, np.int16, np.uint16, np.bool_]
            floats = floats.astype(pick(rng, kinds))
        case "rank":
            floats = pick(rng, [floats[0], floats[None], floats[0, 0]])
        case "empty":
            floats = pick(rng, [floats[:0], floats[:, :0]])
        case "not finite":
            floats[int(rng.integers(one.n)), int(rng.integers(one.k))] = pick(rng, [np.nan, np.inf, -np.inf])
    return replace(one, w=np.asarray(floats), attributes=attributes), ("input W",)


def bad_code(rng: Random, one: Layer) -> Broken:
    """The code -2^(b - 1), which a symmetric quantiser lacks, or one that b bits cannot hold at all."""
    attributes = {name: each for name, each in one.attributes.items() if name != "in_features"}
    row, column = int(rng.integers(one.n)), int(rng.integers(one.k))
    if rng.random() < 0.5:
        bits = int(rng.integers(2, 9))
        codes = np.zeros((one.n, one.k), np.int8)
        codes[row, column] = pick(rng, [-(2 ** (bits - 1))] + ([2 ** (bits - 1)] if bits < 8 else []))
        stored: Array = codes
    else:
        bits = pick(rng, [2, 4])
        stored = page.pack(np.zeros((one.n, one.k), np.int64), bits)
        fields = 8 // bits
        stored[row, column // fields] &= 255 ^ (2**bits - 1) << bits * (column % fields)
        attributes["in_features"] = one.k
    if rng.random() < 0.2 and stored.dtype == np.int8:
        bits, stored = 1, np.where(stored == 0, 1, stored).astype(np.int8)
        stored[row, column] = 0
    attributes["weight_bits"] = bits
    changed = replace(one, w=stored, w_scale=np.ones(one.n, F), attributes=attributes)
    return changed, (f"input W[{row}, {column}]",)


def bad_storage(rng: Random, one: Layer) -> Broken:
    """Codes at bits that do not allow them, or packed codes without K."""
    attributes = {name: each for name, each in one.attributes.items() if name not in ("in_features", "weight_bits")}
    changed = replace(one, w_scale=np.ones(one.n, F))
    if rng.random() < 0.5:
        codes = np.ones((one.n, one.k), np.int8)
        attributes["weight_bits"] = int(pick(rng, [0, *range(9, 17)]))
        return replace(changed, w=codes, attributes=attributes), ("attribute weight_bits",)
    packed = page.pack(np.ones((one.n, one.k), np.int64), 4)
    if rng.random() < 0.5:
        attributes |= {"weight_bits": pick(rng, [0, 3, 5, 8, 16]), "in_features": one.k}
        return replace(changed, w=packed, attributes=attributes), ("attribute weight_bits",)
    return replace(changed, w=packed, attributes=attributes | {"weight_bits": 4}), ("attribute in_features", "missing")


def bad_packing(rng: Random, one: Layer) -> Broken:
    """Padding that is not 0, or rows with another number of bytes than K takes."""
    bits = pick(rng, [1, 2, 4])
    fields = 8 // bits
    k = max(1, one.k - (one.k % fields == 0))
    packed = page.pack(np.ones((one.n, k), np.int64), bits)
    attributes = one.attributes | {"weight_bits": bits, "in_features": k}
    changed = replace(one, w_scale=np.ones(one.n, F), attributes=attributes)
    if k % fields and rng.random() < 0.6:
        row = int(rng.integers(one.n))
        packed[row, -1] |= 1 << int(rng.integers(k % fields * bits, 8))
        return replace(changed, w=packed), (f"input W[{row}, ",)
    wrong = pick(rng, [np.pad(packed, ((0, 0), (0, 1))), np.repeat(packed, 3, 1), packed.T[:1].repeat(k + 1, 1)])
    wrong = wrong if wrong.shape[1] != packed.shape[1] else np.pad(packed, ((0, 0), (0, 2)))
    return replace(changed, w=np.ascontiguousarray(wrong)), ("input W has shape",)


def bad_scale(rng: Random, one: Layer) -> Broken:
    good = np.ones(one.n, F)
    attributes = {name: each for name, each in one.attributes.items() if name != "in_features"} | {"weight_bits": 8}
    wrong: Array = good.copy()
    match pick(rng, ["length", "rank", "type", "value", "value", "value"]):
        case "length":
            wrong = np.ones(one.n + 1, F)
        case "rank":
            wrong = pick(rng, [good[:, None], good[0]])
        case "type":
            wrong = good.astype(pick(rng, [np.float64, np.float16, np.int32]))
        case "value":
            wrong[int(rng.integers(one.n))] = pick(rng, [-1, -1e-45, np.nan, np.inf, -np.inf, 3e38])
    return replace(one, w=np.ones((one.n, one.k), F), w_scale=wrong, attributes=attributes), ("input W_scale",)


def bad_bias(rng: Random, one: Layer) -> Broken:
    good = np.ones(one.n, F)
    wrong: Array = good.copy()
    match pick(rng, ["length", "rank", "type", "value"]):
        case "length":
            wrong = np.ones(one.n + 1, F)
        case "rank":
            wrong = pick(rng, [good[:, None], good[None], good[0]])
        case "type":
            wrong = good.astype(pick(rng, [np.float64, np.float16, np.int32]))
        case "value":
            wrong[int(rng.integers(one.n))] = pick(rng, [np.nan, np.inf, -np.inf])
    return replace(one, b=np.asarray(wrong), inputs=(*one.inputs[:2], f"{one.inputs[0]}.B")), ("input B",)


def too_long(rng: Random, one: Layer) -> Broken:
    bits = int(rng.integers(1, 9))
    attributes = {name: each for name, each in one.attributes.items() if name not in ("in_features", "output_range")}
    attributes |= {"weight_bits": bits, "input_bits": int(rng.integers(2, 9))}
    w = np.ones((1, 131_073), np.int8)
    long = Layer(one.name, w, np.ones(1, F), None, attributes, one.inputs[:2])
    return long, ("input W", "131073", "131072")


def unchanged(rng: Random, one: Layer) -> Broken:
    """Leaves the layer as it is, for models that are broken around it."""
    return one, ()


def x_of_another_type(rng: Random, graph: GraphProto, place: int) -> tuple[str, ...]:
    kind = pick(rng, [TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64])
    graph.input.append(value("other", None, kind))
    graph.node[place].input[0] = "other"
    return ("input X has type",)


def x_of_another_k(rng: Random, graph: GraphProto, place: int) -> tuple[str, ...]:
    # Longer than any layer's dimension.
    graph.input.append(value("other", pick(rng, [["rows", 1000], [1000], [2, "rows", 1000]])))
    graph.node[place].input[0] = "other"
    return ("input X has shape",)


def no_constant(rng: Random, graph: GraphProto, place: int) -> tuple[str, ...]:
    """A W, W_scale or B that is a model input, may be replaced by callers, or is computed."""
    name = pick(rng, graph.node[place].input[1:])
    tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
    given = value(name, tensor.dims, tensor.data_type)
    how = pick(rng, ["given", "replaceable", "computed"])
    if how != "replaceable":
        graph.initializer.remove(tensor)
    if how == "computed":
        given.name = "free"
        graph.node.insert(0, helper.make_node("Identity", ["free"], [name]))
    graph.input.append(given)
    return (f"input {name.rpartition('.')[2]}", "is not constant")


def number_of_inputs(rng: Random, graph: GraphProto, place: int) -> tuple[str, ...]:
    inputs = graph.node[place].input
    inputs[:] = pick(rng, [inputs[:1], inputs[:2], [*inputs[:3], inputs[2], inputs[2]]])
    return ("input size",)


AROUND: dict[str, Callable[[Random, GraphProto, int], tuple[str, ...]]] = {
    "X of another type": x_of_another_type,
    "X of another K": x_of_another_k,
    "an input that is no constant": no_constant,
    "too few or too many inputs": number_of_inputs,
}


BREAKS: dict[str, Callable[[Random, Layer], Broken]] = {
    "an integer that is not allowed": bad_number,
    "a float that is not allowed": bad_float,
    "an output_range": bad_output_range,
    "an element of output_range": bad_element_of_output_range,
    "a bias_stage": bad_word,
    "an attribute of another type": bad_type,
    "a parameter that nothing reads": ignored_parameter,
    "a W": bad_w,
    "a code": bad_code,
    "codes at other bits": bad_storage,
    "packed codes": bad_packing,
    "a W_scale": bad_scale,
    "a B": bad_bias,
    "a sum that could overflow": too_long,
    **dict.fromkeys(AROUND, unchanged),
}


def mangled(rng: Random, content: bytes) -> bytes:
    """A file cut short, with changed bytes, or with a false length field."""
    data = bytearray(content)
    match pick(rng, ["cut", "flip", "length", "empty"]):
        case "cut":
            del data[int(rng.integers(len(data))) :]
        case "flip":
            for _ in range(int(rng.integers(1, 20))):
                data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        case "length":
            place = int(rng.integers(max(1, len(data) - 4)))
            data[place : place + 4] = struct.pack("<I", int(rng.integers(2**32)))
        case "empty":
            data.clear()
    return bytes(data)
