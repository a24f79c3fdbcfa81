"""P09: a file holds nothing that is never read."""

from __future__ import annotations

import onnx_ir as ir

from . import Pass, PassResult

__all__ = ["RemoveUnused"]


class RemoveUnused(Pass):
    """P09: a file holds nothing that is never read: no such nodes, and no such initializers in any graph.

    An initializer that callers could replace is no input then either.
    """

    number = "P09"

    def call(self, model: ir.Model) -> PassResult:
        """Removes nodes, then initializers."""
        modified = ir.passes.common.RemoveUnusedNodesPass()(model).modified
        # onnx_ir's pass leaves the initializers of subgraphs.
        for graph in model.graphs():
            for name, value in list(graph.initializers.items()):
                if not (value.uses() or value.is_graph_output()):
                    del graph.initializers[name]
                    if value.is_graph_input():
                        graph.inputs.remove(value)
                    modified = True
        return PassResult(model, modified)
