"""The noise's streams: each is a number that names one draw under a layer's seed.

``lumina::draw_stream`` gives the stream of a layer in a graph: the one that a `with` block around the call sets (see
:mod:`._scope`), else a fresh one from torch's generator. It is declared to change a counter, so that torch.compile
neither merges two noisy calls on the same input nor reorders calls. ``lumina::draw_stream_in_branch`` does the same in
a branch of ``torch.cond`` or in a loop, where nothing may be mutated.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._guards import active_fake_mode
from torch.compiler import is_dynamo_compiling

from lumina_onnx.nn import _checks, _recomputation, _registry, _scope, _torch_state
from lumina_onnx.nn._checks import COUNTERS
from lumina_onnx.profile import OpticalProfile

_LAST_STREAM = COUNTERS - 1
#: In place of a stream: the call has no noise, whatever the parameters say.
NO_NOISE = -(2**63)
_NO_LAYER = _scope.number_tensor(0)
# What torch.compile sees change from one noisy call to the next.
_draws = _scope.number_tensor(0)


def draw() -> Tensor:
    """A fresh noise stream from torch's generator, as a tensor."""
    return torch.randint(0, _LAST_STREAM, (), dtype=torch.int64, device="cpu")


_of_thread = threading.local()


def draw_now() -> int:
    """The number that :func:`draw` would draw, in a third of the time."""
    try:
        fill, read = _of_thread.drawer
    except AttributeError:
        fill, read = _of_thread.drawer = _make_drawer()
    fill(0, _LAST_STREAM)
    drawn: int = read()
    return drawn


def _make_drawer() -> tuple[Callable[..., Any], Callable[[], int]]:
    """Two functions: the first fills a tensor of this thread with a random number, the second reads it."""
    with torch.inference_mode(False):
        number = torch.empty((), dtype=torch.int64, device="cpu")
    return number.random_, number.numpy().item


@_registry.define("draw_stream(Tensor(a!) state, Tensor layer) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
def draw_stream(state: Tensor, layer: Tensor) -> Tensor:
    return _stream(*_scope.noise_of(int(layer))) if _scope.current() else _fresh()


def _fresh() -> Tensor:
    """What :func:`draw` would draw, in a third of the time."""
    stream: Tensor = _torch_state.empty_on_cpu((), (), torch.int64).random_(0, _LAST_STREAM)
    return stream


def _stream(on: bool, stream: int | None) -> Tensor:
    if on and stream is None:
        return _fresh()
    return torch.tensor(stream if on else NO_NOISE, dtype=torch.int64, device="cpu")


@_registry.shaped(draw_stream)
def _(state: Tensor, layer: Tensor) -> Tensor:
    return state.new_empty((), dtype=torch.int64)


_recomputation.never(draw_stream, "another noise stream too: allowed with noise is more than 0")


_NO_STREAM_IN_A_BRANCH = (
    "torch.cond and its like compute their branches anew for the gradient, and noise that is drawn there would be "
    "other noise then (so is torch's own dropout). Train with a stream for each step, `with "
    "lumina_onnx.nn.noise(model, True, stream=step):` around forward and backward, or branch in Python where the model "
    "trains."
)
_BRANCHES = ("cond", "while_loop", "scan", "map_impl", "associative_scan")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_in_branch() -> bool:
    """Whether Dynamo is tracing a branch of ``torch.cond`` or such a loop, where nothing may change in place."""
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        tracer: Any = InstructionTranslator.current_tx().output.current_tracer
    except (ImportError, AttributeError):  # another Dynamo, which reports for itself what it cannot do
        return False
    while tracer is not None:
        if str(getattr(tracer, "source_target", "")) in _BRANCHES:
            return True
        tracer = tracer.parent
    return False


@_registry.define(
    "draw_stream_in_branch(Tensor layer, bool trains) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,)
)
def draw_stream_in_branch(layer: Tensor, trains: bool) -> Tensor:
    on, stream = _scope.noise_of(int(layer))
    if on and stream is None and trains:
        raise RuntimeError(_NO_STREAM_IN_A_BRANCH)
    return _stream(on, stream)


@_registry.shaped(draw_stream_in_branch)
def _(layer: Tensor, trains: bool) -> Tensor:
    return layer.new_empty((), dtype=torch.int64)


def of_layer(layer: Tensor = _NO_LAYER) -> Tensor:
    """The stream that the layer with this number has when this is computed: an int64 tensor of one element.

    It is what :func:`lumina_onnx.nn.noise` sets (:data:`NO_NOISE` where that turns the noise off), else a fresh draw.
    """
    stream: Tensor
    if is_dynamo_compiling() and _is_in_branch():
        stream = torch.ops.lumina.draw_stream_in_branch(layer, torch.is_grad_enabled())
    else:
        stream = torch.ops.lumina.draw_stream(_draws, layer)
    return stream


def number_of(stream: int | Tensor) -> int:
    """A given stream, as a number."""
    if isinstance(stream, Tensor):
        return int(_checked(stream))
    _checks.check_counter("stream", stream)
    return stream


def tensor_of(profile: OpticalProfile, stream: int | Tensor | None) -> Tensor:
    """The stream as an int64 tensor of one element, drawn where it is None and the profile has noise."""
    if stream is None:
        if not profile._has_noise or (_torch_state.is_exporting() and _scope.is_captured()):
            return torch.zeros((), dtype=torch.int64, device="cpu")
        if _torch_state.is_exporting() or (not torch.compiler.is_compiling() and _is_drawn_by_torch()):
            return draw()  # torch's own operator, which vmap's `randomness` and saved programs need
        return of_layer()
    if isinstance(stream, Tensor):
        return _checked(stream)
    _checks.check_counter("stream", stream)
    return torch.tensor(stream, dtype=torch.int64, device="cpu")


def _checked(stream: Tensor) -> Tensor:
    if stream.dtype != torch.int64 or stream.numel() != 1:
        raise TypeError(
            f"stream is a tensor of {stream.dtype} {list(stream.shape)}: allowed is an int, or an int64 tensor of one "
            "element"
        )
    return stream


def _is_drawn_by_torch() -> bool:
    # lumina::draw_stream mutates a real tensor, which a mode that makes tensors fake does not accept.
    return _torch_state.is_transformed() or active_fake_mode() is not None
