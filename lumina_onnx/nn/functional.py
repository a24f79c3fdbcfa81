"""The optical linear operator as a differentiable function of torch tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._guards import active_fake_mode

import lumina_kernel
from lumina_onnx.nn import _checks, _fx, _ops, _scope, _streams
from lumina_onnx.profile import OpticalProfile


def optical_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    profile: OpticalProfile,
    *,
    seed: int = 0,
    stream: int | Tensor | None = None,
) -> Tensor:
    """``ADC(DAC(x) @ weight.T + bias + noise)``, with a straight-through gradient.

    The forward pass equals :func:`lumina_onnx.reference.optical_linear` bit for bit. The gradient is that of the
    same linear map with its quantised operands: it is 0 where a DAC or ADC with a static range saturated, passes
    the quantisers otherwise, and takes the noise for a constant. There is no second derivative: asking for one raises.

    The gradient is as exact as ``torch.set_float32_matmul_precision`` asks when it is computed; the forward pass does
    not depend on it. ``"highest"``, torch's default, is float32 with the reference's bits. ``"high"`` is the same here.
    ``"medium"`` rounds the scaled output gradient to bfloat16 where that is faster (on AMD processors from Zen 5 on,
    with codes of up to 8 bits), and is ``"highest"`` elsewhere. An element of the gradient of x or weight is a sum of T
    products of a gradient g, a step s and a code c (a value, where that side is analog). It is off the exact sum by at
    most ::

        (r + (T + 2) * 2**-23) * sum(abs(g * s * c)) + T * 2**-125 * (1 + max(abs(c)))

    where nothing overflows, with r = 0 at ``"highest"``, 2**-16 at ``"high"`` and 2**-8 at ``"medium"``. The bias's
    gradient does not depend on the precision.

    Under ``torch.autocast("cpu")`` tensors of bfloat16 or float16 are cast to float32: the operator is one of those
    that compute, and return, float32. Elsewhere such tensors are refused.

    Args:
        x: float32 ``[..., K]`` or ``[K]``, on the CPU. Made contiguous where it is not.
        weight: float32 ``[N, K]``, finite.
        bias: float32 ``[N]``, finite, or None.
        profile: bits, ranges and noise of the hardware.
        seed: the noise's key, 0..2^63-1. Give each layer its own, so that no two share their noise.
        stream: the draw under that key, 0..2^63-1 (or an int64 tensor of one element): the same seed and stream
            repeat the same noise. None draws one from torch's generator where the profile has noise, so that
            :func:`torch.manual_seed` reproduces a run.

    Returns:
        float32 ``[..., N]``.

    Raises:
        TypeError: an argument of another type, dtype, layout or device.
        ValueError: shapes that do not fit, a value out of its bounds, a weight or bias that is not finite.
    """
    check_counter("seed", seed)
    if isinstance(stream, Tensor) and stream.dtype == torch.int64:
        # What stands for no noise is the package's own: of a user it is a negative number like others, and refused.
        stream = stream.clamp(min=_streams.NO_NOISE + 1)
    return apply(x, weight, bias, profile, seed, stream, "")


def apply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    profile: OpticalProfile,
    seed: int,
    stream: int | Tensor | None,
    layer: str,
    fixed: bool = False,
) -> Tensor:
    """:func:`optical_linear`; `layer` is named in errors about the weights, `fixed` whether a block sets the noise."""
    if not _ops.is_plain(x, weight, bias):
        if _fx.is_traced(x, weight, bias):
            if layer:
                return _fx.layer_node(x, layer)
            return _fx.function_node(optical_linear, x, weight, bias, profile, seed=seed, stream=stream)
        x, weight, bias = autocast(x), autocast(weight), None if bias is None else autocast(bias)
        _checks.check_call(x, weight, bias)
        if not _ops.is_plain(x, weight, bias):
            return apply_registered(x, weight, bias, profile, seed, stream, layer)
    return apply_now(x, weight, bias, profile, seed, stream, layer, fixed)


def apply_now(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    profile: OpticalProfile,
    seed: int,
    stream: int | Tensor | None,
    layer: str,
    fixed: bool,
    prepared: lumina_kernel.PreparedLayer | None = None,
) -> Tensor:
    """:func:`apply` where :func:`_ops.is_plain` holds; `prepared` are the weights, where that was done before."""
    check_is_profile(profile)
    params = profile.params()
    number = stream_number(profile, stream)
    try:
        if records_gradient(weight, bias, x):
            train = _ops.apply_train_under_noise if fixed else _ops.apply_train_now
            return train(x, weight, bias, (params, seed, number, prepared))
        return _ops.forward_now(x, weight, bias, params, seed, number, prepared, None)[0]
    except ValueError as error:
        raise _ops.named(error, layer) from None


def apply_registered(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    profile: OpticalProfile,
    seed: int,
    stream: int | Tensor | None,
    layer: str,
) -> Tensor:
    """:func:`apply` through torch's operator registry, for tensors that were checked."""
    check_is_profile(profile)
    if (torch.compiler.is_exporting() or not torch.compiler.is_compiling()) and _scope.is_exported_by_others():
        raise RuntimeError(
            "torch.onnx.export does not know optical layers: call lumina_onnx.exporter.export(model, args, path)"
        )
    parameters = _ops.parameters_of(profile)
    if torch.compiler.is_exporting() or _ops.is_recorded():  # one program, with and without gradients
        return torch.ops.lumina.optical_linear(x, weight, bias, stream_tensor(profile, stream), seed, *parameters)
    if not torch.compiler.is_compiling() and _ops.has_tangent(x, weight, bias):
        raise RuntimeError(_ops.NO_FORWARD_MODE)
    key = stream_tensor(profile, stream)
    if _ops.is_transformed() and not torch.compiler.is_compiling():
        train: Any = _ops.TrainTransformed.apply
        y: Tensor = train(x, weight, bias, key, _ops.RELEASE, layer, seed, *parameters)[0]
        return y
    if records_gradient(weight, bias, x):
        return torch.ops.lumina.optical_linear_train(x, weight, bias, key, _ops.RELEASE, layer, seed, *parameters)[0]
    if torch.compiler.is_compiling() or not layer:
        return torch.ops.lumina.optical_linear(x, weight, bias, key, seed, *parameters)
    try:
        return torch.ops.lumina.optical_linear(x, weight, bias, key, seed, *parameters)
    except ValueError as error:
        raise _ops.named(error, layer) from None


