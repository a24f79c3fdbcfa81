"""P03: a layer of an exported model has its module's seed and the weights that torch computes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from lumina_onnx.exporter.calls import Call
from lumina_onnx.exporter.nodes import optical_nodes, set_attributes

from . import Pass, PassResult

__all__ = ["MODULE", "RestoreCalls"]

MODULE = "lumina.module"
"""The key in `ir.Node.meta`, which is never written to a file, for the path of the module that made the call."""


class RestoreCalls(Pass):
    """P03: a layer of an exported model has its module's seed and the weights that torch computes.

    Until this pass, its seed attribute holds the number of its call; see :func:`lumina_onnx.exporter.calls.mark`.
    """

    number = "P03"

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = calls

    def call(self, model: ir.Model) -> PassResult:
        """Gives every layer its call's seed and weights, and removes nodes that nothing reads any more."""
        layers = optical_nodes(model)
        for layer in layers:
            call = self._calls[layer.attributes["seed"]]
            set_attributes(layer.node, seed=call.seed)
            for index, tensor in call.computed.items():
                array = tensor.detach().contiguous().resolve_neg().numpy()
                layer.node.replace_input_with(index, ir.Value(const_value=ir.tensor(array)))
            layer.node.meta[MODULE] = call.module
        ir.passes.common.RemoveUnusedNodesPass()(model)
        return PassResult(model, bool(layers))
