"""P09: a file holds nothing that is never read."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes import common

from . import Pass, PassResult

__all__ = ["RemoveUnused"]


class RemoveUnused(Pass):
    """P09: a file holds nothing that is never read: no such nodes, and no such initializers in any graph.

    An initializer that is an input too, so that callers may replace it, stays, except for `fixed`: those that layers
    have taken over.
    """

    number = "P09"

    def __init__(self, fixed: Collection[str] = ()) -> None:
        self._fixed = frozenset(fixed)

    def call(self, model: ir.Model) -> PassResult:
        """Removes nodes, then initializers."""
        modified = common.RemoveUnusedNodesPass()(model).modified
        # onnx_ir's pass leaves the initializers of subgraphs.
        for graph in model.graphs():
            for name, value in list(graph.initializers.items()):
                if value.uses() or value.is_graph_output() or (value.is_graph_input() and name not in self._fixed):
                    continue
                del graph.initializers[name]
                if value.is_graph_input():
                    graph.inputs.remove(value)
                modified = True
        return PassResult(model, modified)
