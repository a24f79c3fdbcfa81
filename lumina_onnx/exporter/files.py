"""Reads, checks and writes a model's file and its external data in one place, so no model gets another's weights.

Models here are onnx's protobuf messages, as in the file; :mod:`.loading` turns them into onnx_ir models. Large tensors
are in none of these messages, since protobuf holds what it reads or writes twice: the messages refer to where they are.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from lumina_onnx._files import kind, replacing

from . import wire

__all__ = [
    "IN_MEMORY",
    "Array",
    "Place",
    "Stored",
    "content",
    "fill",
    "graphs",
    "load",
    "placed",
    "size",
    "stored",
    "take_in",
    "temporary",
    "tensors",
    "write",
]

_PROTOBUF = 2**31
"""protobuf cannot read messages of this many bytes or more."""

_MAXIMUM_PROTOBUF = _PROTOBUF - 2**20
"""Larger models store their data beside the .onnx file."""

_LEAST_BESIDE = 512
"""Tensors of fewer bytes stay in the model: ONNX Runtime reads some, such as shapes, before it reads external data."""

_MAPPED = 2**26
"""If a model's tensors take more bytes, a session maps them from a file instead of holding its own copy."""

_ALIGNMENT = 4096
"""A tensor's data start at a page boundary, so that they can be used directly from the mapping."""

_BITS = {int(kind): 4 for kind in (TensorProto.UINT4, TensorProto.INT4, TensorProto.FLOAT4E2M1)}
_BITS |= {int(kind): 2 for kind in (TensorProto.UINT2, TensorProto.INT2)}
_BITS |= {number: 6 for name, number in TensorProto.DataType.items() if name.startswith("FLOAT6")}
"""The bits per element of the types whose elements share bytes."""


class Array(Protocol):
    """What a tensor refers to that is in memory, outside its message."""

    @property
    def nbytes(self) -> int:
        """How many bytes :meth:`tobytes` returns."""

    def tobytes(self) -> bytes:
        """The elements, as ``raw_data`` would hold them."""


def load(path: str | os.PathLike[str], *, weights: bool = True, argument: str = "path") -> onnx.ModelProto:
    """Reads a model and checks its external data.

    External data must be in the model's folder (that of `path`, or of the file that `path` links to), in regular files
    that are long enough, and each tensor must take as many bytes as its shape needs.

    Args:
        path: the file.
        weights: whether all data are in the model. If not, the model refers to external data, and to the large tensors
            of the file itself, by absolute paths, which stay valid wherever the model goes but which ONNX Runtime
            refuses.
        argument: what error messages call `path`.

    Raises:
        OSError: the file or a data file is missing or cannot be read.
        ValueError: it is not an ONNX model, or its external data are not as described above.
    """
    file = Path(path)
    named = f"{argument} = {str(file)!r}"
    model = _parsed(file, named)
    _pin(model, file, named)
    if weights:
        take_in(model)
    return model


def _parsed(file: Path, named: str) -> onnx.ModelProto:
    try:
        status = file.stat()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{named}: there is no such file") from error
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{named} is a {kind(status.st_mode)}; allowed is a file")
    unreadable = f"{named}: not a readable ONNX model"
    if not status.st_size:
        raise ValueError(f"{unreadable} (the file is empty)")
    if status.st_size >= _PROTOBUF:
        raise ValueError(
            f"{unreadable} ({status.st_size / 2**30:.2f} GiB: protobuf ends at 2 GiB, a larger model keeps its data "
            "beside its file)"
        )
    try:
        model = _outlined(file) or onnx.load(file, load_external_data=False)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{unreadable} ({' '.join(str(error).split())})") from error
    # Text and other formats sometimes parse as a message whose fields ONNX does not know.
    if not model.HasField("graph"):
        raise ValueError(f"{unreadable} (it holds no graph)")
    return model


def _outlined(file: Path) -> onnx.ModelProto | None:
    """A model whose large tensors refer to its own file; None if onnx has to read it as a whole."""
    if onnx.serialization.registry.get_format_from_file_extension(file.suffix) not in (None, "protobuf"):
        return None
    try:
        for name in (file.name, str(file.resolve())):
            name.encode()
    except UnicodeEncodeError:  # A message cannot hold such a name.
        return None
    with file.open("rb") as opened:
        try:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError:  # Not every file system can.
            return None
    with mapped:
        try:
            outline = wire.taken_out(mapped, file.name, size)
        except wire.MalformedError:
            return None
    return onnx.load_model_from_string(outline)


