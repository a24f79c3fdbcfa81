"""Export a PyTorch model to one .onnx file with `lumina::OpticalLinear` nodes, and prove that it computes the same.

Everything here needs onnx and onnx_ir.

- :func:`export`: torch -> .onnx, weights packed at their bits (needs torch and onnxscript).
- :func:`rewrite`: an existing .onnx file -> the same with optical layers (needs onnxscript and onnxruntime).
- :func:`merge`: two files with optical layers -> one (needs onnxscript).
- :func:`verify`: runs a file and compares every layer with the reference, bit for bit (needs onnxruntime).
- :func:`inspect`: lists what a file holds.
- :func:`reference_ops`, :func:`register_schema`: for onnx's own evaluator, checker and shape inference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .inspection import inspect
from .onnx_schema import register as register_schema
from .report import Comparison, ExportReport, InspectReport, Layer, Left, Report, RewriteReport, VerifyReport
from .verify import verify

if TYPE_CHECKING:
    from .evaluating import reference_ops
    from .merging import merge
    from .rewriting import rewrite
    from .torch_export import ExportError, export

__all__ = [
    "Comparison",
    "ExportError",
    "ExportReport",
    "InspectReport",
    "Layer",
    "Left",
    "Report",
    "RewriteReport",
    "VerifyReport",
    "export",
    "inspect",
    "merge",
    "reference_ops",
    "register_schema",
    "rewrite",
    "verify",
]


def __getattr__(name: str) -> Any:
    # torch takes a second to import, and inspect and verify need neither torch nor onnxscript.
    if name == "rewrite":
        from .rewriting import rewrite

        return rewrite
    if name == "merge":
        from .merging import merge

        return merge
    if name == "reference_ops":
        from .evaluating import reference_ops

        return reference_ops
    if name in ("export", "ExportError"):
        from . import torch_export

        return getattr(torch_export, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
