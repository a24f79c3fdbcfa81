"""P02: a float linear layer becomes an optical one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import onnx_ir as ir

from lumina_onnx.exporter.linears import Linear
from lumina_onnx.exporter.nodes import set_attributes
from lumina_onnx.profile import OpticalProfile
from lumina_onnx.schema import DOMAIN, NOISE, OPERATOR, VERSION

from . import Pass, PassResult

__all__ = ["ReplaceLinears"]


class ReplaceLinears(Pass):
    """P02: a float linear layer becomes an `OpticalLinear` with W in float32, which P08 stores.

    The new node takes over the name of the layer's product, its X and the layer's Y.
    """

    number = "P02"

    def __init__(self, chosen: Sequence[tuple[Linear, OpticalProfile]], seed: int) -> None:
        self._chosen = chosen
        self._seed = seed

    def call(self, model: ir.Model) -> PassResult:
        """Replaces the chosen layers."""
        for linear, profile in self._chosen:
            _replace(linear, profile, self._seed)
        return PassResult(model, bool(self._chosen))


def _replace(linear: Linear, profile: OpticalProfile, seed: int) -> None:
    last = linear.add or linear.node
    arrays = [linear.weight, np.ones(len(linear.weight), np.float32)]
    arrays += [] if linear.bias is None else [linear.bias]
    # The arrays as they are, even if transposed: copying all weights at once would take as much memory as the file.
    stored = [ir.Value(const_value=ir.tensor(array)) for array in arrays]
    new = ir.Node(DOMAIN, OPERATOR, [linear.node.inputs[0], *stored], name=linear.name, version=VERSION, num_outputs=1)
    ranges = profile.output_range if isinstance(profile.output_range, tuple) else (profile.output_range,)
    set_attributes(
        new,
        **{name: getattr(profile, name) for name in ("input_bits", "weight_bits", "output_bits", "input_range")},
        output_range=ranges,
        **{name: getattr(profile, name) for name in NOISE},
        bias_stage=profile.bias_stage,
        seed=seed,
    )
    graph = cast("ir.Graph", last.graph)
    old = [linear.node] if linear.add is None else [linear.add, linear.node]
    ir.convenience.replace_nodes_and_values(graph, last, old, [new], last.outputs, new.outputs)
