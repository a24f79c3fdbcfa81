"""Passes over an onnx_ir model with `OpticalLinear` nodes: one function, one change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import lumina_kernel
from lumina_onnx.schema import DOMAIN, OPERATOR

from .constants import ConstantError, Constants

__all__ = ["PACKED_BITS", "Names", "optical_nodes", "separate_seeds", "silence", "store_weights"]

PACKED_BITS = (1, 2, 4)
"""Weight bits whose codes share bytes; the others up to 8 take a byte each, and 9..16 stay float32."""

_SEEDS = 2**63
_NOISE = ("noise_relative", "noise_additive", "noise_shot")


class Names:
    """Names, each given once."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._next: dict[str, int] = {}

    def unused(self, name: str, first: int = 2) -> str:
        """The name, or where it is taken the first free one of name_2, name_3, ..."""
        unused, number = name, self._next.get(name, first)
        while unused in self._taken:
            unused, number = f"{name}_{number}", number + 1
        self._next[name] = number
        self._taken.add(unused)
        return unused


def optical_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The `OpticalLinear` nodes of the graph and its subgraphs, in the graph's order."""
    for node in model.graph.all_nodes():
        if (node.domain, node.op_type) == (DOMAIN, OPERATOR):
            yield node


def silence(model: ir.Model) -> None:
    """Sets every noise level to 0."""
    for node in optical_nodes(model):
        for name in _NOISE:
            node.attributes[name] = ir.AttrFloat32(name, 0.0)


def separate_seeds(model: ir.Model) -> list[str]:
    """Gives noisy nodes that share a seed seeds of their own, so that no two layers share noise.

    The first node keeps its seed; each later one gets the next free one of a fixed sequence that starts there, so
    that two exports of one model are the same. Returns a note for each changed node.
    """
    noisy = [node for node in optical_nodes(model) if any(node.attributes[name].as_float() for name in _NOISE)]
    taken = {node.attributes["seed"].as_int() for node in noisy}
    owners: dict[int, str | None] = {}
    newest: dict[int, int] = {}
    notes = []
    for node in noisy:
        seed = node.attributes["seed"].as_int()
        if seed not in owners:
            owners[seed] = node.name
            continue
        own = newest.get(seed, seed)
        while own in taken:
            own = (own + 0x9E3779B97F4A7C15) % _SEEDS
        newest[seed] = own
        taken.add(own)
        node.attributes["seed"] = ir.AttrInt64("seed", own)
        notes.append(
            f"{node.name} has the noise seed of {owners[seed]} ({seed}); in the file its seed is {own}, so that the "
            "two do not share their noise"
        )
    return notes


def store_weights(model: ir.Model) -> None:
    """Quantises every node's W and stores W, W_scale and B as initializers, in the form that the operator reads.

    They lie in the node's own graph: before 1.29 ONNX Runtime shows a custom operator in a subgraph no constants of the
    graphs around it. In each graph a W is stored once, however many of its nodes read it at the same bits. Nodes and
    initializers that nothing reads any more are removed, in subgraphs too.

    Raises:
        ValueError: a W or B that is no float32 constant or not finite, or parameters that do not fit the layer's
            size, naming the node.
    """
    known, names = Constants(model), Names(name for graph in model.graphs() for name in graph.initializers)
    stored: dict[tuple[Any, ...], tuple[ir.Value, ir.Value]] = {}
    for node in list(optical_nodes(model)):
        bits = node.attributes["weight_bits"].as_int()
        weight = _float_constant(known, node, 1, "weight")
        has_bias = len(node.inputs) > 3 and node.inputs[3] is not None
        bias = _float_constant(known, node, 3, "bias") if has_bias else None
        _check(node, weight, bias)
        key = (node.graph, bits, weight.shape, hashlib.sha256(weight.data).digest())
        if key not in stored:
            stored[key] = _store(node, names, bits, weight)
        values = list(stored[key])
        if bias is not None:
            values.append(_own(node, 3) or _add(node, names, f"{node.name}.bias", bias))
        if bits in PACKED_BITS:
            node.attributes["in_features"] = ir.AttrInt64("in_features", weight.shape[1])
        for index, value in enumerate(values, start=1):
            node.replace_input_with(index, value)
    _remove_unused(model)


def _check(node: ir.Node, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> None:
    """Refuses here what a session would refuse when it loads the file."""
    values = {name: attribute.value for name, attribute in node.attributes.items() if name != "seed"}
    try:
        lumina_kernel.PreparedLayer(lumina_kernel.Params(**values), weight, bias)
    except ValueError as error:
        raise ValueError(f"{node.name}: {error}") from error


def _store(node: ir.Node, names: Names, bits: int, weight: NDArray[np.float32]) -> tuple[ir.Value, ir.Value]:
    """W and W_scale as initializers."""
    source = node.inputs[1]
    base = source.name if source is not None and source.is_initializer() else f"{node.name}.weight"
    if bits == 0:
        scale = np.ones(len(weight), dtype=np.float32)
    else:
        codes, scale = lumina_kernel.quantize_weight(weight, bits)
    if 1 <= bits <= 8:
        stored = lumina_kernel.pack_weight(codes.astype(np.int8), bits) if bits in PACKED_BITS else codes
        value = _add(node, names, f"{base}_int{bits}", stored)
    else:
        value = _own(node, 1) or _add(node, names, base, weight)
    return value, _add(node, names, f"{base}_scale", scale)


def _own(node: ir.Node, index: int) -> ir.Value | None:
    """An input of a node that is an initializer of its graph already."""
    value = node.inputs[index]
    return value if value is not None and value.is_initializer() and value.graph is node.graph else None


def _float_constant(known: Constants, node: ir.Node, index: int, name: str) -> NDArray[np.float32]:
    value = node.inputs[index]
    allowed = "allowed is a parameter, a buffer or something computed from those alone"
    if value is None:
        raise ValueError(f"{node.name}: it has no {name}; {allowed}")
    try:
        array = known.array(value)
    except ConstantError as error:
        raise ValueError(f"{node.name}: its {name} is {error}; {allowed}") from error
    if array.dtype != np.float32:
        raise ValueError(f"{node.name}: {name} has dtype {array.dtype}; allowed is float32 (model.float())")
    array = np.ascontiguousarray(array)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        raise ValueError(f"{node.name}: {name}{list(at)} = {array[at]}; allowed is a finite number")
    return array


def _add(node: ir.Node, names: Names, name: str | None, array: NDArray[Any]) -> ir.Value:
    """A new initializer of a node's graph, its name made unique."""
    if not isinstance(node.graph, ir.Graph):
        raise ValueError(f"{node.name} lies in a function, which has no initializers; allowed are graphs")
    unique = names.unused(name or "constant", first=1)
    tensor = ir.tensor(np.ascontiguousarray(array), name=unique)
    value = ir.Value(name=unique, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    node.graph.register_initializer(value)
    return value


def _remove_unused(model: ir.Model) -> None:
    """Removes nodes and initializers that nothing reads."""
    ir.passes.common.RemoveUnusedNodesPass()(model)
    # The pass leaves the initializers of subgraphs.
    for graph in model.graphs():
        for name, value in list(graph.initializers.items()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                del graph.initializers[name]
