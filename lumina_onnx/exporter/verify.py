"""Running a .onnx file and comparing it with the reference, layer by layer, and with the torch model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

import lumina_onnx
from lumina_onnx import reference as plain
from lumina_onnx.runtime import silent_options

from . import files, nodes, tolerance
from .feeds import ADVICE, Arrays, described, read
from .report import Comparison, Left, VerifyReport
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
    model = nodes.inlined(files.load(path))
    layers = nodes.optical_nodes(model)
    renamed = nodes.renamed(model)
    if not layers:
        copies = f" ({renamed[0].op_type!r} is {nodes.RENAMED})" if renamed else ""
        raise ValueError(f"path = {str(path)!r}: the model has no lumina::OpticalLinear node to verify{copies}")
    feeds = read(model, inputs)
    output_names = [value.name for value in model.graph.output]
    # A model's own outputs come from the file as it is: the added ones below could change what is fused.
    session = lumina_onnx.load(str(path), sess_options=silent_options())
    outputs = [dict(zip(output_names, values, strict=True)) for values in _runs(session, path, feeds, inputs is None)]
    notes: list[str] = []

    watched = _watched(model, layers)
    execute = watched.session()
    runs = [execute(feeds) for _ in range(RUNS)]
    comparisons = _compare_with_reference(layers, runs)
    not_checked = [
        Left(node.name, "OpticalLinear", reason)
        for number, node in enumerate(layers)
        if (reason := _not_checked(node, number, watched, runs))
    ]
    body_bytes = nodes.body_bytes(model)
    if body_bytes:
        executions = _watched(nodes.without_noise(model), layers).session(library=False)(feeds)
        comparisons += [compare_body(*each) for each in zip(layers, executions, strict=True) if each[1]]
        files.plain_session(path).run(output_names, feeds)
        if _is_noisy(layers):
            executions = watched.session(library=False)(feeds)
            rows = [_compare_noisy_body(*each) for each in zip(layers, executions, strict=True) if each[1]]
            comparisons += [row for row in rows if not row.ok]
    if reference is not None:
        from .torch_reference import TorchReference

        compared = TorchReference(reference, model, layers, feeds)
        others = sorted(set(nodes.operators(model)) - EXACT_OPERATORS)
        if others:
            notes.append(
                f"torch may differ in {', '.join(others)}: operators whose last bits are an implementation's own"
            )
        notes += compared.notes
        for run, values in enumerate(outputs):
            for name, expected in compared.run(run).items():
                comparisons.append(_compare(name, "torch", run, values[name], expected, required=not notes))

    import onnxruntime

    return VerifyReport(
        path=str(path),
        onnxruntime=onnxruntime.__version__,
        inputs={name: array.shape for name, array in feeds.items()},
        body_bytes=body_bytes,
        comparisons=comparisons,
        not_checked=not_checked,
        bypassing=[Left(node.name or node.output[0], node.op_type, nodes.RENAMED) for node in renamed],
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


def _watched(model: onnx.ModelProto, layers: list[nodes.OpticalNode]) -> Watched:
    """The model with the input and the output of each node that can be compared shown."""
    wanted = [
        [] if node.computed or node.weight is None else [node.proto.input[0], node.proto.output[0]] for node in layers
    ]
    return Watched(model, wanted)


def _not_checked(node: nodes.OpticalNode, number: int, watched: Watched, runs: list[list[Executions]]) -> str:
    """Why a node was not compared; an empty string where it was."""
    if node.computed or node.weight is None:
        return f"its {', '.join(node.computed) or 'W'} is not an initializer"
    if number in watched.reasons:
        return watched.reasons[number]
    return "" if any(run[number] for run in runs) else "it lies in a subgraph that these inputs do not reach"


def _compare_with_reference(layers: list[nodes.OpticalNode], runs: list[list[Executions]]) -> list[Comparison]:
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


def _arguments(node: nodes.OpticalNode) -> dict[str, Any]:
    """What the reference takes beside X."""
    scale = numpy_helper.to_array(node.weight_scale) if node.weight_scale is not None else None
    return {
        **node.attributes,
        "weight": numpy_helper.to_array(cast("onnx.TensorProto", node.weight)),
        "bias": None if node.bias is None else numpy_helper.to_array(node.bias),
        "weight_scale": scale if node.attributes["weight_bits"] else None,
    }


def _recompute(node: nodes.OpticalNode, x: NDArray[Any], stream: int) -> NDArray[np.float32]:
    return plain.optical_linear(x, stream=stream, **_arguments(node))


def compare_body(node: nodes.OpticalNode, executions: Executions) -> Comparison:
    """A node of a run without library and noise, its input and output in each of one or more executions."""
    rows = []
    for x, got in executions:
        expected, distance = tolerance.allowed(x, **_arguments(node))
        row = _compare(node.name, "reference", 0, got, expected, required=True)
        within = got.shape == expected.shape and tolerance.is_within(got, expected, distance)
        rows.append(dataclasses.replace(row, library=False, within=within))
    return _merged(rows)


def _compare_noisy_body(node: nodes.OpticalNode, executions: Executions) -> Comparison:
    """A node of a run without library but with noise: finite where the reference is with noise and without."""
    rows = []
    for x, got in executions:
        expected, distance = tolerance.allowed(x, **_arguments(node))
        exempt = ~np.isfinite(expected) | np.isinf(distance) | ~np.isfinite(_recompute(node, x, 0))
        within = got.shape == expected.shape and bool((np.isfinite(got) | exempt).all())
        row = _compare(node.name, "reference", 0, got, expected, required=True)
        rows.append(dataclasses.replace(row, library=False, within=within))
    return _merged(rows)


def _is_noisy(layers: list[nodes.OpticalNode]) -> bool:
    return any(node.attributes[name] for node in layers for name in nodes.NOISE)


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
