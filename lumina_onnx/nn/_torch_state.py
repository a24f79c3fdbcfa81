"""What torch is doing at this moment, asked of names that torch has for itself alone.

Each is looked up once: all of these are asked in every call.
"""

import functools
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

import lumina_kernel

#: An argument of `optical_linear_train`, and so part of the keys of torch's cache of compiled graphs on disk: another
#: release may save other amounts for the gradient.
RELEASE = lumina_kernel.__version__


def internal(path: str) -> Any:
    """What torch has at this path below the package, under no public name.

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


tracing_state = internal("_C._get_tracing_state")
count_dispatch_modes = internal("_C._len_torch_dispatch_stack")
current_transform = internal("_C._functorch.maybe_current_level")
_precision = internal("_C._get_fp32_precision_getter")
internal("autograd.forward_ad._current_level")  # a number, read in each call
internal("compiler._is_compiling_flag")  # likewise


def is_recorded() -> bool:
    """Whether ``torch.jit.trace`` runs."""
    return tracing_state() is not None


def is_transformed() -> bool:
    """Whether a transform of torch.func runs."""
    return current_transform() is not None


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether forward-mode automatic differentiation asks for a derivative by one of the tensors."""
    if forward_ad._current_level < 0:
        return False
    return any(
        tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]
        for tensor in tensors
    )


def gradient_precision() -> Literal["highest", "high", "medium"]:
    """The precision that torch asks of float32 products on a CPU at this moment.

    ``torch.set_float32_matmul_precision`` sets it, and so does ``torch.backends``: then the former's getter raises.
    """
    # What torch.backends.mkldnn.matmul.fp32_precision reads, through three objects that each look the name up.
    asked: str = _precision("mkldnn", "matmul")
    return "medium" if asked == "bf16" else "high" if asked == "tf32" else "highest"
