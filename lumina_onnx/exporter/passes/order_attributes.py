"""P13: the attributes of a layer are in the order of the operator's table."""

from __future__ import annotations

import onnx_ir as ir

from lumina_onnx.exporter.nodes import optical_nodes, set_attributes
from lumina_onnx.schema import LATER, PARAMETERS, VERSION_ATTRIBUTE, version_of

from . import Pass, PassResult

__all__ = ["OrderAttributes"]

_ORDER = [row.name for row in PARAMETERS]


class OrderAttributes(Pass):
    """P13: the attributes of a layer are in the order of the operator's table, the operator's version last.

    The version is the lowest that has the layer's parameters. Those that later ones added are left out at their
    defaults: so a file that does not need them is one that older releases run.
    """

    number = "P13"

    def call(self, model: ir.Model) -> PassResult:
        """Orders the attributes of every layer."""
        modified = False
        for layer in optical_nodes(model):
            attributes = layer.node.attributes
            before = list(attributes)
            given = {name: value for name, value in layer.attributes.items() if name in _ORDER}
            for name in (VERSION_ATTRIBUTE, *(row.name for row in LATER if given[row.name] == row.default)):
                attributes.pop(name, None)
            ordered = sorted(attributes.values(), key=lambda attribute: _ORDER.index(attribute.name))
            attributes.clear()
            attributes.update({attribute.name: attribute for attribute in ordered})
            set_attributes(layer.node, **{VERSION_ATTRIBUTE: version_of(given)})
            modified |= list(attributes) != before
        return PassResult(model, modified)
