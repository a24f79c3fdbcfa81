"""Context managers: `noise` and `frozen` over the optical layers of a model, `gradient_bits` over all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

import lumina_kernel
from lumina_onnx.nn import _checks, _dispatch, _fx, _gradient_bits, _kernel, _scope, _torch_state
from lumina_onnx.nn.linear import OpticalLayer, optical_layers
from lumina_onnx.profile import OpticalProfile


@contextlib.contextmanager
def noise(model: nn.Module, on: bool = False, *, stream: int | None = None) -> Iterator[None]:
    """Turns the noise of every optical layer in `model` off, or fixes its stream.

    ``with noise(model):`` evaluates the hardware without its noise (bits and ranges stay).
    ``with noise(model, True, stream=0):`` makes each call of a layer repeat the same draw, that of the layer's own
    seed and this stream. Use it to compare torch and ONNX Runtime with the noise on.
    ``with noise(model, True):`` inside another such block turns the noise on again.

    Blocks nest; leaving one, even by an exception, restores the previous settings. A block belongs to the thread and
    context (such as an asyncio task) that enters it: others that call the layers meanwhile have their own settings. A
    compiled graph looks the settings up when it runs. In eager mode ``torch.utils.checkpoint`` runs the forward pass
    again in ``backward()``, which therefore belongs inside the same block; if the noise differs, a checkpoint that is
    not reentrant raises.

    Raises:
        ValueError: a stream outside 0..2^63-1, or one given with the noise off, where nothing would read it.
    """
    if stream is not None:
        _checks.check_counter("stream", stream)
        if not on:
            raise ValueError(f"stream = {stream} would be ignored: with on False no noise is drawn")
    setting = (bool(on), stream)
    if not is_dynamo_compiling():
        with _scope.Block(_scope.NOISE, {layer._identity.number: setting for _, layer in optical_layers(model)}):
            yield
        return
    # A block inside a compiled function also ends inside it, so the layers are unchanged when the function runs.
    layers = [layer for _, layer in optical_layers(model)]
    before = [layer._noise_when_traced for layer in layers]
    try:
        for layer in layers:
            layer._noise_when_traced = setting
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer._noise_when_traced = value


@contextlib.contextmanager
def gradient_bits(bits: int | None) -> Iterator[None]:
    """Computes the gradients of the layers that are called in the block with products of 8 bits.

    ``with gradient_bits(8):`` around the forward pass is enough: the setting is kept with it for ``backward()``. With
    None, a gradient is as exact as ``torch.set_float32_matmul_precision`` asks when it is computed, as without a block.

    A block goes before a layer's own `gradient_bits`, and that before torch's setting; of several blocks, the innermost
    counts. Like those of `noise`, a block belongs to the thread and context that enters it, and a compiled graph looks
    it up when it runs. (The first block of a process makes ``torch.compile`` compile again.) It applies to every
    :class:`OpticalLinear` and to calls of :func:`lumina_onnx.nn.functional.optical_linear`, whose page says how exact
    such a gradient is.

    ``torch.utils.checkpoint`` with ``use_reentrant=True`` or around a compiled module reads the setting again when
    ``backward()`` repeats the forward pass; so do the branches of ``torch.cond`` and the bodies of torch's loops.
    There, call ``backward()`` inside the block as well, or set the layers' own.

    Args:
        bits: 8, or None.

    Raises:
        ValueError: another number.
        TypeError: another type.
    """
    _checks.check_gradient_bits(bits)
    traced = _gradient_bits.traced
    if not is_dynamo_compiling():
        traced.any_block = True
        with _scope.Block(_scope.GRADIENT_BITS, {_scope.EACH: bits}):
            yield
        return
    before = traced.bits  # as in `noise`, such a block also ends inside the function
    try:
        traced.bits = (bits,)
        yield
    finally:
        traced.bits = before


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Promises that the weights in `model` do not change inside the block: they are quantised and packed once.

    For evaluation over many batches, and for gradients accumulated over several: all passes share the packed weights.
    Results and gradients have the same bits as outside. The block belongs to the thread and context that enters it:
    other threads quantise in each call. Each layer's weight, bias and profile are watched: a forward pass after one of
    them changed (an optimiser's step, ``load_state_dict``, another tensor, another profile) raises. A change that torch
    itself does not count, such as one through ``weight.data.mul_`` or through numpy, goes unnoticed.

    A pass inside a ``torch.compile``d graph or a ``torch.func`` transform reads the current weights each time; so does
    a layer whose weight is computed in each call (a parametrisation). A copy of a model is not frozen.

    Blocks nest; leaving one, even by an exception, restores the previous state.

    Raises:
        ValueError: a weight or bias that is not finite; the message names the layer.
        RuntimeError: inside the block, at the forward pass of a layer that has changed.
    """
    layers = [layer for _, layer in optical_layers(model) if layer._stored() is not None]
    steps = register_optimizer_step_post_hook(_count_step)
    try:
        prepared = {layer._identity.number: Frozen(layer) for layer in layers if not _is_substituted(layer)}
        with _scope.Block(_scope.SUBSTITUTE, prepared):
            yield
    finally:
        steps.remove()


