"""P13: the attributes of a layer are in the order of the operator's table."""

from __future__ import annotations

import onnx_ir as ir

from lumina_onnx.exporter.nodes import optical_nodes, set_attributes
from lumina_onnx.schema import PARAMETERS, VERSION, VERSION_ATTRIBUTE

from . import Pass, PassResult

__all__ = ["OrderAttributes"]

_ORDER = [row.name for row in PARAMETERS]


class OrderAttributes(Pass):
    """P13: the attributes of a layer are in the order of the operator's table, the operator's version last."""

    number = "P13"

    def call(self, model: ir.Model) -> PassResult:
        """Orders the attributes of every layer."""
        modified = False
        for layer in optical_nodes(model):
            attributes = layer.node.attributes
            before = list(attributes)
            attributes.pop(VERSION_ATTRIBUTE, None)
            ordered = sorted(attributes.values(), key=lambda attribute: _ORDER.index(attribute.name))
            attributes.clear()
            attributes.update({attribute.name: attribute for attribute in ordered})
            set_attributes(layer.node, **{VERSION_ATTRIBUTE: VERSION})
            modified |= list(attributes) != before
        return PassResult(model, modified)
