"""The torch operators beneath :mod:`lumina_onnx.nn`: thin covers of `lumina_kernel`.

- ``lumina::optical_linear``: the forward pass alone, for inference and export. Its gradient computes it once more.
- ``lumina::optical_linear_train``: the forward pass that also returns what its gradient needs.
- ``lumina::optical_linear_backward``: the straight-through gradient.
- ``lumina::draw_stream`` and ``lumina::draw_stream_in_branch``: see :mod:`._streams`.

Going through torch's operator registry costs some 100 us a call in Python. A plain eager call, which nothing traces,
compiles or transforms (:func:`is_plain`), runs the same functions without it: :func:`forward_now`, and
:class:`TrainNow` under autograd.

Every tensor is allocated by torch. `lumina_kernel._Tensors` asks torch's table of C functions what and where each is: a
numpy view of each, or its attributes one after another, would cost as much as the arithmetic of a small layer. What it
does not take (elements out of order, another dtype) it says before anything is done, and is looked at here. A call
through the registry is checked here: a graph may be run with other tensors than those it was made with. A plain one was
checked by :func:`is_plain`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils.flop_counter import register_flop_formula

import lumina_kernel
from lumina_onnx.nn import _checks
from lumina_onnx.nn._streams import NO_NOISE
from lumina_onnx.profile import OpticalProfile

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
NOISE_LEVELS = tuple(PARAMETERS.index(name) for name in ("noise_relative", "noise_additive", "noise_shot"))
#: An argument of `optical_linear_train`, and so part of the keys of torch's cache of compiled graphs on disk: another
#: release may save other amounts for the gradient.
RELEASE = lumina_kernel.__version__


def _of_torch(path: str) -> Any:
    """What torch has for itself alone, under no public name.

    Raises:
        ImportError: This release has it no more.
    """
    try:
        return functools.reduce(getattr, path.split("."), torch)
    except AttributeError:
        raise ImportError(
            f"lumina-onnx {RELEASE} uses torch.{path}, which torch {torch.__version__} lacks: install a release of "
            "torch that has it, as 2.13 does, or a newer lumina-onnx"
        ) from None


# An entry of a layer with a range for each of 4096 outputs takes some 150 KB.
@functools.lru_cache(maxsize=256)
def _cached_params(*values: Any) -> lumina_kernel.Params:
    return lumina_kernel.Params(**dict(zip(PARAMETERS, values, strict=True)))


def params_of(parameters: Sequence[Any]) -> lumina_kernel.Params:
    """The kernel's checked parameters from the values of :data:`PARAMETERS`."""
    return _cached_params(*(tuple(value) if isinstance(value, list) else value for value in parameters))


def call_of(parameters: Sequence[Any], stream: Tensor) -> tuple[lumina_kernel.Params, int]:
    """The kernel's parameters of a call, and its stream."""
    number = int(stream)
    if number != NO_NOISE:
        return params_of(parameters), number
    return params_of([0.0 if place in NOISE_LEVELS else value for place, value in enumerate(parameters)]), 0


def parameters_of(source: OpticalProfile | lumina_kernel.Params) -> list[Any]:
    """The values of :data:`PARAMETERS`, as the operators take them."""
    if torch.compiler.is_dynamo_compiling() and "_words" in source.__dict__:
        return _parameters_in(source._words)  # type: ignore[union-attr]
    values = {name: getattr(source, name) for name in PARAMETERS}
    ranges = values["output_range"]
    return [*({**values, "output_range": list(ranges) if isinstance(ranges, tuple) else [ranges]}.values())]


def _parameters_in(words: str) -> list[Any]:
    """:func:`parameters_of` from :attr:`OpticalProfile._words`.

    Numbers that are others than in a call before are symbols to Dynamo. In a branch of ``torch.cond`` it cannot turn
    them back, and a text is never one.
    """
    x, w, y, input_range, relative, additive, shot, stage, *ranges = words.split(" ")
    noise = [float(relative), float(additive), float(shot)]
    return [int(x), int(w), int(y), float(input_range), [float(each) for each in ranges], *noise, stage]


