"""P07: the model is optimised, and what is drawn stays drawn."""

from __future__ import annotations

import onnx_ir as ir
import onnxscript

from lumina_onnx.exporter.constants import Constants

from . import Pass, PassResult

__all__ = ["Optimize"]


class Optimize(Pass):
    """P07: the model is optimised by onnxscript, and what is drawn in each run stays drawn.

    The optimiser treats a `Bernoulli`, or a `Dropout` in training mode, of a constant as a constant, and merges two of
    them that read the same input; so nodes that draw random numbers are hidden from it. It also merges equal nodes, so
    layers must have separate seeds first (P06).
    """

    number = "P07"

    def call(self, model: ir.Model) -> PassResult:
        """Optimises the model; its results do not change."""
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
