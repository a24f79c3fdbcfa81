"""What a model is run on: a user's arrays, checked, or random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

__all__ = ["ADVICE", "Arrays", "declared", "described", "random", "read"]

Arrays = dict[str, NDArray[Any]]

ADVICE = "give inputs of yours, inputs=... or --input"
"""Where random inputs do not do."""


def read(model: onnx.ModelProto, inputs: Mapping[str, Any] | Sequence[Any] | None) -> Arrays:
    """The arrays by input name; where there are none, random ones of the model's shapes.

    Raises:
        ValueError: names, dtypes or shapes that do not fit the model.
    """
    for value in _fed(model):
        type_ = value.type.WhichOneof("value")
        if type_ not in (None, "tensor_type"):
            raise ValueError(
                f"the model's input {value.name!r} is a {type_.removesuffix('_type')}; allowed are tensors"
            )
    kinds = declared(model)
    if inputs is None:
        return random(kinds)
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
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if kind.elem_type == onnx.TensorProto.STRING and array.dtype.kind == "U":
            array = array.astype(dtype)
        if array.dtype != dtype:
            raise ValueError(f"inputs[{name!r}] has dtype {array.dtype}; allowed is {dtype}")
        _check_shape(name, array.shape, kind)
        feeds[name] = array
    return feeds


def declared(model: onnx.ModelProto) -> dict[str, Any]:
    """The types of the inputs that are fed; of one that is no tensor an undefined one."""
    return {value.name: value.type.tensor_type for value in _fed(model)}


def _fed(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def described(feeds: Arrays) -> str:
    """Names, dtypes and shapes."""
    return ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feeds.items()) or "none"


def _check_shape(name: str, shape: tuple[int, ...], kind: Any) -> None:
    if not kind.HasField("shape"):
        return
    dimensions = kind.shape.dim
    fits = len(shape) == len(dimensions) and all(
        _fixed(dim) in (None, size) for size, dim in zip(shape, dimensions, strict=True)
    )
    if not fits:
        allowed = ", ".join(dim.dim_param or "?" if (size := _fixed(dim)) is None else str(size) for dim in dimensions)
        raise ValueError(f"inputs[{name!r}] has shape {list(shape)}; allowed is [{allowed}]")


def random(kinds: dict[str, Any], seed: int = 0) -> Arrays:
    """Normal numbers, integers and strings 0 and 1; symbolic sizes become 2, 3, ..."""
    generator = np.random.default_rng(seed)
    sizes: dict[str, int] = {}
    feeds = {}
    for name, kind in kinds.items():
        shape = [
            sizes.setdefault(dim.dim_param, 2 + len(sizes)) if (size := _fixed(dim)) is None else size
            for dim in kind.shape.dim
        ]
        if kind.elem_type == onnx.TensorProto.STRING:
            raise ValueError(f"the model's input {name!r} holds strings, for which there are no random ones: {ADVICE}")
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if np.issubdtype(dtype, np.floating):
            feeds[name] = np.asarray(generator.standard_normal(shape)).astype(dtype)
        else:
            integers = np.asarray(generator.integers(0, 2, shape))
            feeds[name] = (integers.astype(str) if np.dtype(dtype).kind == "O" else integers).astype(dtype)
    return feeds


def _fixed(dim: Any) -> int | None:
    """A dimension's size; None where it is symbolic, which some exporters write as -1."""
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None