def _dense(tensor: Tensor) -> Tensor:
    """The tensor with its elements in order and as they stand in memory."""
    return tensor if tensor.is_contiguous() and not tensor.is_neg() else tensor.contiguous().resolve_neg()


def view(tensor: Tensor) -> np.ndarray:
    """The memory of a CPU tensor as a C-ordered array (a copy only where the tensor is not contiguous)."""
    array: np.ndarray = _dense(tensor.detach()).numpy()
    return array


def named(error: ValueError, layer: str) -> ValueError:
    """`error`, saying which layer it is about."""
    return ValueError(f"{layer}: {error}") if layer else error


class Kept(NamedTuple):
    """Which gradients a forward pass keeps something for: X's needs W and its scale, and W's needs X's codes."""

    for_x: bool = True
    for_weight: bool = True


def saved_bytes(params: lumina_kernel.Params, n: int, k: int, kept: tuple[bool, bool]) -> tuple[int, int]:
    """Bytes that a forward pass saves for its gradient, and bytes more for each row of X."""
    return lumina_kernel._saved_bytes(params, n, k, *kept)


def prepare(params: lumina_kernel.Params, weight: Tensor, bias: Tensor | None) -> lumina_kernel.PreparedLayer:
    """Quantises and packs weights."""
    weight, bias = _dense(weight), None if bias is None else _dense(bias)
    if not _has_memory(weight) or (bias is not None and not _has_memory(bias)):
        raise _unreadable(weight=weight, bias=bias)
    return _tensors.prepare(params, weight, bias, torch.get_num_threads())


def forward_now(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    params: lumina_kernel.Params,
    seed: int,
    stream: int,
    prepared: lumina_kernel.PreparedLayer | None,
    kept: tuple[bool, bool] | None,
) -> tuple[Tensor, Tensor | None]:
    """The forward pass: y, and where something is `kept` for gradients the bytes that they need beside x and weight."""
    n, k = weight.shape
    y = torch.empty(*x.shape[:-1], n)
    saved = None
    if kept is not None:
        call_bytes, row_bytes = saved_bytes(params, n, k, kept)
        saved = torch.empty(call_bytes + x.numel() // k * row_bytes, dtype=_uint8)
    threads = torch.get_num_threads()
    for_x, for_weight = kept or Kept()
    # The kernel tells tensors in order from others, but does not see that one stands for its negative.
    if (
        x.is_neg()
        or weight.is_neg()
        or (bias is not None and bias.is_neg())
        or not _tensors.forward(params, prepared, x, weight, bias, seed, stream, y, saved, for_x, for_weight, threads)
    ):
        x, weight, bias = _dense(x), _dense(weight), None if bias is None else _dense(bias)
        y, saved = _on_cpu(y), None if saved is None else _on_cpu(saved, _uint8)
        if not _tensors.forward(params, prepared, x, weight, bias, seed, stream, y, saved, for_x, for_weight, threads):
            raise _unreadable(x=x, weight=weight, bias=bias)
    return y, saved


def _unreadable(**tensors: Tensor | None) -> ValueError:
    """The error of a pass that the kernel refused although its operands are dense: one of them has no memory."""
    names = [name for name, tensor in tensors.items() if tensor is not None and not _has_memory(tensor)]
    told = " and ".join(f"{name} {[*tensors[name].shape]}" for name in names)  # type: ignore[union-attr]
    return ValueError(
        f"{told or 'an operand'} cannot be read: allowed is a tensor with its elements in the CPU's memory (one whose "
        "storage was freed has none, nor has a subclass that only stands for others)"
    )


def _has_memory(tensor: Tensor) -> bool:
    try:
        return tensor.data_ptr() != 0 or tensor.numel() == 0
    except RuntimeError:  # of a wrapper
        return False


def _on_cpu(tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory for what `tensor` was made for, where torch's default dtype or device is another."""
    return torch.empty(tensor.shape, dtype=dtype, device="cpu")


@torch.library.custom_op(
    "lumina::optical_linear",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor x, Tensor weight, Tensor? bias, Tensor stream, int seed, {_PARAMETERS_SCHEMA}) -> Tensor",
)
def optical_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, stream: Tensor, seed: int, *parameters: Any
) -> Tensor:
    _checks.check_call(x, weight, bias)
    params, number = call_of(parameters, stream)
    return forward_now(x, weight, bias, params, seed, number, None, None)[0]


