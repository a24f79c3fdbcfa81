"""Fingerprints of what cells depend on, so that cells of two sweeps do not mix."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Mapping
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
    """A callable's code, defaults and closure, and those of the functions of its module that it names.

    Functions of other modules count by their name alone.
    """
    found = hashlib.sha256()
    _add(found, function, set())
    return found.hexdigest()


def _add(found: Any, value: Any, seen: set[int]) -> None:
    if isinstance(value, functools.partial):
        _add(found, value.func, seen)
        found.update(repr((value.args, sorted(value.keywords.items()))).encode())
        return
    if isinstance(value, types.MethodType):
        _add(found, value.__func__, seen)
        _add_state(found, value.__self__)
        return
    if not isinstance(value, types.FunctionType):
        kind = value if isinstance(value, (type, types.BuiltinFunctionType)) else type(value)
        found.update(f"{kind.__module__}.{kind.__qualname__}".encode())
        if kind is not value:
            _add_state(found, value)
            call = vars(kind).get("__call__")
            if isinstance(call, types.FunctionType):
                _add(found, call, seen)
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    _add_code(found, value.__code__)
    found.update(repr((value.__defaults__, sorted((value.__kwdefaults__ or {}).items()))).encode())
    for cell in value.__closure__ or ():
        _add_value(found, cell.cell_contents, seen)
    for name in sorted(_names(value.__code__)):
        other = value.__globals__.get(name)
        if isinstance(other, types.FunctionType) and other.__module__ == value.__module__:
            _add(found, other, seen)
        elif isinstance(other, (bool, int, float, str, bytes, tuple)):
            found.update(f"{name} = {other!r}\n".encode())


def _add_value(found: Any, value: Any, seen: set[int]) -> None:
    """What a function encloses."""
    if isinstance(value, np.ndarray):
        found.update(of_arrays({"": value}).encode())
    elif callable(value):
        _add(found, value, seen)
    elif isinstance(value, (bool, int, float, str, bytes, tuple, type(None))):
        found.update(repr(value).encode())
    else:
        _add_state(found, value)


def _add_state(found: Any, value: Any) -> None:
    """The plain attributes of an object."""
    found.update(f"{type(value).__module__}.{type(value).__qualname__}".encode())
    for name, attribute in sorted(getattr(value, "__dict__", {}).items()):
        if isinstance(attribute, np.ndarray):
            found.update(of_arrays({name: attribute}).encode())
        elif isinstance(attribute, (bool, int, float, str, bytes, tuple, type(None))):
            found.update(f"{name} = {attribute!r}\n".encode())


def _add_code(found: Any, code: types.CodeType) -> None:
    found.update(code.co_code)
    found.update(repr((code.co_names, code.co_varnames)).encode())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _add_code(found, constant)
        else:
            found.update(repr(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant).encode())


def _names(code: types.CodeType) -> set[str]:
    """The global names that code and the functions in it use."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))
