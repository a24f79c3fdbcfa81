"""P06: no two noisy layers share a seed."""

from __future__ import annotations

import onnx_ir as ir

from lumina_onnx.exporter.nodes import optical_nodes, set_attributes

from . import Pass, PassResult

__all__ = ["SeparateSeeds"]

_SEEDS = 2**63
_STEP = 0x9E3779B97F4A7C15


class SeparateSeeds(Pass):
    """P06: no two noisy layers share a seed, so that they do not share their noise.

    The first layer keeps the seed; each later one gets the next free seed of a fixed sequence that starts there, so two
    exports of one model are identical. There is a note for each changed node.
    """

    number = "P06"

    def call(self, model: ir.Model) -> PassResult:
        """Changes the seeds of later layers."""
        noisy = [layer for layer in optical_nodes(model) if layer.is_noisy]
        taken = {layer.attributes["seed"] for layer in noisy}
        owners: dict[int, str] = {}
        newest: dict[int, int] = {}
        notes = []
        for layer in noisy:
            seed = layer.attributes["seed"]
            if seed not in owners:
                owners[seed] = layer.name
                continue
            own = newest.get(seed, seed)
            while own in taken:
                own = (own + _STEP) % _SEEDS
            newest[seed] = own
            taken.add(own)
            set_attributes(layer.node, seed=own)
            notes.append(
                f"{layer.name} has the noise seed of {owners[seed]} ({seed}); in the file its seed is {own}, so that "
                "the two do not share their noise"
            )
        return PassResult(model, bool(notes), notes)
