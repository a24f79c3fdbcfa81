"""P18: a float layer stands for each optical one."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lumina_onnx._reference_weights import weight_values
from lumina_onnx.exporter import names
from lumina_onnx.exporter.nodes import OpticalNode, optical_nodes
from lumina_onnx.schema import DOMAIN, OPERATOR

from . import Pass, PassResult

__all__ = ["FloatLayers"]


class FloatLayers(Pass):
    """P18: a float layer stands for each optical one: a `MatMul` with the dequantised W and an `Add` of the bias.

    It has neither converters nor noise. Weights shared between layers stay shared; the function body is removed.

    Raises:
        ValueError: a layer's weights are computed in the graph.
    """

    number = "P18"

    def call(self, model: ir.Model) -> PassResult:
        """Replaces every layer."""
        taken = names.values(model)

        def unused(name: str) -> str:
            while name in taken:
                name += "_"
            taken.add(name)
            return name

        weights: dict[tuple[int, ...], ir.Value] = {}
        layers = optical_nodes(model)
        codes = {value for layer in layers for value in (layer.input(1), layer.input(2)) if value is not None}
        for layer in layers:
            key = (id(layer.weight), id(layer.weight_scale), layer.attributes["weight_bits"])
            if key not in weights:
                weights[key] = _stored(model, unused(f"{layer.node.inputs[1].name}_float"), _values(layer))  # type: ignore[union-attr]
            _replace(layer, weights[key], unused)
        for value in codes:
            _remove(value)
        model.functions.pop((DOMAIN, OPERATOR, ""), None)
        return PassResult(model, bool(layers))


def _stored(model: ir.Model, name: str, array: NDArray[np.float32]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _replace(layer: OpticalNode, weight: ir.Value, unused: Callable[[str], str]) -> None:
    node, y = layer.node, layer.node.outputs[0]
    product = ir.Node("", "MatMul", [node.inputs[0], weight], name=node.name)
    new = [product]
    if (bias := layer.input(3)) is not None:
        product.outputs[0].name = unused(f"{y.name}_product")
        new.append(ir.Node("", "Add", [product.outputs[0], bias], name=""))
    graph = cast("ir.Graph", node.graph)
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, [y], new[-1].outputs)


def _values(layer: OpticalNode) -> NDArray[np.float32]:
    """W in the layout that `MatMul` takes, float32 ``[K, N]``."""
    bits = layer.attributes["weight_bits"]
    if layer.weight is None or (bits and layer.weight_scale is None):
        raise ValueError(f"node {layer.name!r}: its weights are computed in the graph, allowed are stored ones")
    scale = layer.weight_scale.numpy() if bits and layer.weight_scale is not None else None
    values, step = weight_values(layer.weight.numpy(), bits, scale, layer.attributes.get("in_features"))
    return np.ascontiguousarray((values * step[:, None]).T)


def _remove(value: ir.Value) -> None:
    """Removes a stored value from its graph if nothing reads it any more."""
    graph = value.graph
    if graph is None or value.uses() or value.is_graph_output():
        return
    if value.is_initializer():
        del graph.initializers[str(value.name)]
    if value.is_graph_input():
        graph.inputs.remove(value)
