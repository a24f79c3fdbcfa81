"""The arrays that a model is run on: the user's, checked, or random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["ADVICE", "Arrays", "Kind", "check_tensors", "declared", "described", "fed", "random", "read", "types"]

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Kind:
    """The type of an input."""

    dtype: ir.DataType
    """UNDEFINED if the input is not a tensor."""
    shape: tuple[int | str, ...] | None
    """Sizes; the name of a symbolic size, "" if it has none. None if the rank is unknown."""


ADVICE = "give inputs of yours, inputs=... or --input"
"""Advice for errors in which random inputs do not work."""


def read(model: ir.Model, inputs: Mapping[str, Any] | Sequence[Any]) -> Arrays:
    """The arrays by input name, checked.

    Raises:
        ValueError: names, dtypes or shapes do not fit the model, or an input of the model is not a tensor.
    """
    check_tensors(model)
    kinds = declared(model)
    if not isinstance(inputs, Mapping):
        if isinstance(inputs, np.ndarray) or not isinstance(inputs, Sequence):
            inputs = [inputs]
        if len(inputs) != len(kinds):
            raise ValueError(f"inputs has {len(inputs)} arrays; allowed are {len(kinds)}: {', '.join(kinds)}")
        inputs = dict(zip(kinds, inputs, strict=True))
    if set(inputs) != set(kinds):
        raise ValueError(f"inputs has the names {sorted(inputs)}; allowed are {sorted(kinds)}")
    feeds = {}
    for name, kind in kinds.items():
        array = np.asarray(inputs[name])
        dtype = kind.dtype.numpy()
        if kind.dtype == ir.DataType.STRING and array.dtype.kind == "U":
            array = array.astype(dtype)
        if array.dtype != dtype:
            raise ValueError(f"inputs[{name!r}] has dtype {array.dtype}; allowed is {dtype}")
        _check_shape(name, array.shape, kind)
        feeds[name] = array
    return feeds


def check_tensors(model: ir.Model) -> None:
    """Refuses a model with an input that is not a tensor.

    Raises:
        ValueError: the message names the input.
    """
    for value in fed(model):
        if not isinstance(value.type, ir.TensorType):
            other = "map" if value.type is None else _OTHERS[type(value.type)]
            raise ValueError(f"the model's input {value.name!r} is a {other}; allowed are tensors")


def declared(model: ir.Model) -> dict[str, Kind]:
    """The types of the inputs that callers feed, by name."""
    return {str(value.name): _kind(value) for value in fed(model)}


def fed(model: ir.Model) -> list[ir.Value]:
    """The inputs that callers feed."""
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


_OTHERS = {ir.SequenceType: "sequence", ir.OptionalType: "optional", ir.SparseTensorType: "sparse_tensor"}


def _kind(value: ir.Value) -> Kind:
    """The type of an input; sizes of -1 count as symbolic, since some exporters write them so."""
    dtype = value.type.dtype if isinstance(value.type, ir.TensorType) else ir.DataType.UNDEFINED
    if value.shape is None or not isinstance(value.type, ir.TensorType):
        return Kind(dtype, None)
    sizes = ((size.value or "") if isinstance(size, ir.SymbolicDim) else max(int(size), -1) for size in value.shape)
    return Kind(dtype, tuple("" if size == -1 else size for size in sizes))


def described(feeds: Arrays) -> str:
    """Names, dtypes and shapes as text."""
    return ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feeds.items()) or "none"


def types(kinds: Mapping[str, Kind]) -> str:
    """Names, dtypes and shapes of inputs as text."""
    return ", ".join(f"{name} {kind.dtype.name.lower()}{_shape_text(kind)}" for name, kind in kinds.items()) or "none"


def _shape_text(kind: Kind) -> str:
    if kind.shape is None:
        return " of any shape"
    return "[" + ", ".join(str(size) if size != "" else "?" for size in kind.shape) + "]"


def _check_shape(name: str, shape: tuple[int, ...], kind: Kind) -> None:
    if kind.shape is None:
        return
    fits = len(shape) == len(kind.shape) and all(
        isinstance(allowed, str) or allowed == size for size, allowed in zip(shape, kind.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"inputs[{name!r}] has shape {list(shape)}; allowed is {_shape_text(kind)}")


def random(kinds: Mapping[str, Kind], seed: int = 0) -> Arrays:
    """Random arrays of types whose sizes are numbers: normal floats; 0 or 1 for other numeric types.

    Raises:
        ValueError: an input holds strings.
    """
    generator = np.random.default_rng(seed)
    feeds = {}
    for name, kind in kinds.items():
        if kind.dtype == ir.DataType.STRING:
            raise ValueError(f"the model's input {name!r} holds strings, for which there are no random ones: {ADVICE}")
        dtype, shape = kind.dtype.numpy(), [int(size) for size in kind.shape or ()]
        if np.issubdtype(dtype, np.floating):
            feeds[name] = np.asarray(generator.standard_normal(shape)).astype(dtype)
        else:
            feeds[name] = np.asarray(generator.integers(0, 2, shape)).astype(dtype)
    return feeds
