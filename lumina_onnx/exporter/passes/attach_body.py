"""P15: a file runs without the operator's library."""

from __future__ import annotations

import onnx_ir as ir

from lumina_onnx.exporter.body import function

from . import Pass, PassResult

__all__ = ["AttachBody"]


class AttachBody(Pass):
    """P15: a file runs without the operator's library: it carries a function of standard operators at its own opset."""

    number = "P15"

    def call(self, model: ir.Model) -> PassResult:
        """Adds the function."""
        body = ir.serde.deserialize_function(function(model.opset_imports[""]))
        model.functions[body.identifier()] = body
        return PassResult(model, modified=True)
