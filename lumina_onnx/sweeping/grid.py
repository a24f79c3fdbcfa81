"""The grid: axes with their values, its points, and the cells at each point, one for each draw."""

from __future__ import annotations

import dataclasses
import itertools
import math
import numbers
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from lumina_onnx._patterns import Patterns
from lumina_onnx._seeds import SEEDS
from lumina_onnx.profile import OpticalProfile
from lumina_onnx.schema import LAYER, Parameter

__all__ = ["DRAWS", "SEED", "Axis", "Grid", "Plan", "Value", "as_grid", "parsed", "parsed_seeds"]

Value = int | float | str
Point = tuple[Value, ...]

SEED = "seed"
DRAWS = (SEED,)
"""The axes over whose values standard errors are taken: no parameters, they repeat a point. The last varies fastest."""

_FIELDS = {row.name: row for row in LAYER}
_MOST = 100_000
"""Values of one axis; more are taken for a slip of the keyboard."""
_MOST_CELLS = 10_000_000


@dataclass(frozen=True)
class Axis:
    """One axis of a grid."""

    name: str
    """As the user wrote it: a parameter, PATTERN:parameter, or one of `DRAWS`."""
    pattern: str
    """Of the layers that the axis applies to; empty for all."""
    field: str
    values: tuple[Value, ...]

    @property
    def is_draw(self) -> bool:
        """Whether its values repeat a point."""
        return self.name in DRAWS


@dataclass(frozen=True)
class Grid:
    """Axes with parameters first, in the order given, and then those of `DRAWS`. A cell has one value of each."""

    axes: tuple[Axis, ...]

    @property
    def parameters(self) -> tuple[Axis, ...]:
        """The axes whose values make the points."""
        return tuple(axis for axis in self.axes if not axis.is_draw)

    @property
    def draws(self) -> tuple[Axis, ...]:
        """The axes whose values repeat each point."""
        return tuple(axis for axis in self.axes if axis.is_draw)

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of values of each axis."""
        return tuple(len(axis.values) for axis in self.axes)

    def __len__(self) -> int:
        return math.prod(self.shape)

    def points(self) -> Iterator[Point]:
        """A value for each parameter."""
        return itertools.product(*(axis.values for axis in self.parameters))

    def cells(self) -> Iterator[Point]:
        """A value for each axis; those of one point follow one another."""
        return itertools.product(*(axis.values for axis in self.axes))

    def described(self, cell: Sequence[Value]) -> str:
        """A cell, or a point, as text."""
        pairs = zip(self.axes, cell, strict=False)
        return ", ".join(f"{axis.name}={value}" for axis, value in pairs) or "the model as it is"

    def stated(self) -> dict[str, list[Value]]:
        """The axes with their values, as JSON keeps them."""
        return {axis.name: list(axis.values) for axis in self.axes}


def as_grid(grid: Mapping[str, Iterable[Value]], seeds: int | Iterable[int] | None) -> Grid:
    """The axes of a mapping from names to values; ``seeds`` is the axis "seed", a number of n the seeds 0..n-1.

    Raises:
        TypeError: an axis or a value has the wrong type.
        ValueError: an axis is unknown, is empty or has a value twice, or the seeds are given twice.
    """
    if not isinstance(grid, Mapping):
        raise TypeError(f"grid is a {type(grid).__name__}: allowed is a mapping from names of axes to their values")
    axes = [_axis(name, values) for name, values in grid.items()]
    if seeds is not None:
        if SEED in grid:
            raise ValueError("grid has an axis 'seed', and seeds are given as well: allowed is one of the two")
        count = _whole(seeds)
        if count is not None and count < 1:
            raise ValueError(f"seeds = {count}: allowed is at least 1, the number of draws")
        axes.append(_axis(SEED, range(count) if count is not None else seeds))  # type: ignore[arg-type]
    axes.sort(key=lambda axis: DRAWS.index(axis.name) + 1 if axis.is_draw else 0)
    found = Grid(tuple(axes))
    if len(found) > _MOST_CELLS:
        raise ValueError(f"grid has {len(found)} cells: allowed are up to {_MOST_CELLS}")
    return found


def parsed(text: str) -> tuple[str, list[Value]]:
    """An axis in the form ``NAME=VALUES``, VALUES as in :func:`_values`.

    Raises:
        ValueError: it has another form, or the axis is unknown.
    """
    name, equals, values = text.rpartition("=")
    if not equals:
        raise ValueError(f"{text!r}: allowed is NAME=VALUES, such as noise_additive=0,0.01,0.02 or output_bits=3:8")
    _, field = _split(name)
    row = _FIELDS.get(field)
    return name, _values(text, values, words=row is not None and row.type == "STRING")


def parsed_seeds(text: str) -> int | list[Value]:
    """The seeds: a count, or values as in a grid.

    Raises:
        ValueError: they are neither.
    """
    return int(text) if text.isascii() and text.isdecimal() else _values(text, text, words=False)


def _values(given: str, text: str, *, words: bool) -> list[Value]:
    """Values between commas: a number, a word, ``FIRST:LAST`` or ``FIRST:LAST:STEP``, both ends included."""
    found: list[Value] = []
    for item in text.split(","):
        item = item.strip()
        if words:
            found.append(item)
            continue
        try:
            parts = [Decimal(part) for part in item.split(":")]
        except InvalidOperation:
            parts = []
        if not 1 <= len(parts) <= 3 or not all(part.is_finite() for part in parts):
            raise ValueError(f"{given!r}: {item!r} is no value; allowed are numbers, FIRST:LAST and FIRST:LAST:STEP")
        if len(parts) == 1:
            found.append(_number(parts[0], item))
            continue
        first, last = parts[:2]
        step = parts[2] if len(parts) == 3 else Decimal(1)
        if len(parts) == 2 and not all(part == part.to_integral_value() for part in parts):
            raise ValueError(f"{given!r}: {item!r} needs a step: FIRST:LAST:STEP, such as 0:0.1:0.02")
        if step <= 0 or last < first:
            raise ValueError(f"{given!r}: {item!r} holds no value: allowed is FIRST <= LAST, and a STEP above 0")
        count = int((last - first) / step) + 1
        if count > _MOST:
            raise ValueError(f"{given!r}: {item!r} holds {count} values; allowed are up to {_MOST}")
        found += [_number(first + place * step, item) for place in range(count)]
    return found


def _number(value: Decimal, text: str) -> int | float:
    """An int unless the text has a point or an exponent."""
    is_whole = value == value.to_integral_value() and not set(text) & set(".eE")
    return int(value) if is_whole else float(value)


def _axis(name: str, values: Iterable[Value]) -> Axis:
    if not isinstance(name, str):
        raise TypeError(f"grid has the axis {name!r}: allowed are names, of type str")
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"grid[{name!r}] is {values!r}: allowed is a list of values")
    pattern, field = _split(name)
    row = _FIELDS.get(field)
    if name not in DRAWS and row is None:
        known = ", ".join([*_FIELDS, *DRAWS])
        raise ValueError(
            f"grid has the unknown axis {name!r}: allowed is {known}; and PATTERN:NAME, for the layers that match"
        )
    found = tuple(_number_of_draw(name, value) if row is None else _converted(row, name, value) for value in values)
    if not found:
        raise ValueError(f"grid[{name!r}] is empty: allowed is at least one value")
    if len(found) > _MOST:
        raise ValueError(f"grid[{name!r}] has {len(found)} values: allowed are up to {_MOST}")
    repeated = (
        [value for place, value in enumerate(found) if value in found[:place]] if len(set(found)) < len(found) else []
    )
    if repeated:
        raise ValueError(f"grid[{name!r}] has {repeated[0]!r} twice: allowed is each value once")
    return Axis(name, pattern, field, found)


def _split(name: str) -> tuple[str, str]:
    """The pattern of an axis, empty where there is none, and its parameter."""
    pattern, _, field = name.rpartition(":")
    return pattern, field


def _converted(row: Parameter, name: str, value: Any) -> Value:
    """A value in the parameter's type."""
    if row.type == "STRING":
        if not isinstance(value, str):
            raise TypeError(f"grid[{name!r}] holds {value!r}: allowed is {row.allowed}")
        return str.__str__(value)
    if row.type == "INT":
        whole = _whole(value)
        if whole is None:
            raise TypeError(f"grid[{name!r}] holds {value!r}: allowed is {row.allowed}")
        return whole
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"grid[{name!r}] holds {value!r}: allowed is one number, {row.allowed}")
    return float(value)


