"""Takes large tensors out of a serialised model, and puts them in, without having them all in memory.

protobuf's own parser and serialiser hold every tensor twice, in the message and in the file's bytes. Here only the
outlines of messages are walked, down to the tensors; everything else in them is copied as it is and left to protobuf.
The fields that lead to tensors are those of the installed onnx.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from onnx import ModelProto, TensorProto

__all__ = ["MalformedError", "put_in", "refer", "taken_out"]

Piece = bytes | TensorProto
"""Bytes of a message; or, in their place, the tensor that refers to them."""

_LEAST = 2**16
"""Tensors of fewer bytes stay in the message."""

_DEEPEST = 100
"""protobuf refuses messages that are nested deeper."""

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
"""The kinds of fields that ONNX has."""

_TENSOR = TensorProto.DESCRIPTOR
_RAW = _TENSOR.fields_by_name["raw_data"].number
_ELEMENTS = {_TENSOR.fields_by_name[name].number for name in ("string_data", "raw_data", "external_data")}
_ELEMENTS |= {_TENSOR.fields_by_name[f"{kind}_data"].number for kind in ("float", "int32", "int64", "double", "uint64")}
"""The fields that hold a tensor's elements, or say where they are."""
_AS_RAW = {
    _TENSOR.fields_by_name["float_data"].number: TensorProto.FLOAT,
    _TENSOR.fields_by_name["double_data"].number: TensorProto.DOUBLE,
}
"""Fields whose bytes are those of ``raw_data`` in tensors of this type."""


class MalformedError(ValueError):
    """The bytes are no message, or one with fields of a kind that ONNX does not have."""


def refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Makes a tensor refer to data outside its message; the caller removes those inside."""
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def taken_out(data: bytes | mmap.mmap, location: str, size: Callable[[TensorProto], int]) -> bytes:
    """A model's bytes whose large tensors refer to the bytes themselves, as external data.

    Args:
        data: the bytes of a file.
        location: the location that the tensors refer to, which is to be that file.
        size: how many bytes a tensor's type and shape need. Tensors that have others stay inside.

    Raises:
        MalformedError: see there. What else may be wrong with a model is for its reader to find.
    """

    def outside(start: int, end: int) -> list[Piece] | None:
        stored = [field for field in _fields(data, start, end) if field.number in _ELEMENTS]
        if len(stored) != 1 or stored[0].kind != _DELIMITED:
            return None
        number, _, tag, begin, stop = stored[0]
        if stop - begin < _LEAST:
            return None
        try:
            tensor = TensorProto.FromString(data[start:tag] + data[stop:end])
        except Exception:  # protobuf's DecodeError
            return None
        plain = tensor.data_type == _AS_RAW.get(number, tensor.data_type if number == _RAW else None)
        known = tensor.data_type in TensorProto.DataType.values() and all(dim >= 0 for dim in tensor.dims)
        if not plain or not known or tensor.HasField("data_location") or tensor.HasField("segment"):
            return None
        if size(tensor) != stop - begin:
            return None
        refer(tensor, location, begin, stop - begin)
        return [tensor.SerializeToString()]

    pieces = _changed(data, outside, lambda start, end: end - start >= _LEAST)
    return b"".join(piece for piece in pieces if isinstance(piece, bytes))


def put_in(message: bytes, size: Callable[[TensorProto], int]) -> list[Piece]:
    """A serialised model in pieces, in which each tensor that refers to external data holds them.

    Where the data belong there is the tensor, which says how long they are; `size` does if the message does not. Apart
    from that the bytes are those that protobuf would write.
    """

    def inside(start: int, end: int) -> list[Piece] | None:
        tensor = TensorProto.FromString(message[start:end])
        if tensor.data_location != TensorProto.EXTERNAL:
            return None
        if all(entry.key != "length" for entry in tensor.external_data):
            tensor.external_data.add(key="length", value=str(size(tensor)))
        outline = TensorProto()
        outline.CopyFrom(tensor)
        for name in ("external_data", "data_location"):
            outline.ClearField(name)
        # A placeholder where protobuf writes the data.
        outline.raw_data = b"-"
        around = outline.SerializeToString()
        raw = next(field for field in _fields(around, 0, len(around)) if field.number == _RAW)
        return [around[: raw.begin - 1], _varint(length(tensor)), tensor, around[raw.end :]]

    mark = b"\x0a\x08location"
    return _changed(message, inside, lambda start, end: message.find(mark, start, end) >= 0)


def length(piece: Piece) -> int:
    """How many bytes a piece is, or stands for."""
    if isinstance(piece, bytes):
        return len(piece)
    return next(int(entry.value) for entry in piece.external_data if entry.key == "length")


class _Field(NamedTuple):
    """A field of a message, by the places of its parts."""

    number: int
    kind: int
    tag: int
    begin: int
    """Where its value begins; before it are its tag and, if it has one, its length."""
    end: int


_Change = Callable[[int, int], "list[Piece] | None"]
_Test = Callable[[int, int], bool]


def _changed(data: bytes | mmap.mmap, change: _Change, concerns: _Test) -> list[Piece]:
    """A model with changed tensors.

    Args:
        data: the model.
        change: gets where a tensor begins and ends; returns what it becomes, or None for what it is.
        concerns: whether there may be tensors to change between two places.
    """

    def message(start: int, end: int, kind: Any, depth: int) -> list[Piece] | None:
        if kind is _TENSOR:
            return change(start, end)
        if depth > _DEEPEST:
            raise MalformedError(f"messages are nested more than {_DEEPEST} deep")
        found: list[Piece] = []
        done = start
        for field in _fields(data, start, end):
            inner = _INSIDE[kind.full_name].get(field.number)
            if inner is None or field.kind != _DELIMITED or not concerns(field.begin, field.end):
                continue
            pieces = message(field.begin, field.end, inner, depth + 1)
            if pieces is not None:
                _, value = _number(data, field.tag, end)
                found += [data[done:value], _varint(sum(map(length, pieces))), *pieces]
                done = field.end
        return [*found, data[done:end]] if found else None

    whole = len(data)
    return message(0, whole, ModelProto.DESCRIPTOR, 1) or [data[:whole]]


def _fields(data: bytes | mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    """The fields of the message between two places."""
    at = start
    while at < end:
        tag = at
        key, at = _number(data, at, end)
        number, kind = key >> 3, key & 7
        begin = at
        if kind == _VARINT:
            _, at = _number(data, at, end)
        elif kind == _DELIMITED:
            count, begin = _number(data, at, end)
            at = begin + count
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise MalformedError(f"at byte {tag} is a field of kind {kind}")
        if at > end or not number:
            raise MalformedError(f"at byte {tag} is no field that ends by byte {end}")
        yield _Field(number, kind, tag, begin, at)


def _number(data: bytes | mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """The number that is written in groups of 7 bits from a place on, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise MalformedError(f"before byte {at} is a number without an end")


def _varint(value: int) -> bytes:
    groups = []
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _inside() -> dict[str, dict[int, Any]]:
    """The fields of each type of message that lead to tensors, with the types of what they hold."""
    kinds, waiting = {}, [ModelProto.DESCRIPTOR]
    while waiting:
        kind = waiting.pop()
        if kind.full_name not in kinds:
            kinds[kind.full_name] = {field.number: field.message_type for field in kind.fields if field.message_type}
            waiting += kinds[kind.full_name].values()
    leading, found = {_TENSOR.full_name}, -1
    while found != len(leading):
        found = len(leading)
        leading |= {name for name, inner in kinds.items() if any(each.full_name in leading for each in inner.values())}
    return {
        name: {number: each for number, each in inner.items() if each.full_name in leading}
        for name, inner in kinds.items()
    }


_INSIDE = _inside()