def _is_substituted(layer: OpticalLayer) -> bool:
    """Whether an enclosing block has already frozen the layer or observes it, and continues to do so."""
    return _scope.SUBSTITUTE in _scope.settings_of(layer._identity.number)


def _count_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Counts an optimiser's step as a change of its parameters: with ``fused=True`` torch itself does not."""
    for group in optimizer.param_groups:
        increment_version([parameter for parameter in group["params"] if parameter.grad is not None])


@dataclass(frozen=True)
class _Watched:
    """A tensor and its version when it was read."""

    name: str
    tensor: Tensor | None
    address: int = field(init=False)
    version: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", 0 if self.tensor is None else self.tensor.data_ptr())
        object.__setattr__(self, "version", 0 if self.tensor is None else self.tensor._version)

    def check(self, tensor: Tensor | None, layer: OpticalLayer) -> None:
        if tensor is not self.tensor:
            raise RuntimeError(f"{layer.label}: {self.name} was replaced inside frozen(): {_ADVICE}")
        if tensor is not None and (tensor._version != self.version or tensor.data_ptr() != self.address):
            raise RuntimeError(f"{layer.label}: {self.name} was changed in place inside frozen(): {_ADVICE}")


_ADVICE = "its weights were quantised when the block began; leave the block before they change"


class Frozen:
    """A layer's weights, prepared at most once with noise and once without, and a check that they still hold."""

    def __init__(self, layer: OpticalLayer) -> None:
        self._profile = layer.profile
        stored = layer._stored() or {}
        for name, tensor in stored.items():
            if tensor is not None and tensor.is_inference():
                raise ValueError(
                    f"{layer.label}: {name} was made under torch.inference_mode, so torch does not count its changes: "
                    "load or convert the model outside of it"
                )
        self._watched = tuple(_Watched(name, tensor) for name, tensor in stored.items())
        self._prepared: dict[bool, lumina_kernel.PreparedLayer] = {}  # with noise, and without
        self._prepare(layer, layer.profile if layer.noise_is_on else layer._quiet)

    def _prepare(self, layer: OpticalLayer, profile: OpticalProfile) -> lumina_kernel.PreparedLayer:
        prepared = self._prepared.get(profile._has_noise)
        if prepared is None:
            weight, bias = layer._operands()
            _checks.check_weight(weight, bias)
            try:
                prepared = _kernel.prepare(profile.params(), weight, bias)
            except ValueError as error:
                raise _checks.named(error, layer.label) from None
            self._prepared[profile._has_noise] = prepared
        return prepared

    def forward(
        self, layer: OpticalLayer, x: Tensor, weight: Tensor, bias: Tensor | None, call: _dispatch.Call
    ) -> Tensor:
        """Implements :class:`.linear.Substitute`."""
        plain = _dispatch.is_plain(x, weight, bias)
        # In a graph or transform, a tensor wraps a watched one or takes its place.
        if not plain and (is_compiling() or _torch_state.is_transformed() or _fx.is_traced(x)):
            return _dispatch.run_checked(x, weight, bias, call)
        stored = layer._stored() or {}
        for watched in self._watched:
            watched.check(stored.get(watched.name), layer)
        if layer._profile is not self._profile and layer._profile != self._profile:
            raise RuntimeError(f"{layer.label}: profile was changed inside frozen(): leave the block before it changes")
        if not plain:
            x = _dispatch.autocast(x)
            if not _dispatch.is_plain(x, weight, bias):
                return _dispatch.run_checked(x, weight, bias, call)
        return _dispatch.run_plain(x, weight, bias, *call, self._prepare(layer, call.profile))
