"""Operators whose results are saved for the backward pass, whatever else is recomputed there.

torch.utils.checkpoint recomputes, and so does torch.compile where memory is short. But an operator that asks what holds
at the moment (the noise's stream, what a `with` block sets) would get another answer in the backward pass.
"""

import functools
from typing import Any

import torch
from torch._functorch import config as functorch_config
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.fx import traceback
from torch.utils import checkpoint

from lumina_onnx.nn import _registry


def never(operator: Any, otherwise: str) -> None:
    """Makes torch save the results of a custom operator. `otherwise` says what to do where torch saves nothing."""
    rule = functools.partial(torch.library.register_torch_dispatch, lib=_registry.library_of(operator))

    @rule(operator, checkpoint._CachingTorchDispatchMode)  # type: ignore[untyped-decorator]
    def _(mode: Any, operator: Any, types: Any, arguments: Any, keywords: Any) -> Any:
        """In a checkpointed block, eager or compiled."""
        policy, mode.policy_fn = mode.policy_fn, _must_save
        try:
            return mode.__torch_dispatch__(operator, types, arguments, keywords)
        finally:
            mode.policy_fn = policy

    @rule(operator, FunctionalTensorMode)  # type: ignore[untyped-decorator]
    def _(mode: Any, operator: Any, types: Any, arguments: Any, keywords: Any) -> Any:
        """Where the operator becomes a node of a compiled graph: marks that node as torch.utils.checkpoint would."""
        if functorch_config.activation_memory_budget == 0 and torch.is_grad_enabled():
            raise RuntimeError(
                "torch._functorch.config.activation_memory_budget = 0 computes everything again in the backward pass, "
                f"{otherwise}"
            )
        meta = traceback.get_current_meta()
        before = meta.copy()
        meta["recompute"] = checkpoint.CheckpointPolicy.MUST_SAVE
        try:
            return mode.__torch_dispatch__(operator, types, arguments, keywords)
        finally:
            meta.clear()
            meta.update(before)


def _must_save(*_: Any, **__: Any) -> checkpoint.CheckpointPolicy:
    return checkpoint.CheckpointPolicy.MUST_SAVE
