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

from lumina_onnx.nn import _torch_state

_Keys = _torch_state.internal("_C.DispatchKeySet")
_Key = _torch_state.internal("_C.DispatchKey")
# The dispatch keys of a call on plain tensors that nothing intercepts.
_PLAIN = _Keys(_Key.CPU) | _Keys(_Key.AutogradCPU)


class _Library(torch.library.Library):
    """What torch's registry has of one operator. Once nothing refers to it, the operator is gone."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__("lumina", "FRAGMENT")  # type: ignore[no-untyped-call]
        self._function = function

    def impl(self, op_name: Any, fn: Callable[..., Any], dispatch_key: str = "", **options: Any) -> None:
        """Registers a kernel; that of ``torch.library.register_autograd`` runs where a gradient may be recorded."""
        if dispatch_key == "Autograd":
            fn = _torch_state.untraced(_recording(self._function, fn))
        super().impl(op_name, fn, dispatch_key, **options)  # type: ignore[no-untyped-call]


# torch keeps them, since one that this package defined earlier has to go first where the package is imported again.
_libraries: dict[str, _Library] = vars(torch.ops.lumina).setdefault("_libraries", {})


def define(schema: str, *, tags: tuple[torch.Tag, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Defines the operator ``lumina::`` + `schema`, which is the decorated function, on a CPU; returns the operator.

    The function returns tensors of its own, none of them an operand.
    """

    def register(function: Callable[..., Any]) -> Any:
        name = schema.partition("(")[0]
        _libraries.pop(name, None)
        vars(torch.ops.lumina).pop(name, None)  # torch 2.8 does not forget it with the library
        library = _libraries[name] = _Library(function)
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag, *tags))  # type: ignore[no-untyped-call]
        library.impl(name, _torch_state.untraced(function), "CPU")
        return getattr(torch.ops.lumina, name).default

    return register


def library_of(operator: Any) -> torch.library.Library:
    """The library that has this operator, to which everything that is registered for it belongs."""
    return _libraries[operator._schema.name.partition("::")[2]]


def shaped(operator: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers the decorated function, which makes an operator's results without values: ``register_fake``."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        torch.library.register_fake(operator, function, lib=library_of(operator))
        return function

    return register


def differentiate(operator: Any, backward: Callable[..., Any], setup_context: Callable[..., Any] | None = None) -> None:
    """Registers a gradient: ``torch.library.register_autograd``."""
    torch.library.register_autograd(operator, backward, setup_context=setup_context, lib=library_of(operator))


def _recording(function: Callable[..., Any], recorded: Callable[..., Any]) -> Callable[..., Any]:
    """`recorded`, but `function` itself in a call that records nothing, as all calls in a compiled graph are."""

    def run(keys: Any, *arguments: Any, **options: Any) -> Any:
        if keys == _PLAIN and not is_grad_enabled():
            return function(*arguments, **options)
        return recorded(keys, *arguments, **options)

    return run
