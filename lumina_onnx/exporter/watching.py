"""What `OpticalLinear` nodes get and give when a model runs, in the graph and inside `If`, `Loop` and `Scan`."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol

import onnx_ir as ir
from numpy.typing import NDArray

from . import files, names
from .feeds import Arrays
from .passes import run
from .passes.scans_to_loops import ScansToLoops
from .passes.show_layers import SEQUENCES, ShowLayers, Shown
from .sessions import session

__all__ = ["Executions", "Sessions", "Watched"]

Executions = list[tuple[NDArray[Any], ...]]
"""X and Y, each time that a node ran."""


class Sessions(Protocol):
    """Makes fresh sessions of a watched model."""

    def __call__(self, *, library: bool = True) -> Callable[[Arrays], list[Executions]]:
        """A session as a function: inputs -> the executions of each optical node in one run."""


class Watched:
    """A copy of a model that shows what its optical nodes get and give."""

    def __init__(self, model: ir.Model, wanted: Collection[int]) -> None:
        """`wanted` are the numbers of the optical nodes to be shown, in the model's order; X and Y are float32."""
        taken = names.values(model)
        count = itertools.count()

        def unused() -> str:
            return next(name for name in (f"watched_{number}" for number in count) if name not in taken)

        show = ShowLayers(wanted, unused)
        scans = [ScansToLoops(unused)] if model.opset_imports.get("", 0) >= SEQUENCES else []
        self.model, _ = run(model.clone(), *scans, show)
        self.reasons = show.reasons
        """Why an optical node, by its number, cannot be shown."""
        self._shown = show.shown

    @contextlib.contextmanager
    def sessions(self) -> Iterator[Sessions]:
        """Makes sessions of the model, which is written once for all of them; they stay of use after that."""
        asked = list(dict.fromkeys(itertools.chain.from_iterable(shown.outputs for shown in self._shown)))
        with files.temporary(ir.to_proto(self.model)) as path:

            def fresh(*, library: bool = True) -> Callable[[Arrays], list[Executions]]:
                opened = session(path, library=library)

                def execute(feeds: Arrays) -> list[Executions]:
                    # No names at all would ask for every output.
                    values = dict(zip(asked, opened.run(asked, feeds), strict=True)) if asked else {}
                    return [_executions(shown, values) for shown in self._shown]

                return execute

            yield fresh


def _executions(shown: Shown, values: dict[str, Any]) -> Executions:
    results = [values[name] for name in shown.outputs]
    if not shown.nested:
        return [tuple(results)] if results else []
    (collected,) = results
    return [tuple(collected[i : i + 2]) for i in range(0, len(collected), 2)]
