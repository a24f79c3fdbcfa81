"""Wrappers that do nothing but call a model: the model's layers keep the names that they have without the wrapper."""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

_CALLERS = (AveragedModel, nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, ``AveragedModel``, ``DataParallel`` and ``DistributedDataParallel``.

    Raises:
        TypeError: `model` is not a module.
    """
    model = _checked(model, "model")
    while (inner := _inner(model)) is not None:
        model = inner
    return model


def check_is_whole(model: object, name: str = "model") -> None:
    """Raises unless `model` is a module whose layers and parameters can be reached.

    Raises:
        TypeError: `model` is not; the message says what was given and what is allowed instead.
    """
    for module in _checked(model, name).modules():
        kind = type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"{name} holds a {kind} of torch.jit: its layers are compiled and no longer Python modules; allowed is "
                "the model that it was made from"
            )
        if isinstance(module, torch.fx.GraphModule) and "eval" in vars(module):  # torch's own eval(), which only raises
            raise TypeError(
                f"{name} holds a {kind} of torch.export: it has no modes and none of the layers; allowed is the model "
                "that it was made from"
            )
        if _is_sharded(module):
            raise TypeError(
                f"{name} holds a {kind} whose parameters are spread over processes (FSDP); allowed is the model "
                "without it, with the whole state: torch.distributed.checkpoint.state_dict.get_model_state_dict(..., "
                "options=StateDictOptions(full_state_dict=True))"
            )


def _checked(model: object, name: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} is a {type(model).__name__}; allowed is a torch.nn.Module")
    return model


def _inner(model: nn.Module) -> nn.Module | None:
    if isinstance(model, _CALLERS):
        caller = next(kind for kind in _CALLERS if isinstance(model, kind))
        # A subclass with a forward of its own does more than call the model.
        return model.module if type(model).forward is caller.forward else None
    dynamo = sys.modules.get("torch._dynamo")  # if it is not loaded, nothing is compiled; loading takes a second
    if dynamo is not None and isinstance(model, dynamo.OptimizedModule):
        inner: nn.Module = model._orig_mod
        return inner
    return None


def _is_sharded(module: nn.Module) -> bool:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and isinstance(module, (fsdp.FullyShardedDataParallel, fsdp.FSDPModule)):
        return True
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and any(
        isinstance(parameter, tensors.DTensor) for parameter in module.parameters(recurse=False)
    )
