"""P02: a linear layer becomes an optical one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lumina_onnx.exporter.linear import Linear, Step
from lumina_onnx.exporter.nodes import set_attributes
from lumina_onnx.exporter.report import listed
from lumina_onnx.profile import OpticalProfile
from lumina_onnx.schema import DOMAIN, DOMAIN_VERSION, LAYER, OPERATOR, VERSION_ATTRIBUTE, version_of

from . import Pass, PassResult

__all__ = ["ReplaceLinears"]

KEPT = "the file's 8-bit weights are kept with their scales"
ANEW = "the file's quantised weights are quantised anew"
AS_FLOATS = "the file's quantised weights become floats"


class ReplaceLinears(Pass):
    """P02: a linear layer becomes an `OpticalLinear` with W in float32, which P08 stores, or with the file's codes.

    The new node takes over the name of the layer's product, its X and the layer's Y. There are notes on layers whose
    values change their type on the way, and on stored tensors that callers could replace.
    """

    number = "P02"

    def __init__(self, chosen: Sequence[tuple[Linear, OpticalProfile]], seed: int) -> None:
        self._chosen = chosen
        self._seed = seed

    def call(self, model: ir.Model) -> PassResult:
        """Replaces the chosen layers."""
        noted: dict[str, list[str]] = {}
        fixed: dict[str, None] = {}
        for linear, profile in self._chosen:
            _replace(linear, profile, self._seed)
            fixed |= dict.fromkeys(linear.fixed)
            if note := _note(linear, profile):
                noted.setdefault(note, []).append(linear.name)
        notes = [f"{listed(names)}: {note}" for note, names in noted.items()]
        if fixed:
            notes.append(f"{listed(list(fixed))}: stored in layers, where callers can no longer replace it by an input")
        return PassResult(model, bool(self._chosen), notes)


def _keeps_codes(linear: Linear, profile: OpticalProfile) -> bool:
    return linear.step is not None and profile.weight_bits == 8


def _note(linear: Linear, profile: OpticalProfile) -> str:
    if not linear.coded:
        return linear.note
    codes = KEPT if _keeps_codes(linear, profile) else ANEW if profile.weight_bits else AS_FLOATS
    return f"{codes}; {linear.note}" if linear.note else codes


def _replace(linear: Linear, profile: OpticalProfile, seed: int) -> None:
    x, before = _chain(linear.x, linear.before)
    new = ir.Node(
        DOMAIN, OPERATOR, [x, *_stored(linear, profile)], name=linear.name, version=DOMAIN_VERSION, num_outputs=1
    )
    values = {row.name: getattr(profile, row.name) for row in LAYER}
    if not isinstance(profile.output_range, tuple):
        values["output_range"] = (profile.output_range,)
    set_attributes(new, **values, seed=seed, **{VERSION_ATTRIBUTE: version_of(values)})
    y, after = _chain(new.outputs[0], linear.after)
    old = [*reversed(linear.rest), linear.node]
    graph = cast("ir.Graph", old[0].graph)
    ir.convenience.replace_nodes_and_values(graph, old[0], old, [*before, new, *after], old[0].outputs, [y])


def _stored(linear: Linear, profile: OpticalProfile) -> list[ir.Value]:
    """W, W_scale and B."""
    tensors: list[ir.TensorProtocol]
    if _keeps_codes(linear, profile):
        tensors = [linear.matrix, ir.tensor(cast("NDArray[np.float32]", linear.step))]
    else:
        lazy = ir.LazyTensor(lambda: ir.tensor(linear.weight()), ir.DataType.FLOAT, ir.Shape(linear.shape))
        tensors = [lazy, ir.tensor(np.ones(linear.shape[0], np.float32))]
    tensors += [] if linear.bias is None else [ir.tensor(linear.bias)]
    return [ir.Value(const_value=tensor) for tensor in tensors]


def _chain(value: ir.Value, steps: Sequence[Step]) -> tuple[ir.Value, list[ir.Node]]:
    """The value after some operators, and their nodes."""
    nodes: list[ir.Node] = []
    for step in steps:
        others = []
        for other in step.others:
            if not isinstance(other, ir.Value):
                nodes.append(ir.Node("", "Constant", [], [ir.AttrTensor("value", other)], name=""))
                other = nodes[-1].outputs[0]
            others.append(other)
        nodes.append(ir.Node("", step.kind, [value, *others], step.attributes, name=""))
        value = nodes[-1].outputs[0]
    return value, nodes
