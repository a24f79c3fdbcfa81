"""The float32 twin of a file: the same graph with plain float layers, to measure optical ones against."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from lumina_onnx._reference_weights import weight_values
from lumina_onnx.schema import DOMAIN, OPERATOR

from . import files, nodes

__all__ = ["float_twin"]


def float_twin(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """A model in which a `MatMul` of the dequantised weights, and an `Add` of the bias, stand for each `OpticalLinear`.

    It has neither converters nor noise. Weights that layers share are shared; the function body is left out.

    Raises:
        FileNotFoundError, ValueError: no such file, no ONNX model, no `OpticalLinear` in it, or one whose weights are
            computed in the graph.
    """
    model = nodes.inlined(files.load(path))
    # Not by name: two branches may each have an output, and a W, of the same.
    layers = {id(node.proto): node for node in nodes.optical_nodes(model)}
    if not layers:
        raise ValueError(f"path = {str(path)!r}: the model has no lumina::OpticalLinear node")
    taken = {name for graph in nodes.graphs(model.graph) for name in _names(graph)}

    def unused(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    codes = {name for layer in layers.values() for name in layer.proto.input[1:3]}
    weights: dict[tuple[int, ...], onnx.TensorProto] = {}
    # From the innermost: a graph's nodes are copied with the graphs in them.
    for graph in reversed(list(nodes.graphs(model.graph))):
        content = [made for node in graph.node for made in _replaced(node, layers, weights, unused)]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in content]
        del graph.node[:]
        graph.node.extend(copies)

    used = {name for node, _ in nodes.walk(model.graph) for name in node.input}
    used.update(value.name for graph in nodes.graphs(model.graph) for value in graph.output)
    for graph in nodes.graphs(model.graph):
        for stored in (graph.initializer, graph.input):
            for index in reversed(range(len(stored))):
                if stored[index].name in codes - used:
                    del stored[index]
    model.graph.initializer.extend(weights.values())
    for index in reversed(range(len(model.functions))):
        if (model.functions[index].domain, model.functions[index].name) == (DOMAIN, OPERATOR):
            del model.functions[index]
    return model


def _replaced(
    node: onnx.NodeProto,
    layers: dict[int, nodes.OpticalNode],
    weights: dict[tuple[int, ...], onnx.TensorProto],
    unused: Callable[[str], str],
) -> list[onnx.NodeProto]:
    """What stands for a node; float weights are added to `weights`."""
    if (node.domain, node.op_type) != (DOMAIN, OPERATOR):
        return [node]
    layer = layers[id(node)]
    key = (id(layer.weight), id(layer.weight_scale), layer.attributes["weight_bits"])
    if key not in weights:
        weights[key] = numpy_helper.from_array(_values(layer), unused(f"{node.input[1]}_float"))
    x, bias, y = node.input[0], [name for name in node.input[3:] if name], node.output[0]
    product = unused(f"{y}_product") if bias else y
    made = [helper.make_node("MatMul", [x, weights[key].name], [product], name=node.name)]
    return made + ([helper.make_node("Add", [product, *bias], [y])] if bias else [])


def _values(layer: nodes.OpticalNode) -> NDArray[np.float32]:
    """W as a product takes it, float32 ``[K, N]``."""
    bits = layer.attributes["weight_bits"]
    if layer.weight is None or (bits and layer.weight_scale is None):
        raise ValueError(f"node {layer.name!r}: its weights are computed in the graph, allowed are stored ones")
    scale = numpy_helper.to_array(layer.weight_scale) if bits and layer.weight_scale is not None else None
    weight = numpy_helper.to_array(layer.weight)
    values, step = weight_values(weight, bits, scale, layer.attributes.get("in_features"))
    return np.ascontiguousarray((values * step[:, None]).T)


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    for value in (*graph.initializer, *graph.input):
        yield value.name
    for node in graph.node:
        yield from node.output
