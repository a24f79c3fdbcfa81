"""Defines operators in torch's registry, with little between a call and its function.

``torch.library.custom_op`` defines them too, but a call then passes through some ten frames of Python, which take
several times as long as the function of a small layer does. Here it passes through one or two. What custom_op checks in
each call, that no result is an operand, is left to the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import is_grad_enabled
from torch._C import DispatchKey, DispatchKeySet

from lumina_onnx.nn import _torch_state

_any_requires_grad = _torch_state.internal("_C._any_requires_grad")
_generated = _torch_state.internal("_library.autograd.make_autograd_impl")
_formula = _torch_state.internal("_library.autograd.Info")

_library: Any = torch.library.Library("lumina", "FRAGMENT")  # type: ignore[no-untyped-call]
_functions: dict[Any, Callable[..., Any]] = {}
# The dispatch keys of a call on plain tensors that nothing intercepts.
_PLAIN = DispatchKeySet(DispatchKey.CPU) | DispatchKeySet(DispatchKey.AutogradCPU)


def define(schema: str, *, tags: tuple[torch.Tag, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Defines the operator ``lumina::`` + `schema`, which is the decorated function, on a CPU; returns the operator.

    The function returns tensors of its own, none of them an operand.
    """

    def register(function: Callable[..., Any]) -> Any:
        name = schema.partition("(")[0]
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag, *tags))
        _library.impl(name, _torch_state.untraced(function), "CPU")
        operator = getattr(torch.ops.lumina, name).default
        _functions[operator] = function
        return operator

    return register


def shaped(operator: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers the decorated function, which makes an operator's results without values: ``register_fake``."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        torch.library.register_fake(operator, function)
        return function

    return register


def differentiate(operator: Any, backward: Callable[..., Any], setup_context: Callable[..., Any] | None = None) -> None:
    """Registers a gradient, as ``torch.library.register_autograd`` does."""
    function = _functions[operator]
    recorded = _generated(operator, _formula(backward, setup_context))

    def run(keys: DispatchKeySet, *arguments: Any, **options: Any) -> Any:
        if keys == _PLAIN and not (is_grad_enabled() and _any_requires_grad(*arguments)):
            return function(*arguments, **options)
        return recorded(keys, *arguments, **options)

    _library.impl(operator._schema.name.partition("::")[2], _torch_state.untraced(run), "Autograd", with_keyset=True)
