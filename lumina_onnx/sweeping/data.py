"""The data of a sweep: arrays with one row for each sample, and labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lumina_onnx._files import check_no_stream

__all__ = ["Arrays", "Data", "Source", "batches", "read"]

Arrays = dict[str, NDArray[Any]]
Source = str | os.PathLike[str] | Mapping[str, Any] | Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Data:
    """Arrays whose dimension 0 counts the samples."""

    inputs: Arrays
    labels: NDArray[Any] | None
    samples: int

    def named(self, names: Sequence[str]) -> Data:
        """The inputs under the names of the model's; the only one takes the name of the model's only input.

        Raises:
            ValueError: the names do not fit.
        """
        if set(self.inputs) == set(names):
            return Data({name: self.inputs[name] for name in names}, self.labels, self.samples)
        if len(self.inputs) == len(names) == 1:
            return Data({names[0]: next(iter(self.inputs.values()))}, self.labels, self.samples)
        raise ValueError(f"data has the inputs {_listed(self.inputs)}; the model's are {_listed(names)}")


def read(source: Source, labels: str) -> Data:
    """The arrays of a .npz, of a mapping, or of the mapping that a callable returns; `labels` names that of the labels.

    Raises:
        TypeError: `source`, or what it returns, is something else.
        ValueError: a file is no .npz, there is no input, or arrays differ in their number of samples.
    """
    if callable(source):
        arrays = source()
        told = "data() returned"
    elif isinstance(source, (str, os.PathLike)):
        arrays = _file(Path(source))
        told = f"data = {str(source)!r} holds"
    else:
        arrays, told = source, "data has"
    if not isinstance(arrays, Mapping):
        raise TypeError(
            f"{told.removesuffix(' has')} a {type(arrays).__name__}: allowed is a .npz file, a mapping from names to "
            "arrays, or a callable that returns such a mapping"
        )
    found = {str(name): np.asarray(array) for name, array in arrays.items()}
    theirs = found.pop(labels, None)
    if not found:
        raise ValueError(f"{told} {_listed(arrays)}: allowed are the model's inputs, and {labels!r}")
    sizes = {name: (array.shape[0] if array.ndim else 0) for name, array in found.items()}
    if theirs is not None:
        sizes[labels] = theirs.shape[0] if theirs.ndim else 0
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        shapes = ", ".join(
            f"{name} {list(array.shape)}" for name, array in {**found, labels: theirs}.items() if array is not None
        )
        raise ValueError(f"{told} {shapes}: allowed is one row for each sample in every array, and at least one")
    return Data(found, theirs, next(iter(sizes.values())))


def _file(path: Path) -> Arrays:
    check_no_stream(path, "data")
    try:
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.ndarray):
            with content:
                return {name: content[name] for name in content.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"data = {str(path)!r}: there is no such file") from None
    except Exception as error:
        raise ValueError(f"data = {str(path)!r}: not a readable .npz file ({error})") from error
    raise ValueError(f"data = {str(path)!r} is a .npy with one array; allowed is a .npz with inputs and labels")


def batches(inputs: Mapping[str, NDArray[Any]], size: int) -> Iterator[Arrays]:
    """The rows in their order, `size` at a time."""
    samples = len(next(iter(inputs.values())))
    for start in range(0, samples, size):
        yield {name: array[start : start + size] for name, array in inputs.items()}


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "nothing"
