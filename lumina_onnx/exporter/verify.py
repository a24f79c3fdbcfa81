"""Running a .onnx file and comparing it with the reference, layer by layer, and with the torch model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import lumina_onnx
from lumina_onnx import reference as plain
from lumina_onnx.runtime import silent_options

from . import nodes, passes, tolerance
from .feeds import ADVICE, Arrays, described, read
from .loading import load
from .nodes import OpticalNode
from .passes.silence_noise import SilenceNoise
from .report import Comparison, Left, VerifyReport
from .sessions import session
from .watching import Executions, Watched

if TYPE_CHECKING:
    import torch

__all__ = ["compare_body", "verify"]

RUNS = 2
"""Runs of one fresh session: the second tells whether each run draws its own noise."""

EXACT_OPERATORS = frozenset(
    (
        *("Abs", "Add", "Clip", "Div", "Max", "Min", "Mul", "Neg", "Relu", "Sub"),
        *("And", "Cast", "Equal", "Greater", "Less", "Not", "Or", "Where"),
        *("Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape"),
        *("Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
    )
)
"""Operators with one right result in IEEE arithmetic: torch and ONNX Runtime give the same bits."""


def verify(
    path: str | os.PathLike[str],
    *,
    inputs: Mapping[str, Any] | Sequence[Any] | None = None,
    reference: torch.nn.Module | None = None,
) -> VerifyReport:
    """Runs a .onnx file, with and without the library, and recomputes every `OpticalLinear` node in plain numpy.

    With the operator's library the file runs twice. Each node is recomputed by :mod:`lumina_onnx.reference` on the
    input that it got, noise included (execution e of a node in a fresh session draws stream e: run e of the file, but
    that a subgraph may execute its nodes more than once in a run, or never), and must be equal bit for bit.

    Where the file has a function body it also runs without the library, as it is and once with the noise off. ONNX
    Runtime draws noise of its own, so it is in the quiet run that each node must be within :mod:`.tolerance`; in the
    noisy one its results must be finite where the reference's are, with noise and without, and a node whose results
    are not has a row of its own.

    Nodes in subgraphs are compared as those of the main graph are. A node that cannot be, or that the inputs do not
    reach, is in the report's ``not_checked`` with the reason, and makes it no less ``ok``.

    A mismatch raises nothing: see the report's ``ok``.

    Args:
        path: the file.
        inputs: arrays by input name, or in the order of the model's inputs. Random ones of the model's shapes
            where absent: normal numbers, integers 0 and 1; symbolic sizes become 2, 3, ...
        reference: the torch model that was exported, called with the arguments of the export (of another file, with
            its inputs by the names of forward's parameters, or else in their order). Its outputs, with the noise of
            the same streams, are compared with the file's; they must be equal where the file holds nothing but
            `OpticalLinear` and operators that have one right result (ReLU, sums, reshapes ...), otherwise their
            difference is reported.

    Returns:
        One row for each comparison; ``print`` shows a table.

    Raises:
        FileNotFoundError, ValueError: no such file, no ONNX model, no `OpticalLinear` in it, inputs that do not fit,
            or a reference that cannot be called with them.
        TypeError: a reference whose layers cannot be reached.
        RuntimeError: a file that ONNX Runtime 1.24 to 1.27 cannot load without the library, in one of these.
        Exception: what ONNX Runtime raises where it cannot load or run the file.
    """
    model = load(path, maps=True, sparse="dense").model
    layers = nodes.optical_nodes(model)
    renamed = nodes.renamed(model)
    if not layers:
        copies = f" ({renamed[0].op_type!r} is {nodes.RENAMED})" if renamed else ""
        raise ValueError(f"path = {str(path)!r}: the model has no lumina::OpticalLinear node to verify{copies}")
    feeds = read(model, inputs)
    output_names = [str(value.name) for value in model.graph.outputs]
    # A model's own outputs come from the file as it is: the added ones below could change what is fused.
    whole = lumina_onnx.load(str(path), sess_options=silent_options())
    outputs = [dict(zip(output_names, values, strict=True)) for values in _runs(whole, path, feeds, inputs is None)]
    comparisons, not_checked = _compare_layers(path, model, layers, feeds)
    notes: list[str] = []
    if reference is not None:
        from .torch_reference import TorchReference

        compared = TorchReference(reference, model, layers, feeds)
        others = sorted(set(nodes.operators(model)) - EXACT_OPERATORS)
        if others:
            notes.append(
                f"torch may differ in {', '.join(others)}: operators whose last bits are an implementation's own"
            )
        notes += compared.notes
        for stream, values in enumerate(outputs):
            for name, expected in compared.run(stream).items():
                comparisons.append(_compare(name, "torch", stream, values[name], expected, required=not notes))

    import onnxruntime

    return VerifyReport(
        path=str(path),
        onnxruntime=onnxruntime.__version__,
        inputs={name: array.shape for name, array in feeds.items()},
        body_bytes=nodes.body_bytes(model),
        comparisons=comparisons,
        not_checked=not_checked,
        bypassing=[Left(node.name or str(node.outputs[0].name), node.op_type, nodes.RENAMED) for node in renamed],
        notes=notes,
    )


def _runs(session: Any, path: str | os.PathLike[str], feeds: Arrays, is_random: bool) -> Iterator[list[NDArray[Any]]]:
    """The file's outputs in each run of a session.

    Raises:
        ValueError: ONNX Runtime refuses the random inputs that a user left to us.
    """
    names = [value.name for value in session.get_outputs()]
    for _ in range(RUNS):
        try:
            yield session.run(names, feeds)
        except Exception as error:
            if not is_random:
                raise
            raise ValueError(
                f"path = {str(path)!r}: the model does not run on random inputs, which it gets where there are no "
                f"others ({described(feeds)}): {ADVICE}. ONNX Runtime says: {error}"
            ) from error


def _compare_layers(
    path: str | os.PathLike[str], model: ir.Model, layers: list[OpticalNode], feeds: Arrays
) -> tuple[list[Comparison], list[Left]]:
    """Each layer against the reference, with the library and, where there is a body, without; and what was left out."""
    comparable = {number for number, node in enumerate(layers) if node.weight is not None and not node.computed}
    watched = Watched(model, comparable)
    with watched.sessions() as fresh:
        execute = fresh()
        runs = [execute(feeds) for _ in range(RUNS)]
        comparisons = _compare_with_reference(layers, runs)
        if nodes.body_bytes(model):
            quiet, _ = passes.run(model.clone(), SilenceNoise())
            with Watched(quiet, comparable).sessions() as fresh_quiet:
                executions = fresh_quiet(library=False)(feeds)
            comparisons += [compare_body(*each) for each in zip(layers, executions, strict=True) if each[1]]
            session(path, library=False).run([str(value.name) for value in model.graph.outputs], feeds)
            if any(node.is_noisy for node in layers):
                executions = fresh(library=False)(feeds)
                rows = [_compare_noisy_body(*each) for each in zip(layers, executions, strict=True) if each[1]]
                comparisons += [row for row in rows if not row.ok]
    not_checked = [
        Left(node.name, "OpticalLinear", reason)
        for number, node in enumerate(layers)
        if (reason := _not_checked(node, number, watched, runs))
    ]
    return comparisons, not_checked


def _not_checked(node: OpticalNode, number: int, watched: Watched, runs: list[list[Executions]]) -> str:
    """Why a node was not compared; an empty string where it was."""
    if node.computed or node.weight is None:
        return f"its {', '.join(node.computed) or 'W'} is not an initializer"
    if number in watched.reasons:
        return watched.reasons[number]
    return (
        "" if any(executions[number] for executions in runs) else "it lies in a subgraph that these inputs do not reach"
    )


def _compare_with_reference(layers: list[OpticalNode], runs: list[list[Executions]]) -> list[Comparison]:
    """Each node's executions in runs of a fresh session, a row for each run."""
    streams = [0] * len(layers)
    rows = []
    for run, values in enumerate(runs):
        for number, (node, executions) in enumerate(zip(layers, values, strict=True)):
            each = []
            for x, got in executions:
                expected = _recompute(node, x, streams[number])
                each.append(_compare(node.name, "reference", run, got, expected, required=True))
                streams[number] += 1
            rows += [_merged(each)] if each else []
    return rows


def _merged(rows: list[Comparison]) -> Comparison:
    """One row for the executions of a node in one run."""
    shown = next((row for row in rows if not row.ok), rows[0])
    return dataclasses.replace(
        shown,
        equal=all(row.equal for row in rows),
        within=all(row.equal or row.within for row in rows) and any(row.within for row in rows),
        max_difference=max(row.max_difference for row in rows),
        executions=len(rows),
    )


def _arguments(node: OpticalNode) -> dict[str, Any]:
    """What the reference takes beside X."""
    scale = None if node.weight_scale is None else node.weight_scale.numpy()
    return {
        **node.attributes,
        "weight": cast("ir.TensorProtocol", node.weight).numpy(),
        "bias": None if node.bias is None else node.bias.numpy(),
        "weight_scale": scale if node.attributes["weight_bits"] else None,
    }


def _recompute(node: OpticalNode, x: NDArray[Any], stream: int) -> NDArray[np.float32]:
    return plain.optical_linear(x, stream=stream, **_arguments(node))


def compare_body(node: OpticalNode, executions: Executions) -> Comparison:
    """A node of a run without library and noise, its input and output in each of one or more executions."""
    rows = []
    for x, got in executions:
        expected, distance = tolerance.allowed(x, **_arguments(node))
        row = _compare(node.name, "reference", 0, got, expected, required=True)
        within = got.shape == expected.shape and tolerance.is_within(got, expected, distance)
        rows.append(dataclasses.replace(row, library=False, within=within))
    return _merged(rows)


def _compare_noisy_body(node: OpticalNode, executions: Executions) -> Comparison:
    """A node of a run without library but with noise: finite where the reference is with noise and without."""
    rows = []
    for x, got in executions:
        expected, distance = tolerance.allowed(x, **_arguments(node))
        exempt = ~np.isfinite(expected) | np.isinf(distance) | ~np.isfinite(_recompute(node, x, 0))
        within = got.shape == expected.shape and bool((np.isfinite(got) | exempt).all())
        row = _compare(node.name, "reference", 0, got, expected, required=True)
        rows.append(dataclasses.replace(row, library=False, within=within))
    return _merged(rows)


def _compare(
    name: str, against: str, run: int, got: NDArray[Any], expected: NDArray[Any], *, required: bool
) -> Comparison:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return Comparison(name, against, run, got.shape, False, float("inf"), required)
    same = np.ascontiguousarray(got).tobytes() == np.ascontiguousarray(expected).tobytes()
    if got.size == 0 or same:
        difference = 0.0
    elif np.issubdtype(got.dtype, np.floating):
        with np.errstate(invalid="ignore"):
            gap = np.abs(got.astype(np.float64) - expected.astype(np.float64))
        gap[(np.isnan(got) & np.isnan(expected)) | (got == expected)] = 0.0
        difference = float(np.where(np.isnan(gap), np.inf, gap).max())
    else:
        difference = float(np.abs(got.astype(np.float64) - expected.astype(np.float64)).max())
    return Comparison(name, against, run, got.shape, same, difference, required)
