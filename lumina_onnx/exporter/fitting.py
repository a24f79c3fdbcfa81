"""Random inputs of a size at which a model runs: what its graph says about sizes, and then what trying shows."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import onnx_ir as ir

from .feeds import ADVICE, Arrays, Kind, check_tensors, declared, described, fed, random, types
from .sizes import required

__all__ = ["SIZES", "UnfitError", "fitting"]

SIZES = (8, 16, 32, 48, 64, 96, 128, 224, 256, 512)
"""Sizes that are tried for all symbolic ones but a leading one; among them those of images."""

_RANKS = (2, 3, 4, 1, 0)
"""Ranks that are tried for inputs of unknown rank."""

_ELEMENTS = 2**25
"""Larger inputs are not tried."""

_T = TypeVar("_T")


class UnfitError(ValueError):
    """Why a model runs on no inputs that were tried, what they were, and what to give."""


def fitting(model: ir.Model, runs: Callable[[Arrays], _T]) -> tuple[dict[str, Kind], _T]:
    """The types of the inputs in numbers, at the first sizes at which the model runs, and what `runs` returned there.

    Args:
        model: the model; it is not changed.
        runs: runs the model on inputs, and raises whatever ONNX Runtime raises.

    Raises:
        UnfitError: the model runs on none of them.
        ValueError: an input is no tensor, or holds strings.
    """
    check_tensors(model)
    errors: list[tuple[Arrays, Exception]] = []
    for kinds in _trials(model):
        arrays = random(kinds)
        try:
            return kinds, runs(arrays)
        except Exception as error:  # Whatever the model's operators raise.
            errors.append((arrays, error))
    arrays, first = errors[0]
    others = f", nor of {len(errors) - 1} other sizes" if len(errors) > 1 else ""
    raise UnfitError(
        f"the model does not run on random inputs, which it gets where there are no others ({described(arrays)}"
        f"{others}): {ADVICE}, of {types(declared(model))}. ONNX Runtime says: {first}"
    ) from first


def _trials(model: ir.Model) -> Iterator[dict[str, Kind]]:
    """Types of the inputs in numbers, the likeliest first."""
    kinds = declared(model)
    ranks = _RANKS if any(kind.shape is None for kind in kinds.values()) else (None,)
    for rank in ranks:
        shapes = {name: _named(name, kind, rank) for name, kind in kinds.items()}
        symbolic = any(isinstance(size, str) for shape in shapes.values() for size in shape)
        known = _required(model, shapes) if symbolic else {}
        for sizes in _assignments(shapes, known):
            numbers = {name: _numbers(shape, sizes) for name, shape in shapes.items()}
            if not symbolic or max(map(math.prod, numbers.values())) <= _ELEMENTS:
                yield {name: Kind(kind.dtype, numbers[name]) for name, kind in kinds.items()}


def _named(name: str, kind: Kind, rank: int | None) -> tuple[int | str, ...]:
    """The shape of an input, with a name for each size that has none."""
    shape = ("",) * (rank or 0) if kind.shape is None else kind.shape
    return tuple(f"{name}[{axis}]" if size == "" else size for axis, size in enumerate(shape))


def _required(model: ir.Model, shapes: Mapping[str, tuple[int | str, ...]]) -> dict[str, int]:
    copy = model.clone()
    for value in fed(copy):
        value.shape = ir.Shape(shapes[str(value.name)])
    return required(copy)


def _assignments(shapes: Mapping[str, tuple[int | str, ...]], known: dict[str, int]) -> Iterator[dict[str, int]]:
    """Numbers for all names in the shapes."""
    free: dict[str, None] = {}
    leading: set[str] = set()
    for shape in shapes.values():
        for axis, size in enumerate(shape):
            if isinstance(size, str) and size not in known:
                names = [name for name in _names(size) if name not in known]
                free |= dict.fromkeys(names)
                leading |= set(names) if axis == 0 else set()
    yield known | {name: number for number, name in enumerate(free, start=2)}
    if free:
        yield known | dict.fromkeys(free, 2)
        # A decoder's cache may be empty; its length plus that of the input is the length of a third thing.
        yield known | {name: 0 if "past" in name else 2 for name in free}
        for size, batch in itertools.product(SIZES, (2, 1)):
            yield known | {name: batch if name in leading else size for name in free}
        yield known | dict.fromkeys(free, 1)


def _names(size: str) -> list[str]:
    """The names in a symbolic size, which may be an expression of several, such as "past + 1"."""
    if re.fullmatch(r"\w*[^\W\d]\w*", size):
        return [size]
    try:
        return sorted(ir.SymbolicDim(size).free_symbols()) or [size]
    except Exception:  # Names of some exporters look like expressions.
        return [size]


def _numbers(shape: tuple[int | str, ...], sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else _number(size, sizes) for size in shape)


def _number(size: str, sizes: dict[str, int]) -> int:
    if size in sizes:
        return sizes[size]
    number: Any = ir.SymbolicDim(size).evaluate(sizes)
    return max(number, 0) if isinstance(number, int) else 1
