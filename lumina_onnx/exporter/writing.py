"""The last steps of writing a file, shared by everything that writes one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import onnx
import onnx_ir as ir

from . import files
from .onnx_schema import register

__all__ = ["destination", "message", "save"]

_HELD = 2**10
"""Tensors of fewer bytes are copied into the message."""


def destination(path: str | os.PathLike[str]) -> Path:
    """The file to write.

    Raises:
        FileNotFoundError, IsADirectoryError, ValueError: the file cannot be written, or its name does not end in .onnx.
    """
    file = Path(path)
    if file.is_dir():
        raise IsADirectoryError(f"path = {str(file)!r} is a folder; allowed is the name of a file, *.onnx")
    if file.exists() and not file.is_file():
        raise ValueError(f"path = {str(file)!r} is a pipe or a device; allowed is the name of a file, *.onnx")
    if file.suffix != ".onnx":
        raise ValueError(f"path = {str(file)!r}: allowed is a name that ends in .onnx")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"path = {str(file)!r}: the folder {str(file.parent)!r} does not exist")
    return file


def message(model: ir.Model) -> tuple[onnx.ModelProto, list[files.Array]]:
    """The model as onnx's message, which only refers to the model's own large tensors; and these, for :mod:`.files`."""
    arrays: list[files.Array] = []
    replaced: list[tuple[ir.Value, ir.TensorProtocol]] = []
    try:
        for graph in model.graphs():
            for value in graph.initializers.values():
                tensor = value.const_value
                if isinstance(tensor, (ir.Tensor, ir.LazyTensor)) and tensor.nbytes >= _HELD:
                    value.const_value = ir.ExternalTensor(
                        files.IN_MEMORY,
                        len(arrays),
                        tensor.nbytes,
                        tensor.dtype,
                        shape=tensor.shape,
                        name=tensor.name or "",
                        doc_string=tensor.doc_string,
                        metadata_props=tensor.metadata_props,
                    )
                    arrays.append(tensor)
                    replaced.append((value, tensor))
        return ir.to_proto(model), arrays
    finally:
        for value, tensor in replaced:
            value.const_value = tensor


def save(
    model: ir.Model, file: Path, *, sources: Iterable[files.Stored] = (), check: bool = True
) -> tuple[int, list[str]]:
    """Writes the file; data that protobuf cannot hold go into a file beside it, and a note says so.

    Args:
        model: the model, which is serialised only here.
        file: the file to write.
        sources: the files that the model was made from. If one has changed, what was read of it may be of two models.
        check: run onnx's checker, which refuses some models that ONNX Runtime accepts: outputs without a shape, other
            domains.

    Returns:
        The number of bytes written, and notes.
    """
    register()
    proto, arrays = message(model)
    data = files.write(proto, file, arrays=arrays, sources=sources, check=check)
    if data is None:
        return file.stat().st_size, []
    size = data.stat().st_size
    note = f"weights of {size / 2**30:.2f} GiB do not fit into one .onnx file: keep {data.name} beside it"
    return file.stat().st_size + size, [note]
