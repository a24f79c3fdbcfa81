"""P11: a file's format is no newer than it needs."""

from __future__ import annotations

import itertools

import onnx_ir as ir

from . import Pass, PassResult

__all__ = ["LowerFormat"]


class LowerFormat(Pass):
    """P11: a file's format is no newer than it needs.

    The IR version is the source's, but is lowered to the one that ONNX Runtime 1.17 reads if that release reads the
    file's opset and nothing in the file needs a newer IR version.
    """

    number = "P11"

    def __init__(self, fallback: bool) -> None:
        """`fallback`: whether the file will have a function body."""
        # A function at opset 19 or later needs IR 9; initializers that are not inputs need IR 4.
        self._least = 9 if fallback else 4

    def call(self, model: ir.Model) -> PassResult:
        """Sets the IR version."""
        before = model.ir_version
        if before <= 9 or model.opset_imports[""] > 20:
            model.ir_version = max(before, self._least)
        elif not _needs_newer(model):
            model.ir_version = 9
        return PassResult(model, model.ir_version != before)


def _needs_newer(model: ir.Model) -> bool:
    """Whether a model uses what IR 10 introduced: types below 8 bits, and overloaded functions."""
    functions = list(model.functions.values())
    every = itertools.chain(model.graph.all_nodes(), *(function.all_nodes() for function in functions))
    values = [value for node in every for value in node.outputs]
    values += [value for part in model.graph.subgraphs() for value in (*part.inputs, *part.initializers.values())]
    values += [*model.graph.inputs, *model.graph.initializers.values()]
    small = any(value.dtype is not None and value.dtype > ir.DataType.FLOAT8E5M2FNUZ for value in values)
    return small or any(each.overload for each in functions)