@optical_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, stream: Tensor, seed: int, *parameters: Any) -> Tensor:
    _checks.check_devices(x=x, weight=weight, bias=bias)  # one on "meta" brings a call on real tensors here
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.custom_op(
    "lumina::optical_linear_train",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor weight, Tensor? bias, Tensor stream, str release, str layer, int seed, "
    f"{_PARAMETERS_SCHEMA}) -> (Tensor, Tensor, Tensor)",
)
def optical_linear_train(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stream: Tensor,
    release: str,
    layer: str,
    seed: int,
    *parameters: Any,
) -> tuple[Tensor, ...]:
    _checks.check_call(x, weight, bias)
    params, number = call_of(parameters, stream)
    try:
        y, saved = forward_now(x, weight, bias, params, seed, number, None, Kept())
    except ValueError as error:
        raise named(error, layer) from None
    return y, cast("Tensor", saved), y.new_empty(0)


@optical_linear_train.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stream: Tensor,
    release: str,
    layer: str,
    seed: int,
    *parameters: Any,
) -> tuple[Tensor, ...]:
    _checks.check_devices(x=x, weight=weight, bias=bias)
    n, k = weight.shape
    call_bytes, row_bytes = saved_bytes(params_of(parameters), int(n), int(k), Kept())
    rows = math.prod(x.shape[:-1])
    return (
        x.new_empty((*x.shape[:-1], n)),
        x.new_empty((call_bytes + rows * row_bytes,), dtype=torch.uint8),
        x.new_empty(0),
    )


def gradient_precision() -> Literal["highest", "high", "medium"]:
    """The precision that torch asks of float32 products on a CPU at this moment.

    ``torch.set_float32_matmul_precision`` sets it, and so does ``torch.backends``: then the former's getter raises.
    """
    # What torch.backends.mkldnn.matmul.fp32_precision reads, through three objects that each look the name up.
    asked: str = _precision("mkldnn", "matmul")
    return "medium" if asked == "bf16" else "high" if asked == "tf32" else "highest"


def _check_saved_bytes(saved: Tensor, count: int) -> None:
    """Refuses bytes that come back from autograd as another tensor."""
    if saved.dtype is not _uint8 or saved.numel() != count or not saved.is_cpu or not saved.is_contiguous():
        layout = "" if saved.is_contiguous() else f" ({saved.layout}, its elements out of order)"
        raise ValueError(
            f"what was saved for the gradient is {_told(saved)}{layout}: allowed is uint8 [{count}] {_UNCHANGED}"
        )


def _aligned(saved: Tensor) -> Tensor:
    """Saved bytes where the kernel can read numbers: torch.vmap stacks those of its samples, a hook may pool them."""
    try:
        aligned = saved.data_ptr() % _ALIGNMENT == 0
    except RuntimeError:  # of a wrapper, which is refused later
        return saved
    return saved if aligned else saved.clone()


# Of the float32 scales, which come first.
_ALIGNMENT = 4


