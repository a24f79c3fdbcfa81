"""P15: a file runs without the operator's library."""

from __future__ import annotations

import onnx_ir as ir

from lumina_onnx.exporter.body import function
from lumina_onnx.exporter.nodes import optical_nodes
from lumina_onnx.schema import later

from . import Pass, PassResult

__all__ = ["AttachBody"]


class AttachBody(Pass):
    """P15: a file runs without the operator's library: it carries a function of standard operators at its own opset."""

    number = "P15"

    def call(self, model: ir.Model) -> PassResult:
        """Adds the function.

        Raises:
            ValueError: a layer is of a later version of the operator than the function knows.
        """
        for layer in optical_nodes(model):
            if beyond := later(layer.attributes):
                names = ", ".join(beyond)
                raise ValueError(
                    f"fallback = True: allowed is False for layers with {names}, such as {layer.name!r}: the function "
                    "body of standard operators does not have them, so that such a file needs the operator's library"
                )
        body = ir.serde.deserialize_function(function(model.opset_imports[""]))
        model.functions[body.identifier()] = body
        return PassResult(model, modified=True)
