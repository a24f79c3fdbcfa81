"""A layer's parameters in the form that torch's operators take, from the table in :mod:`lumina_onnx.schema`."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import lumina_kernel
from lumina_onnx import schema
from lumina_onnx.nn._streams import NO_NOISE
from lumina_onnx.profile import OpticalProfile

#: The parameters' names, in the order in which every operator's signature has them.
NAMES = tuple(row.name for row in schema.LAYER)
_TYPES = tuple(row.type for row in schema.LAYER)
_TORCH_TYPES = {"INT": "int", "FLOAT": "float", "FLOATS": "float[]", "STRING": "str"}
#: The parameters' part of every operator's signature.
SIGNATURE = ", ".join(f"{_TORCH_TYPES[row.type]} {row.name}" for row in schema.LAYER)
_NOISE_LEVELS = tuple(NAMES.index(name) for name in schema.NOISE)


# The cache entry of a layer with a range for each of 4096 outputs takes some 150 KB.
@functools.lru_cache(maxsize=256)
def _cached_params(*values: Any) -> lumina_kernel.Params:
    return lumina_kernel.Params(**dict(zip(NAMES, values, strict=True)))


def params_of(values: Sequence[Any]) -> lumina_kernel.Params:
    """The kernel's checked parameters from the values of :data:`NAMES`."""
    return _cached_params(*(tuple(value) if isinstance(value, list) else value for value in values))


def call_of(values: Sequence[Any], stream: Tensor) -> tuple[lumina_kernel.Params, int]:
    """The kernel's parameters for a call, and the call's stream."""
    number = int(stream)
    if number != NO_NOISE:
        return params_of(values), number
    return params_of([0.0 if place in _NOISE_LEVELS else value for place, value in enumerate(values)]), 0


def values_of(source: OpticalProfile | lumina_kernel.Params) -> list[Any]:
    """The values of :data:`NAMES`, as the operators take them."""
    if torch.compiler.is_dynamo_compiling() and "_text" in source.__dict__:
        # Dynamo makes symbols of numbers that differ from those of an earlier call, and cannot turn these back into
        # numbers in a branch of torch.cond. A string never becomes a symbol.
        words = source._text.split(" ")  # type: ignore[union-attr]
        return [_read(kind, word) for kind, word in zip(_TYPES, words, strict=True)]
    values = [getattr(source, name) for name in NAMES]
    return [_listed(value) if kind == "FLOATS" else value for kind, value in zip(_TYPES, values, strict=True)]


def _read(kind: str, word: str) -> Any:
    if kind == "INT":
        return int(word)
    if kind == "FLOAT":
        return float(word)
    if kind == "FLOATS":
        return [float(each) for each in word.split(",")]
    return word


def _listed(value: float | tuple[float, ...]) -> list[float]:
    return list(value) if isinstance(value, tuple) else [value]


def has_noise(params: lumina_kernel.Params) -> bool:
    """Whether calls with these parameters draw any noise; an OpticalProfile knows this by itself."""
    return any(getattr(params, name) != 0 for name in schema.NOISE)


def quiet(profile: OpticalProfile) -> OpticalProfile:
    """The profile without noise."""
    return profile.replace(**dict.fromkeys(schema.NOISE, 0.0))
