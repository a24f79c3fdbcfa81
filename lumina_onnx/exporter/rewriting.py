"""A ready .onnx file -> one whose linear layers are `lumina::OpticalLinear` nodes."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lumina_onnx._histogram import Method, check_method
from lumina_onnx._patterns import Patterns, chosen
from lumina_onnx.profile import OpticalProfile
from lumina_onnx.schema import DOMAIN, OPERATOR, VERSION

from . import files, nodes, packing, ranges, reading, writing
from .constants import ConstantError, Constants
from .products import LEARNED, multiplies_by_stored
from .report import Left, RewriteReport, grouped

__all__ = ["rewrite"]


def rewrite(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    profile: OpticalProfile,
    *,
    calibration: Iterable[Mapping[str, Any] | Sequence[Any]] | None = None,
    method: Method = "max",
    percentile: float = 99.9,
    skip: str | Iterable[str] = (),
    overrides: Mapping[str, OpticalProfile] | None = None,
    seed: int = 0,
    fallback: bool = True,
) -> RewriteReport:
    """Writes a .onnx file anew, with a `lumina::OpticalLinear` node for each linear layer.

    A linear layer is a `MatMul` of a computed X and a stored float32 matrix, with the `Add` of a bias that may follow
    it, or a `Gemm` of that kind. Stored is what is an initializer or computed from initializers alone, by operators
    that give the same in each run: a matrix that is drawn is none. Everything else stays: products of two computed
    tensors, as in attention, are no layers; products of other kinds, convolutions and quantised operators are listed in
    the report with the reason.

    Each layer is named after its `MatMul` or `Gemm`, and gets a noise seed of its own.

    Args:
        source: the file to read; it is not changed.
        path: the file to write, ``*.onnx``; its folder must exist, a file there is replaced.
        profile: the hardware.
        calibration: batches of inputs, each arrays by input name or in the order of the model's inputs. They set static
            input and output ranges, as :func:`lumina_onnx.nn.calibrate` does; without it the ranges are the
            profile's, as they are of layers in subgraphs that no batch reaches.
        method: "max", "percentile" or "mse", as in :func:`lumina_onnx.nn.calibrate`.
        percentile: for method "percentile", above 0 and at most 100.
        skip: names of layers to leave, or patterns of names (``*``, ``?``, ``[...]``, as in :mod:`fnmatch`). What is
            a layer's name is no pattern.
        overrides: name pattern -> profile for the layers it matches; of several that match, the last.
        seed: 0..2^63-1; the first layer's noise seed, from which the others' follow.
        fallback: attach the operator's body in standard operators, so that the file runs without the operator's
            library. It needs opset 19 to 21; a file of an older one is raised to 20 by onnx's version converter, and
            refused where ONNX Runtime computes something else then.

    Returns:
        What was written: layers with their storage, what was left and why. ``print`` shows tables.

    Raises:
        OSError: ``source``, or what it keeps beside itself, cannot be read, or ``path`` not be written.
        ValueError: no ONNX model, data beside it that are not as it says, no layer to convert, a pattern that matches
            none, weights or parameters that are not allowed, calibration data that do not fit, or an opset that the
            function body cannot have.
    """
    check_method(method, percentile)
    if not isinstance(profile, OpticalProfile):
        raise TypeError(f"profile is a {type(profile).__name__}; allowed is a lumina_onnx.OpticalProfile")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed = {seed}: allowed is 0..2^63-1")
    file = writing.destination(path)
    if file.exists() and Path(source).exists() and file.samefile(source):
        raise ValueError(f"path = {str(file)!r} is the source itself; allowed is another file")
    batches = None if calibration is None else iter(calibration)
    first = [] if batches is None else list(itertools.islice(batches, 1))
    read = reading.read(source, fallback, *first)
    graph, notes = read.graph, read.notes
    found, left = _linears(graph)
    overrides = dict(overrides or {})
    names = [(linear.name,) for linear in found]
    skips, overriding = Patterns("skip", skip, names), Patterns("overrides", overrides, names)
    converted = []
    for linear in found:
        skipping = skips.matching(linear.name)
        if skipping:
            left.append(Left(linear.name, linear.node.op_type, f"skip {skipping[0]!r}"))
            continue
        _replace(linear, chosen(overriding, overrides, (linear.name,), profile), seed)
        converted.append(linear.name)
    if not converted:
        reasons = "; ".join(f"{names} ({kind}): {reason}" for names, kind, reason in grouped(left))
        raise ValueError(
            f"source = {str(source)!r}: it holds no MatMul or Gemm to convert, with a stored float32 matrix"
            + (f" (left: {reasons})" if left else "")
        )
    # What it holds of the source's weights is done with.
    del found, linear
    # The notes are for models whose seeds were someone's choice.
    packing.separate_seeds(graph)
    packing.store_weights(graph)
    if batches is not None:
        notes += ranges.calibrate(graph, itertools.chain(first, batches), method, percentile / 100)
    graph.ir_version = _format(graph, fallback)
    writing.finish(graph)
    if fallback:
        writing.attach_body(graph)
    notes += writing.save(graph, file, check=False)

    written = files.load(file, weights=False)
    return RewriteReport(
        source=str(source),
        source_bytes=read.bytes,
        path=str(path),
        file_bytes=files.stored_bytes(file, written),
        opset=graph.opset_imports[""],
        ir_version=written.ir_version,
        body_bytes=nodes.body_bytes(written),
        layers=nodes.layers(written),
        other_operators=nodes.operators(written),
        left=left,
        notes=notes,
    )


def _format(graph: ir.Model, fallback: bool) -> int:
    """The IR version to write: the source's, but no newer one than ONNX Runtime 1.17 reads where its opset is one that
    this reads, and nothing in the file needs the newer."""
    # Functions of an opset from 19 on need 9; initializers that are no inputs 4.
    least = 9 if fallback else 4
    if graph.ir_version <= 9 or graph.opset_imports[""] > 20:
        return max(graph.ir_version, least)
    functions = list(graph.functions.values())
    every = itertools.chain(graph.graph.all_nodes(), *(function.all_nodes() for function in functions))
    values = [value for node in every for value in node.outputs]
    values += [value for part in graph.graph.subgraphs() for value in (*part.inputs, *part.initializers.values())]
    values += [*graph.graph.inputs, *graph.graph.initializers.values()]
    # IR 10 brought types of less than 8 bits, and functions of one name.
    newer = any(value.dtype is not None and value.dtype > ir.DataType.FLOAT8E5M2FNUZ for value in values)
    return graph.ir_version if newer or any(each.overload for each in functions) else 9


@dataclass(frozen=True)
class _Linear:
    """A product with a stored matrix, and what it becomes."""

    name: str
    node: ir.Node
    """The `MatMul` or `Gemm`."""
    add: ir.Node | None
    """The `Add` of its bias."""
    weight: NDArray[np.float32]
    """``[N, K]``."""
    bias: NDArray[np.float32] | None


def _linears(graph: ir.Model) -> tuple[list[_Linear], list[Left]]:
    """The layers to convert, and the products with stored weights that are none, with the reason."""
    found: list[_Linear] = []
    left: list[Left] = []
    names = packing.Names()
    known = Constants(graph)
    for node in graph.graph.all_nodes():
        name = node.name or str(node.outputs[0].name)
        if node.domain in ("", "ai.onnx") and node.op_type in ("MatMul", "Gemm"):
            result = _linear(node, name, known)
            if isinstance(result, _Linear):
                found.append(dataclasses.replace(result, name=names.unused(name)))
            elif result:
                left.append(Left(names.unused(name), node.op_type, result))
        elif multiplies_by_stored(node, known):
            learned = node.domain == "ai.onnx.ml" and node.op_type in LEARNED
            reason = "its weights are attributes of the node" if learned else "neither a MatMul nor a Gemm of floats"
            left.append(Left(names.unused(name), node.op_type, reason))
    return found, left


def _linear(node: ir.Node, name: str, known: Constants) -> _Linear | str:
    """The layer that a product is, else why it is none; an empty string where both sides are computed."""
    x, weight = (*node.inputs, None, None)[:2]
    if x is None or weight is None:
        return "an input of it is absent"
    if known.is_constant(x):
        return "" if known.is_constant(weight) else "its stored matrix is on the left of the product"
    if known.is_reached(weight):
        return ""
    if known.is_replaceable(weight):
        return "its matrix is also an input of the model, so that callers may replace it"
    try:
        matrix = known.array(weight)
    except ConstantError as error:
        return f"its matrix is {error}"
    if matrix.dtype != np.float32:
        return f"its matrix is {matrix.dtype}; the operator takes float32"
    if matrix.ndim != 2 or 0 in matrix.shape:
        return f"its stored side has shape {list(matrix.shape)}; a layer's is a matrix"
    if node.op_type == "MatMul":
        add, bias = _bias_after(node, matrix.shape[1], known)
        return _Linear(name, node, add, matrix.T, bias)
    attributes = {key: attribute.value for key, attribute in node.attributes.items()}
    if attributes.get("transA", 0):
        return "transA: its input is transposed"
    if not attributes.get("transB", 0):
        matrix = matrix.T
    if attributes.get("alpha", 1.0) != 1.0:
        matrix = matrix * np.float32(attributes["alpha"])
    bias = None
    if len(node.inputs) > 2 and (c := node.inputs[2]) is not None:
        if known.is_reached(c) or known.is_replaceable(c):
            return "its C is computed, or an input of the model"
        try:
            bias = known.array(c)
        except ConstantError as error:
            return f"its C is {error}"
        if bias.dtype != np.float32 or (bias.ndim > 1 and bias.shape[0] != 1):
            return "its C is no float32 row"
        if bias.size not in (1, len(matrix)):
            return f"its C has shape {list(bias.shape)}"
        bias = np.broadcast_to(bias.reshape(-1) * np.float32(attributes.get("beta", 1.0)), len(matrix))
    return _Linear(name, node, None, matrix, bias)


def _bias_after(node: ir.Node, n: int, known: Constants) -> tuple[ir.Node | None, NDArray[np.float32] | None]:
    """The `Add` of a stored row that is all that reads a product, and that row."""
    y = node.outputs[0]
    uses = list(y.uses())
    if len(uses) != 1 or y.is_graph_output():
        return None, None
    add = uses[0].node
    if add.op_type != "Add" or add.domain not in ("", "ai.onnx") or add.graph is not node.graph:
        return None, None
    other = add.inputs[1 - uses[0].idx]
    if other is None or other is y or not known.is_constant(other) or known.is_replaceable(other):
        return None, None
    try:
        row = known.array(other)
    except ConstantError:
        return None, None
    # A row of more dimensions than the product would add them to the result.
    x = cast("ir.Value", node.inputs[0])
    rank = 1 if x.shape is None else len(x.shape)
    if row.dtype != np.float32 or row.size != n or not 1 <= row.ndim <= rank or row.shape[-1] != n:
        return None, None
    return add, row.reshape(-1)


def _replace(linear: _Linear, profile: OpticalProfile, seed: int) -> None:
    """Puts an `OpticalLinear` with W in float32 in a layer's place; `packing.store_weights` stores it."""
    last = linear.add or linear.node
    ranges = profile.output_range if isinstance(profile.output_range, tuple) else (profile.output_range,)
    attributes = [
        *(ir.AttrInt64(name, getattr(profile, name)) for name in ("input_bits", "weight_bits", "output_bits")),
        ir.AttrFloat32("input_range", profile.input_range),
        ir.AttrFloat32s("output_range", ranges),
        *(ir.AttrFloat32(name, getattr(profile, name)) for name in nodes.NOISE),
        ir.AttrString("bias_stage", profile.bias_stage),
        ir.AttrInt64("seed", seed),
    ]
    arrays = [linear.weight, np.ones(len(linear.weight), np.float32)]
    arrays += [] if linear.bias is None else [linear.bias]
    # As they are, perhaps transposed: a copy of all weights at once would take as much as the file.
    stored = [ir.Value(const_value=ir.tensor(array)) for array in arrays]
    new = ir.Node(
        DOMAIN, OPERATOR, [linear.node.inputs[0], *stored], attributes, name=linear.name, version=VERSION, num_outputs=1
    )
    graph = cast("ir.Graph", last.graph)
    old = [linear.node] if linear.add is None else [linear.add, linear.node]
    ir.convenience.replace_nodes_and_values(graph, last, old, [new], last.outputs, new.outputs)
