"""P09: what nothing reads is not in the file."""

from __future__ import annotations

import onnx_ir as ir

from . import Pass, PassResult

__all__ = ["RemoveUnused"]


class RemoveUnused(Pass):
    """P09: what nothing reads is not in the file: nodes, and initializers of subgraphs as of the main graph."""

    number = "P09"

    def call(self, model: ir.Model) -> PassResult:
        """Removes nodes, then initializers."""
        modified = ir.passes.common.RemoveUnusedNodesPass()(model).modified
        # That pass leaves the initializers of subgraphs.
        for graph in model.graphs():
            for name, value in list(graph.initializers.items()):
                if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                    del graph.initializers[name]
                    modified = True
        return PassResult(model, modified)
