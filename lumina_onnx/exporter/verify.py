"""Runs a .onnx file and compares it with the reference, layer by layer, and with the torch model."""

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
"""Runs of one fresh session: the second shows whether each run draws its own noise."""

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
) -> VerifyReport:
    """Runs a .onnx file, with and without the library, and recomputes every `OpticalLinear` node in plain numpy.

    With the operator's library the file runs twice. :mod:`lumina_onnx.reference` recomputes each node from the input
    that the node received, noise included, and the results must be equal bit for bit. Execution e of a node in a fresh
    session draws stream e; this is run e of the file, except that a subgraph may execute its nodes several times in a
    run, or never.

    If the file has a function body, it also runs without the library, as it is and once with the noise off. ONNX
    Runtime draws its own noise there, so each node must be within :mod:`.tolerance` in the noiseless run. In the noisy
    run, results must be finite where the reference's are finite both with and without noise; a node that violates this
    has its own row.

    Nodes in subgraphs are compared like those of the main graph. A node that cannot be compared, or that the inputs do
    not reach, is listed in the report's ``not_checked`` with the reason and does not affect ``ok``.

    A mismatch does not raise an exception: see the report's ``ok``.

    Args:
        path: the file.
        inputs: arrays by input name, or in the order of the model's inputs. If absent, random arrays of the model's
            shapes: normal numbers, integers 0 and 1; symbolic sizes become 2, 3, ...
        reference: the torch model that was exported, called with the arguments of the export. For other files, inputs
            are matched by name to forward's parameters, or else by position. The model's outputs, with the noise of
            the same streams, are compared with the file's. They must be equal if the file holds only `OpticalLinear`
            and operators with a single correct result (ReLU, sums, reshapes ...); otherwise the difference is
            reported.

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
    feeds = read(model, inputs)
    output_names = [str(value.name) for value in model.graph.outputs]
    # The model's own outputs come from the unmodified file: the outputs added below could change what is fused.
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
        ValueError: ONNX Runtime refuses the random inputs used because the caller gave none.
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
    """Compares each layer with the reference, with the library and, if there is a body, without; also returns the
    layers that were not compared."""
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
    """Why a node was not compared; an empty string if it was."""
    if node.computed or node.weight is None:
        return f"its {', '.join(node.computed) or 'W'} is not an initializer"
    if number in watched.reasons:
        return watched.reasons[number]
    return (
        "" if any(executions[number] for executions in runs) else "it lies in a subgraph that these inputs do not reach"
    )


def _compare_with_reference(layers: list[OpticalNode], runs: list[list[Executions]]) -> list[Comparison]:
    """Compares each node's executions in the runs of a fresh session; one row per node and run."""
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
    """The arguments of the reference other than X."""
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
    """Compares a node of a run without the library and without noise, given its X and Y in one or more executions."""
    rows = []
    for x, got in executions:
        expected, distance = tolerance.allowed(x, **_arguments(node))
        row = _compare(node.name, "reference", 0, got, expected, required=True)
        within = got.shape == expected.shape and tolerance.is_within(got, expected, distance)
        rows.append(dataclasses.replace(row, library=False, within=within))
    return _merged(rows)


def _compare_noisy_body(node: OpticalNode, executions: Executions) -> Comparison:
    """Compares a node of a noisy run without the library: finite where the reference is with noise and without."""
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
