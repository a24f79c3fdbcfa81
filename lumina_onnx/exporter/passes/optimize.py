"""P07: what stays of the model is optimised, and what is drawn stays drawn."""

from __future__ import annotations

import onnx_ir as ir
import onnxscript

from lumina_onnx.exporter.constants import Constants

from . import Pass, PassResult

__all__ = ["Optimize"]


class Optimize(Pass):
    """P07: what stays of the model is optimised by onnxscript, and what is drawn in each run stays drawn.

    The optimiser takes a `Bernoulli`, or a `Dropout` in training, of a constant for a constant, and two of one input
    for one: so nodes that draw are hidden from it. It merges equal nodes, so that layers need seeds of their own
    before (P06).
    """

    number = "P07"

    def call(self, model: ir.Model) -> PassResult:
        """Leaves equal results in fewer nodes."""
        known = Constants(model)
        drawing = [(node, node.domain) for node in model.graph.all_nodes() if known.draws(node)]
        for number, (node, _) in enumerate(drawing):
            node.domain = f"drawing.{number}"
        try:
            onnxscript.optimizer.optimize(model)
        finally:
            for node, domain in drawing:
                node.domain = domain
        return PassResult(model, modified=True)
