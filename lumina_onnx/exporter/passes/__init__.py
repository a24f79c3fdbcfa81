"""Changes of a model of onnx_ir, one to a module, each with the number of its rule.

A pass changes the model in place, as onnx_ir's own do, and says what its user should know::

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
    """What a pass leaves."""

    notes: list[str] = dataclasses.field(default_factory=list)
    """What to tell the user."""


class Pass(ir.passes.InPlacePass):
    """A change of a model by one rule, which the first line of its description states."""

    number: ClassVar[str]
    """The rule's, from P01 on."""

    @abc.abstractmethod
    def call(self, model: ir.Model) -> PassResult:
        """Applies the rule."""


def run(model: ir.Model, *passes: ir.passes.PassBase) -> tuple[ir.Model, list[str]]:
    """The model after passes, of ours and of onnx_ir's, and their notes.

    Raises:
        Exception: what a pass raises, as it is.
    """
    notes: list[str] = []
    for each in passes:
        result = each(model)
        model = result.model
        notes += result.notes if isinstance(result, PassResult) else []
    return model, notes
