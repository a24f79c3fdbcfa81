"""The optical linear operator as a differentiable function of torch tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from lumina_onnx.nn import _checks, _dispatch, _fx, _streams
from lumina_onnx.profile import OpticalProfile

__all__ = ["optical_linear"]


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
    through the quantisers otherwise, and treats the noise as a constant. There is no second derivative: asking for one
    raises.

    The gradient is as exact as ``torch.set_float32_matmul_precision`` asks at the time it is computed; the forward pass
    does not depend on that setting. ``"highest"``, torch's default, is float32 with the reference's bits. ``"high"`` is
    the same here. ``"medium"`` rounds the scaled output gradient to bfloat16 where that is faster (on AMD processors
    from Zen 5 on, with codes of up to 8 bits), and is ``"highest"`` elsewhere. An element of the gradient of x or
    weight is a sum of T products of a gradient g, a step s and a code c (a value, where that side is analog). It
    differs from the exact sum by at most ::

        (r + (T + 2) * 2**-23) * sum(abs(g * s * c)) + T * 2**-125 * (1 + max(abs(c)))

    where nothing overflows, with r = 0 at ``"highest"``, 2**-16 at ``"high"`` and 2**-8 at ``"medium"``. The bias's
    gradient does not depend on the precision.

    Under ``torch.autocast("cpu")``, bfloat16 and float16 tensors are cast to float32, since the operator computes and
    returns float32. Otherwise such tensors are refused.

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
    _checks.check_counter("seed", seed)
    if isinstance(stream, Tensor) and stream.dtype == torch.int64:
        # The number that stands for no noise is internal: from a user it is refused like any other negative number.
        stream = stream.clamp(min=_streams.NO_NOISE + 1)
    if not is_dynamo_compiling() and _dispatch.is_plain(x, weight, bias):
        return _dispatch.run_plain(x, weight, bias, profile, seed, stream, "")
    if _fx.is_traced(x, weight, bias):
        return _fx.function_node(optical_linear, x, weight, bias, profile, seed=seed, stream=stream)
    return _dispatch.run_checked(x, weight, bias, profile, seed, stream, "")
