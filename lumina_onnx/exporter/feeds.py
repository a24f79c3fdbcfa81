"""What a model is run on: a user's arrays, checked, or random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

__all__ = ["Arrays", "read"]

Arrays = dict[str, NDArray[Any]]


def read(model: onnx.ModelProto, inputs: Mapping[str, Any] | Sequence[Any] | None) -> Arrays:
    """The arrays by input name; where there are none, random ones of the model's shapes.

    Raises:
        ValueError: names, dtypes or shapes that do not fit the model.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    declared = {value.name: value.type.tensor_type for value in model.graph.input if value.name not in stored}
    if inputs is None:
        return _random(declared)
    if not isinstance(inputs, Mapping):
        if isinstance(inputs, np.ndarray) or not isinstance(inputs, Sequence):
            inputs = [inputs]
        if len(inputs) != len(declared):
            raise ValueError(f"inputs has {len(inputs)} arrays; allowed are {len(declared)}: {', '.join(declared)}")
        inputs = dict(zip(declared, inputs, strict=True))
    if set(inputs) != set(declared):
        raise ValueError(f"inputs has the names {sorted(inputs)}; allowed are {sorted(declared)}")
    feeds = {}
    for name, kind in declared.items():
        array = np.asarray(inputs[name])
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if array.dtype != dtype:
            raise ValueError(f"inputs[{name!r}] has dtype {array.dtype}; allowed is {dtype}")
        _check_shape(name, array.shape, kind)
        feeds[name] = array
    return feeds


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


def _random(declared: dict[str, Any]) -> Arrays:
    generator = np.random.default_rng(0)
    sizes: dict[str, int] = {}
    feeds = {}
    for name, kind in declared.items():
        shape = [
            sizes.setdefault(dim.dim_param, 2 + len(sizes)) if (size := _fixed(dim)) is None else size
            for dim in kind.shape.dim
        ]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if np.issubdtype(dtype, np.floating):
            feeds[name] = np.asarray(generator.standard_normal(shape)).astype(dtype)
        else:
            feeds[name] = np.asarray(generator.integers(0, 2, shape)).astype(dtype)
    return feeds


def _fixed(dim: Any) -> int | None:
    """A dimension's size; None where it is symbolic, which some exporters write as -1."""
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None
