"""P19: a changed model holds nothing of the message that it was read from, nor what it is told of the file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx_ir as ir

from . import Pass, PassResult

__all__ = ["OwnTensors"]


class OwnTensors(Pass):
    """P19: a changed model holds nothing of the message that it was read from, nor what it is told of the file.

    What is left of the source's tensors is copied; the message is freed as a whole, once nothing refers to it.
    """

    number = "P19"

    def __init__(self, file: str | os.PathLike[str] | None = None) -> None:
        """`file`: one that tensors may not refer to, so that the model is independent of it."""
        self._file = None if file is None else Path(file).resolve()

    def call(self, model: ir.Model) -> PassResult:
        """Copies the tensors of graphs and of nodes that are parts of a message, or of the file."""
        modified = False
        for graph in model.graphs():
            for value in graph.initializers.values():
                if (tensor := self._copied(value.const_value)) is not None:
                    value.const_value, modified = tensor, True
            for node in graph:
                for name, attribute in list(node.attributes.items()):
                    if (tensor := self._copied(attribute.value)) is not None:
                        node.attributes[name] = ir.AttrTensor(name, tensor)
                        modified = True
        return PassResult(model, modified)

    def _copied(self, value: object) -> ir.Tensor[np.ndarray] | None:
        """A copy of a tensor that has to be copied; None for everything else."""
        if isinstance(value, ir.serde.TensorProtoTensor):
            array = value.numpy()
        elif isinstance(value, ir.ExternalTensor) and Path(value.location) == self._file:
            array = np.array(value.numpy())
        else:
            return None
        return ir.Tensor(
            array,
            dtype=value.dtype,
            shape=value.shape,
            name=value.name,
            doc_string=value.doc_string,
            metadata_props=value.metadata_props,
        )