def _check_saved(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuses an operand that comes back from autograd as another tensor."""
    if tensor.dtype is not _float32 or tensor.shape != shape or not tensor.is_cpu:
        allowed = f"float32 {[*shape]} {_UNCHANGED}"
        raise ValueError(f"{name} saved for the gradient is {_told(tensor)}: allowed is {allowed}")


_UNCHANGED = "on the CPU, as the forward pass saved it (torch.autograd.graph.saved_tensors_hooks may change it)"


def _told(tensor: Tensor) -> str:
    return f"{tensor.dtype} {[*tensor.shape]} on {tensor.device}"


def backward_now(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    saved: Tensor,
    k: int,
    needs: Sequence[bool],
    kept: tuple[bool, bool],
    params: lumina_kernel.Params,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias (None where not needed), from what the forward pass kept."""
    saved = _aligned(saved)
    *leading, n = grad.shape
    dx = torch.empty(*leading, k) if needs[0] else None
    dw = torch.empty(n, k) if needs[1] else None
    db = torch.empty(n) if needs[2] else None
    threads, precision = torch.get_num_threads(), gradient_precision()
    if (
        grad.is_neg()
        or (x is not None and x.is_neg())
        or (weight is not None and weight.is_neg())
        or not _tensors.backward(params, k, grad, x, weight, saved, dx, dw, db, precision, *kept, threads)
    ):
        if x is not None:
            _check_saved("x", x, (*leading, k))
        if weight is not None:
            _check_saved("weight", weight, (n, k))
        call_bytes, row_bytes = saved_bytes(params, n, k, kept)
        _check_saved_bytes(saved, call_bytes + grad.numel() // n * row_bytes)
        grad, x, weight = _dense(grad), None if x is None else _dense(x), None if weight is None else _dense(weight)
        dx, dw, db = (None if gradient is None else _on_cpu(gradient) for gradient in (dx, dw, db))
        if not _tensors.backward(params, k, grad, x, weight, saved, dx, dw, db, precision, *kept, threads):
            raise _unreadable(grad=grad, x=x, weight=weight, saved=saved)
    return dx, dw, db


@torch.library.custom_op(
    "lumina::optical_linear_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor grad, Tensor? x, Tensor? weight, Tensor saved, Tensor history, int k, "
    "bool need_x, bool need_weight, bool need_bias, bool kept_for_x, bool kept_for_weight, "
    f"{_PARAMETERS_SCHEMA}) -> (Tensor, Tensor, Tensor)",
)
def optical_linear_backward(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    saved: Tensor,
    history: Tensor,
    k: int,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
    kept_for_x: bool,
    kept_for_weight: bool,
    *parameters: Any,
) -> tuple[Tensor, ...]:
    _checks.check_tensor("grad", grad)
    needs = (need_x, need_weight, need_bias)
    kept = Kept(kept_for_x, kept_for_weight)
    gradients = backward_now(grad, x, weight, saved, k, needs, kept, params_of(parameters))
    return tuple(grad.new_empty(0) if gradient is None else gradient for gradient in gradients)


@optical_linear_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    saved: Tensor,
    history: Tensor,
    k: int,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
    kept_for_x: bool,
    kept_for_weight: bool,
    *parameters: Any,
) -> tuple[Tensor, ...]:
    _checks.check_devices(grad=grad, x=x, weight=weight, saved=saved, history=history)
    n = grad.shape[-1]
    return (
        grad.new_empty((*grad.shape[:-1], k) if need_x else (0,)),
        grad.new_empty((n, k) if need_weight else (0,)),
        grad.new_empty((n,) if need_bias else (0,)),
    )


_NO_SECOND_DERIVATIVE = (
    "optical_linear has no second derivative: its gradient is a straight-through estimate, which is not the "
    "derivative of anything. Differentiate once, without create_graph=True."
)


NO_FORWARD_MODE = (
    "optical_linear has no forward-mode derivative (torch.func.jvp, torch.func.jacfwd, torch.autograd.forward_ad): its "
    "gradient is a straight-through estimate. Use reverse mode: backward(), torch.func.grad, vjp or jacrev."
)


def _without_derivative(gradients: Sequence[Tensor | None], sources: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients that require one themselves, and say why they have none when they are asked.

    They have `sources` behind them: who asks for the derivative by one of these alone would else be told that there is
    no way to it, which torch.autograd.functional and ``allow_unused=True`` take for a 0.
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


optical_linear_backward.register_autograd(_second_derivative)


def _each_sample(operator: Any) -> None:
    """Has `operator` run under ``torch.vmap`` sample by sample."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        def sample(index: int) -> list[Any]:
            taken = []
            for argument, dim in zip(arguments, in_dims, strict=True):
                if isinstance(argument, Tensor) and dim is not None:
                    samples = argument.movedim(dim, 0)
                    # Of no samples the results have the shapes of one of zeros.
                    argument = samples[index] if info.batch_size else samples.new_zeros(samples.shape[1:])
                taken.append(argument)
            return taken

        def together(results: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
            return torch.stack(results)[: info.batch_size]

        results = [operator(*sample(index)) for index in range(max(info.batch_size, 1))]
        if isinstance(results[0], Tensor):
            return together(results), 0
        return tuple(map(together, zip(*results, strict=True))), (0,) * len(results[0])

    operator.register_vmap(rule)


for _operator in (optical_linear, optical_linear_train, optical_linear_backward):
    _each_sample(_operator)


@register_flop_formula([torch.ops.lumina.optical_linear, torch.ops.lumina.optical_linear_train])
def _forward_flops(x: tuple[int, ...], weight: tuple[int, ...], *_: Any, **__: Any) -> int:
    """What torch counts for a Linear: 2 for each product."""
    return 2 * math.prod(x) * weight[0]


@register_flop_formula(torch.ops.lumina.optical_linear_backward)
def _backward_flops(
    grad: tuple[int, ...],
    x: Any,
    weight: Any,
    saved: Any,
    history: Any,
    k: int,
    need_x: bool,
    need_weight: bool,
    *_: Any,
    **__: Any,
) -> int:
    return 2 * math.prod(grad) * k * (need_x + need_weight)


def _read(
    x: Tensor, weight: Tensor, params: lumina_kernel.Params, kept: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """x and weight where the gradients read them, else None: W's reads an x without codes, X's reads weight."""
    for_x, for_weight = kept
    return (x if for_weight and not params.input_bits else None, weight if for_x else None)


def _needs(ctx: Any) -> tuple[bool, bool, bool]:
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    return need_x, need_weight, need_bias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _bias, _stream, _release, _layer, _seed, *parameters = inputs
    _y, saved, history = output
    ctx.set_materialize_grads(False)
    ctx.k = weight.shape[1]
    ctx.parameters = parameters
    # `history` has no elements, but has x and weight behind it: through it a second derivative reaches
    # _second_derivative.
    kept = Kept(*ctx.needs_input_grad[:2])
    ctx.save_for_backward(*_read(x, weight, params_of(parameters), kept), saved, history)


def _gradients(ctx: Any, grad: Tensor | None, operator: Any) -> tuple[Any, ...]:
    nothing: tuple[None, ...] = (None,) * (4 + len(PARAMETERS))
    if grad is None:
        return (None, None, None, *nothing)
    needs = _needs(ctx)
    gradients = operator(grad, *ctx.saved_tensors, ctx.k, *needs, *Kept(), *ctx.parameters)
    return (*(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)), *nothing)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    return _gradients(ctx, grad, optical_linear_backward)


optical_linear_train.register_autograd(_backward, setup_context=_setup_context)


def _keep_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, stream, seed, *parameters = inputs
    ctx.set_materialize_grads(False)
    ctx.call = (seed, *parameters)
    ctx.save_for_backward(x, weight, bias, stream)


def _backward_of_inference(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
    """The gradient of the operator that keeps nothing for one, as in exported programs: by a second forward pass."""
    nothing: tuple[None, ...] = (None,) * (2 + len(PARAMETERS))
    if grad is None:
        return (None, None, None, *nothing)
    x, weight, bias, stream = ctx.saved_tensors
    seed, *parameters = ctx.call
    _, saved, history = optical_linear_train(x, weight, bias, stream, RELEASE, "", seed, *parameters)
    needs, kept = _needs(ctx), Kept()
    operands = _read(x, weight, params_of(parameters), kept)
    gradients = optical_linear_backward(grad, *operands, saved, history, weight.shape[1], *needs, *kept, *parameters)
    return (*(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)), *nothing)


optical_linear.register_autograd(_backward_of_inference, setup_context=_keep_operands)


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
    """``lumina::optical_linear_train`` under the transforms of torch.func, which an operator's autograd has not."""

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


class TrainNow(torch.autograd.Function):
    """The forward pass and its gradient in a plain eager call. `call` is (params, seed, stream, prepared weights)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        call: tuple[lumina_kernel.Params, int, int, lumina_kernel.PreparedLayer | None],
    ) -> Tensor:
        params, kept = call[0], (x.requires_grad, weight.requires_grad)
        y, saved = forward_now(x, weight, bias, *call, kept)
        ctx.set_materialize_grads(False)
        ctx.call = (weight.shape[1], kept, params)
        ctx.save_for_backward(*_read(x, weight, params, kept), saved)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 4
        k, kept, params = ctx.call
        *needs, _ = ctx.needs_input_grad
        *noise, x, weight, saved = ctx.saved_tensors
        if noise:
            _check_noise(ctx.noise, noise[0])
        dx: Tensor | None
        if _tensors.is_float(grad) and _dispatch_modes() == 0 and _transform() is None:
            dx, dw, db = backward_now(grad, x, weight, saved, k, needs, kept, params)
        else:
            # Several gradients at once (is_grads_batched), or something that watches.
            history = grad.new_empty(0)
            outputs = optical_linear_backward(grad, x, weight, saved, history, k, *needs, *kept, *parameters_of(params))
            dx, dw, db = (gradient if need else None for gradient, need in zip(outputs, needs, strict=True))
        if torch.is_grad_enabled():  # create_graph
            dx, dw, db = _without_derivative((dx, dw, db), (grad, x, weight))
        return dx, dw, db, None


class TrainUnderNoise(TrainNow):
    """:class:`TrainNow` inside a block that turns the noise off or fixes it.

    ``torch.utils.checkpoint`` computes a call once more in ``backward()``, and outside of the block with other noise.
    So the noise is saved as well: torch raises where a tensor more or less is saved, :func:`_check_noise` at another
    block's.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        y = TrainNow.forward(ctx, *arguments)
        params, _, stream, _ = arguments[-1]
        ctx.noise = stream if params.noise_relative or params.noise_additive or params.noise_shot else NO_NOISE
        # First, so that it also stands out where torch stops at the number of tensors that it looks for.
        ctx.save_for_backward(torch.tensor(ctx.noise, dtype=torch.int64, device="cpu"), *ctx.to_save)
        return y


def _check_noise(noise: int, saved: Tensor) -> None:
    if int(saved) != noise:
        raise RuntimeError(
            "torch.utils.checkpoint computed an optical layer again, with other noise than before: call backward() "
            "inside the block of lumina_onnx.nn.noise that the forward pass ran in"
        )


#: ``TrainNow.apply`` without its look for torch.func's wrappers, which takes longer than the rest of it:
#: :func:`is_plain` has looked.
apply_train_now: Callable[..., Tensor] = super(torch.autograd.Function, TrainNow).apply
apply_train_under_noise: Callable[..., Tensor] = super(torch.autograd.Function, TrainUnderNoise).apply

# Looked up once: each of these is asked in every call.
_float32 = torch.float32
_uint8 = torch.uint8
_tensors = lumina_kernel._Tensors(Tensor, Parameter)
_tracing_state = _of_torch("_C._get_tracing_state")
_dispatch_modes = _of_torch("_C._len_torch_dispatch_stack")
_transform = _of_torch("_C._functorch.maybe_current_level")
_precision = _of_torch("_C._get_fp32_precision_getter")
_delayed_error = _of_torch("_C._functions.DelayedError")
_of_torch("autograd.forward_ad._current_level")  # a number, read in each call


def is_recorded() -> bool:
    """Whether ``torch.jit.trace`` runs."""
    return _tracing_state() is not None


def is_transformed() -> bool:
    """Whether a transform of torch.func runs."""
    return _transform() is not None


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether forward-mode automatic differentiation asks for a derivative by one of the tensors."""
    if forward_ad._current_level < 0:
        return False
    return any(
        tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]
        for tensor in tensors
    )


def is_plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a call can go straight to the kernel.

    It can where nothing watches it (no tracing, compiling, dispatch mode, torch.func transform or subclass) and its
    tensors are what the kernel takes. What is wrong with others is said by the checks that they go through instead.
    """
    return (
        not torch.compiler.is_compiling()  # which exporting is a kind of
        and _tensors.are_call(x, weight, bias)
        and _tracing_state() is None
        and _dispatch_modes() == 0
        and _transform() is None
        and forward_ad._current_level < 0
    )
