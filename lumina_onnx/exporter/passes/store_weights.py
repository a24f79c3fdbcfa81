"""P08: weights are stored as the operator reads them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import lumina_kernel
from lumina_onnx.exporter.constants import ConstantError, Constants
from lumina_onnx.exporter.loading import unmap
from lumina_onnx.exporter.names import Names
from lumina_onnx.exporter.nodes import OpticalNode, optical_nodes, set_attributes
from lumina_onnx.schema import LAYER

from . import Pass, PassResult

__all__ = ["PACKED_BITS", "StoreWeights"]

PACKED_BITS = (1, 2, 4)
"""Weight bits whose codes are packed into shared bytes; other codes up to 8 bits take a byte each, 9..16 stay float32.
"""

_MAPPED = 2**26
"""After so many bytes of weights, what was read of files is given back."""


class StoreWeights(Pass):
    """P08: W, W_scale and B of a layer are initializers of the node's own graph, W quantised to its bits.

    Before 1.29, ONNX Runtime does not show a custom operator in a subgraph the constants of the enclosing graphs. Each
    graph stores and quantises a W once for all of its nodes that read it at the same bits. Values that nothing reads
    any more are left to :class:`.remove_unused.RemoveUnused`.

    Raises:
        ValueError: a W or B is not a float32 constant or not finite, or parameters do not fit the layer's size; the
            message names the node.
    """

    number = "P08"

    def __init__(self, only: Collection[ir.Node] | None = None) -> None:
        """`only` are the layers to store; None for all."""
        self._only = only

    def call(self, model: ir.Model) -> PassResult:
        """Replaces the layers' inputs other than X."""
        known, names = Constants(model), Names(name for graph in model.graphs() for name in graph.initializers)
        stored: dict[tuple[Any, ...], tuple[ir.Value, ir.Value]] = {}
        layers = [layer for layer in optical_nodes(model) if self._only is None or layer.node in self._only]
        mapped = 0
        for layer in layers:
            node, bits = layer.node, layer.attributes["weight_bits"]
            weight, step = _weight(known, layer)
            bias = None if layer.input(3) is None else _float_constant(known, layer, 3, "bias")
            _check(layer, weight, bias)
            content = (hashlib.sha256(array.data).digest() for array in (weight, step) if array is not None)
            key = (node.graph, bits, weight.shape, *content)
            if key not in stored:
                stored[key] = _store(layer, names, weight, step)
            values = list(stored[key])
            if bias is not None:
                values.append(_own(layer, 3) or _add(layer, names, f"{layer.name}.bias", bias))
            if bits in PACKED_BITS:
                set_attributes(node, in_features=weight.shape[1])
            for index, value in enumerate(values, start=1):
                node.replace_input_with(index, value)
            mapped += weight.nbytes
            if mapped >= _MAPPED:
                unmap(model)
                mapped = 0
        return PassResult(model, bool(layers))


def _check(layer: OpticalNode, weight: NDArray[Any], bias: NDArray[np.float32] | None) -> None:
    """Refuses here what a session would refuse when it loads the file.

    The kernel checks a matrix of one column and one of one row. Together they cover every check that depends on the
    sizes, and W need not be quantised for it.
    """
    values = {row.name: layer.attributes[row.name] for row in LAYER}
    column, row = weight, weight[:1]
    if weight.ndim == 2:
        column, row = (np.zeros(shape, np.float32) for shape in (weight[:, :1].shape, weight[:1].shape))
    with _naming(layer):
        lumina_kernel.PreparedLayer(lumina_kernel.Params(**values), column, bias)
        lumina_kernel.PreparedLayer(lumina_kernel.Params(**values | {"output_range": values["output_range"][:1]}), row)


@contextlib.contextmanager
def _naming(layer: OpticalNode) -> Iterator[None]:
    """Prefixes the kernel's error messages with the layer's name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{layer.name}: {error}") from error


def _weight(known: Constants, layer: OpticalNode) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """W ``[N, K]``; and the step of one code ``[N]`` if W already holds the codes of the layer's 8 bits."""
    value = layer.input(1)
    codes = None if value is None else value.const_value
    if codes is not None and codes.dtype == ir.DataType.INT8 and layer.attributes["weight_bits"] == 8:
        return np.ascontiguousarray(codes.numpy()), _float_constant(known, layer, 2, "weight_scale")
    return _float_constant(known, layer, 1, "weight"), None


def _store(
    layer: OpticalNode, names: Names, weight: NDArray[Any], step: NDArray[np.float32] | None
) -> tuple[ir.Value, ir.Value]:
    """W ``[N, K]`` and W_scale ``[N]`` as initializers."""
    source, bits = layer.input(1), layer.attributes["weight_bits"]
    base = source.name if source is not None and source.is_initializer() else f"{layer.name}.weight"
    if step is not None:
        return _add(layer, names, f"{base}_int8", weight), _add(layer, names, f"{base}_scale", step)
    if bits == 0:
        scale = np.ones(len(weight), dtype=np.float32)
    else:
        with _naming(layer):
            codes, scale = lumina_kernel.quantize_weight(weight, bits)
    if 1 <= bits <= 8:
        stored = lumina_kernel.pack_weight(codes.astype(np.int8), bits) if bits in PACKED_BITS else codes
        value = _add(layer, names, f"{base}_int{bits}", stored)
    else:
        value = _own(layer, 1) or _add(layer, names, base, weight)
    return value, _add(layer, names, f"{base}_scale", scale)


def _own(layer: OpticalNode, index: int) -> ir.Value | None:
    """An input of a node if it already is an initializer of the node's graph, else None."""
    value = layer.input(index)
    return value if value is not None and value.is_initializer() and value.graph is layer.node.graph else None


def _float_constant(known: Constants, layer: OpticalNode, index: int, name: str) -> NDArray[np.float32]:
    value = layer.input(index)
    allowed = "allowed is a parameter, a buffer or something computed from those alone"
    if value is None:
        raise ValueError(f"{layer.name}: it has no {name}; {allowed}")
    try:
        array = known.array(value)
    except ConstantError as error:
        raise ValueError(f"{layer.name}: its {name} is {error}; {allowed}") from error
    if array.dtype != np.float32:
        raise ValueError(f"{layer.name}: {name} has dtype {array.dtype}; allowed is float32 (model.float())")
    # In a file, elements may begin anywhere.
    array = np.require(array, requirements=["C", "ALIGNED"])
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        raise ValueError(f"{layer.name}: {name}{list(at)} = {array[at]}; allowed is a finite number")
    return array


def _add(layer: OpticalNode, names: Names, name: str | None, array: NDArray[Any]) -> ir.Value:
    """A new initializer of a node's graph, under a unique name."""
    graph = layer.node.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{layer.name} lies in a function, which has no initializers; allowed are graphs")
    unique = names.unused(name or "constant", first=1)
    tensor = ir.tensor(np.ascontiguousarray(array), name=unique)
    value = ir.Value(name=unique, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value
