"""Which layers a name pattern means: for the conversion of torch models and of files alike."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

_Value = TypeVar("_Value")


class Patterns:
    """Name patterns (``*``, ``?``, ``[...]``, as in :mod:`fnmatch`, with upper and lower case apart).

    A pattern that is a layer's name means that layer alone: ``layer[0]`` is a name like any other.

    Args:
        argument: what errors call them.
        patterns: one, or several.
        layers: the names of each layer; most have one.
        what: what errors call a layer.

    Raises:
        TypeError: a pattern that is no string.
        ValueError: a pattern that matches no layer.
    """

    def __init__(
        self, argument: str, patterns: str | Iterable[str], layers: Sequence[Sequence[str]], what: str = "layer"
    ) -> None:
        self._patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        names = [name for layer in layers for name in layer]
        self._literal = set(names)
        for pattern in self._patterns:
            if not isinstance(pattern, str):
                kind = type(pattern).__name__
                raise TypeError(f"{argument} holds {kind} {pattern!r}: allowed is a name pattern, a str")
            if not any(self._is_match(pattern, name) for name in names):
                shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
                raise ValueError(f"{argument} pattern {pattern!r} matches no {what}: there are {shown or 'none'}")

    def matching(self, *names: str) -> list[str]:
        """The patterns that mean the layer of these names, in their order."""
        return [pattern for pattern in self._patterns if any(self._is_match(pattern, name) for name in names)]

    def _is_match(self, pattern: str, name: str) -> bool:
        return name == pattern if pattern in self._literal else fnmatch.fnmatchcase(name, pattern)


def chosen(patterns: Patterns, values: Mapping[str, _Value], names: Sequence[str], default: _Value) -> _Value:
    """What the last of the patterns that mean a layer gives it."""
    matching = patterns.matching(*names)
    return values[matching[-1]] if matching else default
