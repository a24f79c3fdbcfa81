"""Static full scales for the layers of a ready file, from inputs of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from lumina_onnx._histogram import Histogram, Method
from lumina_onnx.schema import DOMAIN, OPERATOR, VERSION

from . import feeds, files, nodes, packing

__all__ = ["calibrate"]


def calibrate(graph: ir.Model, batches: Iterable[Any], method: Method, fraction: float) -> list[str]:
    """Sets the layers' ranges from what their converters see: in the model with its noise off and dynamic ranges."""
    proto, seen = _watched(graph)
    histograms = {name: (Histogram(), Histogram()) for name in seen}
    session = files.session(proto)
    outputs = [name for pair in seen.values() for name in pair]
    fed = {value.name for value in proto.graph.input}
    asked = [name for name in dict.fromkeys(outputs) if name not in fed]
    for batch in batches:
        arrays = feeds.read(proto, batch)
        values = {**arrays, **dict(zip(asked, session.run(asked, arrays), strict=True))}
        for layer, pair in seen.items():
            for what, name, histogram in zip(("input", "output"), pair, histograms[layer], strict=True):
                if not np.isfinite(values[name]).all():
                    raise ValueError(f"calibration: the {what} of {layer} holds a value that is not finite")
                histogram.add(np.ascontiguousarray(values[name], np.float32))
    if not any(inputs.count for inputs, _ in histograms.values()):
        raise ValueError("calibration is empty: allowed is at least one batch with a value in it")
    notes = []
    for node in packing.optical_nodes(graph):
        if node.name not in histograms:
            notes.append(f"{node.name} lies in a subgraph: calibration does not see it, its ranges are the profile's")
            continue
        notes += _set_ranges(node, *histograms[node.name], method, fraction)
    return notes


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


def _watched(graph: ir.Model) -> tuple[onnx.ModelProto, dict[str, tuple[str, str]]]:
    """The model without noise and static ranges, and for each layer the tensors that its DAC and ADC see.

    What the ADC sees comes from a copy of the node that has none, whose bias is there only where it is analog.
    """
    proto = ir.to_proto(graph)
    proto.ir_version = max(proto.ir_version, 4)
    proto.opset_import.append(onnx.helper.make_opsetid(DOMAIN, VERSION))
    shown = {value.name for value in proto.graph.output}
    seen: dict[str, tuple[str, str]] = {}
    copies = []
    for node, nested in nodes.walk(proto.graph):
        if (node.domain, node.op_type) != (DOMAIN, OPERATOR):
            continue
        digital = next(entry.s for entry in node.attribute if entry.name == "bias_stage") == b"digital"
        kept = [entry for entry in node.attribute if entry.name not in (*nodes.NOISE, "input_range", "output_range")]
        del node.attribute[:]
        node.attribute.extend(kept)
        if nested:
            continue
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        copy.name, copy.output[0] = f"{node.name}/analog", f"{node.output[0]}/analog"
        del copy.input[3 if digital else 4 :]
        next(entry for entry in copy.attribute if entry.name == "output_bits").i = 0
        copies.append(copy)
        seen[node.name] = (node.input[0], copy.output[0])
    proto.graph.node.extend(copies)
    fed = {value.name for value in proto.graph.input}
    for name in dict.fromkeys(name for pair in seen.values() for name in pair):
        if name not in shown and name not in fed:
            proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return proto, seen
