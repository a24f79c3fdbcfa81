"""Selecting layers by name patterns, for the conversion of torch models and of files alike."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

_Value = TypeVar("_Value")


class Patterns:
    """Case-sensitive name patterns with ``*``, ``?`` and ``[...]``, as in :mod:`fnmatch`.

    A pattern that equals a layer's name matches that layer alone, so ``layer[0]`` is a name like any other.

    Args:
        argument: the name of the argument in error messages.
        patterns: one pattern, or several.
        layers: the names of each layer; most have one.
        what: the word for a layer in error messages.

    Raises:
        TypeError: a pattern is not a string.
        ValueError: a pattern matches no layer.
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
        """The patterns that match the layer with these names, in the order given."""
        return [pattern for pattern in self._patterns if any(self._is_match(pattern, name) for name in names)]

    def _is_match(self, pattern: str, name: str) -> bool:
        return name == pattern if pattern in self._literal else fnmatch.fnmatchcase(name, pattern)


def chosen(patterns: Patterns, values: Mapping[str, _Value], names: Sequence[str], default: _Value) -> _Value:
    """The value of the last pattern that matches the layer with these names; `default` if none does."""
    matching = patterns.matching(*names)
    return values[matching[-1]] if matching else default
