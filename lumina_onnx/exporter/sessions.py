"""ONNX Runtime sessions on the CPU, with and without the operator's library."""

from __future__ import annotations

import os
from typing import Any

import lumina_onnx
from lumina_onnx.runtime import silent_options

__all__ = ["session"]

_PROVIDERS = ["CPUExecutionProvider"]
_CHOOSY = "HasExternalDataInMemory"
"""Part of the error of ONNX Runtime 1.24 to 1.27 if an `If` with a constant condition holds large constants."""


def session(path: str | os.PathLike[str], *, library: bool = True, optimised: bool = True) -> Any:
    """A session for a file, with the operator's library or without it, with ONNX Runtime's optimisations or without.

    Raises:
        RuntimeError: without the library, on ONNX Runtime 1.24 to 1.27, a branch in the file holds large constants.
    """
    import onnxruntime

    options = silent_options()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if library:
        return lumina_onnx.load(path, sess_options=options, providers=_PROVIDERS)
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=_PROVIDERS)
    except Exception as error:
        if _CHOOSY not in str(error):
            raise
        raise RuntimeError(
            f"onnxruntime = {onnxruntime.__version__}: releases 1.24 to 1.27 do not load this file without the "
            "operator's library, since they cannot fold more than 127 bytes of constants in a branch of an If. Either "
            "the model has an optical layer in an If whose condition is constant, or an older lumina_onnx wrote the "
            "file: then write it anew. Allowed is a session with the library, one without graph optimisation, or "
            "another release of onnxruntime"
        ) from error
