"""Passes over an onnx_ir model: one per module, each implementing one numbered rule.

A pass changes the model in place, as onnx_ir's own passes do, and returns notes for the user::

    model, notes = run(model, SeparateSeeds(), StoreWeights())
"""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

import onnx_ir as ir

__all__ = ["Pass", "PassResult", "run"]


@dataclasses.dataclass
class PassResult(ir.passes.PassResult):
    """The result of a pass."""

    notes: list[str] = dataclasses.field(default_factory=list)
    """What to tell the user."""


class Pass(ir.passes.InPlacePass):
    """A change to a model by one rule, which the first line of the subclass's docstring states."""

    number: ClassVar[str]
    """The rule's number, from P01 on."""

    @abc.abstractmethod
    def call(self, model: ir.Model) -> PassResult:
        """Applies the rule."""


def run(model: ir.Model, *passes: ir.passes.PassBase) -> tuple[ir.Model, list[str]]:
    """Runs passes, ours or onnx_ir's, in order; returns the model and the notes of our passes.

    Raises:
        Exception: whatever a pass raises, unchanged.
    """
    notes: list[str] = []
    for each in passes:
        result = each(model)
        model = result.model
        notes += result.notes if isinstance(result, PassResult) else []
    return model, notes
