"""A model's inputs, read from a file or drawn at random, and its outputs, written to a file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from lumina_onnx._files import check_no_stream, replacing
from lumina_onnx.cli.console import Failure

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

Arrays = dict[str, "NDArray[Any]"]

_DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
    **{f"tensor({name})": np.dtype(name) for name in ("int8", "int16", "int32", "int64")},
    **{f"tensor(u{name})": np.dtype(f"u{name}") for name in ("int8", "int16", "int32", "int64")},
    "tensor(string)": np.dtype(object),
}


def load_model(
    path: Path, threads: int = 0, *, library: bool = True, resting: bool = False
) -> onnxruntime.InferenceSession:
    """A session on the CPU, with or without the operator's library.

    With `threads` 0 ONNX Runtime chooses their number. With `resting`, threads spin only during a run and sleep as soon
    as it ends.

    Raises:
        Failure: ONNX Runtime is missing or cannot load the file.
    """
    from lumina_onnx.cli.console import need

    need("train", "onnxruntime")
    import onnxruntime

    import lumina_onnx
    from lumina_onnx.runtime import silent_options

    options = silent_options()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1" if resting else "0")
    providers = ["CPUExecutionProvider"]
    try:
        if library:
            return lumina_onnx.load(path, sess_options=options, providers=providers)
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise Failure(f"{path}: ONNX Runtime cannot load it: {error}") from error


def feeds(session: onnxruntime.InferenceSession, source: Path | None, *, batch: int, seed: int) -> Arrays:
    """The model's inputs by name: from a .npz, from a .npy if there is one input, or random without a file.

    Raises:
        Failure: The file does not fit the model; the message says what would.
    """
    wanted = {value.name: value for value in session.get_inputs()}
    if source is None:
        generator = np.random.default_rng(seed)
        return {name: _random(generator, value, batch) for name, value in wanted.items()}
    arrays = read(source, list(wanted))
    if set(arrays) != set(wanted):
        raise Failure(f"{source}: holds {_names(arrays)}; the model's inputs are {_names(wanted)}")
    for name, value in wanted.items():
        dtype = _dtype(value)
        # A file holds numpy's strings, of a fixed width; ONNX Runtime takes Python's.
        if value.type == "tensor(string)" and arrays[name].dtype.kind == "U":
            arrays[name] = arrays[name].astype(object)
        if arrays[name].dtype != dtype:
            raise Failure(f"{source}: {name!r} has dtype {arrays[name].dtype}; the model takes {dtype}")
        if not _fits(arrays[name].shape, value.shape):
            raise Failure(f"{source}: {name!r} has shape {list(arrays[name].shape)}; the model takes {_shape(value)}")
    return arrays


def read(source: Path, names: list[str]) -> Arrays:
    """The arrays of a .npz, or the array of a .npy under the only name in `names`.

    Raises:
        Failure: The file is neither, or a .npy while there are several inputs.
    """
    check_no_stream(source, "--input")
    try:
        content = np.load(source, allow_pickle=False)
        if not isinstance(content, np.ndarray):
            with content:
                return {name: content[name] for name in content.files}
    except Exception as error:
        raise Failure(f"{source}: not a readable .npy or .npz file ({error})") from error
    if len(names) != 1:
        raise Failure(f"{source}: one array, but the model has {len(names)} inputs ({_names(names)}): use a .npz")
    return {names[0]: content}


@contextmanager
def running(model: Path, feeds: Arrays, source: Path | None) -> Iterator[None]:
    """Reports an error of ONNX Runtime in the block with the model's name and, for random inputs, how to give others.

    Raises:
        Failure: ONNX Runtime cannot run the model.
    """
    try:
        yield
    except Exception as error:
        if source is not None or not feeds:
            raise Failure(f"{model}: ONNX Runtime cannot run it: {error}") from error
        drawn = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feeds.items())
        raise Failure(
            f"{model}: it does not run on random inputs, which it gets where there are no others ({drawn}): give "
            f"inputs of yours, --input, or sizes, --batch. ONNX Runtime says: {error}"
        ) from error


def write(target: Path, arrays: Arrays) -> None:
    """Writes the arrays to a .npz, or a single one to a .npy; an older file stays until the new one is complete.

    Raises:
        Failure: There are several arrays for a .npy.
        OSError: The file cannot be written.
    """
    if target.suffix == ".npy" and len(arrays) != 1:
        raise Failure(f"{target}: the model has {len(arrays)} outputs ({_names(arrays)}): use a .npz")
    with replacing(target) as temporary, temporary.open("wb") as file:
        if target.suffix == ".npy":
            _write_array(file, next(iter(arrays.values())))
        else:
            # np.savez takes the names as keywords and reserves some of them for itself.
            with zipfile.ZipFile(file, "w") as archive:
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        _write_array(entry, array)


def _write_array(file: IO[bytes], array: NDArray[Any]) -> None:
    if array.dtype == object:  # Python's strings; a file holds numpy's
        array = array.astype(str)
    # Given an open file, numpy bypasses Python's file object: it cannot write to a pipe, and its error does not say
    # that the disk is full.
    np.lib.format.write_array(SimpleNamespace(write=file.write), array, allow_pickle=False)


def shape_text(value: Any) -> str:
    """Name, type and shape of an input or output of a session."""
    return f"{value.name} {value.type.removeprefix('tensor(').removesuffix(')')}{_shape(value)}"


def _names(names: Any) -> str:
    return ", ".join(map(repr, names)) or "nothing"


def _shape(value: Any) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in value.shape) + "]"


def _fits(shape: tuple[int, ...], allowed: list[Any]) -> bool:
    return len(shape) == len(allowed) and all(
        not isinstance(want, int) or size == want for size, want in zip(shape, allowed, strict=True)
    )


def _dtype(value: Any) -> np.dtype[Any]:
    if value.type not in _DTYPES:
        raise Failure(f"input {value.name!r} is {value.type}: allowed are {', '.join(_DTYPES)}")
    return np.dtype(_DTYPES[value.type])


def _random(generator: np.random.Generator, value: Any, batch: int) -> NDArray[Any]:
    shape = [size if isinstance(size, int) else batch for size in value.shape]
    dtype = _dtype(value)
    if dtype.kind == "O":
        raise Failure(f"input {value.name!r} holds strings, for which there are no random ones: give --input")
    if np.issubdtype(dtype, np.floating):
        return np.asarray(generator.standard_normal(shape)).astype(dtype)
    return np.asarray(generator.integers(0, 2, shape)).astype(dtype)
