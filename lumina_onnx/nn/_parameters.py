"""A layer's parameters in the forms that torch's operators take, from the table in :mod:`lumina_onnx.schema`.

The operator for inference takes them one by one, so that exported programs are plain to read. Those for training take
them as one text, which crosses torch's dispatcher as fast as one number does.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

import lumina_kernel
from lumina_onnx import schema
from lumina_onnx.nn._streams import NO_NOISE
from lumina_onnx.profile import OpticalProfile

#: The parameters' names, in the order in which every operator's signature has them.
NAMES = tuple(row.name for row in schema.LAYER)
_TORCH_TYPES = {"INT": "int", "FLOAT": "float", "FLOATS": "float[]", "STRING": "str"}
#: The parameters' part of the signature of the operator for inference, which exported programs have.
SIGNATURE = ", ".join(f"{_TORCH_TYPES[row.type]} {row.name}" for row in schema.LAYER if row.since == 1)
#: Those that later versions of the operator added: options, so that a program saved without them loads.
OPTIONS = schema.LATER
OPTIONS_SIGNATURE = ", ".join(
    f'{_TORCH_TYPES[row.type]} {row.name}="{row.default}"'
    if row.type == "STRING"
    else f"{_TORCH_TYPES[row.type]} {row.name}={row.default}"
    for row in OPTIONS
)


def _checked(values: Sequence[Any]) -> lumina_kernel.Params:
    return lumina_kernel.Params(**dict(zip(NAMES, values, strict=True)))


# The cache entry of a layer with a range for each of 4096 outputs takes some 150 KB, and half of that as a text.
@functools.lru_cache(maxsize=256)
def _cached_params(*values: Any) -> lumina_kernel.Params:
    return _checked(values)


def params_of(values: Sequence[Any]) -> lumina_kernel.Params:
    """The kernel's checked parameters from the values of :data:`NAMES`."""
    return _cached_params(*(tuple(value) if isinstance(value, list) else value for value in values))


@functools.lru_cache(maxsize=256)
def params_in(text: str) -> lumina_kernel.Params:
    """The kernel's checked parameters from a profile's text."""
    return _checked(schema.read(text))


def call_of(params: lumina_kernel.Params, stream: Tensor) -> tuple[lumina_kernel.Params, int]:
    """The parameters and the stream of a call: no noise where the stream is :data:`NO_NOISE`."""
    number = int(stream)
    return (params, number) if number != NO_NOISE else (_silent(params), 0)


@functools.lru_cache(maxsize=256)
def _silent(params: lumina_kernel.Params) -> lumina_kernel.Params:
    values = {name: getattr(params, name) for name in NAMES}
    return lumina_kernel.Params(**values | schema.quiet(values))


def values_of(profile: OpticalProfile) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of the operator for inference: by position, and the options that are not at their defaults."""
    # From the text, since Dynamo makes symbols of numbers that differ from those of an earlier call, and cannot turn
    # these back into numbers in a branch of torch.cond.
    values = schema.read(profile._text)
    count = len(values) - len(OPTIONS)
    options = {row.name: value for row, value in zip(OPTIONS, values[count:], strict=True) if value != row.default}
    return values[:count], options


def params_of_call(values: Sequence[Any], options: Mapping[str, Any]) -> lumina_kernel.Params:
    """The kernel's checked parameters from the arguments of the operator for inference."""
    return params_of([*values, *(options.get(row.name, row.default) for row in OPTIONS)])


def text_of(params: lumina_kernel.Params) -> str:
    """The text of a profile with these parameters."""
    return schema.text_of(getattr(params, name) for name in NAMES)


def has_noise(params: lumina_kernel.Params) -> bool:
    """Whether calls with these parameters draw any noise; an OpticalProfile knows this by itself."""
    return any(getattr(params, name) != 0 for name in schema.NOISE)


def quiet(profile: OpticalProfile) -> OpticalProfile:
    """The profile without noise."""
    return profile.quiet()
