"""The torch operators beneath :mod:`lumina_onnx.nn`: thin covers of `lumina_kernel`.

- ``lumina::optical_linear``: the forward pass alone, for inference and export.
- ``lumina::optical_linear_train``: the forward pass that also returns what its gradient needs.
- ``lumina::optical_linear_backward``: the straight-through gradient.
- ``lumina::draw_stream``: a fresh noise stream from torch's generator. It mutates a counter, so that
  torch.compile keeps two noisy calls on the same input apart.

Going through torch's operator registry costs some 100 us a call in Python. A plain eager call, which nothing traces,
compiles or transforms (:func:`is_plain`), runs the same functions without it: :func:`forward_now`, and
:class:`TrainNow` under autograd.

Every tensor is allocated by torch; the kernel reads and writes numpy views of them.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import lumina_kernel

#: The layer's parameters as they stand in every operator's signature, in this order.
PARAMETERS = (
    "input_bits",
    "weight_bits",
    "output_bits",
    "input_range",
    "output_range",
    "noise_relative",
    "noise_additive",
    "noise_shot",
    "bias_stage",
)
_PARAMETERS_SCHEMA = (
    "int input_bits, int weight_bits, int output_bits, float input_range, float[] output_range, "
    "float noise_relative, float noise_additive, float noise_shot, str bias_stage"
)
#: Streams are 63-bit.
STREAMS = 2**63


@functools.lru_cache(maxsize=1024)
def _cached_params(*values: Any) -> lumina_kernel.Params:
    return lumina_kernel.Params(**dict(zip(PARAMETERS, values, strict=True)))


def params_of(parameters: Sequence[Any]) -> lumina_kernel.Params:
    """The kernel's checked parameters from the values of :data:`PARAMETERS`."""
    return _cached_params(*(tuple(value) if isinstance(value, list) else value for value in parameters))


def follow_torch_threads() -> None:
    """Makes the kernel use as many threads as torch does."""
    threads = torch.get_num_threads()
    if lumina_kernel.num_threads() != threads:
        lumina_kernel.set_num_threads(threads)


def view(tensor: Tensor) -> np.ndarray:
    """The memory of a CPU tensor as a C-ordered array (a copy only where the tensor is not contiguous)."""
    array: np.ndarray = tensor.detach().contiguous().resolve_neg().numpy()
    return array


def _rows(x: Tensor) -> int:
    return math.prod(x.shape[:-1])


def _code_dtype(bits: int) -> torch.dtype:
    return torch.int8 if bits <= 8 else torch.int16


def named(error: ValueError, layer: str) -> ValueError:
    """`error`, saying which layer it is about."""
    return ValueError(f"{layer}: {error}") if layer else error


def forward_now(
    x: Tensor, weight: Tensor, bias: Tensor | None, stream: int, seed: int, parameters: Sequence[Any]
) -> Tensor:
    """The forward pass alone."""
    y = x.new_empty((*x.shape[:-1], weight.shape[0]))
    follow_torch_threads()
    layer = lumina_kernel.PreparedLayer(params_of(parameters), view(weight), None if bias is None else view(bias))
    layer.forward(view(x), seed, stream, out=y.numpy())
    return y


@torch.library.custom_op(
    "lumina::optical_linear",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor x, Tensor weight, Tensor? bias, Tensor stream, int seed, {_PARAMETERS_SCHEMA}) -> Tensor",
)
def optical_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, stream: Tensor, seed: int, *parameters: Any
) -> Tensor:
    return forward_now(x, weight, bias, int(stream), seed, parameters)


