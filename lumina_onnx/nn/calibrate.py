"""Static full scales from data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

import lumina_kernel
from lumina_onnx import _tiles
from lumina_onnx._histogram import Histogram, Method, check_method, full_scales
from lumina_onnx._reference_quantizer import largest_code
from lumina_onnx._text import output_text, range_text
from lumina_onnx.nn import _dispatch, _kernel, _scope
from lumina_onnx.nn._modes import evaluating, uncompiled
from lumina_onnx.nn._parameters import quiet
from lumina_onnx.nn._ranks import Together, described
from lumina_onnx.nn._table import table
from lumina_onnx.nn.linear import OpticalLayer, optical_layers
from lumina_onnx.profile import OpticalProfile


@dataclass(frozen=True)
class LayerCalibration:
    """What calibration found for one layer."""

    name: str
    """The layer's name in the model."""
    input_range: float
    """DAC full scale; 0 (dynamic) where there is no DAC or nothing to go by."""
    output_range: float | tuple[float, ...]
    """ADC full scale, or one for each output; 0 (dynamic) where nothing reads one or there was nothing to go by."""
    input_clipped: float
    """Fraction of the inputs seen that lie beyond `input_range`."""
    output_clipped: float
    """Fraction of the clean outputs seen that lie beyond `output_range`."""
    values: int
    """How many inputs were seen; 0 where the layer was never called."""
    note: str
    """What the user should know; empty where all went as asked."""
    output_bound: float = 0.0
    """ADC full scale in products of two full-scale operands, where the profile has one; then `output_range` is 0."""


@dataclass(frozen=True)
class CalibrationReport:
    """The ranges that :func:`calibrate` set. ``print(report)`` shows a table."""

    method: str
    layers: tuple[LayerCalibration, ...]

    def __str__(self) -> str:
        header = ("layer", "input range", "clipped", "output range", "clipped", "values", "note")
        rows = [
            (
                layer.name or "(model)",
                range_text(layer.input_range),
                f"{layer.input_clipped:.3%}",
                output_text(layer),
                f"{layer.output_clipped:.3%}",
                layer.values,
                layer.note,
            )
            for layer in self.layers
        ]
        return table(header, rows)


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    method: Method = "max",
    percentile: float = 99.9,
    per_output: bool = False,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    progress: bool = True,
    group: Any = None,
) -> CalibrationReport:
    """Gives every optical layer of `model` static input and output ranges, from the signals that `batches` cause.

    The model runs in ``eval()`` and without gradients, its layers without noise and with dynamic ranges; afterwards
    each module's mode is restored. A compiled model runs its original code meanwhile. Only the calls that this thread
    and context makes are observed, so several threads can calibrate one model: each sees its own data, and the last
    to finish sets the ranges. Existing ranges are replaced. What is observed:

    - for `input_range`, |x| as it enters the layer. A layer without a DAC (input_bits 0) gets none.
    - for `output_range`, |z|: the clean analog output before noise and ADC, with the bias only where it is analog.
      A layer gets one range for all outputs, or with `per_output` one for each, and none where nothing reads it
      (output_bits 0 and neither additive nor shot noise).

      Where rows are split (``tile_features``), z is that of each tile, added up in float32.
    - for ``output_bound``, where the profile has one: the same in units of the full scales of input and weights. The
      layer keeps one number for all outputs, and no ``output_range``.

    The noise adds to z before the ADC, but "max" and "percentile" leave no headroom for it: additive and shot noise
    scale with the range, so a wider range also makes more noise. "mse" weighs this exactly.

    If a ``torch.distributed`` process group is initialised, all of its processes must call this, each with the same
    model and its own batches (a part of the data, or none at all). Each gets the ranges of all batches together, bit
    for bit those that a single process would find. A model in ``DistributedDataParallel`` is called without that
    wrapper, so that the processes may have different numbers of batches.

    Args:
        model: with optical layers.
        batches: an iterable, such as a DataLoader. The model gets a tensor as it is, the first element of a tuple or
            list (the rest being labels, as in :func:`torch.optim.swa_utils.update_bn`), and a mapping as keyword
            arguments.
        method: "max": the largest magnitude seen. "percentile": the magnitude that `percentile` % of the values do
            not exceed, to within 0.4 %. "mse": the range with the least mean squared error of the
            quantised signal (a search over clipping ranges; for the output, of the noisy and quantised z against the
            clean one, at the layer's own noise). A layer without an ADC takes the maximum instead.
        percentile: for method "percentile", above 0 and at most 100.
        per_output: whether each output gets an ADC range of its own, as an amplifier in front of each ADC can be set.
            One output that reaches much further than the others then coarsens no step but its own. Within 3 % (in
            place of 0.4 %) for "percentile", and a coarser search for "mse".
        forward: called as ``forward(model, batch)`` for each batch, for models that are called in another way.
        progress: whether to show a progress bar; of several processes only the first shows one.
        group: the processes that calibrate together, a ``torch.distributed`` process group. None: the default one,
            where it is initialised. False: this process alone.

    Returns:
        The ranges set, and how much they clip; ``print`` shows a table. A layer that was never called keeps its
        ranges; the report notes it, and a warning names it.

    Raises:
        ValueError: no optical layer, no batch, an unknown method, a signal that is not finite (the message names the
            layer), or a model or method that differs between processes.
        RuntimeError: another process has failed.
        TypeError: `group` is not a process group.
    """
    together = Together(group)
    with together.telling():
        check_method(method, percentile)
        layers = optical_layers(model)
        if not layers:
            raise ValueError("model has no OpticalLinear: convert it first with lumina_onnx.nn.convert")
        called = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        observers = {layer: Observer(layer.out_features if per_output else None) for _, layer in layers}
        count = _observe(called, observers, batches, forward or _forward, progress and together.rank == 0)
        alike: list[tuple[str, object]] = [("method", method), ("percentile", percentile), ("per_output", per_output)]
        alike += described(layers) if together.size > 1 else ()
    histograms = [signal for _, layer in layers for signal in (observers[layer].inputs, observers[layer].outputs)]
    if not together.merge(alike, histograms, count):
        raise ValueError("batches is empty: allowed is at least one batch")
    rows = tuple(_set_ranges(name, layer, observers[layer], method, percentile / 100) for name, layer in layers)
    idle = [row.name for row in rows if not row.values]
    if idle:
        warnings.warn(
            f"calibrate: never called, so left with the ranges they had: {', '.join(map(repr, idle))}", stacklevel=2
        )
    return CalibrationReport(method, rows)


