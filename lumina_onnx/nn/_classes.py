"""The classes of modules that become optical in place, so that references to the modules stay valid.

A module of torch's own class becomes one of ours. One of a subclass gets a class made here, ours in front of its own:
it keeps its methods and its place in ``isinstance``. The class that ``torch.nn.utils.parametrize`` gives a module stays
in front of either.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

from torch import nn
from torch.nn.utils import parametrize


class Counterpart:
    """What :func:`optical_class` needs to know of an optical class."""

    _plain: ClassVar[type[nn.Module]]
    """The class that a module has without optics."""
    _replaced: ClassVar[tuple[type[nn.Module], ...]] = ()
    """The classes in whose place this one stands alone."""
    _of_subclasses: ClassVar[dict[str, Any]] = {}
    """What the classes made of this one and a subclass have besides."""


def optical_class(module: nn.Module, ours: Any) -> type:
    """The class of a module once it is optical; `ours`, a :class:`Counterpart`, is that of its kind."""
    return _behind_parametrisation(module, lambda kind: _mixed(kind, ours))


def plain_class(module: nn.Module) -> type:
    """The class that an optical module had before."""
    return _behind_parametrisation(module, lambda kind: kind._plain)


def _behind_parametrisation(module: nn.Module, change: Any) -> type:
    kind = type(module)
    if not parametrize.is_parametrized(module):
        changed: type = change(kind)
        return changed
    base = change(parametrize.type_before_parametrizations(module))
    return type(f"Parametrized{base.__name__}", (base,), dict(vars(kind)))


@functools.cache
def _mixed(kind: Any, ours: Any) -> type[Any]:
    if kind in ours._replaced:
        return ours
    if issubclass(kind, ours):
        return kind

    def __reduce_ex__(self: Any, protocol: object) -> tuple[Any, ...]:
        return _made, (kind, ours), self.__getstate__()

    own = {"_plain": kind, "__reduce_ex__": __reduce_ex__, "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(f"Optical{kind.__name__}", (ours, kind), own | ours._of_subclasses)


def _made(kind: Any, ours: Any) -> object:
    """A module to be given its state: pickle finds no class that was made here."""
    return object.__new__(_mixed(kind, ours))
