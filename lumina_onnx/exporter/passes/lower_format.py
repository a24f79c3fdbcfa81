"""P11: a file is in no newer format than it needs."""

from __future__ import annotations

import itertools

import onnx_ir as ir

from . import Pass, PassResult

__all__ = ["LowerFormat"]


class LowerFormat(Pass):
    """P11: a file is in no newer format than it needs.

    Its IR version is the source's, but no newer one than ONNX Runtime 1.17 reads where its opset is one that this
    reads, and nothing in the file needs the newer.
    """

    number = "P11"

    def __init__(self, fallback: bool) -> None:
        """`fallback`: whether the file is to have a function body."""
        # Functions of an opset from 19 on need 9; initializers that are no inputs 4.
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
    """Whether a model holds what IR 10 brought: types of less than 8 bits, and functions of one name."""
    functions = list(model.functions.values())
    every = itertools.chain(model.graph.all_nodes(), *(function.all_nodes() for function in functions))
    values = [value for node in every for value in node.outputs]
    values += [value for part in model.graph.subgraphs() for value in (*part.inputs, *part.initializers.values())]
    values += [*model.graph.inputs, *model.graph.initializers.values()]
    small = any(value.dtype is not None and value.dtype > ir.DataType.FLOAT8E5M2FNUZ for value in values)
    return small or any(each.overload for each in functions)
