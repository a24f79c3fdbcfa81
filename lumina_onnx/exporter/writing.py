"""The last steps to a file: what all that write one have in common."""

from __future__ import annotations

import os
from pathlib import Path

import onnx_ir as ir

from . import files
from .onnx_schema import register

__all__ = ["destination", "save"]


def destination(path: str | os.PathLike[str]) -> Path:
    """The file to write.

    Raises:
        FileNotFoundError, IsADirectoryError, ValueError: it cannot be written, or is no *.onnx.
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


def save(model: ir.Model, file: Path, *, check: bool = True) -> tuple[int, list[str]]:
    """Writes the file with all its data, or with these beside it where protobuf cannot hold them: a note says so.

    Args:
        model: the model, which is serialised here and nowhere else.
        file: the file to write.
        check: ask onnx's checker, which refuses some of what ONNX Runtime takes: outputs without a shape, other
            domains.

    Returns:
        The bytes that were written, and notes.
    """
    register()
    data = files.write(ir.to_proto(model), file, check=check)
    if data is None:
        return file.stat().st_size, []
    size = data.stat().st_size
    note = f"weights of {size / 2**30:.2f} GiB do not fit into one .onnx file: keep {data.name} beside it"
    return file.stat().st_size + size, [note]
