"""Compares what layers return in a run with what the reference computes, or with the function body's tolerance."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lumina_onnx import reference as plain

from . import tolerance
from .nodes import OpticalNode
from .report import Comparison
from .watching import Executions

__all__ = ["compare", "compare_body", "compare_noisy_body", "compare_with_reference"]


def compare_with_reference(
    layers: list[OpticalNode], runs: list[list[Executions]], rows: int | None = None
) -> list[Comparison]:
    """Compares each layer's executions in the runs of a fresh session; one comparison per layer and run.

    Here and below, `rows` is how many rows of X are recomputed, None for all; Executions are X and Y.
    """
    streams = [0] * len(layers)
    found = []
    for run, values in enumerate(runs):
        for number, (node, executions) in enumerate(zip(layers, values, strict=True)):
            each = []
            for sample in (_Sample.of(x, y, rows) for x, y in executions):
                expected = _recompute(node, sample, streams[number])
                each.append(sample.compared(node, run, expected))
                streams[number] += 1
            found += [_merged(each)] if each else []
    return found


def compare_body(node: OpticalNode, executions: Executions, rows: int | None = None) -> Comparison:
    """Compares a layer of a run without the library and without noise."""
    each = []
    for sample in (_Sample.of(x, y, rows) for x, y in executions):
        expected, distance = tolerance.allowed(sample.x, **_arguments(node))
        within = sample.y.shape == expected.shape and tolerance.is_within(sample.y, expected, distance)
        each.append(dataclasses.replace(sample.compared(node, 0, expected), library=False, within=within))
    return _merged(each)


def compare_noisy_body(node: OpticalNode, executions: Executions, rows: int | None = None) -> Comparison:
    """Compares a layer of a noisy run without the library: finite where the reference is with noise and without."""
    each = []
    for sample in (_Sample.of(x, y, rows) for x, y in executions):
        expected, distance = tolerance.allowed(sample.x, **_arguments(node))
        exempt = ~np.isfinite(expected) | np.isinf(distance) | ~np.isfinite(_recompute(node, sample, 0))
        within = sample.y.shape == expected.shape and bool((np.isfinite(sample.y) | exempt).all())
        each.append(dataclasses.replace(sample.compared(node, 0, expected), library=False, within=within))
    return _merged(each)


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Some rows of X and Y, or all in their own shapes."""

    x: NDArray[Any]
    y: NDArray[Any]
    shape: tuple[int, ...]
    """The shape of all of Y."""
    rows: NDArray[np.int64] | None
    """The numbers of the rows; None for all."""

    @classmethod
    def of(cls, x: NDArray[Any], y: NDArray[Any], rows: int | None) -> _Sample:
        """The first and the last row and others, or all if there are no more than `rows`."""
        count = math.prod(x.shape[:-1])
        if rows is None or count <= max(rows, 2) or x.shape[:-1] != y.shape[:-1]:
            return cls(x, y, y.shape, None)
        drawn = np.random.default_rng(0).choice(np.arange(1, count - 1), max(rows, 2) - 2, replace=False)
        numbers = np.array([0, *sorted(drawn), count - 1])
        some_x, some_y = (np.ascontiguousarray(array.reshape(count, -1)[numbers]) for array in (x, y))
        return cls(some_x, some_y, y.shape, numbers)

    def compared(self, node: OpticalNode, run: int, expected: NDArray[Any]) -> Comparison:
        """The comparison of these rows of Y with what is expected."""
        found = compare(node.name, "reference", run, self.y, expected, required=True)
        return dataclasses.replace(found, shape=self.shape, rows=None if self.rows is None else len(self.rows))


def _merged(each: list[Comparison]) -> Comparison:
    """One comparison for the executions of a layer in one run."""
    shown = next((one for one in each if not one.ok), each[0])
    return dataclasses.replace(
        shown,
        equal=all(one.equal for one in each),
        within=all(one.equal or one.within for one in each) and any(one.within for one in each),
        max_difference=max(one.max_difference for one in each),
        executions=len(each),
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


def _recompute(node: OpticalNode, sample: _Sample, stream: int) -> NDArray[np.float32]:
    return plain.optical_linear(sample.x, stream=stream, rows=sample.rows, **_arguments(node))


def compare(
    name: str, against: str, run: int, got: NDArray[Any], expected: NDArray[Any], *, required: bool
) -> Comparison:
    """Compares a tensor with what is expected; `required` says whether the contract promises equal bits."""
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
