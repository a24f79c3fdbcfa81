"""The operator in ONNX Runtime: the path of its library, and sessions with the library registered."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lumina_onnx._files import check_no_stream
from lumina_onnx.schema import DOMAIN, OPERATOR

if TYPE_CHECKING:
    import onnxruntime


def library_path() -> str:
    """The path of the library that holds `lumina::OpticalLinear`, for `SessionOptions.register_custom_ops_library`.

    Raises:
        ImportError: the extension was not loaded from a file, as happens with some tools that bundle programs.
    """
    path = importlib.import_module("lumina_kernel.lumina_kernel").__file__
    if path is None:
        raise ImportError("lumina_kernel was loaded from no file: allowed is one, which ONNX Runtime can load as well")
    return path


def load(
    model: str | os.PathLike[str] | bytes,
    *,
    sess_options: onnxruntime.SessionOptions | None = None,
    providers: Sequence[str | tuple[str, dict[str, Any]]] | None = None,
) -> onnxruntime.InferenceSession:
    """Opens a session for `model` with `lumina::OpticalLinear` registered.

    Args:
        model: Path of a model, or its bytes. Bytes must hold all tensor data, unless `sess_options` name the folder of
            the model's external data.
        sess_options: Options of the session. The operator is registered in them; the same object may be passed
            again.
        providers: Execution providers, by default those of onnxruntime. The operator itself runs on the CPU.

    Returns:
        An `onnxruntime.InferenceSession`.

    Warns:
        UserWarning: The model has a renamed copy of the operator's function; nodes that call it run without the
            library.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: The bytes refer to data in another file, or the path is that of a FIFO, a socket or a device.
    """
    import onnxruntime

    _check(model, sess_options)
    options = onnxruntime.SessionOptions() if sess_options is None else sess_options
    options.register_custom_ops_library(library_path())
    source = model if isinstance(model, bytes) else os.fspath(model)
    return onnxruntime.InferenceSession(source, sess_options=options, providers=providers)


def _check(model: str | os.PathLike[str] | bytes, options: onnxruntime.SessionOptions | None) -> None:
    """Searches the model's protobuf bytes, since onnx, the package that parses models, may not be installed."""
    if isinstance(model, bytes):
        beside = _data_beside(model)
        if beside is not None and not _has_folder(options):
            raise ValueError(
                f"model = {len(model)} bytes that refer to data in {beside!r}, which ONNX Runtime would take from the "
                "current folder; allowed are the model's path, or bytes with all data in them "
                "(onnx.load(path).SerializeToString())"
            )
        end = model[-_END:]
    else:
        check_no_stream(model, "model")
        try:
            with Path(model).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _END))
                end = file.read()
        except OSError:  # ONNX Runtime reports it.
            return
    copies = _renamed(end)
    if copies:
        warnings.warn(
            f"model: its function {copies[0]!r} is a renamed copy of {DOMAIN}::{OPERATOR}, as onnx.compose.add_prefix "
            "makes it: nodes that call it run without the operator's library. lumina_onnx.exporter.merge, or "
            "rename_functions=False, leaves the name",
            stacklevel=3,
        )


_END = 2**20
"""How many bytes at the end of a model's file are searched for our functions: functions come last in a file."""


def _data_beside(model: bytes) -> str | None:
    """The file of the first tensor stored outside the model: an entry "location" in field 13 of a tensor. Else None."""
    key, at = b"\n\x08location\x12", -1
    while (at := model.find(key, at + 1)) >= 0:
        # The tag of field 13, and the entry's length in one byte or two.
        if b"j" in (model[at - 2 : at - 1], model[at - 3 : at - 2]):
            start = at + len(key) + 1
            return model[start : start + model[start - 1]].decode(errors="replace")
    return None


def _has_folder(options: onnxruntime.SessionOptions | None) -> bool:
    """Whether the options name the folder of external data."""
    try:
        entry = "session.model_external_initializers_file_folder_path"
        return options is not None and bool(options.get_session_config_entry(entry))
    except Exception:  # ONNX Runtime raises its own exception for an entry that is not set.
        return False


def _renamed(end: bytes) -> list[str]:
    """Names of functions that have the operator's inputs and a longer name that ends in the operator's."""
    head, name = b"\n", OPERATOR.encode()
    inputs = b"".join(b'"' + bytes([len(each)]) + each for each in (b"X", b"W", b"W_scale", b"B"))
    found, at = [], -1
    while (at := end.find(name + inputs, at + 1)) >= 0:
        stop = at + len(name)
        # The name's tag and length precede it, and the length says how far back.
        start = next((i for i in range(at, max(at - 110, 1), -1) if end[i - 2 : i] == head + bytes([stop - i])), at)
        if start != at:
            found.append(end[start:stop].decode(errors="replace"))
    return found


def silent_options() -> onnxruntime.SessionOptions:
    """Options of a session that logs nothing: errors are raised anyway, and a log shows a file's names unescaped."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return options
