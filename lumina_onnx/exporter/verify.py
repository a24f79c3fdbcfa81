"""Runs a .onnx file and compares it with the reference, layer by layer, and with the torch model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from numpy.typing import NDArray

from . import nodes, passes
from .alone import noisy_bodies, quiet_bodies, size
from .comparing import compare, compare_body, compare_with_reference
from .feeds import Arrays, random, read
from .fitting import UnfitError, fitting
from .loading import load
from .nodes import OpticalNode
from .passes.silence_noise import SilenceNoise
from .report import Left, VerifyReport
from .sessions import session
from .watching import Executions, Watched

if TYPE_CHECKING:
    import torch

__all__ = ["verify"]

RUNS = 2
"""Runs of one fresh session: the second shows whether each run draws its own noise."""

LARGE = 2**27
"""With more elements of weights, the layers run one by one without the library: ONNX Runtime takes some 20 bytes for
each element when it folds the body's constants."""

ROWS = 64
"""How many rows of a layer's input are recomputed unless the caller says otherwise."""

EXACT_OPERATORS = frozenset(
    (
        *("Abs", "Add", "Clip", "Div", "Max", "Min", "Mul", "Neg", "Relu", "Sub"),
        *("And", "Cast", "Equal", "Greater", "Less", "Not", "Or", "Where"),
        *("Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape"),
        *("Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
    )
)
"""Operators with a single correct result in IEEE arithmetic, so torch and ONNX Runtime give the same bits."""


def verify(
    path: str | os.PathLike[str],
    *,
    inputs: Mapping[str, Any] | Sequence[Any] | None = None,
    reference: torch.nn.Module | None = None,
    rows: int | None = ROWS,
) -> VerifyReport:
    """Runs a .onnx file, with and without the library, and recomputes every `OpticalLinear` node in plain numpy.

    With the operator's library the file runs twice. :mod:`lumina_onnx.reference` recomputes each node from the input
    that the node received, noise included, and the results must be equal bit for bit. Execution e of a node in a fresh
    session draws stream e; this is run e of the file, except that a subgraph may execute its nodes several times in a
    run, or never.

    If the file has a function body, it also runs without the library, with the noise off; each node must be within
    :mod:`.tolerance`. (In a large file, whose session would take much memory, nodes run one by one.) With the noise on,
    which ONNX Runtime draws itself there, one node of each kind runs alone on what it received: its results must be
    finite where the reference's are finite both with and without noise. A node that violates this has its own row.

    Nodes in subgraphs are compared like those of the main graph. A node that cannot be compared, or that the inputs do
    not reach, is listed in the report's ``not_checked`` with the reason and does not affect ``ok``.

    A mismatch does not raise an exception: see the report's ``ok``.

    Args:
        path: the file.
        inputs: arrays by input name, or in the order of the model's inputs. If absent, random arrays: normal numbers,
            integers 0 and 1. Symbolic sizes are what the graph requires where that follows from its shapes, and else
            the first of several small ones at which the model runs.
        reference: the torch model that was exported, called with the arguments of the export. For other files, inputs
            are matched by name to forward's parameters, or else by position. The model's outputs, with the noise of
            the same streams, are compared with the file's. They must be equal if the file holds only `OpticalLinear`
            and operators with a single correct result (ReLU, sums, reshapes ...); otherwise the difference is
            reported.
        rows: how many rows of each layer's input, at least, are recomputed: the first, the last and others chosen at
            random, which are the same each time. None for all.

    Returns:
        One row for each comparison; ``print`` shows a table.

    Raises:
        FileNotFoundError, ValueError: the file does not exist, is not an ONNX model or has no `OpticalLinear`, the
            inputs do not fit, or the reference cannot be called with them.
        TypeError: the reference's layers cannot be reached.
        RuntimeError: ONNX Runtime 1.24 to 1.27 is in use and cannot load the file without the library.
        Exception: whatever ONNX Runtime raises if it cannot load or run the file.
    """
    model = load(path, maps=True, sparse="dense").model
    layers = nodes.optical_nodes(model)
    renamed = nodes.renamed(model)
    if not layers:
        copies = f" ({renamed[0].op_type!r} is {nodes.RENAMED})" if renamed else ""
        raise ValueError(f"path = {str(path)!r}: the model has no lumina::OpticalLinear node to verify{copies}")
    if rows is not None and rows < 1:
        raise ValueError(f"rows = {rows}: allowed is at least 1, or None for all")
    notes: list[str] = []
    large = sum(map(size, layers)) > LARGE and nodes.body_bytes(model) > 0
    if large:
        notes.append("without the library the layers ran one by one: a session of the whole file takes much memory")
    comparable = {number for number, node in enumerate(layers) if node.weight is not None and not node.computed}
    watched = Watched(model, comparable)
    with ThreadPoolExecutor(1) as aside:
        # ONNX Runtime takes long to fold the body's constants, and needs nothing of Python for it.
        pending = None
        if nodes.body_bytes(model) and not large:
            quiet, _ = passes.run(model.clone(), SilenceNoise())
            pending = aside.submit(_opened, Watched(quiet, comparable), library=False)
        feeds = _fed(path, model, inputs)
        execute = _opened(watched)
        runs = [execute(feeds) for _ in range(RUNS)]
        del execute
        comparisons = compare_with_reference(layers, runs, rows)
        if pending is not None:
            executions = pending.result()(feeds)
            comparisons += [compare_body(*each, rows) for each in zip(layers, executions, strict=True) if each[1]]
    if large:
        session(path, library=False, optimised=False)
        comparisons += quiet_bodies(model, layers, runs[0], rows)
    if nodes.body_bytes(model):
        comparisons += [found for found in noisy_bodies(model, layers, runs[0], rows) if not found.ok]
    if reference is not None:
        from .torch_reference import TorchReference

        compared = TorchReference(reference, model, layers, feeds)
        others = sorted(set(nodes.operators(model)) - EXACT_OPERATORS)
        exact = not others and not compared.notes
        if others:
            notes.append(
                f"torch may differ in {', '.join(others)}: operators whose last bits are an implementation's own"
            )
        notes += compared.notes
        # The model's own outputs come from the unmodified file: added outputs could change what is fused.
        whole = _Whole(path, model)
        for stream in range(RUNS):
            values = whole.run(feeds)
            for name, expected in compared.run(stream).items():
                comparisons.append(compare(name, "torch", stream, values[name], expected, required=exact))

    import onnxruntime

    return VerifyReport(
        path=str(path),
        onnxruntime=onnxruntime.__version__,
        inputs={name: array.shape for name, array in feeds.items()},
        body_bytes=nodes.body_bytes(model),
        comparisons=comparisons,
        not_checked=[
            Left(node.name, "OpticalLinear", reason)
            for number, node in enumerate(layers)
            if (reason := _not_checked(node, number, watched, runs))
        ],
        bypassing=[Left(node.name or str(node.outputs[0].name), node.op_type, nodes.RENAMED) for node in renamed],
        notes=notes,
    )


class _Whole:
    """A fresh session of the unmodified file."""

    def __init__(self, path: str | os.PathLike[str], model: ir.Model) -> None:
        self._session = session(path)
        self._names = [str(value.name) for value in model.graph.outputs]

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """The file's outputs by name."""
        return dict(zip(self._names, self._session.run(self._names, feeds), strict=True))


def _fed(path: str | os.PathLike[str], model: ir.Model, inputs: Mapping[str, Any] | Sequence[Any] | None) -> Arrays:
    """Inputs on which the file runs.

    Raises:
        ValueError: the caller's do not fit; or there are none, and the file runs on none that were tried.
        Exception: whatever ONNX Runtime raises on the caller's.
    """
    whole = _Whole(path, model)
    if inputs is not None:
        feeds = read(model, inputs)
        whole.run(feeds)
        return feeds
    try:
        kinds, _ = fitting(model, whole.run)
    except UnfitError as error:
        raise ValueError(f"path = {str(path)!r}: {error}") from error.__cause__
    return random(kinds)


def _opened(watched: Watched, *, library: bool = True) -> Callable[[Arrays], list[Executions]]:
    with watched.sessions() as fresh:
        return fresh(library=library)


def _not_checked(node: OpticalNode, number: int, watched: Watched, runs: list[list[Executions]]) -> str:
    """Why a node was not compared; an empty string if it was."""
    if node.computed or node.weight is None:
        return f"its {', '.join(node.computed) or 'W'} is not an initializer"
    if number in watched.reasons:
        return watched.reasons[number]
    return (
        "" if any(executions[number] for executions in runs) else "it lies in a subgraph that these inputs do not reach"
    )