def tensors(model: onnx.ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Every tensor of a model with its name: initializers and attributes, also in subgraphs, functions and training."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_attributes(function.attribute_proto, function.name)
        yield from _of_nodes(function.node)
    for training in model.training_info:
        yield from _of_graph(training.initialization)
        yield from _of_graph(training.algorithm)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all graphs nested in its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for subgraph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from graphs(subgraph)


def _of_graph(graph: onnx.GraphProto) -> Iterator[tuple[str, TensorProto]]:
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for sparse in graph.sparse_initializer:
        yield from ((sparse.values.name, tensor) for tensor in (sparse.values, sparse.indices))
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, TensorProto]]:
    for node in nodes:
        yield from _of_attributes(node.attribute, node.name or next(iter(node.output), node.op_type))


def _of_attributes(attributes: Iterable[onnx.AttributeProto], owner: str) -> Iterator[tuple[str, TensorProto]]:
    for attribute in attributes:
        single = [attribute.t] if attribute.HasField("t") else []
        sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for tensor in (*single, *attribute.tensors):
            yield tensor.name or f"{owner}.{attribute.name}", tensor
        for each in (*sparse, *attribute.sparse_tensors):
            for tensor in (each.values, each.indices):
                yield tensor.name or f"{owner}.{attribute.name}", tensor
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            yield from _of_graph(graph)


def size(tensor: TensorProto) -> int:
    """The bytes of a tensor's elements; for strings, the total of their lengths."""
    if tensor.data_type == TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    if tensor.data_type == TensorProto.UNDEFINED:
        return 0
    bits = _BITS.get(tensor.data_type) or 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return (math.prod(tensor.dims) * bits + 7) // 8


@dataclass(frozen=True)
class Place:
    """The location of a tensor's external data."""

    path: Path
    offset: int


def placed(tensor: TensorProto) -> Place | None:
    """Where :func:`load` found a tensor's external data; None if the data are in the model itself."""
    if not uses_external_data(tensor):
        return None
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return Place(Path(entries["location"]), int(entries.get("offset") or 0))


IN_MEMORY = "in memory"
"""The location of what is an array; the offset is its index among all. Other locations are absolute paths."""


def content(tensor: TensorProto, arrays: Sequence[Array] = ()) -> bytes:
    """A tensor's elements as bytes: those of an array, or of the data file if :func:`load` left them there."""
    place = placed(tensor)
    if place is None:
        stored = tensor if tensor.HasField("raw_data") else numpy_helper.from_array(numpy_helper.to_array(tensor))
        return bytes(stored.raw_data)
    if place.path == Path(IN_MEMORY):
        return arrays[place.offset].tobytes()
    return b"".join(_chunks(place, size(tensor)))


def _chunks(place: Place, count: int, most: int = 2**31) -> Iterator[bytes]:
    """So many bytes of a file from a place on, in chunks."""
    try:
        source = place.path.open("rb")
    except OSError as error:
        raise type(error)(f"{str(place.path)!r} cannot be read any more ({error.strerror})") from error
    with source:
        source.seek(place.offset)
        while count:
            part = source.read(min(count, most))
            if not part:
                raise OSError(f"{str(place.path)!r} has become shorter while it was read")
            yield part
            count -= len(part)


def take_in(model: onnx.ModelProto) -> None:
    """Reads the external data into a model that :func:`load` read without them."""
    for _, tensor in tensors(model):
        fill(tensor)


def fill(tensor: TensorProto, arrays: Sequence[Array] = ()) -> None:
    """Puts the data into a tensor that refers to them."""
    if placed(tensor):
        tensor.raw_data = content(tensor, arrays)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")


@dataclass(frozen=True)
class Stored:
    """A model's file and its data files, as they were when the model was read."""

    _states: dict[Path, tuple[int, ...]]

    @property
    def bytes(self) -> int:
        """Their total size."""
        return sum(state[0] for state in self._states.values())

    def check(self) -> None:
        """Checks that they are still the same.

        Raises:
            OSError: one has been changed or replaced, so that what was read of it later is of another model.
        """
        for path, state in self._states.items():
            if not path.exists() or _state(path) != state:
                raise OSError(
                    f"{str(path)!r} has been changed while it was read: allowed is a file that stays as it is"
                )


def stored(path: str | os.PathLike[str], model: onnx.ModelProto) -> Stored:
    """The files of a model that was read by :func:`load` without weights."""
    files = {place.path for _, tensor in tensors(model) if (place := placed(tensor))}
    return Stored({file: _state(file) for file in {Path(path).resolve(), *files}})