def check_profile(profile: OpticalProfile, n: int) -> None:
    """Refuses a profile that does not fit a layer of n outputs."""
    check_is_profile(profile)
    ranges = profile.output_range
    if isinstance(ranges, tuple) and len(ranges) not in (1, n):
        raise ValueError(
            f"profile.output_range has {len(ranges)} elements: allowed is 1, or one for each of the N = {n} outputs"
        )


def check_is_profile(profile: object, name: str = "profile") -> None:
    """Refuses what is no OpticalProfile."""
    if not isinstance(profile, OpticalProfile):
        raise TypeError(f"{name} is {type(profile).__name__}: allowed is a lumina_onnx.OpticalProfile")


def has_noise(profile: OpticalProfile) -> bool:
    """Whether the profile draws any noise."""
    return profile.noise_relative != 0 or profile.noise_additive != 0 or profile.noise_shot != 0


def has_noise_when_traced(profile: OpticalProfile) -> bool:
    """The same by :func:`_ops.parameters_of`, whose numbers Dynamo takes for constants."""
    return any(level != 0 for level in _ops.parameters_of(profile)[_ops.NOISE_LEVELS[0] : _ops.NOISE_LEVELS[-1] + 1])


def stream_number(profile: OpticalProfile, stream: int | Tensor | None) -> int:
    """The stream of a plain eager call, drawn where it is None and the profile has noise."""
    if stream is None:
        return _streams.draw_now() if has_noise(profile) else 0
    if isinstance(stream, Tensor):
        return int(stream_tensor(profile, stream))
    check_counter("stream", stream)
    return stream


def stream_tensor(profile: OpticalProfile, stream: int | Tensor | None) -> Tensor:
    """The stream as an int64 tensor of one element, drawn where it is None and the profile has noise."""
    if stream is None:
        if not has_noise_when_traced(profile) or (torch.compiler.is_exporting() and _scope.is_captured()):
            return torch.zeros((), dtype=torch.int64, device="cpu")
        if torch.compiler.is_exporting() or (not torch.compiler.is_compiling() and _is_drawn_by_torch()):
            return _streams.draw()  # an operator of torch's own, as vmap's `randomness` and a program in a file want it
        return _streams.of_layer()
    if isinstance(stream, Tensor):
        if stream.dtype != torch.int64 or stream.numel() != 1:
            raise TypeError(
                f"stream is a tensor of {stream.dtype} {list(stream.shape)}: allowed is an int, or an int64 tensor "
                "of one element"
            )
        return stream
    check_counter("stream", stream)
    return torch.tensor(stream, dtype=torch.int64, device="cpu")


def _is_drawn_by_torch() -> bool:
    # What draws for a layer mutates a real tensor, which is none for a mode that makes tensors fake.
    return _ops.is_transformed() or active_fake_mode() is not None


def check_counter(name: str, value: object) -> None:
    """Refuses a seed or stream that is no integer of 63 bits."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {type(value).__name__} {value!r}: allowed is an int, 0..2^63-1")
    if not 0 <= value < _streams.STREAMS:
        raise ValueError(f"{name} = {value}: allowed is 0..2^63-1")


def records_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for the gradient of a call on these tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def autocast(tensor: Tensor) -> Tensor:
    """The tensor in float32 where autocast made it smaller: the operator is one of those that need float32."""
    small = isinstance(tensor, Tensor) and tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor.float() if small and torch.is_autocast_enabled("cpu") else tensor
