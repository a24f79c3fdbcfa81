"""The straight-through gradient, for each way in which torch can ask for it.

- The gradients of the operators in :mod:`._operators` are registered here.
- :class:`TrainNow` serves plain eager calls, :class:`TrainUnderNoise` those inside a block that turns the noise off or
  fixes it.
- :class:`TrainTransformed` serves the transforms of torch.func, which an operator's autograd does not support.

There is no second derivative and no forward mode; asking for either raises an error that says so.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, is_grad_enabled

import lumina_kernel
from lumina_onnx.nn import _kernel, _registry, _torch_state
from lumina_onnx.nn._kernel import Kept
from lumina_onnx.nn._operators import optical_linear, optical_linear_backward, optical_linear_train
from lumina_onnx.nn._parameters import has_noise, params_in, params_of_call, text_of
from lumina_onnx.nn._streams import NO_NOISE
from lumina_onnx.nn._torch_state import count_dispatch_modes, current_transform

_delayed_error = _torch_state.internal("_C._functions.DelayedError")

_NO_SECOND_DERIVATIVE = (
    "optical_linear has no second derivative: its gradient is a straight-through estimate, which is not the "
    "derivative of anything. Differentiate once, without create_graph=True."
)


NO_FORWARD_MODE = (
    "optical_linear has no forward-mode derivative (torch.func.jvp, torch.func.jacfwd, torch.autograd.forward_ad): its "
    "gradient is a straight-through estimate. Use reverse mode: backward(), torch.func.grad, vjp or jacrev."
)


def _without_derivative(gradients: Sequence[Tensor | None], sources: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients, in a form that raises an error with the reason when they are differentiated.

    Their graph leads back to `sources`. Otherwise torch would find no path to a source whose derivative is asked for
    alone, which torch.autograd.functional and ``allow_unused=True`` take for a zero.
    """
    given = [gradient.detach().requires_grad_() for gradient in gradients if gradient is not None]
    behind = [source for source in sources if source is not None and source.requires_grad]
    if not given:
        return [*gradients]
    failing = _delayed_error(_NO_SECOND_DERIVATIVE.encode(), len(given) + len(behind))(*given, *behind)
    told = iter(failing if isinstance(failing, tuple) else (failing,))
    return [None if gradient is None else next(told) for gradient in gradients]


def _second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError(_NO_SECOND_DERIVATIVE)


_registry.differentiate(optical_linear_backward, _second_derivative)


def _read(
    x: Tensor, weight: Tensor, params: lumina_kernel.Params, kept: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """x and weight, each None where no gradient reads it: W's gradient reads x if it has no codes, X's reads weight."""
    for_x, for_weight = kept
    return (x if for_weight and not params.input_bits else None, weight if for_x else None)


def _needs(ctx: Any) -> tuple[bool, bool, bool]:
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    return need_x, need_weight, need_bias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _bias, _stream, bits_of_block, _release, _layer, _seed, bits, parameters = inputs
    _y, saved, history = output
    ctx.set_materialize_grads(False)
    ctx.k = weight.shape[1]
    ctx.arguments = (bits, parameters)
    # `history` has no elements, but its graph leads back to x and weight: through it a second derivative reaches
    # _second_derivative.
    kept = Kept(*ctx.needs_input_grad[:2])
    ctx.save_for_backward(*_read(x, weight, params_in(parameters), kept), saved, history, bits_of_block)


def _gradients(ctx: Any, grad: Tensor | None, operator: Any) -> tuple[Any, ...]:
    nothing: tuple[None, ...] = (None,) * 7
    if grad is None:
        return (None, None, None, *nothing)
    needs = _needs(ctx)
    x, weight, saved, history, bits_of_block = ctx.saved_tensors
    history = history if is_grad_enabled() else None  # no second derivative will be asked for
    gradients = operator(grad, x, weight, saved, history, bits_of_block, ctx.k, *needs, *Kept(), *ctx.arguments)
    return (*(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)), *nothing)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    return _gradients(ctx, grad, optical_linear_backward)


_registry.differentiate(optical_linear_train, _backward, _setup_context)