@optical_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, stream: Tensor, seed: int, *parameters: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _inference_only(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError(
        "torch.ops.lumina.optical_linear is the operator for inference and export: it keeps nothing for a "
        "gradient. Call lumina_onnx.nn.functional.optical_linear instead."
    )


optical_linear.register_autograd(_inference_only)


def _train_outputs(x: Tensor, weight: Tensor, parameters: Sequence[Any]) -> tuple[Tensor, ...]:
    """Empty tensors: y, x_codes, x_step, w_codes, w_scale, adc_mask, dac_mask (of 0 elements where not needed)."""
    input_bits, weight_bits, output_bits, input_range, output_range = parameters[:5]
    m, k, n = _rows(x), weight.shape[1], weight.shape[0]

    def empty(needed: bool, rows: Any, columns: int, dtype: torch.dtype) -> Tensor:
        return x.new_empty((rows, columns) if needed else (0, 0), dtype=dtype)

    stride, mask_stride = lumina_kernel.code_stride, lumina_kernel.mask_stride
    adc_saturates = output_bits > 0 and list(output_range) != [0.0]
    dac_saturates = input_bits > 0 and input_range > 0.0
    return (
        x.new_empty((*x.shape[:-1], n)),
        empty(input_bits > 0, m, stride(k), _code_dtype(input_bits)),
        x.new_empty((m,)),
        empty(weight_bits > 0, n, stride(k), _code_dtype(weight_bits)),
        x.new_empty((n,)),
        empty(adc_saturates, m, mask_stride(n), torch.uint8),
        empty(dac_saturates, m, mask_stride(k), torch.uint8),
    )


def _present(tensor: Tensor) -> np.ndarray | None:
    """The memory of an output that is needed; needed ones have columns, whatever the number of rows."""
    return tensor.numpy() if tensor.shape[1] else None


def train_now(
    x: Tensor, weight: Tensor, bias: Tensor | None, stream: int, layer: str, seed: int, parameters: Sequence[Any]
) -> tuple[Tensor, ...]:
    """The forward pass and what its gradient needs, as :func:`_train_outputs` lists it."""
    outputs = _train_outputs(x, weight, parameters)
    y, x_codes, x_step, w_codes, w_scale, adc_mask, dac_mask = outputs
    rows, k = _rows(x), weight.shape[1]
    follow_torch_threads()
    try:
        lumina_kernel.forward_train(
            params_of(parameters),
            view(x).reshape(rows, k),
            view(weight),
            None if bias is None else view(bias),
            seed,
            stream,
            y.numpy().reshape(rows, weight.shape[0]),
            _present(x_codes),
            x_step.numpy(),
            _present(w_codes),
            w_scale.numpy(),
            _present(adc_mask),
            _present(dac_mask),
        )
    except ValueError as error:
        raise named(error, layer) from None
    return outputs


@torch.library.custom_op(
    "lumina::optical_linear_train",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor x, Tensor weight, Tensor? bias, Tensor stream, str layer, int seed, {_PARAMETERS_SCHEMA}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def optical_linear_train(
    x: Tensor, weight: Tensor, bias: Tensor | None, stream: Tensor, layer: str, seed: int, *parameters: Any
) -> tuple[Tensor, ...]:
    return train_now(x, weight, bias, int(stream), layer, seed, parameters)


@optical_linear_train.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, stream: Tensor, layer: str, seed: int, *parameters: Any
) -> tuple[Tensor, ...]:
    return _train_outputs(x, weight, parameters)


def gradient_precision() -> Literal["highest", "high", "medium"]:
    """The precision that torch asks of float32 products on a CPU at this moment.

    ``torch.set_float32_matmul_precision`` sets it, and so does ``torch.backends``: then the former's getter raises.
    """
    asked: str = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return "medium" if asked == "bf16" else "high" if asked == "tf32" else "highest"


def backward_now(
    grad: Tensor,
    saved: Sequence[Tensor],
    k: int,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
    parameters: Sequence[Any],
) -> tuple[Tensor, ...]:
    """The gradients of x, weight and bias (of 0 elements where not needed), from what :func:`_saved` chose."""
    x, x_step, weight, w_scale, adc_mask, dac_mask = saved
    outputs = _gradients(grad, w_scale, k, need_x, need_weight, need_bias)
    dx, dw, db = outputs
    rows, n = _rows(grad), w_scale.shape[0]
    follow_torch_threads()
    lumina_kernel.backward(
        params_of(parameters),
        view(grad).reshape(rows, n),
        view(x).reshape(rows, -1) if rows else view(x).reshape(0, x.shape[-1]),
        view(x_step),
        view(weight),
        view(w_scale),
        _present(adc_mask),
        _present(dac_mask),
        k,
        dx.numpy().reshape(rows, k) if need_x else None,
        dw.numpy() if need_weight else None,
        db.numpy() if need_bias else None,
        gradient_precision(),
    )
    return tuple(outputs)


@torch.library.custom_op(
    "lumina::optical_linear_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor grad, Tensor x, Tensor x_step, Tensor weight, Tensor w_scale, Tensor adc_mask, Tensor dac_mask, "
    f"int k, bool need_x, bool need_weight, bool need_bias, {_PARAMETERS_SCHEMA}) -> (Tensor, Tensor, Tensor)",
)
def optical_linear_backward(
    grad: Tensor,
    x: Tensor,
    x_step: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    adc_mask: Tensor,
    dac_mask: Tensor,
    k: int,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
    *parameters: Any,
) -> tuple[Tensor, ...]:
    saved = (x, x_step, weight, w_scale, adc_mask, dac_mask)
    return backward_now(grad, saved, k, need_x, need_weight, need_bias, parameters)


def _gradients(grad: Tensor, w_scale: Tensor, k: int, need_x: bool, need_weight: bool, need_bias: bool) -> Any:
    n = w_scale.shape[0]
    return (
        grad.new_empty((*grad.shape[:-1], k) if need_x else (0,)),
        grad.new_empty((n, k) if need_weight else (0,)),
        grad.new_empty((n,) if need_bias else (0,)),
    )


@optical_linear_backward.register_fake
def _(grad: Tensor, x: Tensor, x_step: Tensor, weight: Tensor, w_scale: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _gradients(grad, w_scale, *rest[2:6])


_NO_SECOND_DERIVATIVE = (
    "optical_linear has no second derivative: its gradient is a straight-through estimate, which is not the "
    "derivative of anything. Differentiate once, without create_graph=True."
)


def _second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError(_NO_SECOND_DERIVATIVE)


optical_linear_backward.register_autograd(_second_derivative)


def _saved(x: Tensor, weight: Tensor, outputs: Sequence[Tensor], parameters: Sequence[Any]) -> tuple[Tensor, ...]:
    """What :func:`backward_now` reads: codes where there are, else the analog values."""
    _y, x_codes, x_step, w_codes, w_scale, adc_mask, dac_mask = outputs
    input_bits, weight_bits = parameters[:2]
    return (x_codes if input_bits else x, x_step, w_codes if weight_bits else weight, w_scale, adc_mask, dac_mask)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _stream, _layer, _seed, *parameters = inputs
    # x_step and w_scale keep the history that makes a second derivative reach _second_derivative.
    _keep(ctx, x, weight, bias, output, parameters)


def _keep(
    ctx: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    outputs: Sequence[Tensor],
    parameters: Sequence[Any],
) -> None:
    """Leaves with `ctx` what the gradient is computed from."""
    ctx.set_materialize_grads(False)
    ctx.k = weight.shape[1]
    ctx.has_bias = bias is not None
    ctx.parameters = parameters
    ctx.save_for_backward(*_saved(x, weight, outputs, parameters))


def _needs(ctx: Any) -> tuple[bool, bool, bool]:
    need_x, need_weight, need_bias = (bool(need) for need in ctx.needs_input_grad[:3])
    return need_x, need_weight, need_bias and ctx.has_bias


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    nothing: tuple[None, ...] = (None,) * (3 + len(PARAMETERS))
    if grad is None:
        return (None, None, None, *nothing)
    needs = _needs(ctx)
    gradients = optical_linear_backward(grad, *ctx.saved_tensors, ctx.k, *needs, *ctx.parameters)
    return (*(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)), *nothing)


optical_linear_train.register_autograd(_backward, setup_context=_setup_context)


class TrainNow(torch.autograd.Function):
    """The forward pass and its gradient in a plain eager call."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stream: int,
        layer: str,
        seed: int,
        parameters: Sequence[Any],
    ) -> Tensor:
        outputs = train_now(x, weight, bias, stream, layer, seed, parameters)
        _keep(ctx, x, weight, bias, outputs, parameters)
        return outputs[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 7
        needs = _needs(ctx)
        with torch.no_grad():
            gradients = backward_now(grad, ctx.saved_tensors, ctx.k, *needs, ctx.parameters)
        if torch.is_grad_enabled():
            # create_graph: a gradient that requires one itself, and says why it has none when it is asked.
            fail = torch._C._functions.DelayedError(_NO_SECOND_DERIVATIVE.encode(), len(gradients))
            gradients = fail(*(gradient.detach().requires_grad_() for gradient in gradients))
        return (*(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)), *(None,) * 4)


_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def is_plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether nothing watches this call: no tracing, compiling, dispatch mode, torch.func transform or subclass."""
    return (
        type(x) in _PLAIN_TYPES
        and type(weight) in _PLAIN_TYPES
        and (bias is None or type(bias) in _PLAIN_TYPES)
        and x.device.type == weight.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.maybe_current_level() is None
        and not torch._C._functorch.is_batchedtensor(x)
        and torch.autograd.forward_ad._current_level < 0
    )


def draw_now() -> int:
    """A fresh noise stream from torch's generator: the one that :func:`draw_stream` would draw."""
    return int(torch.randint(0, STREAMS - 1, (), dtype=torch.int64, device="cpu"))


@torch.library.custom_op(
    "lumina::draw_stream", mutates_args=("state",), schema="(Tensor(a!) state) -> Tensor", device_types="cpu"
)
def draw_stream(state: Tensor) -> Tensor:
    state.add_(1)
    return torch.randint(0, STREAMS - 1, (), dtype=torch.int64, device=state.device)


@draw_stream.register_fake
def _(state: Tensor) -> Tensor:
    return state.new_empty((), dtype=torch.int64)
