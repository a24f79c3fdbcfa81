"""The operator's name and table of parameters, as the kernel itself states them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import lumina_kernel

DOMAIN: str = lumina_kernel.OP_DOMAIN
"""The ONNX domain of the operator."""
OPERATOR: str = lumina_kernel.OP_NAME
"""The operator's name in `DOMAIN`."""
VERSION: int = lumina_kernel.OP_VERSION
"""The operator's version, which is the domain's opset version."""

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


# What a node says beside what its hardware is.
_OF_NODE = ("seed", "in_features")

PARAMETERS: tuple[Parameter, ...] = tuple(Parameter(**row) for row in lumina_kernel.schema())
"""Every parameter of the operator, in the order of its documentation."""

LAYER: tuple[Parameter, ...] = tuple(row for row in PARAMETERS if row.place == "attribute" and row.name not in _OF_NODE)
"""Those that describe the hardware of a layer, in their order: the fields of an :class:`lumina_onnx.OpticalProfile`."""

NOISE: tuple[str, ...] = tuple(row.name for row in LAYER if row.name.startswith("noise_"))
"""The names of the noise levels, which begin so: each is 0 where there is no such noise."""


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
    """The values of the parameters in :data:`LAYER` as one text, which :func:`read` reads."""
    return " ".join(",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value) for value in values)


def read(text: str) -> list[Any]:
    """The values of the parameters in :data:`LAYER` from their text; those of type FLOATS are lists."""
    return [_READ[row.type](word) for row, word in zip(LAYER, text.split(" "), strict=True)]


def _floats(word: str) -> list[float]:
    return [float(each) for each in word.split(",")]


_READ: dict[str, Callable[[str], Any]] = {"INT": int, "FLOAT": float, "FLOATS": _floats, "STRING": str}
