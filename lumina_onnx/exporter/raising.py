"""Raises a model to a newer opset with onnx's version converter, fixes its known errors, and compares the results.

The converter and the fixes work on onnx's messages. The onnx_ir model only says which inputs the model takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from . import feeds, files
from .feeds import Arrays
from .fitting import UnfitError, fitting

__all__ = ["RaisingError", "raised"]

SEEDS = 3
"""How many sets of random inputs the two models are compared on."""

_SPARED = 2**25
"""Of models with more bytes of tensors, the converter, which holds everything eight times and is limited to 2 GiB, gets
only the small ones."""

_LARGE = 2**10


class RaisingError(ValueError):
    """Why a model cannot be raised, as the end of a sentence."""


def raised(
    model: ir.Model, message: onnx.ModelProto, opset: int, example: Any = None
) -> tuple[onnx.ModelProto, list[str]]:
    """The model at a newer opset, and notes. `message` is the same model as a protobuf message and is consumed.

    Both versions run in ONNX Runtime without optimisation, on random inputs and on `example`, and are compared.

    Raises:
        RaisingError: onnx cannot convert the model, or the converted model computes something else.
        ValueError: `example` does not fit the model's inputs.
    """
    for entry in message.opset_import:
        entry.domain = "" if entry.domain == "ai.onnx" else entry.domain
    before = next(entry.version for entry in message.opset_import if not entry.domain)
    inputs = {value.name for value in message.graph.input}
    order = [tensor.name for tensor in message.graph.initializer]
    examples = [] if example is None else [feeds.read(model, example)]
    large = _taken_out(message)
    files.take_in(message)
    try:
        result = onnx.version_converter.convert_version(message, opset)
    except Exception as error:
        raise RaisingError(f"onnx cannot convert the file ({' '.join(str(error).split())})") from error
    constants = _constants(result)
    for graph in files.graphs(result.graph):
        _mend(graph, before, constants)
    _restore(result, message)
    # ONNX Runtime reads them where they are. In a file they may begin anywhere.
    stored = {
        name: np.require(ir.serde.deserialize_tensor(tensor).numpy(), requirements=["ALIGNED"])
        for name, tensor in large.items()
    }
    notes = _compared(message, result, model, stored, examples)
    _put_back(result, large, inputs, order)
    return result, notes


def _taken_out(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Takes the large initializers out of a large model and declares them as inputs instead."""
    if sum(files.size(tensor) for _, tensor in files.tensors(model)) <= _SPARED:
        return {}
    graph = model.graph
    large = {tensor.name: tensor for tensor in graph.initializer if files.size(tensor) >= _LARGE}
    kept = [tensor for tensor in graph.initializer if tensor.name not in large]
    inputs = {value.name for value in graph.input}
    graph.input.extend(
        helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
        for name, tensor in large.items()
        if name not in inputs
    )
    # A tensor stays valid after it is removed from its message.
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return large


def _put_back(model: onnx.ModelProto, large: dict[str, onnx.TensorProto], inputs: set[str], order: list[str]) -> None:
    """Puts the large initializers back, all in the order in which they were."""
    kept = [value for value in model.graph.input if value.name in inputs]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    places = {name: place for place, name in enumerate(order)}
    found = sorted([*model.graph.initializer, *large.values()], key=lambda each: places.get(each.name, len(places)))
    # A tensor stays valid after it is removed from its message.
    del model.graph.initializer[:]
    model.graph.initializer.extend(found)


def _mend(graph: onnx.GraphProto, before: int, constants: dict[str, onnx.TensorProto]) -> None:
    """Restores the old meaning of operators that the converter leaves as they are although their meaning changed."""
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info)
        if value.type.tensor_type.HasField("shape")
    }
    content = []
    for node in graph.node:
        if before < 11 and node.op_type == "Resize" and not node.domain:
            _mend_resize(node, constants)
        if before < 13 and node.op_type == "Hardmax" and not node.domain:
            content += _mended_hardmax(node, ranks.get(node.input[0]))
        else:
            content.append(node)
    if len(content) != len(graph.node):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in content]
        del graph.node[:]
        graph.node.extend(copies)


def _mend_resize(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> None:
    """Up to opset 10 coordinates start at the corner, and the nearest element is the one before (shrinking: after)."""
    scales = constants.get(node.input[2]) if len(node.input) > 2 else None
    shrinks = scales is not None and bool((numpy_helper.to_array(scales) <= 1).all())
    _set(node, "coordinate_transformation_mode", "asymmetric")
    _set(node, "nearest_mode", "ceil" if shrinks else "floor")


def _mended_hardmax(node: onnx.NodeProto, rank: int | None) -> list[onnx.NodeProto]:
    """Up to opset 12 all dimensions from `axis` (default 1) on count as one; the converter handles only Softmax's."""
    axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1)
    if axis == -1 or (rank is not None and axis == rank - 1):
        _set(node, "axis", axis)
        return [node]
    x, y = node.input[0], node.output[0]
    shape, flat, hard = (f"{y}/{part}" for part in ("shape", "flat", "hard"))
    return [
        helper.make_node("Shape", [x], [shape]),
        helper.make_node("Flatten", [x], [flat], axis=axis),
        helper.make_node("Hardmax", [flat], [hard], name=node.name, axis=1),
        helper.make_node("Reshape", [hard, shape], [y]),
    ]


