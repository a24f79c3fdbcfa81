"""P04: a layer has the name of its module, and no other node has it."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from lumina_onnx.exporter.nodes import optical_nodes, spelled

from . import Pass, PassResult
from .restore_calls import MODULE

__all__ = ["NameLayers"]


class NameLayers(Pass):
    """P04: a layer has the name of its module, and no other node has it.

    The second call of "layer" is "layer_2", or has the next free number if a module is named that.
    """

    number = "P04"

    def __init__(self, modules: Iterable[str]) -> None:
        """`modules`: the paths of all modules of the model."""
        self._modules = {spelled(path) for path in modules}

    def call(self, model: ir.Model) -> PassResult:
        """Names layers by the module paths that P03 recorded, and renames other nodes that clash."""
        layers = {layer.node for layer in optical_nodes(model)}
        taken: set[str] = set()
        for node in model.graph.all_nodes():
            if node in layers:
                node.name = self._unused(spelled(node.meta[MODULE]) or "optical_linear", taken)
                taken.add(node.name)
        for other in model.graph.all_nodes():
            if other not in layers and other.name in taken:
                other.name = next(name for index in range(1, 10**9) if (name := f"{other.name}__{index}") not in taken)
        return PassResult(model, bool(layers))

    def _unused(self, base: str, taken: set[str]) -> str:
        if base not in taken:
            return base
        candidates = (f"{base}_{index}" for index in range(2, 10**9))
        return next(name for name in candidates if name not in taken and name not in self._modules)
