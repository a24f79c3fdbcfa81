"""Optical layers under ``torch.fx.symbolic_trace``, which runs a model on stand-ins for its tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn
from torch.fx import Proxy
from torch.nn.modules.module import _has_any_global_hook as has_any_global_hook
from torch.overrides import handle_torch_function

_Forward = TypeVar("_Forward", bound=Callable[..., Any])
# The forward methods of layers that a node may call as a whole.
_leaves: set[Callable[..., Any]] = set()
_ADVICE = "trace a model that holds it, with a torch.fx.Tracer whose is_leaf_module(module, name) is true for it"


def leaf(forward: _Forward) -> _Forward:
    """Marks the forward method of a layer that torch.fx is to turn into one node."""
    _leaves.add(forward)
    return forward


def is_traced(*values: Any) -> bool:
    """Whether one of the values is a torch.fx.Proxy."""
    return any(isinstance(value, Proxy) for value in values)


def function_node(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """A node that calls `function`."""
    return handle_torch_function(
        function, [value for value in arguments if isinstance(value, Proxy)], *arguments, **keywords
    )


def layer_node(x: Any, layer: str, *more: Any, **keywords: Any) -> Any:
    """A node that calls the layer being traced, as nodes call torch's own modules; the layer keeps settings and ranges.

    Args:
        x: the layer's input, a Proxy.
        layer: the layer's label.
        more: further inputs.
        keywords: arguments by keyword.

    Raises:
        TypeError: the layer has hooks or its own forward, parts of which would run twice if a node called it, or is
            not part of a model.
    """
    tracer: Any = x.tracer if isinstance(x, Proxy) else None
    path = getattr(getattr(tracer, "scope", None), "module_path", "")
    module = tracer.root.get_submodule(path) if tracer is not None and path else None
    if tracer is None or module is None or not _is_bare(module):
        raise TypeError(
            f"{layer}: x is a torch.fx.Proxy, and torch.fx would trace into a layer that has hooks or a forward of its "
            f"own, or is no part of a model: {_ADVICE}"
        )
    return tracer.create_proxy("call_module", path, (x, *more), keywords)


def _is_bare(module: nn.Module) -> bool:
    """Whether calling the module does nothing but run the forward method of an optical layer."""
    if type(module).forward not in _leaves or "forward" in module.__dict__:
        return False
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return not any(getattr(module, kind) for kind in kinds) and not has_any_global_hook()  # type: ignore[no-untyped-call]
