"""Fingerprints of what cells depend on, so that cells of two sweeps do not mix."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import types
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["of_arrays", "of_function"]


def of_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Names, types, shapes and contents."""
    found = hashlib.sha256()
    for name, array in arrays.items():
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).tobytes() if array.dtype != object else repr(array.tolist()).encode())
    return found.hexdigest()


def of_function(function: Any) -> str:
    """A callable's code, and what it reads: defaults, closure, attributes, and what it names of its own module.

    Functions, classes and objects of other modules count by their names alone: what they hold may change with use.
    """
    found = hashlib.sha256()
    _Reader(found, _module(function)).add(function)
    return found.hexdigest()


def _module(value: Any) -> str:
    while isinstance(value, functools.partial):
        value = value.func
    return str(getattr(value, "__module__", None) or type(value).__module__)


class _Reader:
    """Adds values to a hash, each object once, so that circles end."""

    def __init__(self, found: Any, module: str) -> None:
        self._found = found
        self._module = module
        # Holds them, so that no other object gets the number of one.
        self._seen: dict[int, Any] = {}

    def add(self, value: Any) -> None:
        """Adds any value."""
        if isinstance(value, (bool, int, float, complex, str, bytes, type(None), np.generic)):
            self._word(f"{type(value).__name__} {value!r}")
            return
        if id(value) in self._seen:
            self._word("again")
            return
        self._seen[id(value)] = value
        if isinstance(value, np.ndarray):
            self._word(of_arrays({"": value}))
        elif isinstance(value, functools.partial):
            self._all("partial", (value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            self._all("method", (value.__func__, value.__self__))
        elif isinstance(value, Mapping):
            self._all("mapping", itertools.chain.from_iterable(value.items()))
        elif isinstance(value, (list, tuple)):
            self._all("list", value)
        elif isinstance(value, (set, frozenset)):
            self._all("set", sorted(value, key=repr))
        elif isinstance(value, types.ModuleType):
            self._word(value.__name__)
        else:
            named = value if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)) else type(value)
            is_own = _module(value) == self._module
            # Its own module may be a script now and imported the next time.
            self._word(named.__qualname__ if is_own else f"{named.__module__}.{named.__qualname__}")
            if is_own:
                self._own(value)

    def _word(self, word: str) -> None:
        self._found.update(f"{len(word)} {word}\n".encode())

    def _all(self, kind: str, values: Iterable[Any]) -> None:
        values = list(values)
        self._word(f"{kind} {len(values)}")
        for value in values:
            self.add(value)

    def _own(self, value: Any) -> None:
        """Adds what a function, a class or an object of the callable's own module holds."""
        if isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, type):
            members = sorted(vars(value).items())
            self._all("class", [member for _, member in members if isinstance(member, types.FunctionType)])
        else:
            self.add(type(value))
            self.add(dict(sorted(getattr(value, "__dict__", {}).items())))

    def _function(self, function: types.FunctionType) -> None:
        code = function.__code__
        self._code(code)
        self.add(function.__defaults__)
        self.add(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # a name that has no value yet
                self.add(cell.cell_contents)
        for name in sorted(_names(code)):
            self.add(function.__globals__.get(name))

    def _code(self, code: types.CodeType) -> None:
        self._word(code.co_code.hex())
        self._all("names", (*code.co_names, *code.co_varnames))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                self.add(constant)


def _names(code: types.CodeType) -> set[str]:
    """The global names that code and the functions in it use."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))
