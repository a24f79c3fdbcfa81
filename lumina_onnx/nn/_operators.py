"""The operators in torch's registry: what tracing, compiling and exporting see of an optical layer.

- ``lumina::optical_linear``: the forward pass alone, for inference and export. Its gradient repeats the forward pass.
- ``lumina::optical_linear_train``: the forward pass that also returns what its gradient needs.
- ``lumina::optical_linear_backward``: the straight-through gradient.

:mod:`._autograd` registers their gradients; :mod:`._streams` has the operators that draw the noise's stream. Tensors
are checked here, since a graph may run on other tensors than those it was made with.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from lumina_onnx.nn import _checks, _gradient_bits, _kernel, _registry
from lumina_onnx.nn._kernel import Kept
from lumina_onnx.nn._parameters import OPTIONS_SIGNATURE, SIGNATURE, call_of, params_in, params_of_call


def _check_call(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if not _kernel.are_call(x, weight, bias):  # which is quicker, but does not say why
        _checks.check_call(x, weight, bias)


# The last arguments are options, so that a program saved without it loads.
@_registry.define(
    f"optical_linear(Tensor x, Tensor weight, Tensor? bias, Tensor stream, int seed, {SIGNATURE}, *, "
    f"int gradient_bits=0, {OPTIONS_SIGNATURE}) -> Tensor"
)
def optical_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stream: Tensor,
    seed: int,
    *parameters: Any,
    gradient_bits: int = 0,
    **options: Any,
) -> Tensor:
    _check_call(x, weight, bias)
    params, number = call_of(params_of_call(parameters, options), stream)
    return _kernel.forward(x, weight, bias, params, seed, number, None, None)[0]


@_registry.shaped(optical_linear)
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stream: Tensor,
    seed: int,
    *parameters: Any,
    gradient_bits: int = 0,
    **options: Any,
) -> Tensor:
    _checks.check_devices(x=x, weight=weight, bias=bias)  # one tensor on "meta" brings even a call on real ones here
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@_registry.define(
    "optical_linear_train(Tensor x, Tensor weight, Tensor? bias, Tensor stream, Tensor? bits_of_block, str release, "
    "str layer, int seed, int gradient_bits, str parameters) -> (Tensor, Tensor, Tensor)"
)
def optical_linear_train(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stream: Tensor,
    bits_of_block: Tensor | None,
    release: str,
    layer: str,
    seed: int,
    gradient_bits: int,
    parameters: str,
) -> tuple[Tensor, ...]:
    _check_call(x, weight, bias)
    params, number = call_of(params_in(parameters), stream)
    try:
        y, saved = _kernel.forward(x, weight, bias, params, seed, number, None, Kept())
    except ValueError as error:
        raise _checks.named(error, layer) from None
    return y, cast("Tensor", saved), _kernel.nothing()


@_registry.shaped(optical_linear_train)
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stream: Tensor,
    bits_of_block: Tensor | None,
    release: str,
    layer: str,
    seed: int,
    gradient_bits: int,
    parameters: str,
) -> tuple[Tensor, ...]:
    _checks.check_devices(x=x, weight=weight, bias=bias)
    n, k = weight.shape
    call_bytes, row_bytes = _kernel.saved_bytes(params_in(parameters), int(n), int(k), *Kept())
    rows = math.prod(x.shape[:-1])
    return (
        x.new_empty((*x.shape[:-1], n)),
        x.new_empty((call_bytes + rows * row_bytes,), dtype=torch.uint8),
        x.new_empty(0),
    )


@_registry.define(
    "optical_linear_backward(Tensor grad, Tensor? x, Tensor? weight, Tensor saved, Tensor? history, "
    "Tensor? bits_of_block, int k, bool need_x, bool need_weight, bool need_bias, bool kept_for_x, "
    "bool kept_for_weight, int gradient_bits, str parameters) -> (Tensor, Tensor, Tensor)"
)
def optical_linear_backward(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    saved: Tensor,
    history: Tensor | None,
    bits_of_block: Tensor | None,
    k: int,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
    kept_for_x: bool,
    kept_for_weight: bool,
    gradient_bits: int,
    parameters: str,
) -> tuple[Tensor, ...]:
    if not _kernel.is_float(grad):
        _checks.check_tensor("grad", grad)
    needs = (need_x, need_weight, need_bias)
    kept = Kept(kept_for_x, kept_for_weight)
    bits = _gradient_bits.chosen(gradient_bits, bits_of_block)
    gradients = _kernel.backward(grad, x, weight, saved, k, needs, kept, params_in(parameters), bits)
    return tuple(_kernel.nothing() if gradient is None else gradient for gradient in gradients)


@_registry.shaped(optical_linear_backward)
def _(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    saved: Tensor,
    history: Tensor | None,
    bits_of_block: Tensor | None,
    k: int,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
    kept_for_x: bool,
    kept_for_weight: bool,
    gradient_bits: int,
    parameters: str,
) -> tuple[Tensor, ...]:
    _checks.check_devices(grad=grad, x=x, weight=weight, saved=saved, history=history)
    n = grad.shape[-1]
    return (
        grad.new_empty((*grad.shape[:-1], k) if need_x else (0,)),
        grad.new_empty((n, k) if need_weight else (0,)),
        grad.new_empty((n,) if need_bias else (0,)),
    )


def _each_sample(operator: Any) -> None:
    """Makes `operator` run sample by sample under ``torch.vmap``."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any, **options: Any) -> tuple[Any, Any]:
        def sample(index: int) -> list[Any]:
            taken = []
            for argument, dim in zip(arguments, in_dims, strict=True):
                if isinstance(argument, Tensor) and dim is not None:
                    samples = argument.movedim(dim, 0)
                    # If there are no samples, one of zeros gives the shapes of the results.
                    argument = samples[index] if info.batch_size else samples.new_zeros(samples.shape[1:])
                taken.append(argument)
            return taken

        def together(results: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
            return torch.stack(results)[: info.batch_size]

        results = [operator(*sample(index), **options) for index in range(max(info.batch_size, 1))]
        if isinstance(results[0], Tensor):
            return together(results), 0
        return tuple(map(together, zip(*results, strict=True))), (0,) * len(results[0])

    torch.library.register_vmap(operator, rule, lib=_registry.library_of(operator))


for _operator in (optical_linear, optical_linear_train, optical_linear_backward):
    _each_sample(_operator)


@register_flop_formula([torch.ops.lumina.optical_linear, torch.ops.lumina.optical_linear_train])
def _forward_flops(x: tuple[int, ...], weight: tuple[int, ...], *_: Any, **__: Any) -> int:
    """The count that torch has for a Linear: 2 for each product."""
    return 2 * math.prod(x) * weight[0]


@register_flop_formula(torch.ops.lumina.optical_linear_backward)
def _backward_flops(
    grad: tuple[int, ...],
    x: Any,
    weight: Any,
    saved: Any,
    history: Any,
    bits_of_block: Any,
    k: int,
    need_x: bool,
    need_weight: bool,
    *_: Any,
    **__: Any,
) -> int:
    return 2 * math.prod(grad) * k * (need_x + need_weight)
