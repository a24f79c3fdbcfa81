"""Static full scales for the layers of a ready file, from inputs of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from lumina_onnx._histogram import Histogram, Method
from lumina_onnx.schema import DOMAIN, VERSION

from . import feeds, nodes, packing
from .watching import Executions, Watched, places

__all__ = ["calibrate"]


def calibrate(graph: ir.Model, batches: Iterable[Any], method: Method, fraction: float) -> list[str]:
    """Sets the layers' ranges from what their converters see: in the model with its noise off and dynamic ranges.

    A layer in a subgraph sees as much as the subgraph is executed; of one that never is the ranges stay as they are.
    """
    watched, numbers = _watched(ir.to_proto(graph))
    layers = list(packing.optical_nodes(graph))
    histograms = [(Histogram(), Histogram()) for _ in layers]
    batch_count = executions = 0
    run = watched.session()
    for batch in batches:
        seen = _run(run, feeds.read(watched.model, batch), batch_count)
        batch_count += 1
        for layer, number, pair in zip(layers, numbers, histograms, strict=True):
            executions += len(seen[number])
            _count(str(layer.name), seen[number], pair)
    if not any(inputs.count for inputs, _ in histograms) and (executions or not batch_count):
        raise ValueError("calibration is empty: allowed is at least one batch with a value in it")
    notes = []
    for layer, number, pair in zip(layers, numbers, histograms, strict=True):
        if number in watched.reasons:
            reason = watched.reasons[number]
            notes.append(f"{layer.name}: calibration does not see it, its ranges are the profile's ({reason})")
        elif not pair[0].count:
            notes.append(f"{layer.name}: no batch of the calibration reaches it, its ranges are the profile's")
        else:
            notes += _set_ranges(layer, *pair, method, fraction)
    return notes


def _run(run: Callable[[feeds.Arrays], list[Executions]], arrays: feeds.Arrays, number: int) -> list[Executions]:
    try:
        return run(arrays)
    except Exception as error:
        raise ValueError(
            f"calibration: the model does not run on batch {number} ({feeds.described(arrays)}); "
            f"ONNX Runtime says: {error}"
        ) from error


def _count(layer: str, executions: Executions, histograms: tuple[Histogram, Histogram]) -> None:
    for arrays in executions:
        for what, array, histogram in zip(("input", "output"), arrays, histograms, strict=True):
            if not np.isfinite(array).all():
                raise ValueError(f"calibration: the {what} of {layer} holds a value that is not finite")
            histogram.add(np.ascontiguousarray(array, np.float32))


def _set_ranges(node: ir.Node, inputs: Histogram, outputs: Histogram, method: Method, fraction: float) -> Iterator[str]:
    values = {name: attribute.value for name, attribute in node.attributes.items()}
    noise = (values["noise_relative"], values["noise_additive"], values["noise_shot"])
    input_range = output_range = 0.0
    if values["input_bits"]:
        input_range = inputs.full_scale(method, fraction, values["input_bits"], (0.0, 0.0, 0.0))
        if input_range == 0:
            yield f"{node.name}: its input was always 0, its input range is dynamic"
    if values["output_bits"] or values["noise_additive"] or values["noise_shot"]:
        output_range = outputs.full_scale(method, fraction, values["output_bits"], noise)
        if output_range == 0:
            yield f"{node.name}: its output was always 0, its output range is dynamic"
    node.attributes["input_range"] = ir.AttrFloat32("input_range", input_range)
    node.attributes["output_range"] = ir.AttrFloat32s("output_range", (output_range,))


def _watched(proto: onnx.ModelProto) -> tuple[Watched, list[int]]:
    """The model without noise and static ranges, showing what the DAC and the ADC of each layer see.

    What the ADC sees comes from a copy of the node that has none, whose bias is there only where it is analog. With it
    come the numbers of these copies among the optical nodes, in the order of the layers.
    """
    proto.ir_version = max(proto.ir_version, 4)
    proto.opset_import.append(onnx.helper.make_opsetid(DOMAIN, VERSION))
    copies = [_add_analog(place.graph, place.node) for place in list(places(proto.graph))]
    order = [place.node for place in places(proto.graph)]
    numbers = {id(node): number for number, node in enumerate(order)}
    watched = {id(copy) for copy in copies}
    wanted = [[node.input[0], node.output[0]] if id(node) in watched else [] for node in order]
    return Watched(proto, wanted), [numbers[id(copy)] for copy in copies]


def _add_analog(graph: onnx.GraphProto, node: onnx.NodeProto) -> onnx.NodeProto:
    """Takes a node's noise and static ranges away, and adds a copy of it without ADC to its graph."""
    digital = next(entry.s for entry in node.attribute if entry.name == "bias_stage") == b"digital"
    kept = [entry for entry in node.attribute if entry.name not in (*nodes.NOISE, "input_range", "output_range")]
    del node.attribute[:]
    node.attribute.extend(kept)
    graph.node.append(node)
    copy = graph.node[-1]
    copy.name, copy.output[0] = f"{node.name}/analog", f"{node.output[0]}/analog"
    del copy.input[3 if digital else 4 :]
    next(entry for entry in copy.attribute if entry.name == "output_bits").i = 0
    return copy