def _number_of_draw(name: str, value: Any) -> int:
    whole = _whole(value)
    if whole is None or not 0 <= whole < SEEDS:
        raise ValueError(f"{name} = {value!r}: allowed is 0..2^63-1")
    return whole


def _whole(value: Any) -> int | None:
    """An integer, also one of numpy's; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


class Plan:
    """What each point of a grid makes of the layers of a model.

    Args:
        grid: the grid.
        names: the layers' names, which patterns select by.
        profiles: what the layers are without the grid.
        skip: patterns of layers that keep their profile.

    Raises:
        ValueError: a pattern matches no layer, or an axis no layer that is not skipped.
    """

    def __init__(
        self, grid: Grid, names: Sequence[str], profiles: Sequence[OpticalProfile], skip: str | Iterable[str]
    ) -> None:
        layers = [(name,) for name in names]
        skips = Patterns("skip", skip, layers)
        self._grid = grid
        self._names = tuple(names)
        self._profiles = tuple(profiles)
        self._targets: list[tuple[str, tuple[int, ...]]] = []
        kept = [place for place, name in enumerate(names) if not skips.matching(name)]
        for axis in grid.parameters:
            places = kept
            if axis.pattern:
                patterns = Patterns(f"grid axis {axis.name!r}:", axis.pattern, layers)
                places = [place for place in kept if patterns.matching(names[place])]
            if not places:
                raise ValueError(f"grid axis {axis.name!r} applies to no layer: skip leaves out {', '.join(names)}")
            self._targets.append((axis.field, tuple(places)))

    def profiles(self, point: Sequence[Value]) -> list[OpticalProfile]:
        """The layers' profiles at a point. Of several axes that set one parameter of a layer, the last applies.

        Raises:
            ValueError: a value is not allowed, or another makes it meaningless; the message names point and layer.
        """
        changes: list[dict[str, Value]] = [{} for _ in self._profiles]
        for (field, places), value in zip(self._targets, point, strict=False):
            for place in places:
                changes[place][field] = value
        found = []
        for name, profile, change in zip(self._names, self._profiles, changes, strict=True):
            if change.get("input_bits") == 0:
                # A layer's own full scale of a DAC, which without a DAC nothing reads.
                change.setdefault("input_range", 0.0)
            try:
                found.append(dataclasses.replace(profile, **change) if change else profile)  # type: ignore[arg-type]
            except ValueError as error:
                raise ValueError(f"grid: {self._grid.described(point)}: layer {name!r}: {error}") from None
        return found
