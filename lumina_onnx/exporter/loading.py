"""From a file to a model of onnx_ir, in which everything here looks at models and changes them.

What onnx_ir has no words for is dealt with while the model is still onnx's message: functions with optical layers
inside are put in place by onnx's inliner, whose names the layers have had from the first release on; types are spelled.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
from onnx import numpy_helper

from lumina_onnx.schema import DOMAIN, OPERATOR

from . import files

__all__ = ["Loaded", "deserialized", "load", "root"]


@dataclass(frozen=True)
class Loaded:
    """A file that was read."""

    model: ir.Model
    """What lies beside the file stays there, and is mapped when it is needed."""
    bytes: int
    """What it takes, with what it keeps beside itself."""
    inputs: dict[str, str]
    """The types of what callers give, in words."""
    outputs: dict[str, str]
    message: onnx.ModelProto
    """What the model was made of, for what takes nothing else."""


def load(
    path: str | os.PathLike[str],
    *,
    argument: str = "path",
    maps: bool = False,
    sparse: Literal["refused", "dense", "left out"] = "refused",
) -> Loaded:
    """Reads a model, those functions put in place that have optical layers inside.

    Args:
        path: the file.
        argument: what messages call `path`.
        maps: whether the file may hold values that are maps, which onnx_ir does not know: they have no type then.
        sparse: what becomes of sparse tensors, which onnx_ir does not know: they are refused, made dense, or left out
            of a model that is only looked at.

    Raises:
        OSError: nothing is there, or it cannot be read; a data file is missing.
        ValueError: it is no ONNX model, its data are not as it says, or onnx_ir does not know what it holds.
    """
    named = f"{argument} = {str(path)!r}"
    message = files.load(path, weights=False, argument=argument)
    known = set(onnx.TensorProto.DataType.values())
    for name, tensor in files.tensors(message):
        if tensor.data_type not in known:
            raise ValueError(f"tensor {name!r} has data type {tensor.data_type}, which onnx does not know")
    message = _inlined(message)
    stored = {tensor.name for tensor in message.graph.initializer}
    inputs = {value.name: _spelled(value.type) for value in message.graph.input if value.name not in stored}
    outputs = {value.name: _spelled(value.type) for value in message.graph.output}
    size = files.stored_bytes(path, message)
    _prepare(message, named, maps, sparse)
    return Loaded(deserialized(message, named), size, inputs, outputs, message)


def deserialized(message: onnx.ModelProto, named: str) -> ir.Model:
    """onnx's message as a model; tensors stay where they are, and the standard operators have the domain "".

    Raises:
        ValueError: onnx_ir cannot read it.
    """
    try:
        with _unlogged():
            model = ir.serde.deserialize_model(message)
    except Exception as error:
        raise ValueError(
            f"{named}: onnx_ir, the library that changes the model, cannot read it: {root(error)}"
        ) from error
    if "ai.onnx" in model.opset_imports:
        model.opset_imports.setdefault("", model.opset_imports.pop("ai.onnx"))
    return model


def root(error: BaseException) -> str:
    """What an error was caused by: readers wrap it in one for each part of the model that they were in."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


def _inlined(message: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the functions in place that have optical layers inside; itself where there are none."""
    inside = [
        (function.domain, function.name)
        for function in message.functions
        if any((node.domain, node.op_type) == (DOMAIN, OPERATOR) for node in _nodes(function))
    ]
    if not inside:
        return message
    return onnx.inliner.inline_selected_functions(message, [(DOMAIN, OPERATOR)], exclude=True)


def _nodes(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _nodes(subgraph)


def _prepare(message: onnx.ModelProto, named: str, maps: bool, sparse: str) -> None:
    """Leaves out what onnx_ir drops or refuses, or refuses it."""
    for graph in files.graphs(message.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            if _has_map(value.type):
                if not maps:
                    raise ValueError(
                        f"{named}: {value.name!r} is a map, or a sequence of maps, which onnx_ir, the library that "
                        "changes the model, does not support; allowed are tensors: skl2onnx gives them with "
                        'options={"zipmap": False}'
                    )
                value.ClearField("type")
        for tensor in graph.sparse_initializer:
            if sparse == "refused":
                raise ValueError(f"{named}: its tensor {tensor.values.name!r} is sparse; allowed are dense tensors")
        if sparse == "dense":
            graph.initializer.extend(map(_dense, graph.sparse_initializer))
            del graph.sparse_initializer[:]
    for part in (message.graph, *message.functions) if sparse == "left out" else ():
        for node in _nodes(part):
            kept = [each for each in node.attribute if each.type not in _SPARSE]
            if len(kept) < len(node.attribute):
                copies = [onnx.AttributeProto.FromString(each.SerializeToString()) for each in kept]
                del node.attribute[:]
                node.attribute.extend(copies)


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """The tensor with its zeros, which has the name of its values."""
    values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    # Either each place is one number, counted in row-major order, or one for each axis.
    where = np.unravel_index(places, dense.shape) if places.ndim == 1 else tuple(places.T)
    dense[where] = values
    return numpy_helper.from_array(dense, sparse.values.name)


_SPARSE = (onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS)


def _has_map(kind: onnx.TypeProto) -> bool:
    if kind.HasField("sequence_type"):
        return _has_map(kind.sequence_type.elem_type)
    if kind.HasField("optional_type"):
        return _has_map(kind.optional_type.elem_type)
    return kind.HasField("map_type")


def _spelled(kind: onnx.TypeProto) -> str:
    if kind.HasField("sequence_type"):
        return f"sequence({_spelled(kind.sequence_type.elem_type)})"
    if kind.HasField("optional_type"):
        return f"optional({_spelled(kind.optional_type.elem_type)})"
    if kind.HasField("map_type"):
        return f"map({_element(kind.map_type.key_type)}, {_spelled(kind.map_type.value_type)})"
    tensor = kind.sparse_tensor_type if kind.HasField("sparse_tensor_type") else kind.tensor_type
    shape = [dim.dim_param or (str(dim.dim_value) if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim]
    return f"{_element(tensor.elem_type)}[{', '.join(shape)}]"


def _element(kind: int) -> str:
    return onnx.TensorProto.DataType.Name(kind).lower()


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Keeps onnx_ir from logging names of a file as they are."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
