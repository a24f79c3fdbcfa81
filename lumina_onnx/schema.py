"""The operator's name and table of parameters, as the kernel itself states them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import lumina_kernel

DOMAIN: str = lumina_kernel.OP_DOMAIN
"""The ONNX domain of the operator."""
OPERATOR: str = lumina_kernel.OP_NAME
"""The operator's name in `DOMAIN`."""
DOMAIN_VERSION: int = lumina_kernel.OP_DOMAIN_VERSION
"""The version of `DOMAIN` that models import, whatever that of the operator: hosts find no operator for another one."""
VERSION: int = lumina_kernel.OP_VERSION
"""The latest version of the operator. A node says the lowest that has its parameters: :func:`version_of`."""

VERSION_ATTRIBUTE: str = lumina_kernel.OP_VERSION_ATTRIBUTE
"""The attribute with the operator's version that a node was made for; the library refuses later versions."""


@dataclass(frozen=True)
class Parameter:
    """One row of the table of parameters.

    Attributes:
        name: The name, in Python and in ONNX.
        type: As ONNX names it: INT, FLOAT, FLOATS or STRING.
        place: Where it is given: as an "attribute" or "input" of the node, or with each "call".
        default: The default, or None.
        minimum: The smallest allowed number; None if there is no bound.
        maximum: The largest allowed number; None if there is no bound.
        choices: The allowed strings; empty for other types.
        allowed: What is allowed, in words.
        meaning: What it means.
        since: The first version of the operator that has it.
        draws_noise: Whether noise is drawn where it is not at its default.
    """

    name: str
    type: str
    place: str
    default: int | float | str | None
    minimum: int | float | None
    maximum: int | float | None
    choices: tuple[str, ...]
    allowed: str
    meaning: str
    since: int
    draws_noise: bool


# What a node says beside what its hardware is.
_OF_NODE = ("seed", "in_features")

PARAMETERS: tuple[Parameter, ...] = tuple(Parameter(**row) for row in lumina_kernel.schema())
"""Every parameter of the operator, in the order of its documentation."""

LAYER: tuple[Parameter, ...] = tuple(row for row in PARAMETERS if row.place == "attribute" and row.name not in _OF_NODE)
"""Those that describe the hardware of a layer, in their order: the fields of an :class:`lumina_onnx.OpticalProfile`."""

LATER: tuple[Parameter, ...] = tuple(row for row in LAYER if row.since > 1)
"""Those of them that version 1 of the operator does not have: the last ones of :data:`LAYER`."""

NOISE: tuple[str, ...] = tuple(row.name for row in LAYER if row.draws_noise)
"""The names of the noise levels: each is 0 where there is no such noise."""

_OF_PHOTONS = ("detection", "photon_reference")
_OF_WEIGHT_LEVELS = ("noise_read", "photons", "output_bound")


def quiet(values: Mapping[str, Any]) -> dict[str, Any]:
    """What to change of a layer's parameters to switch its noise off: its levels, and what only these would read."""
    changes: dict[str, Any] = {name: 0.0 for name in NOISE if name in values}
    changes |= {name: parameter(name).default for name in _OF_PHOTONS if name in values}
    if not any(changes.get(name, values.get(name)) for name in _OF_WEIGHT_LEVELS) and "weight_levels" in values:
        changes["weight_levels"] = parameter("weight_levels").default
    return changes


def later(values: Mapping[str, Any]) -> list[str]:
    """The parameters in `values` that are not at their defaults, and that version 1 of the operator does not have."""
    return [row.name for row in PARAMETERS if row.since > 1 and values.get(row.name, row.default) != row.default]


def version_of(values: Mapping[str, Any]) -> int:
    """The lowest version of the operator that has the parameters of `values` which are not at their defaults."""
    return max((parameter(name).since for name in later(values)), default=1)


def parameter(name: str) -> Parameter:
    """The row of the parameter `name`.

    Raises:
        KeyError: There is no such parameter.
    """
    for row in PARAMETERS:
        if row.name == name:
            return row
    raise KeyError(name)


def text_of(values: Iterable[Any]) -> str:
    """The values of the parameters in :data:`LAYER` as one text, which :func:`read` reads.

    Those at the end that are at their defaults are left out if they are later than version 1: other releases may not
    have them.
    """
    words = [",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value) for value in values]
    for row in reversed(LATER):
        if words[-1] != str(row.default):
            break
        words.pop()
    return " ".join(words)


def read(text: str) -> list[Any]:
    """The values of the parameters in :data:`LAYER` from their text; those of type FLOATS are lists."""
    words = text.split(" ")
    absent = [str(row.default) for row in LAYER[len(words) :] if row.since > 1]
    pairs = list(zip(LAYER, [*words, *absent], strict=True))
    return [_READ[row.type](word) for row, word in pairs]


def _floats(word: str) -> list[float]:
    return [float(each) for each in word.split(",")]


_READ: dict[str, Callable[[str], Any]] = {"INT": int, "FLOAT": float, "FLOATS": _floats, "STRING": str}