def _set(node: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [entry for entry in node.attribute if entry.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Stored tensors and `Constant` tensors, by the names of their values."""
    found = {tensor.name: tensor for graph in files.graphs(model.graph) for tensor in graph.initializer}
    for node in (node for graph in files.graphs(model.graph) for node in graph.node):
        for entry in node.attribute:
            if node.op_type == "Constant" and entry.name == "value":
                found[node.output[0]] = entry.t
    return found


def _restore(model: onnx.ModelProto, before: onnx.ModelProto) -> None:
    """Removes the inferred shapes that the converter added, and restores what it dropped."""
    known = {value.name for graph in files.graphs(before.graph) for value in graph.value_info}
    for graph in files.graphs(model.graph):
        kept = [value for value in graph.value_info if value.name in known]
        del graph.value_info[:]
        graph.value_info.extend(kept)
    for new, old in zip(model.graph.output, before.graph.output, strict=True):
        if new.name == old.name and new.type.tensor_type.elem_type == old.type.tensor_type.elem_type:
            new.CopyFrom(old)
    del model.graph.quantization_annotation[:]
    model.graph.quantization_annotation.extend(before.graph.quantization_annotation)


def _compared(
    old: onnx.ModelProto, new: onnx.ModelProto, model: ir.Model, stored: Arrays, examples: list[Arrays]
) -> list[str]:
    """Compares two models; returns notes on what could not be compared.

    Raises:
        RaisingError: the two differ, or the new one does not run.
    """
    unlike = "ONNX Runtime could not be asked whether it computes the same, since "
    odd = [name for name, kind in feeds.declared(model).items() if kind.dtype == ir.DataType.UNDEFINED]
    if odd:
        return [f"{unlike}its input {odd[0]!r} is no tensor"]
    try:
        serialized = old.SerializeToString()
        first = _session(serialized)
        batches = _batches(first, model, stored, examples)
        # Two separate sessions draw the same random numbers only if the model fixes the seed.
        source = _session(serialized)
        del serialized
        trials = [first.run(None, batch | stored) for batch in batches]
        expected = [source.run(None, batch | stored) for batch in batches]
    except Exception as error:
        return [f"{unlike}it does not run the source: {' '.join(str(error).split())}"]
    names = [value.name for value in old.graph.output]
    if any(_difference(names, *pair) for pair in zip(trials, expected, strict=True)):
        return [f"{unlike}two runs of the source differ: it draws random numbers"]
    changed = f"raised to {_opset(new)} by onnx's converter the file computes something else"
    try:
        target = _session(new.SerializeToString())
        results = [target.run(None, batch | stored) for batch in batches]
    except Exception as error:
        raise RaisingError(f"raised to {_opset(new)} by onnx's converter the file does not run ({error})") from error
    for pair in zip(expected, results, strict=True):
        if difference := _difference(names, *pair):
            raise RaisingError(f"{changed}: {difference}")
    return []


def _session(model: bytes) -> Any:
    """A session that runs a model as written, without optimisation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _batches(session: Any, model: ir.Model, stored: Arrays, examples: list[Arrays]) -> list[Arrays]:
    """Inputs on which the model runs: examples, and random ones of the first size that it accepts.

    Raises:
        Exception: the model runs on none of them.
    """

    def run(batch: Arrays) -> None:
        session.run(None, batch | stored)

    found = [batch for batch in examples if _runs(run, batch)]
    try:
        kinds, _ = fitting(model, run)
    except UnfitError as error:
        if not found:
            raise error.__cause__ or error from None
        return found
    return [*found, *(batch for seed in range(SEEDS) if _runs(run, batch := feeds.random(kinds, seed)))]


def _runs(run: Callable[[Arrays], None], batch: Arrays) -> bool:
    try:
        run(batch)
    except Exception:  # Whatever the model's operators raise.
        return False
    return True


def _opset(model: onnx.ModelProto) -> int:
    return next(entry.version for entry in model.opset_import if not entry.domain)


def _difference(names: list[str], expected: list[Any], got: list[Any]) -> str | None:
    """The first output that differs by more than the order of a sum can explain, and by how much; None if none does."""
    for name, old, new in zip(names, expected, got, strict=True):
        if isinstance(old, list):
            if len(old) != len(new):
                return f"output {name!r} has {len(new)} tensors in place of {len(old)}"
            if found := _difference([name] * len(old), old, new):
                return found
        elif found := _unlike(old, new):
            return f"output {name!r} {found}"
    return None


def _unlike(old: NDArray[Any], new: NDArray[Any]) -> str | None:
    if (old.shape, old.dtype) != (new.shape, new.dtype):
        return f"is {new.dtype} {list(new.shape)} in place of {old.dtype} {list(old.shape)}"
    if not np.issubdtype(old.dtype, np.inexact):
        count = int((old != new).sum())
        return f"differs in {count} of {old.size} elements" if count else None
    equal = (old == new) | (np.isnan(old) & np.isnan(new))
    finite = old[np.isfinite(old)]
    largest = float(np.abs(finite).max()) if finite.size else 0.0
    with np.errstate(invalid="ignore"):
        gap = np.where(equal, 0.0, np.abs(old.astype(np.float64) - new))
    off = float(np.where(np.isnan(gap), np.inf, gap).max(initial=0.0))
    allowed = (1e-2 if old.dtype == np.float16 else 1e-4) * largest
    return f"is off by up to {off:.3g}, its largest value {largest:.3g}" if off > allowed else None
