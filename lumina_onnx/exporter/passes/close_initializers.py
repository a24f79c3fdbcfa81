"""P01: an initializer of a file up to IR 3 is no input."""

from __future__ import annotations

import onnx_ir as ir

from . import Pass, PassResult

__all__ = ["CloseInitializers"]


class CloseInitializers(Pass):
    """P01: an initializer of a file up to IR 3 is no input.

    Up to IR 3 every initializer had to be listed as an input too; from IR 4 on, listing it lets callers replace it.
    """

    number = "P01"

    def call(self, model: ir.Model) -> PassResult:
        """Removes stored tensors from the graph's inputs."""
        graph = model.graph
        inputs = [value for value in graph.inputs if value.const_value is None]
        closes = model.ir_version < 4 and len(inputs) < len(graph.inputs)
        if closes:
            graph.inputs.clear()
            graph.inputs.extend(inputs)
        return PassResult(model, closes)
