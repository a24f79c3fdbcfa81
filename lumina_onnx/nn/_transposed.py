"""The `Conv1D` of the transformers package, a linear layer with a transposed weight, on optical hardware."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from lumina_onnx.nn.linear import OpticalLayer


class OpticalTransposed(OpticalLayer):
    """A layer whose parameter `weight` is [K, N].

    :func:`lumina_onnx.nn.convert` makes it from the ``Conv1D`` of the transformers package, as GPT-2 has it. It remains
    an instance of that class, with its parameters and its ``state_dict``. Each call puts the weight in the operator's
    order first, unless it is frozen.
    """

    if not TYPE_CHECKING:

        @property
        def in_features(self) -> int:
            """K, size of an input row."""
            return in_features(self)

        @property
        def out_features(self) -> int:
            """N, size of an output row."""
            return self.nf

        def __repr__(self) -> str:  # Conv1D's own shows neither bits nor noise
            return nn.Module.__repr__(self)

    def _operands(self) -> tuple[Tensor, Tensor | None]:
        return self.weight.t(), self.bias


def in_features(module: Any) -> int:
    """K of a `Conv1D`; older releases do not keep it. The weight itself may be computed, and is not read."""
    if hasattr(module, "nx"):
        return int(module.nx)
    weight = module._parameters.get("weight")
    if weight is None and parametrize.is_parametrized(module, "weight"):
        weight = next(module.parametrizations["weight"].parameters(recurse=False))
    return len(module.weight if weight is None else weight)


def conv1d() -> type[nn.Module] | None:
    """The class ``Conv1D`` of the transformers package; None where that is not loaded: no model can hold one."""
    module = sys.modules.get("transformers.pytorch_utils")
    kind: type[nn.Module] | None = getattr(module, "Conv1D", None)
    return kind
