"""The operator in ONNX Runtime: where its library lies, and a session that has it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnxruntime


def library_path() -> str:
    """The file for `SessionOptions.register_custom_ops_library`: it holds `lumina::OpticalLinear`."""
    path = importlib.import_module("lumina_kernel.lumina_kernel").__file__
    assert path is not None
    return path


def load(
    model: str | os.PathLike[str] | bytes,
    *,
    sess_options: onnxruntime.SessionOptions | None = None,
    providers: Sequence[str | tuple[str, dict[str, Any]]] | None = None,
) -> onnxruntime.InferenceSession:
    """A session for `model` that knows `lumina::OpticalLinear`.

    Args:
        model: Path of a model, or its bytes.
        sess_options: Options of the session. The operator is registered in them; the same object may be passed
            again.
        providers: Execution providers, by default those of onnxruntime. The operator itself runs on the CPU.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        ImportError: No onnxruntime is installed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions() if sess_options is None else sess_options
    options.register_custom_ops_library(library_path())
    source = model if isinstance(model, bytes) else os.fspath(model)
    return onnxruntime.InferenceSession(source, sess_options=options, providers=providers)
