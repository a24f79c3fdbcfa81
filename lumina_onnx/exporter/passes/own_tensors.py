"""P19: a changed model holds nothing of the message that it was read from."""

from __future__ import annotations

import onnx_ir as ir

from . import Pass, PassResult

__all__ = ["OwnTensors"]


class OwnTensors(Pass):
    """P19: a changed model holds nothing of the message that it was read from, which takes as much memory as the file.

    What is left of the source's tensors is copied; the message is freed as a whole, once nothing refers to it.
    """

    number = "P19"

    def call(self, model: ir.Model) -> PassResult:
        """Copies the tensors of graphs and of nodes that are parts of a message."""
        modified = False
        for graph in model.graphs():
            for value in graph.initializers.values():
                tensor = value.const_value
                if isinstance(tensor, ir.serde.TensorProtoTensor):
                    value.const_value, modified = _copied(tensor), True
            for node in graph:
                for name, attribute in list(node.attributes.items()):
                    if isinstance(attribute.value, ir.serde.TensorProtoTensor):
                        node.attributes[name] = ir.AttrTensor(name, _copied(attribute.value))
                        modified = True
        return PassResult(model, modified)


def _copied(tensor: ir.serde.TensorProtoTensor) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)