def _keep_operands(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
    x, weight, bias, stream, seed, *parameters = inputs
    ctx.set_materialize_grads(False)
    options = dict(keyword_only_inputs)
    ctx.call = (seed, options.pop("gradient_bits"), text_of(params_of_call(parameters, options)))
    ctx.nothing = (None,) * (2 + len(parameters))
    ctx.save_for_backward(x, weight, bias, stream)


def _backward_of_inference(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
    """The gradient of the operator that saves nothing for it, as in exported programs: takes a second forward pass."""
    nothing: tuple[None, ...] = ctx.nothing
    if grad is None:
        return (None, None, None, *nothing)
    x, weight, bias, stream = ctx.saved_tensors
    seed, bits, parameters = ctx.call
    release, layer = _torch_state.RELEASE, ""
    _, saved, history = optical_linear_train(x, weight, bias, stream, None, release, layer, seed, bits, parameters)
    needs, kept = _needs(ctx), Kept()
    operands = _read(x, weight, params_in(parameters), kept)
    k = weight.shape[1]
    gradients = optical_linear_backward(grad, *operands, saved, history, None, k, *needs, *kept, bits, parameters)
    return (*(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)), *nothing)


_registry.differentiate(optical_linear, _backward_of_inference, _keep_operands)


class _BackwardTransformed(torch.autograd.Function):
    """``lumina::optical_linear_backward`` under the transforms of torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = optical_linear_backward(*arguments)
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> None:
        raise RuntimeError(_NO_SECOND_DERIVATIVE)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        raise RuntimeError(_NO_SECOND_DERIVATIVE)


class TrainTransformed(torch.autograd.Function):
    """``lumina::optical_linear_train`` under torch.func's transforms, which an operator's autograd does not support."""

    generate_vmap_rule = True
    setup_context = staticmethod(_setup_context)

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = optical_linear_train(*arguments)
        return outputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        return _gradients(ctx, grad, _BackwardTransformed.apply)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        raise RuntimeError(NO_FORWARD_MODE)


_Call: TypeAlias = tuple[lumina_kernel.Params, int, int, lumina_kernel.PreparedLayer | None, int | None]


class TrainNow(torch.autograd.Function):
    """The forward pass and its gradient in a plain eager call.

    `call` is (params, seed, stream, prepared weights, bits of the gradient's products). In a checkpoint that is not
    reentrant, the gradient has the bits of the first forward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, call: _Call) -> Tensor:
        params, seed, stream, prepared, bits = call
        kept = (x.requires_grad, weight.requires_grad)
        y, saved = _kernel.forward(x, weight, bias, params, seed, stream, prepared, kept)
        ctx.set_materialize_grads(False)
        ctx.call = (weight.shape[1], kept, params, bits)
        ctx.save_for_backward(*_read(x, weight, params, kept), saved)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 4
        k, kept, params, bits = ctx.call
        needs = ctx.needs_input_grad[:3]
        *noise, x, weight, saved = ctx.saved_tensors
        if noise:
            _check_noise(ctx.noise, noise[0])
        dx: Tensor | None
        if _kernel.is_float(grad) and count_dispatch_modes() == 0 and current_transform() is None:
            dx, dw, db = _kernel.backward(grad, x, weight, saved, k, needs, kept, params, bits)
        else:
            # Several gradients at once (is_grads_batched), another kind of tensor, or something that intercepts calls.
            arguments = (*needs, *kept, bits or 0, text_of(params))
            outputs = optical_linear_backward(grad, x, weight, saved, None, None, k, *arguments)
            dx, dw, db = (gradient if need else None for gradient, need in zip(outputs, needs, strict=True))
        if is_grad_enabled():  # create_graph
            dx, dw, db = _without_derivative((dx, dw, db), (grad, x, weight))
        return dx, dw, db, None


class TrainUnderNoise(TrainNow):
    """:class:`TrainNow` inside a block that turns the noise off or fixes it.

    ``torch.utils.checkpoint`` repeats a call in ``backward()``, and outside the block it would do so with other noise.
    So the noise is saved as well. torch raises if the repeated call saves one tensor more or less, and
    :func:`_check_noise` raises if it saves the noise of another block.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        y = TrainNow.forward(ctx, *arguments)
        params, _, stream, *_ = arguments[3]
        ctx.noise = stream if has_noise(params) else NO_NOISE
        # First, so that a mismatch also shows where torch stops as soon as it has the number of tensors it expects.
        ctx.save_for_backward(torch.tensor(ctx.noise, dtype=torch.int64, device="cpu"), *ctx.to_save)
        return y


def _check_noise(noise: int, saved: Tensor) -> None:
    if int(saved) != noise:
        raise RuntimeError(
            "torch.utils.checkpoint computed an optical layer again, with other noise than before: call backward() "
            "inside the block of lumina_onnx.nn.noise that the forward pass ran in"
        )
