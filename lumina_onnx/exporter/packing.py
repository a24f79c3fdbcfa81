"""Passes over an onnx_ir model with `OpticalLinear` nodes: one function, one change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import lumina_kernel
from lumina_onnx.schema import DOMAIN, OPERATOR

from . import constants

__all__ = ["PACKED_BITS", "optical_nodes", "separate_seeds", "silence", "store_weights"]

PACKED_BITS = (1, 2, 4)
"""Weight bits whose codes share bytes; the others up to 8 take a byte each, and 9..16 stay float32."""

_SEEDS = 2**63
_NOISE = ("noise_relative", "noise_additive", "noise_shot")


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
    notes = []
    for node in noisy:
        seed = node.attributes["seed"].as_int()
        if seed not in owners:
            owners[seed] = node.name
            continue
        own = seed
        while own in taken:
            own = (own + 0x9E3779B97F4A7C15) % _SEEDS
        taken.add(own)
        node.attributes["seed"] = ir.AttrInt64("seed", own)
        notes.append(
            f"{node.name} has the noise seed of {owners[seed]} ({seed}); in the file its seed is {own}, so that the "
            "two do not share their noise"
        )
    return notes


def store_weights(model: ir.Model) -> None:
    """Quantises every node's W and stores W, W_scale and B as initializers, in the form that the operator reads.

    Each W is stored once, however many nodes read it at the same bits. An initializer that nothing reads any more
    is removed.

    Raises:
        ValueError: a W or B that is no float32 constant or not finite, or parameters that do not fit the layer's
            size, naming the node.
    """
    stored: dict[tuple[Any, ...], tuple[ir.Value, ir.Value]] = {}
    for node in list(optical_nodes(model)):
        bits = node.attributes["weight_bits"].as_int()
        weight = _float_constant(model, node, 1, "weight")
        bias = _float_constant(model, node, 3, "bias") if len(node.inputs) > 3 else None
        _check(node, weight, bias)
        key = (bits, weight.shape, hashlib.sha256(weight.data).digest())
        if key not in stored:
            stored[key] = _store(model, node, bits, weight)
        values = list(stored[key])
        if bias is not None:
            source = node.inputs[3]
            assert source is not None
            values.append(source if source.is_initializer() else _add(model, f"{node.name}.bias", bias))
        if bits in PACKED_BITS:
            node.attributes["in_features"] = ir.AttrInt64("in_features", weight.shape[1])
        for index, value in enumerate(values, start=1):
            node.replace_input_with(index, value)
    ir.passes.common.RemoveUnusedNodesPass()(model)


def _check(node: ir.Node, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> None:
    """Refuses here what a session would refuse when it loads the file."""
    values = {name: attribute.value for name, attribute in node.attributes.items() if name != "seed"}
    try:
        lumina_kernel.PreparedLayer(lumina_kernel.Params(**values), weight, bias)
    except ValueError as error:
        raise ValueError(f"{node.name}: {error}") from error


def _store(model: ir.Model, node: ir.Node, bits: int, weight: NDArray[np.float32]) -> tuple[ir.Value, ir.Value]:
    """W and W_scale as initializers."""
    source = node.inputs[1]
    assert source is not None
    base = source.name if source.is_initializer() else f"{node.name}.weight"
    if bits == 0:
        scale = np.ones(len(weight), dtype=np.float32)
    else:
        codes, scale = lumina_kernel.quantize_weight(weight, bits)
    if 1 <= bits <= 8:
        stored = lumina_kernel.pack_weight(codes.astype(np.int8), bits) if bits in PACKED_BITS else codes
        value = _add(model, f"{base}_int{bits}", stored)
    else:
        value = source if source.is_initializer() else _add(model, base, weight)
    return value, _add(model, f"{base}_scale", scale)


def _float_constant(model: ir.Model, node: ir.Node, index: int, name: str) -> NDArray[np.float32]:
    value = node.inputs[index]
    array = None if value is None else constants.constant(value, model.opset_imports.get("", 1))
    if array is None:
        raise ValueError(
            f"{node.name}: its {name} is computed from the model's inputs; allowed is a parameter, a buffer or "
            "something computed from those alone"
        )
    if array.dtype != np.float32:
        raise ValueError(f"{node.name}: {name} has dtype {array.dtype}; allowed is float32 (model.float())")
    array = np.ascontiguousarray(array)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        raise ValueError(f"{node.name}: {name}{list(at)} = {array[at]}; allowed is a finite number")
    return array


def _add(model: ir.Model, name: str | None, array: NDArray[Any]) -> ir.Value:
    """A new initializer, its name made unique."""
    name = name or "constant"
    taken = model.graph.initializers
    unique = name if name not in taken else next(f"{name}_{i}" for i in range(1, 10**9) if f"{name}_{i}" not in taken)
    tensor = ir.tensor(np.ascontiguousarray(array), name=unique)
    value = ir.Value(name=unique, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    model.graph.register_initializer(value)
    return value
