"""P05: no layer draws noise."""

from __future__ import annotations

import onnx_ir as ir

from lumina_onnx.exporter.nodes import optical_nodes, set_attributes
from lumina_onnx.schema import quiet

from . import Pass, PassResult

__all__ = ["SilenceNoise"]


class SilenceNoise(Pass):
    """P05: no layer draws noise: every noise level is 0."""

    number = "P05"

    def call(self, model: ir.Model) -> PassResult:
        """Sets the noise levels of every layer to 0."""
        layers = optical_nodes(model)
        for layer in layers:
            set_attributes(layer.node, **quiet(layer.attributes))
        return PassResult(model, any(layer.is_noisy for layer in layers))
