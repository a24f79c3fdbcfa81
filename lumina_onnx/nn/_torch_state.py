"""What torch is doing at the moment, asked through torch's private names.

Each name is looked up only once, since calls of the operator ask every time.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

import lumina_kernel

#: An argument of `optical_linear_train`, and so part of the keys of torch's on-disk cache of compiled graphs: another
#: release may save a different number of bytes for the gradient.
RELEASE = lumina_kernel.__version__


def internal(path: str) -> Any:
    """The object at this path below the torch package, which has no public name.

    Raises:
        ImportError: this release of torch does not have it.
    """
    try:
        return functools.reduce(getattr, path.split("."), torch)
    except AttributeError:
        raise ImportError(
            f"lumina-onnx {RELEASE} uses torch.{path}, which torch {torch.__version__} lacks: install a release of "
            "torch that has it, as 2.13 does, or a newer lumina-onnx"
        ) from None


tracing_state = internal("_C._get_tracing_state")
count_dispatch_modes = internal("_C._len_torch_dispatch_stack")
current_transform = internal("_C._functorch.maybe_current_level")
#: Makes a tensor from its sizes, strides and dtype, as graphs of torch.compile do: in half the time of torch.empty, and
#: whatever torch's default device is.
empty_on_cpu = internal("_C._dynamo.guards._empty_strided_cpu")
#: torch 2.8 has no precision of mkldnn's own, and no getter of it.
_precision = getattr(torch._C, "_get_fp32_precision_getter", None)
_set_strategy = internal("_C._dynamo.eval_frame.set_code_exec_strategy")
_strategy = internal("_C._dynamo.eval_frame._FrameExecStrategy")
_skip = internal("_C._dynamo.eval_frame._FrameAction.SKIP")
internal("autograd.forward_ad._current_level")  # a number, read in each call
internal("compiler._is_compiling_flag")  # likewise
internal("compiler._is_exporting_flag")  # likewise


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a function that torch.compile is to run as it is, and whatever that calls.

    ``torch.compiler.disable`` does so too, but puts frames of its own around each call and loads all of torch._dynamo.
    """
    _set_strategy(function.__code__, _strategy(_skip, _skip))
    return function


def describe(tensor: Any) -> tuple[torch.dtype, int, tuple[int, ...], tuple[int, ...]] | None:
    """The dtype, address, sizes and strides of a tensor in the CPU's memory; None for other objects and wrappers.

    torch's table of C functions says this in a tenth of the time, where torch has one that `lumina_kernel` knows.
    """
    with torch._C.DisableTorchFunction():  # what a subclass says of itself is not what its memory is
        try:
            if not tensor.is_cpu:
                return None
            address = tensor.data_ptr()
            shape = tuple(tensor.shape)
            # Sizes that stand for numbers are those of a tensor without memory, and are not to be turned into numbers.
            if address == 0 and any(type(size) is not int for size in shape):
                return None
            return tensor.dtype, address, shape, tensor.stride()
        except (AttributeError, RuntimeError):  # no tensor; or one without memory, or without strides
            return None


def is_exporting() -> bool:
    """Whether ``torch.export`` is running: ``torch.compiler.is_exporting``, which torch 2.10 says of any compiling."""
    return torch.compiler._is_exporting_flag


def is_recorded() -> bool:
    """Whether ``torch.jit.trace`` is running."""
    return tracing_state() is not None


def is_transformed() -> bool:
    """Whether a transform of torch.func is running."""
    return current_transform() is not None


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether forward-mode differentiation asks for a derivative with respect to one of the tensors."""
    if forward_ad._current_level < 0:
        return False
    return any(
        tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]
        for tensor in tensors
    )


def gradient_precision() -> Literal["highest", "high", "medium"]:
    """The precision that torch asks of float32 products on a CPU at the moment.

    ``torch.set_float32_matmul_precision`` sets it, and so does ``torch.backends``; after the latter, the getter that
    belongs to the former raises.
    """
    if _precision is None:
        return torch.get_float32_matmul_precision()  # type: ignore[return-value]
    # torch.backends.mkldnn.matmul.fp32_precision reads the same, but through three objects that each look the name up.
    asked: str = _precision("mkldnn", "matmul")
    return "medium" if asked == "bf16" else "high" if asked == "tf32" else "highest"
