"""The optical linear operator as a differentiable function of torch tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from lumina_onnx.nn import _checks, _dispatch, _fx, _gradient_bits, _streams
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

    The gradient is as exact as ``torch.set_float32_matmul_precision`` asks at the time it is computed, unless the call
    is in a block of :func:`lumina_onnx.nn.gradient_bits`; the forward pass does not depend on either. An element of the
    gradient of x or weight is a sum of T products g * s * c of a gradient, a step and a code. ``"highest"``, torch's
    default, is float32. Otherwise g * s is rounded to a fixed point, whose full scale is the largest ``abs(g * s)`` of
    a block of terms: with 16 bits in blocks of 512 terms at ``"high"`` and ``"medium"``, which are the same here, and
    with 8 bits in blocks of 256 terms in ``gradient_bits(8)``. The sums of a block's products are then exact. So each
    has the same bits on every processor and for any number of threads. An element differs from the exact sum by at
    most ::

        float32    (T + 2) * 2**-23 * sum(abs(g * s * c)) + T * 2**-125 * (1 + max(abs(c)))
        in blocks  sum over blocks of max(abs(g * s)) * sum(abs(c)) / (2 * L - 1)
                   + (2 * B + 8) * 2**-24 * sum(abs(g * s * c)) + T * 2**-112 * (1 + max(abs(c)))

    where nothing overflows, with B blocks and L = 32639 for 16 bits, 127 for 8. Small terms beside a large one of the
    same block are therefore less exact than their own size would suggest. Where a side is analog or has codes of more
    than 8 bits, products with it are those of ``"highest"``, and so is the bias's gradient.

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
    call = _dispatch.Call(profile, seed, stream, "", _gradient_bits.of_call())
    if not is_dynamo_compiling() and _dispatch.is_plain(x, weight, bias):
        return _dispatch.run_plain(x, weight, bias, *call)
    if _fx.is_traced(x, weight, bias):
        return _fx.function_node(optical_linear, x, weight, bias, profile, seed=seed, stream=stream)
    return _dispatch.run_checked(x, weight, bias, call)
