"""P12: a layer states every attribute."""

from __future__ import annotations

import onnx_ir as ir

from lumina_onnx.exporter.nodes import optical_nodes, set_attributes
from lumina_onnx.exporter.onnx_schema import defaults

from . import Pass, PassResult

__all__ = ["StateDefaults"]


class StateDefaults(Pass):
    """P12: a layer states every attribute that has a default, so that layers of several files are written alike."""

    number = "P12"

    def call(self, model: ir.Model) -> PassResult:
        """Adds the attributes that nodes omit."""
        modified = False
        for layer in optical_nodes(model):
            omitted = {name: value for name, value in defaults().items() if name not in layer.node.attributes}
            set_attributes(layer.node, **omitted)
            modified |= bool(omitted)
        return PassResult(model, modified)
