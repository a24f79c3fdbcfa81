"""Which way a call takes: straight to the kernel, or through torch's operator registry.

Going through the registry costs some 30 us more per call. A plain eager call, one that nothing traces, compiles
or transforms (:func:`is_plain`), runs the kernel without it (:func:`run_plain`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, is_grad_enabled
from torch.autograd import forward_ad
from torch.compiler import is_compiling, is_dynamo_compiling

import lumina_kernel
from lumina_onnx.nn import (
    _autograd,
    _checks,
    _fx,
    _gradient_bits,
    _kernel,
    _parameters,
    _scope,
    _streams,
    _torch_state,
)
from lumina_onnx.nn._kernel import are_call
from lumina_onnx.nn._torch_state import count_dispatch_modes, current_transform, is_exporting, tracing_state
from lumina_onnx.profile import OpticalProfile

# ``apply`` without its search for torch.func's wrappers, which takes longer than the rest of it and repeats what
# is_plain has done.
_train: Callable[..., Tensor] = super(torch.autograd.Function, _autograd.TrainNow).apply
_train_under_noise: Callable[..., Tensor] = super(torch.autograd.Function, _autograd.TrainUnderNoise).apply


class Call(NamedTuple):
    """A call of the operator, apart from its tensors.

    Attributes:
        profile: bits, ranges and noise.
        seed: the noise's key.
        stream: the draw under that key; None: a fresh one where the profile has noise.
        layer: the layer's name in error messages, empty if there is no layer.
        bits: those of the gradient's products, from :func:`._gradient_bits.of_call`.
        fixed: whether a block around the call sets its noise.
    """

    profile: OpticalProfile
    seed: int
    stream: int | Tensor | None
    layer: str
    bits: int | None = None
    fixed: bool = False


def is_plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a call can go straight to the kernel. Not for use in code that Dynamo traces, where no call can.

    A call can if nothing intercepts it (no tracing, compiling, dispatch mode, torch.func transform, forward mode or
    subclass) and its tensors are of the kind that the kernel takes. All other calls go through the checks, which say
    what is wrong with them.
    """
    return (
        not torch.compiler._is_compiling_flag  # set while exporting too
        and are_call(x, weight, bias)
        and tracing_state() is None
        and count_dispatch_modes() == 0
        and current_transform() is None
        and forward_ad._current_level < 0
    )


def run_plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    profile: OpticalProfile,
    seed: int,
    stream: int | Tensor | None,
    layer: str,
    bits: int | None,
    fixed: bool,
    prepared: lumina_kernel.PreparedLayer | None = None,
) -> Tensor:
    """Runs the operator on a call for which :func:`is_plain` is true.

    The arguments after the tensors are those of a :class:`Call`, one by one, since making one takes a microsecond.
    `prepared` holds the weights if they were prepared beforehand.
    """
    if type(profile) is not OpticalProfile:
        _checks.check_is_profile(profile)
    number = 0
    if stream is not None:
        number = _streams.number_of(stream)
    elif profile._has_noise:
        number = _streams.draw_now()
    try:
        if is_grad_enabled() and (weight.requires_grad or x.requires_grad or (bias is not None and bias.requires_grad)):
            train = _train_under_noise if fixed else _train
            return train(x, weight, bias, (profile._params, seed, number, prepared, bits))
        return _kernel.forward(x, weight, bias, profile._params, seed, number, prepared, None)[0]
    except ValueError as error:
        raise _checks.named(error, layer) from None


def run_checked(x: Tensor, weight: Tensor, bias: Tensor | None, call: Call) -> Tensor:
    """:func:`run_plain` for a call that is not plain, at least not before its tensors are cast."""
    if _fx.is_traced(x, weight, bias):
        return _fx.layer_node(x, call.layer)
    x, weight, bias = autocast(x), autocast(weight), None if bias is None else autocast(bias)
    _checks.check_call(x, weight, bias)
    if not is_dynamo_compiling() and is_plain(x, weight, bias):
        return run_plain(x, weight, bias, *call)
    return _run_registered(x, weight, bias, call)


def _run_registered(x: Tensor, weight: Tensor, bias: Tensor | None, call: Call) -> Tensor:
    """:func:`run_plain` through torch's operator registry, for tensors that have been checked."""
    profile, seed, stream, layer, bits, _ = call
    _checks.check_is_profile(profile)
    if (is_exporting() or not is_compiling()) and _scope.is_exported_by_others():
        raise RuntimeError(
            "torch.onnx.export does not know optical layers: call lumina_onnx.exporter.export(model, args, path)"
        )
    if is_exporting() or _torch_state.is_recorded():  # one program, with and without gradients
        key, (values, options) = _streams.tensor_of(profile, stream), _parameters.values_of(profile)
        options["gradient_bits"] = bits or 0
        return torch.ops.lumina.optical_linear(x, weight, bias, key, seed, *values, **options)
    if not is_compiling() and _torch_state.has_tangent(x, weight, bias):
        raise RuntimeError(_autograd.NO_FORWARD_MODE)
    key = _streams.tensor_of(profile, stream)
    own = (_torch_state.RELEASE, layer, seed, bits or 0, profile._text)
    if _torch_state.is_transformed() and not is_compiling():
        train: Any = _autograd.TrainTransformed.apply
        y: Tensor = train(x, weight, bias, key, None, *own)[0]
        return y
    if torch.is_grad_enabled() and _requires_gradient(weight, bias, x):
        return torch.ops.lumina.optical_linear_train(x, weight, bias, key, _gradient_bits.of_block(), *own)[0]
    values, options = _parameters.values_of(profile)
    if is_compiling() or not layer:
        return torch.ops.lumina.optical_linear(x, weight, bias, key, seed, *values, **options)
    try:
        return torch.ops.lumina.optical_linear(x, weight, bias, key, seed, *values, **options)
    except ValueError as error:
        raise _checks.named(error, layer) from None


def _requires_gradient(weight: Tensor, bias: Tensor | None, x: Tensor) -> bool:
    return weight.requires_grad or x.requires_grad or (bias is not None and bias.requires_grad)


def autocast(tensor: Tensor) -> Tensor:
    """The tensor, cast to float32 if it is narrower and autocast is on: the operator is one that needs float32."""
    small = isinstance(tensor, Tensor) and tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor.float() if small and torch.is_autocast_enabled("cpu") else tensor
