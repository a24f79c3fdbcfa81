"""The journal beside a sweep's results: what the sweep is, and each finished cell as soon as it is finished."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from .grid import Grid, Value

__all__ = ["EXISTING", "Journal", "beside"]

Cell = tuple[Value, ...]
Values = dict[str, float]

EXISTING = ("resume", "extend", "overwrite")
"""What to do with the cells that an earlier sweep left."""

_FORMAT = 1
_ADVICE = (
    "allowed is the sweep that they belong to, another file for the results, or existing='overwrite' (--existing "
    "overwrite), which drops them"
)
_EXTEND = "; existing='extend' (--existing extend) takes those that are in the new grid"


def beside(out: Path) -> Path:
    """The journal of a file of results."""
    return out.with_name(f"{out.name}.cells.jsonl")


class Journal:
    """A file of lines in JSON, for one process at a time: a mapping that says what the sweep is, which holds until the
    next such line, and ``[cell, values]`` for each finished cell.
    """

    def __init__(self, path: Path, file: IO[bytes], cells: dict[Cell, Values]) -> None:
        self.path = path
        self._file = file
        self.cells = cells
        """The finished cells of the grid."""

    def add(self, outcomes: Iterable[tuple[Cell, Values]]) -> None:
        """Keeps finished cells."""
        outcomes = list(outcomes)
        self._file.write(b"".join(_line([list(cell), values]) for cell, values in outcomes))
        self._file.flush()
        self.cells.update(outcomes)

    @classmethod
    @contextlib.contextmanager
    def open(cls, out: Path, grid: Grid, facts: Mapping[str, Any], existing: str) -> Iterator[Journal]:
        """The journal of a file of results, new or with the cells of an earlier run.

        Args:
            out: the file of results.
            grid: the grid.
            facts: what else cells depend on, by the word for it, as JSON has it.
            existing: one of `EXISTING`.

        Raises:
            ValueError: the journal is that of another sweep, or another process has it open.
            FileExistsError: there are results without a journal.
        """
        path = beside(out)
        if existing != "overwrite" and out.exists() and not path.exists():
            raise FileExistsError(
                f"out = {str(out)!r} exists, and no sweep has left {path.name!r} beside it: allowed is another file, "
                "or existing='overwrite' (--existing overwrite)"
            )
        with path.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(f"out = {str(out)!r}: another sweep is writing {path.name!r}") from None
            head = {"lumina_sweep": _FORMAT, **facts, "grid": grid.stated()}
            if existing == "overwrite":
                file.truncate(0)
            before, cells = _content(file, path)
            if before is not None:
                _compare(path, before, head, existing)
            if before != head:
                file.write(_line(head))
                file.flush()
            wanted = set(grid.cells()) if cells else set()
            yield cls(path, file, {cell: values for cell, values in cells.items() if cell in wanted})


def _content(file: IO[bytes], path: Path) -> tuple[dict[str, Any] | None, dict[Cell, Values]]:
    """The last statement of what the sweep is, and all cells. A line at the end that was cut off is removed."""
    file.seek(0)
    *lines, rest = file.read().split(b"\n")
    head, cells = None, {}
    try:
        for line in map(json.loads, lines):
            if isinstance(line, dict):
                head = line
            else:
                cell, values = line
                cells[tuple(cell)] = values
        if (lines and head is None) or (head and head["lumina_sweep"] != _FORMAT):
            raise ValueError("it does not say so, or is of another release")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is not the journal of a sweep ({error}): {_ADVICE}") from error
    if rest:
        file.truncate(file.tell() - len(rest))
    return head, cells


def _compare(path: Path, before: dict[str, Any], now: dict[str, Any], existing: str) -> None:
    """Refuses cells of another sweep."""
    other = [word for word in now if before.get(word) != now[word]]
    # A cell has its values in the order of the axes, in which mappings are not compared.
    if "grid" not in other and list(before["grid"]) != list(now["grid"]):
        other.append("grid")
    if not other:
        return
    told = "; ".join(_difference(word, before.get(word), now[word]) for word in other)
    advice = _ADVICE
    if other == ["grid"] and list(before["grid"]) == list(now["grid"]):
        if existing == "extend":
            return
        advice += _EXTEND
    raise ValueError(f"{str(path)!r} has the cells of another sweep: {told}; {advice}")


def _difference(word: str, before: Any, now: Any) -> str:
    """What differs, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        parts = (f"{name} was {_short(before.get(name))} and is {_short(now.get(name))}" for name in names)
        if word == "grid" and not names:
            return "the order of the axes of its grid"
        return f"{word}: {', '.join(parts)}"
    if isinstance(now, str) and len(now) == 64:
        return f"its {word} is another"
    return f"{word} was {_short(before)} and is {_short(now)}"


def _short(value: Any) -> str:
    if value is None:
        return "not there"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:40]} ... {text[-15:]}"


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