class Observer:
    """Runs a layer without noise and with dynamic ranges, and gathers what its converters see."""

    def __init__(self, outputs: int | None = None) -> None:
        """`outputs`: those of the layer, if they are counted apart."""
        self.inputs = Histogram()
        self.outputs = Histogram(outputs)

    def forward(
        self, layer: OpticalLayer, x: Tensor, weight: Tensor, bias: Tensor | None, call: _dispatch.Call
    ) -> Tensor:
        """Implements :class:`.linear.Substitute`, without noise; counts the layer's input and analog output."""
        dynamic = quiet(layer.profile).replace(input_range=0.0, output_range=0.0)
        analog = dynamic.replace(output_bits=0)
        early = bias if layer.profile.bias_stage == "analog" else None
        x = _dispatch.autocast(x)
        self._count("input", x, self.inputs, layer)
        for z in _outputs(x, weight, early, analog, layer.label):
            self._count("output", z, self.outputs, layer)
        return _dispatch.run_checked(x, weight, bias, _dispatch.Call(dynamic, 0, 0, layer.label))

    @staticmethod
    def _count(what: str, signal: Tensor, histogram: Histogram, layer: OpticalLayer) -> None:
        values = _kernel.view(signal)
        if not np.isfinite(values).all():
            raise ValueError(f"calibrate: the {what} of {layer.label} holds a value that is not finite")
        histogram.add(values)


def _outputs(x: Tensor, weight: Tensor, bias: Tensor | None, profile: OpticalProfile, label: str) -> Iterator[Tensor]:
    """What the ADC sees: z of the row, or of each tile; in units of the weights' full scale where it is bounded."""
    if not _tiles.is_apart(profile.tile_features, profile.output_bound, x.shape[-1]):
        yield _dispatch.run_checked(x, weight, bias, _dispatch.Call(profile, 0, 0, label))
        return
    values, full_scale = _kernel.view(weight), None
    codes = (values, np.ones(len(values), np.float32))
    if profile.weight_bits:
        codes = lumina_kernel.quantize_weight(values, profile.weight_bits)
    if profile.output_bound:
        full_scale = profile.weight_levels or largest_code(profile.weight_bits)
    early = None if bias is None else _kernel.view(bias)
    for z in _tiles.outputs(_kernel.view(x), codes, early, profile.input_bits, profile.tile_features, full_scale):
        yield torch.from_numpy(z)


def _forward(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)


def _observe(
    model: nn.Module,
    observers: Mapping[OpticalLayer, Observer],
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any],
    progress: bool,
) -> int:
    """Runs the model on the batches under the layers' observers; returns how many batches there were."""
    substitutes = {layer._identity.number: observer for layer, observer in observers.items()}
    observed = _scope.Block(_scope.SUBSTITUTE, substitutes)
    total = len(batches) if isinstance(batches, Sized) else None
    count = 0
    with observed, evaluating(model), uncompiled(), torch.no_grad():
        for batch in track(batches, description="calibrate", total=total, disable=not progress):
            forward(model, batch)
            count += 1
    return count


def _set_ranges(
    name: str, layer: OpticalLayer, observer: Observer, method: Method, fraction: float
) -> LayerCalibration:
    profile = layer.profile
    inputs, outputs = observer.inputs, observer.outputs
    if not inputs.count:
        return LayerCalibration(name, profile.input_range, profile.output_range, 0.0, 0.0, 0, "never called")
    bits = (profile.input_bits, profile.output_bits)
    noise = (profile.noise_relative, profile.noise_additive, profile.noise_shot)
    scales = full_scales((inputs, outputs), bits, noise, method, fraction)
    input_range, output_range = scales.input_range, scales.output_range
    notes, bound = list(scales.notes), profile.output_bound
    clipped = outputs.fraction_above(np.array(output_range)) if output_range else 0.0
    if bound:
        # What was observed is in units of the weights' full scale.
        bound, note = _tiles.bound(scales, bound)
        notes += [note] if note else []
        output_range = 0.0
    layer.profile = profile.replace(input_range=input_range, output_range=output_range, output_bound=bound)
    return LayerCalibration(
        name,
        input_range,
        output_range,
        inputs.fraction_above(input_range) if input_range else 0.0,
        clipped,
        inputs.count,
        "; ".join(notes),
        bound,
    )
