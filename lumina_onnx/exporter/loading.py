"""Loads a file as an onnx_ir model, the representation in which the exporter examines and changes models.

What onnx_ir cannot represent is handled while the model is still onnx's message. There, onnx's inliner inlines
functions with optical layers inside, since layers have had its names since the first release, and types are spelled
out.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
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

__all__ = ["Loaded", "deserialized", "load", "root", "unlogged", "unmap"]


@dataclass(frozen=True)
class Loaded:
    """A file that was read."""

    model: ir.Model
    """The model; external data, and large tensors in the file, stay where they are and are mapped when needed."""
    stored: files.Stored
    """The file and its external data."""
    inputs: dict[str, str]
    """The types of the inputs that callers feed, as text."""
    outputs: dict[str, str]
    message: onnx.ModelProto
    """The message that the model was made from, for onnx functions that take nothing else."""


def load(
    path: str | os.PathLike[str],
    *,
    argument: str = "path",
    maps: bool = False,
    sparse: Literal["refused", "dense", "left out"] = "refused",
) -> Loaded:
    """Reads a model and inlines its functions that have optical layers inside.

    Args:
        path: the file.
        argument: what error messages call `path`.
        maps: whether the file may hold values that are maps, which onnx_ir does not support; they then have no type.
        sparse: what to do with sparse tensors, which onnx_ir does not support: refuse them, make them dense, or leave
            them out of a model that is only inspected.

    Raises:
        OSError: the file or a data file is missing or cannot be read.
        ValueError: it is not an ONNX model, its external data do not match its description of them, or onnx_ir does
            not support something in it.
    """
    named = f"{argument} = {str(path)!r}"
    message = files.load(path, weights=False, argument=argument)
    known = set(onnx.TensorProto.DataType.values())
    for name, tensor in files.tensors(message):
        if tensor.data_type not in known:
            raise ValueError(f"tensor {name!r} has data type {tensor.data_type}, which onnx does not know")
    message = _inlined(message)
    set_already = {tensor.name for tensor in message.graph.initializer}
    inputs = {value.name: _spelled(value.type) for value in message.graph.input if value.name not in set_already}
    outputs = {value.name: _spelled(value.type) for value in message.graph.output}
    stored = files.stored(path, message)
    _prepare(message, named, maps, sparse)
    return Loaded(deserialized(message, named), stored, inputs, outputs, message)


def deserialized(message: onnx.ModelProto, named: str) -> ir.Model:
    """onnx's message as an onnx_ir model; tensors stay where they are, and the standard domain is imported as "".

    Raises:
        ValueError: onnx_ir cannot read it.
    """
    try:
        with unlogged():
            model = ir.serde.deserialize_model(message)
    except Exception as error:
        raise ValueError(
            f"{named}: onnx_ir, the library that changes the model, cannot read it: {root(error)}"
        ) from error
    if "ai.onnx" in model.opset_imports:
        model.opset_imports.setdefault("", model.opset_imports.pop("ai.onnx"))
    return model


def root(error: BaseException) -> str:
    """The root cause of an error: readers wrap it once for each part of the model that they were in."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


def _inlined(message: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the functions inlined that have optical layers inside; the same object if there are none."""
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
    """Removes, converts or refuses what onnx_ir would drop or refuse."""
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
    """A sparse tensor as a dense one, under the name of its values."""
    for tensor in (sparse.values, sparse.indices):
        files.fill(tensor)
    values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    # An index is either one number in row-major order, or one number per axis.
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


def unmap(model: ir.Model) -> None:
    """Gives back the memory of what was read of a model's external tensors, which stay usable.

    The pages of a mapped file count as the process's memory until the mapping ends.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and tensor.raw is not None and hasattr(mmap, "MADV_DONTNEED"):
                tensor.raw.madvise(mmap.MADV_DONTNEED)


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """Keeps onnx_ir from logging a file's names unescaped."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
