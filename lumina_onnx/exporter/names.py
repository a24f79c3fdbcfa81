"""Unique names."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

__all__ = ["Names", "values"]


class Names:
    """Hands out each name only once."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._next: dict[str, int] = {}

    def unused(self, name: str, first: int = 2) -> str:
        """The name, or if it is taken, the first free one of name_2, name_3, ... (numbered from `first`)."""
        unused, number = name, self._next.get(name, first)
        while unused in self._taken:
            unused, number = f"{name}_{number}", number + 1
        self._next[name] = number
        self._taken.add(unused)
        return unused


def values(model: ir.Model) -> set[str]:
    """The names of all values of a model, including those in subgraphs."""
    found = {value.name for graph in model.graphs() for value in (*graph.inputs, *graph.initializers.values())}
    for node in model.graph.all_nodes():
        found.update(value.name for value in (*node.inputs, *node.outputs) if value is not None)
    return {name for name in found if name}
