"""Records what `OpticalLinear` nodes receive and return when a model runs, also inside `If`, `Loop` and `Scan`."""

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
from .writing import message

__all__ = ["Executions", "Sessions", "Watched"]

Executions = list[tuple[NDArray[Any], ...]]
"""X and Y of each execution of a node."""


class Sessions(Protocol):
    """Makes fresh sessions of a watched model."""

    def __call__(self, *, library: bool = True) -> Callable[[Arrays], list[Executions]]:
        """Opens a session as a function: inputs -> the executions of each optical node in one run."""


class Watched:
    """A copy of a model that outputs what its optical nodes receive and return."""

    def __init__(self, model: ir.Model, wanted: Collection[int]) -> None:
        """`wanted` are the indices of the optical nodes to show, in the model's order; X and Y are float32."""
        taken = names.values(model)
        count = itertools.count()

        def unused() -> str:
            return next(name for name in (f"watched_{number}" for number in count) if name not in taken)

        show = ShowLayers(wanted, unused)
        scans = [ScansToLoops(unused)] if model.opset_imports.get("", 0) >= SEQUENCES else []
        self.model, _ = run(model.clone(), *scans, show)
        self.reasons = show.reasons
        """Why an optical node cannot be shown, by its index."""
        self._shown = show.shown

    @contextlib.contextmanager
    def sessions(self) -> Iterator[Sessions]:
        """Yields a maker of sessions of the model, which is written once for all; sessions stay usable afterwards."""
        asked = list(dict.fromkeys(itertools.chain.from_iterable(shown.outputs for shown in self._shown)))
        with files.temporary(*message(self.model)) as path:

            def fresh(*, library: bool = True) -> Callable[[Arrays], list[Executions]]:
                opened = session(path, library=library)

                def execute(feeds: Arrays) -> list[Executions]:
                    # An empty list of names would request every output.
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