def _state(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino


def _pin(model: onnx.ModelProto, file: Path, named: str) -> None:
    """Checks the external data and makes the model refer to them by absolute paths."""
    lengths: dict[Path, int] = {}
    for name, tensor in tensors(model):
        if uses_external_data(tensor):
            described = f"{named}: its tensor {name!r}"
            place = _checked(tensor, file, described, lengths)
            tensor.ClearField("raw_data")
            wire.refer(tensor, str(place.path), place.offset, size(tensor))


def _checked(tensor: TensorProto, file: Path, described: str, lengths: dict[Path, int]) -> Place:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if tensor.data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        kind = TensorProto.DataType.Name(tensor.data_type)
        raise ValueError(f"{described} is of type {kind}, which cannot lie beside the file")
    if any(dim < 0 for dim in tensor.dims):
        raise ValueError(f"{described} has shape {list(tensor.dims)}; allowed are sizes from 0")
    needed = size(tensor)
    numbers = {}
    for key, default in (("offset", 0), ("length", needed)):
        text = entries.get(key) or str(default)
        if not (text.isascii() and text.isdecimal()):
            raise ValueError(f"{described} has {key} {text!r}; allowed is a number from 0")
        numbers[key] = int(text)
    path = _inside(entries.get("location", ""), file, described)
    expected = f"expected are {needed} bytes from byte {numbers['offset']} on"
    described = f"{described} lies in {str(path)!r}"
    if path not in lengths:
        lengths[path] = _length(path, described, expected)
    if numbers["length"] != needed:
        raise ValueError(f"{described}, {numbers['length']} bytes of it; its shape {list(tensor.dims)} takes {needed}")
    if numbers["offset"] + needed > lengths[path]:
        raise ValueError(f"{described}, which has {lengths[path]} bytes; {expected}")
    return Place(path, numbers["offset"])


def _inside(location: str, file: Path, described: str) -> Path:
    """The path of the data file with links resolved."""
    allowed = "allowed is a file in the model's folder, by a name relative to it"
    if not location or "\0" in location or os.path.isabs(location):
        raise ValueError(f"{described} lies in {location!r}; {allowed}")
    # If the model is a link, its data are in the folder of its target or in that of the link, as in download caches.
    folders = {file.parent.resolve(), file.resolve().parent}
    try:
        path = (file.parent / location).resolve()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{described} lies in {location!r}, a link that leads nowhere; {allowed}") from error
    if not any(path.is_relative_to(folder) for folder in folders):
        raise ValueError(f"{described} lies in {location!r}, which is {str(path)!r}; {allowed}")
    return path


def _length(path: Path, described: str, expected: str) -> int:
    """The size of a data file, after checking that it exists and can be read."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{described}, a {kind(status.st_mode)}; allowed is a regular file")
        with path.open("rb"):
            return status.st_size
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{described}, and there is no such file; {expected}") from error
    except OSError as error:
        raise type(error)(f"{described}, which cannot be read ({error.strerror}); {expected}") from error


def write(
    model: onnx.ModelProto,
    file: Path,
    *,
    arrays: Sequence[Array] = (),
    sources: Iterable[Stored] = (),
    check: bool = False,
) -> Path | None:
    """Writes a model that depends on no other model's files; the file appears under its name only once it is complete.

    If protobuf cannot hold the data, they go into a separate file beside it, whose path is returned: a new file, or the
    data file of the model that is replaced. The model may then change: it refers to that file.

    Args:
        model: as :func:`load` reads it, with or without weights, or made in memory.
        file: the file to write.
        arrays: what its tensors refer to at :data:`IN_MEMORY`.
        sources: the files of the models that it was made from, which must not have changed.
        check: run onnx's checker first, which raises its own errors.

    Raises:
        OSError: a file cannot be read or written; a previous file is unchanged.
        ValueError: the model is too large for protobuf even without its data.
    """
    pieces = _whole(model)
    if pieces is not None:
        with replacing(file) as temporary:
            _write(pieces, temporary, arrays)
            if check:
                onnx.checker.check_model(temporary, check_custom_domain=True)
            for source in sources:
                source.check()
        return None
    data = _data_name(file)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        _move_out(model, Path(folder) / data.name, arrays)
        message = _message(model)
        if message is None:
            raise ValueError(f"path = {str(file)!r}: protobuf ends at 2 GiB, and the model takes more without data")
        if check:
            checked = Path(folder) / file.name
            checked.write_bytes(message)
            onnx.checker.check_model(checked, check_custom_domain=True)
        with replacing(file) as temporary:
            temporary.write_bytes(message)
            for source in sources:
                source.check()
            _place_data(Path(folder), data, file)
    return data


def is_large(model: onnx.ModelProto) -> bool:
    """Whether :func:`temporary` writes the data of a model beside it."""
    return sum(size(tensor) for _, tensor in tensors(model)) > _MAPPED


@contextlib.contextmanager
def temporary(model: onnx.ModelProto, arrays: Sequence[Array] = ()) -> Iterator[Path]:
    """A temporary file of a model in memory, for sessions, with its own data whatever the current folder is.

    If a model that refers to other files is passed as bytes, ONNX Runtime looks for those files in the current folder.
    A session may outlive the file. The model may change: some of its data may be deleted with the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        if is_large(model):
            _move_out(model, Path(folder) / "data", arrays)
            file.write_bytes(model.SerializeToString())
        else:
            _write(wire.put_in(model.SerializeToString(), size), file, arrays)
        yield file


def _whole(model: onnx.ModelProto) -> list[wire.Piece] | None:
    """The serialised model with all its data inside; None if it is too large."""
    if sum(size(tensor) for _, tensor in tensors(model)) > _MAXIMUM_PROTOBUF:
        return None
    message = _message(model)
    if message is None:
        return None
    pieces = wire.put_in(message, size)
    return pieces if sum(map(wire.length, pieces)) <= _MAXIMUM_PROTOBUF else None


def _message(model: onnx.ModelProto) -> bytes | None:
    try:
        return model.SerializeToString()
    except Exception:  # protobuf's EncodeError.
        return None


def _write(pieces: list[wire.Piece], file: Path, arrays: Sequence[Array]) -> None:
    with file.open("wb") as opened:
        for piece in pieces:
            if isinstance(piece, bytes):
                opened.write(piece)
            else:
                _copy(piece, opened, arrays)


def _data_name(file: Path) -> Path:
    """The name for a model's data file: a free one, or that of the replaced model if no other model refers to it."""
    more = (file.with_name(f"{file.name}.{index}.data") for index in itertools.count(2))
    names = itertools.chain([file.with_name(f"{file.name}.data")], more)
    return next(data for data in names if not os.path.lexists(data) or _belongs(data, file))


def _belongs(data: Path, file: Path) -> bool:
    """Whether `file`, and no other file in its folder, refers to a data file."""
    if data.is_symlink() or not data.is_file():
        return False
    entry = onnx.StringStringEntryProto(key="location", value=data.name).SerializeToString()
    users = [other for other in file.parent.iterdir() if other != data and other.is_file() and _holds(other, entry)]
    return users == [file]


def _holds(file: Path, sought: bytes) -> bool:
    if not 0 < file.stat().st_size < _PROTOBUF:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return mapped.find(sought) >= 0


def _move_out(model: onnx.ModelProto, path: Path, arrays: Sequence[Array] = ()) -> None:
    """Writes a model's data to a file and makes the model refer to it by name."""
    with path.open("wb") as data:
        for _, tensor in tensors(model):
            count = size(tensor)
            if count < _LEAST_BESIDE or tensor.data_type == TensorProto.STRING:
                fill(tensor, arrays)
                continue
            offset = -(-data.tell() // _ALIGNMENT) * _ALIGNMENT
            data.seek(offset)
            _copy(tensor, data, arrays)
            for field in _ELEMENTS:
                tensor.ClearField(field)
            wire.refer(tensor, path.name, offset, count)


_ELEMENTS = ("raw_data", "external_data", *(f"{kind}_data" for kind in ("float", "int32", "int64", "double", "uint64")))
"""The fields that can hold a tensor's elements."""


def _copy(tensor: TensorProto, data: BinaryIO, arrays: Sequence[Array]) -> None:
    """Appends a tensor's elements, in chunks if they are in a file."""
    place = placed(tensor)
    if place is None or place.path == Path(IN_MEMORY):
        data.write(content(tensor, arrays))
        return
    for part in _chunks(place, size(tensor), 2**24):
        data.write(part)


def _place_data(folder: Path, data: Path, file: Path) -> None:
    """Moves new data into place. A model that used the old data is moved away first: it would get wrong weights."""
    before = folder / "before"
    replaced = data.exists()
    if replaced:
        os.replace(file, before)
    try:
        os.replace(folder / data.name, data)
    except OSError:
        if replaced:
            os.replace(before, file)
        raise
