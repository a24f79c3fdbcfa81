"""Random models of `lumina::OpticalLinear` nodes, with their expected results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import fuzz_page as page
import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]
Random = np.random.Generator
F = np.float32

LARGEST = 2**63 - 1
#: Finite values from the whole range of float32: around 1, denormal, near the largest, zeros.
EXTREMES = np.array([0, -0.0, 1e-45, -1e-42, 1.1754944e-38, 3.4028235e38, -3.4028235e38, 1e20, -1e-20, 1, -1], F)
NAMES = ("fc1", "encoder.layer.0/MatMul", "层", "a b", "", 'quote"d', "x" * 200, "\x1b[31m", "[bold]")


@dataclass
class Layer:
    """A node as a file holds it. Broken ones violate the rules in one place."""

    name: str
    w: Array
    w_scale: Array
    b: Array | None
    attributes: dict[str, Any] = field(default_factory=dict)
    #: Names of the inputs W, W_scale and B, the same for layers that share them.
    inputs: tuple[str, ...] = ()

    @property
    def k(self) -> int:
        stated = self.attributes.get("in_features")
        return stated if isinstance(stated, int) else int(np.atleast_1d(self.w).shape[-1])

    @property
    def n(self) -> int:
        return len(self.w)

    def y(self, x: Array, stream: int) -> Array:
        meaningful = {name: value for name, value in self.attributes.items() if name != "op_version"}
        return page.optical_linear(x, self.w, self.w_scale, self.b, stream=stream, **meaningful)


@dataclass
class Case:
    """A model, inputs for some runs, and what to expect: the result of each run, or the words of the refusal."""

    kind: str
    model: ModelProto
    layers: list[Layer]
    feeds: list[dict[str, Array]] = field(default_factory=list)
    expected: list[dict[str, Array]] = field(default_factory=list)
    refusal: tuple[str, ...] = ()


def pick(rng: Random, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


# Layers


def layer(rng: Random, prefix: str, *, k: int | None = None, n: int | None = None, bits: int | None = None) -> Layer:
    """A valid layer: any storage, resolution, noise law, range and bias stage."""
    k = k or dimension(rng)
    n = n or dimension(rng)
    bits = int(rng.integers(17)) if bits is None else bits
    b = values(rng, (n,), extreme=0.02) if rng.random() < 0.6 else None
    w, w_scale, attributes = weight(rng, n, k, bits)
    attributes |= converters(rng, n) | noise(rng)
    if bits:
        attributes["weight_bits"] = bits
    elif rng.random() < 0.2:
        attributes["weight_bits"] = 0
    if rng.random() < 0.4:
        attributes["bias_stage"] = pick(rng, ["analog", "digital"])
    if rng.random() < 0.5:
        attributes["seed"] = pick(rng, [0, 1, LARGEST, int(rng.integers(LARGEST))])
    if rng.random() < 0.2:
        attributes["op_version"] = 1
    if w.dtype != np.uint8 and rng.random() < 0.1:
        attributes["in_features"] = k
    shuffled = list(attributes.items())
    rng.shuffle(shuffled)
    return named(Layer("", w, w_scale, b, dict(shuffled)), prefix, pick(rng, NAMES))


def named(one: Layer, prefix: str, name: str) -> Layer:
    inputs = [f"{prefix}.W", f"{prefix}.W_scale"] + ([] if one.b is None else [f"{prefix}.B"])
    return replace(one, name=name and f"{name}.{prefix}", inputs=tuple(inputs))


def dimension(rng: Random) -> int:
    """A size: mostly small, sometimes beyond the width of a vector, a panel or a tile."""
    return int(rng.integers(1, pick(rng, [3, 9, 20, 40, 70])))


def values(rng: Random, shape: tuple[int, ...], *, extreme: float) -> Array:
    """Normal numbers of any magnitude, occasionally with some extremes among them."""
    numbers = rng.normal(size=shape) * 10.0 ** pick(rng, [0, 0, 0, 0, -3, 3, -20, 15, -42])
    result = numbers.astype(F)
    if rng.random() < 10 * extreme:
        hit = rng.random(shape) < 0.1
        result[hit] = rng.choice(EXTREMES, int(hit.sum()))
    return result


def weight(rng: Random, n: int, k: int, bits: int) -> tuple[Array, Array, dict[str, Any]]:
    """W, W_scale, and in_features where W is packed."""
    floats = values(rng, (n, k), extreme=0.02)
    if rng.random() < 0.1:
        floats[int(rng.integers(n))] = 0
    if not bits:
        return floats, np.ones(n, F), {}
    storage = pick(rng, ["float32"] + ["int8"] * (bits <= 8) + ["uint8"] * (bits in (1, 2, 4)))
    with np.errstate(over="ignore"):
        scale = page.default_scale(floats, bits)
        if rng.random() < 0.2:
            scale = np.abs(values(rng, (n,), extreme=0.1))
        # The full scale of a channel must be finite.
        scale = np.where(np.isfinite(scale * F(2 ** (bits - 1))), scale, F(1)).astype(F)
    if storage == "float32":
        return floats, scale, {}
    largest = max(2 ** (bits - 1) - 1, 1)
    codes = rng.integers(-largest, largest, (n, k), endpoint=True)
    if bits == 1:
        codes = np.where(codes >= 0, 1, -1)
    if storage == "int8":
        return codes.astype(np.int8), scale, {}
    return page.pack(codes, bits), scale, {"in_features": k}


def full_scale(rng: Random) -> float:
    return float(
        F(pick(rng, [1.0, 0.5, 3.0, 2**-7, 30.0, 1e-3, 1e4, 1e-45, 1e-39, 1e-30, 3e38, abs(rng.normal()) + 1e-3]))
    )


def converters(rng: Random, n: int) -> dict[str, Any]:
    """Resolutions and full scales of DAC and ADC; attributes at their default are sometimes omitted."""
    found: dict[str, Any] = {}
    input_bits, output_bits = (pick(rng, [0, 8, 4, int(rng.integers(2, 17))]) for _ in range(2))
    if input_bits or rng.random() < 0.2:
        found["input_bits"] = input_bits
    if output_bits != 8 or rng.random() < 0.5:
        found["output_bits"] = output_bits
    if input_bits and rng.random() < 0.5:
        found["input_range"] = full_scale(rng)
    elif rng.random() < 0.2:
        found["input_range"] = 0.0
    match pick(rng, ["default", "dynamic", "layer", "output"]):
        case "dynamic":
            found["output_range"] = [0.0]
        case "layer":
            found["output_range"] = [full_scale(rng)]
        case "output":
            found["output_range"] = [full_scale(rng) for _ in range(n)]
    return found


def noise(rng: Random) -> dict[str, float]:
    if rng.random() < 0.4:
        return {}
    laws = ("noise_relative", "noise_additive", "noise_shot")
    levels = [0.0, 0.05, 1.0, 1e-45, 1e-20, 1e19, float(F(rng.random()))]
    return {law: float(F(pick(rng, levels))) for law in laws if rng.random() < 0.5}


# Models


def node(one: Layer, x: str, y: str) -> NodeProto:
    made = helper.make_node("OpticalLinear", [x, *one.inputs], [y], name=one.name, domain="lumina")
    made.attribute.extend(attribute(name, value) for name, value in one.attributes.items())
    return made


def attribute(name: str, value: Any) -> AttributeProto:
    if isinstance(value, AttributeProto):
        return value
    if name == "output_range" and isinstance(value, list):
        return AttributeProto(name=name, type=AttributeProto.FLOATS, floats=value)
    return helper.make_attribute(name, value)


def initializers(layers: list[Layer]) -> list[TensorProto]:
    arrays: dict[str, Array] = {}
    for one in layers:
        stored = [one.w, one.w_scale, *([] if one.b is None else [one.b])]
        arrays.update(zip(one.inputs, stored, strict=False))
    return [numpy_helper.from_array(array, name) for name, array in arrays.items()]


def value(name: str, shape: Any = None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model(graph: GraphProto) -> ModelProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("lumina", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def inputs(rng: Random, k: int, extreme: float = 0.04) -> Array:
    """X of rank 1 to 4, sometimes without rows, sometimes with infinities and NaN."""
    leading = [int(rng.integers(1, 4)) for _ in range(int(rng.integers(4)))]
    if leading and rng.random() < 0.1:
        leading[int(rng.integers(len(leading)))] = 0
    x = values(rng, (*leading, k), extreme=extreme)
    if x.size and rng.random() < 0.15:
        for _ in range(int(rng.integers(1, 3))):
            x.reshape(-1)[int(rng.integers(x.size))] = pick(rng, [np.nan, np.inf, -np.inf])
    return x


def declared(rng: Random, x: Array) -> Any:
    """A valid declared shape for x."""
    return pick(
        rng, [None, [f"d{axis}" for axis in range(x.ndim)], [*[None] * (x.ndim - 1), x.shape[-1]], list(x.shape)]
    )


def single(rng: Random) -> Case:
    """X -> node -> Y."""
    return chained(rng, 1)


def chain(rng: Random) -> Case:
    """Two to four nodes in sequence, each with its result as an output."""
    return chained(rng, int(rng.integers(2, 5)))


def chained(rng: Random, count: int) -> Case:
    layers, k = [], dimension(rng)
    for index in range(count):
        layers.append(layer(rng, f"l{index}", k=k))
        k = layers[-1].n
    x = inputs(rng, layers[0].k)
    edges = ["X", *(f"y{index}" for index in range(count))]
    nodes = [node(one, edges[index], edges[index + 1]) for index, one in enumerate(layers)]
    graph = helper.make_graph(
        nodes, "chain", [value("X", declared(rng, x))], [value(name) for name in edges[1:]], initializers(layers)
    )
    found = Case("chain" if count > 1 else "single", model(graph), layers)
    for stream in range(2):
        found.feeds.append({"X": x})
        found.expected.append({})
        y = x
        for name, one in zip(edges[1:], layers, strict=True):
            y = found.expected[-1][name] = one.y(y, stream)
    return found


def shared(rng: Random) -> Case:
    """Nodes that read the same weights, each with its own attributes."""
    first = layer(rng, "l0", bits=pick(rng, [1, 2, 4, 8, 12]))
    kept = {name: first.attributes[name] for name in ("weight_bits", "in_features") if name in first.attributes}
    layers = [first] + [
        replace(first, name=f"again{index}", attributes=kept | converters(rng, first.n) | noise(rng))
        for index in range(2)
    ]
    x = inputs(rng, first.k)
    nodes = [node(one, "X", f"y{index}") for index, one in enumerate(layers)]
    outputs = [value(f"y{index}") for index in range(len(layers))]
    graph = helper.make_graph(nodes, "shared", [value("X", declared(rng, x))], outputs, initializers(layers))
    found = Case("shared", model(graph), layers)
    for stream in range(2):
        found.feeds.append({"X": x})
        found.expected.append({f"y{index}": one.y(x, stream) for index, one in enumerate(layers)})
    return found


def branches(rng: Random) -> Case:
    """A node in each branch of an `If`; a branch not taken counts no run. Weights are inside or outside the branch."""
    k, n = dimension(rng), dimension(rng)
    layers = [layer(rng, f"l{index}", k=k, n=n) for index in range(2)]
    inside = rng.random() < 0.5
    graphs = [
        helper.make_graph(
            [node(one, "X", f"b{index}")], f"g{index}", [], [value(f"b{index}")], initializers([one]) if inside else []
        )
        for index, one in enumerate(layers)
    ]
    choice = helper.make_node("If", ["choice"], ["Y"], then_branch=graphs[0], else_branch=graphs[1])
    x = inputs(rng, k)
    graph = helper.make_graph(
        [choice],
        "branches",
        [value("X", declared(rng, x)), value("choice", [], TensorProto.BOOL)],
        [value("Y")],
        [] if inside else initializers(layers),
    )
    found = Case("branches", model(graph), layers)
    runs = [0, 0]
    for _ in range(3):
        taken = int(rng.integers(2))
        found.feeds.append({"X": x, "choice": np.array(not taken)})
        found.expected.append({"Y": layers[taken].y(x, runs[taken])})
        runs[taken] += 1
    return found


def loop(rng: Random) -> Case:
    """A node that a `Loop` runs several times; each iteration counts as a run with its own noise."""
    k = dimension(rng)
    one = layer(rng, "l0", k=k, n=k)
    inside = rng.random() < 0.5
    body = helper.make_graph(
        [node(one, "x", "y"), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("x")],
        [value("on", [], TensorProto.BOOL), value("y")],
        initializers([one]) if inside else [],
    )
    trips = int(rng.integers(4))
    counts = numpy_helper.from_array(np.array(trips, np.int64), "trips")
    x = inputs(rng, k)
    graph = helper.make_graph(
        [helper.make_node("Loop", ["trips", "", "X"], ["Y"], body=body)],
        "loop",
        [value("X", declared(rng, x))],
        [value("Y")],
        [counts, *([] if inside else initializers([one]))],
    )
    found = Case("loop", model(graph), [one])
    stream = 0
    for _ in range(2):
        y = x
        for _ in range(trips):
            y = one.y(y, stream)
            stream += 1
        found.feeds.append({"X": x})
        found.expected.append({"Y": y})
    return found


def wide(rng: Random) -> Case:
    """A node with more columns than one noise block."""
    one = replace(layer(rng, "l0", k=2, n=int(rng.integers(1000, 1200))), b=None)
    one = named(replace(one, attributes=one.attributes | {"noise_additive": 0.5}), "l0", "wide")
    x = values(rng, (2, 2), extreme=0)
    graph = helper.make_graph([node(one, "X", "Y")], "wide", [value("X")], [value("Y")], initializers([one]))
    return Case("wide", model(graph), [one], [{"X": x}], [{"Y": one.y(x, 0)}])


SHAPES: dict[str, Callable[[Random], Case]] = {
    **{f"single{index}": single for index in range(12)},
    **{f"chain{index}": chain for index in range(5)},
    **{f"shared{index}": shared for index in range(3)},
    **{f"branches{index}": branches for index in range(2)},
    **{f"loop{index}": loop for index in range(2)},
    "wide": wide,
}
