"""The files that a sweep writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

__all__ = ["FORMATS", "PICTURES", "Columns", "check_target"]

Columns = dict[str, NDArray[Any]]
FORMATS = (".csv", ".parquet")
PICTURES = (".png", ".svg", ".pdf")


def check_target(path: str | os.PathLike[str], argument: str, formats: tuple[str, ...]) -> Path:
    """A file to write, its name and folder checked, and that what writes it is installed.

    Raises:
        ValueError: its name ends in none of `formats`.
        FileNotFoundError: its folder does not exist.
        ImportError: pyarrow or matplotlib is missing.
    """
    file = Path(path)
    if file.suffix not in formats:
        raise ValueError(f"{argument} = {str(file)!r}: allowed is a name that ends in {', '.join(formats)}")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{argument} = {str(file)!r}: the folder {str(file.parent)!r} does not exist")
    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet  # noqa: F401
        elif file.suffix != ".csv":
            import matplotlib  # noqa: F401
    except ImportError as error:
        package, extra = ("pyarrow", "sweep") if file.suffix == ".parquet" else ("matplotlib", "plot")
        raise ImportError(
            f"{argument} = {str(file)!r} needs the Python package {package}, which cannot be imported ({error}): "
            f'pip install "lumina-onnx[{extra}]"'
        ) from error
    return file
