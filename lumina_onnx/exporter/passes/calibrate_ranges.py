"""P10: full scales are what layers see."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lumina_onnx import _tiles
from lumina_onnx._histogram import Histogram, Method, full_scales
from lumina_onnx._reference_quantizer import largest_code
from lumina_onnx._reference_weights import weight_values
from lumina_onnx.exporter import feeds
from lumina_onnx.exporter.nodes import OpticalNode, is_optical, optical_nodes, set_attributes
from lumina_onnx.exporter.watching import Executions, Watched
from lumina_onnx.schema import DOMAIN, DOMAIN_VERSION

from . import Pass, PassResult, run
from .silence_noise import SilenceNoise

__all__ = ["CalibrateRanges"]


class CalibrateRanges(Pass):
    """P10: full scales are what layers see in batches of inputs, run with the noise off and with dynamic ranges.

    Where a layer's rows are split into tiles, its ADC sees the output of each; a layer with an `output_bound` gets that
    one, and no output range. A layer in a subgraph is observed each time the subgraph runs; if it never runs, the layer
    keeps its ranges. There is a note for each layer whose ranges the batches do not determine.

    Raises:
        ValueError: the batches do not fit the model, hold no value, or a layer's input or output is not finite.
    """

    number = "P10"

    def __init__(self, batches: Iterable[Any], method: Method, fraction: float, per_output: bool = False) -> None:
        """`batches` hold inputs of the model.

        `fraction` is the share that the method "percentile" keeps. `per_output`: each output has a range of its own.
        """
        self._batches = batches
        self._method = method
        self._fraction = fraction
        self._per_output = per_output

    def call(self, model: ir.Model) -> PassResult:
        """Sets the ranges of every layer that was observed."""
        quiet, numbers = _quiet(model)
        watched = Watched(quiet, numbers)
        layers = optical_nodes(model)
        outputs = [layer.out_features if self._per_output else None for layer in layers]
        histograms = [(Histogram(), Histogram(count)) for count in outputs]
        batch_count = executions = 0
        with watched.sessions() as fresh:
            execute = fresh()
        for batch in self._batches:
            seen = _run(execute, feeds.read(quiet, batch), batch_count)
            batch_count += 1
            for layer, number, pair in zip(layers, numbers, histograms, strict=True):
                executions += len(seen[number])
                _count(layer, seen[number], pair)
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
                notes += self._set_ranges(layer, pair)
        return PassResult(model, bool(layers), notes)

    def _set_ranges(self, layer: OpticalNode, histograms: tuple[Histogram, Histogram]) -> list[str]:
        """Sets a layer's ranges; returns notes on what the signals did not determine."""
        values = layer.attributes
        noise = (values["noise_relative"], values["noise_additive"], values["noise_shot"])
        bits = (values["input_bits"], values["output_bits"])
        scales = full_scales(histograms, bits, noise, self._method, self._fraction)
        notes = list(scales.notes)
        if values["output_bound"]:
            bound, note = _tiles.bound(scales, values["output_bound"])
            set_attributes(layer.node, input_range=scales.input_range, output_bound=bound)
            return [f"{layer.name}: {each}" for each in (*notes, note) if each]
        ranges = scales.output_range if isinstance(scales.output_range, tuple) else (scales.output_range,)
        set_attributes(layer.node, input_range=scales.input_range, output_range=ranges)
        return [f"{layer.name}: {note}" for note in notes]


def _run(execute: Callable[[feeds.Arrays], list[Executions]], arrays: feeds.Arrays, number: int) -> list[Executions]:
    try:
        return execute(arrays)
    except Exception as error:
        raise ValueError(
            f"calibration: the model does not run on batch {number} ({feeds.described(arrays)}); "
            f"ONNX Runtime says: {error}"
        ) from error


def _count(layer: OpticalNode, executions: Executions, histograms: tuple[Histogram, Histogram]) -> None:
    inputs, outputs = histograms
    for x, z in executions:
        _add(layer, "input", x, inputs)
        for part in _outputs(layer, x, z):
            _add(layer, "output", part, outputs)


def _add(layer: OpticalNode, what: str, array: NDArray[Any], histogram: Histogram) -> None:
    if not np.isfinite(array).all():
        raise ValueError(f"calibration: the {what} of {layer.name} holds a value that is not finite")
    histogram.add(np.ascontiguousarray(array, np.float32))


def _outputs(layer: OpticalNode, x: NDArray[Any], z: NDArray[Any]) -> Iterable[NDArray[Any]]:
    """What the layer's ADC sees, of which `z` is the whole row's."""
    values, weight = layer.attributes, layer.weight
    if weight is None or not _tiles.is_apart(values["tile_features"], values["output_bound"], x.shape[-1]):
        return [z]
    bits, packed = values["weight_bits"], weight.dtype == ir.DataType.UINT8
    scale = layer.weight_scale.numpy() if bits and layer.weight_scale is not None else None
    codes = weight_values(weight.numpy(), bits, scale, layer.in_features if packed else None)
    bias = layer.bias.numpy() if layer.bias is not None and values["bias_stage"] == "analog" else None
    full_scale = (values["weight_levels"] or largest_code(bits)) if values["output_bound"] else None
    return _tiles.outputs(x, codes, bias, values["input_bits"], values["tile_features"], full_scale)


def _quiet(model: ir.Model) -> tuple[ir.Model, list[int]]:
    """A copy of the model without noise or static ranges, in which each layer has an analog twin without an ADC.

    The input of the twin is what the layer's DAC sees, its output what the layer's ADC sees. Also returns the twins'
    indices among the optical nodes of the copy, in the order of the layers.
    """
    quiet, _ = run(model.clone(), SilenceNoise())
    quiet.ir_version = max(quiet.ir_version, 4)
    quiet.opset_imports[DOMAIN] = DOMAIN_VERSION
    copies = [_add_analog(layer) for layer in optical_nodes(quiet)]
    order = {node: number for number, node in enumerate(filter(is_optical, quiet.graph.all_nodes()))}
    return quiet, [order[copy] for copy in copies]


def _add_analog(layer: OpticalNode) -> ir.Node:
    """Clears a layer's static ranges and adds a copy of the layer without an ADC to its graph."""
    node = layer.node
    set_attributes(node, input_range=0.0, output_range=(0.0,))
    # The ADC does not see a digital bias, which is added after it.
    inputs = node.inputs[: 3 if layer.attributes["bias_stage"] == "digital" else 4]
    copy = ir.Node(node.domain, node.op_type, inputs, node.attributes, name=f"{node.name}/analog")
    set_attributes(copy, output_bits=0)
    copy.outputs[0].name = f"{node.outputs[0].name}/analog"
    if node.graph is not None:
        node.graph.append(copy)
    return copy
