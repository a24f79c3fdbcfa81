"""Running a .onnx file and comparing it with the reference, layer by layer, and with the torch model."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

import lumina_onnx
from lumina_onnx import reference as plain

from . import files, nodes, tolerance
from .feeds import Arrays, read
from .report import Comparison, Left, VerifyReport

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
    input that it got in that run, noise included (run r of a fresh session draws stream r), and must be equal bit for
    bit.

    Where the file has a function body it also runs without the library, as it is and once with the noise off. ONNX
    Runtime draws noise of its own, so it is in the quiet run that each node must be within :mod:`.tolerance`; in the
    noisy one its results must be finite where the reference's are, with noise and without, and a node whose results
    are not has a row of its own.

    A mismatch raises nothing: see the report's ``ok``.

    Args:
        path: the file.
        inputs: arrays by input name, or in the order of the model's inputs. Random ones of the model's shapes
            where absent: normal numbers, integers 0 and 1; symbolic sizes become 2, 3, ...
        reference: the torch model that was exported. Its outputs, with the noise of the same streams, are compared
            with the file's; they must be equal where the file holds nothing but `OpticalLinear` and operators that
            have one right result (ReLU, sums, reshapes ...), otherwise their difference is reported.

    Returns:
        One row for each comparison; ``print`` shows a table.

    Raises:
        FileNotFoundError, ValueError: no such file, no ONNX model, no `OpticalLinear` in it, or inputs that do not
            fit.
        Exception: what ONNX Runtime raises where it cannot load or run the file.
    """
    model = files.load(path)
    layers = nodes.optical_nodes(model)
    renamed = nodes.renamed(model)
    if not layers:
        copies = f" ({renamed[0].op_type!r} is {nodes.RENAMED})" if renamed else ""
        raise ValueError(f"path = {str(path)!r}: the model has no lumina::OpticalLinear node to verify{copies}")
    checkable = [node for node in layers if not node.nested and node.weight is not None]
    feeds = read(model, inputs)
    output_names = [value.name for value in model.graph.output]
    # A model's own outputs come from the file as it is: the added ones below could change what is fused.
    session = lumina_onnx.load(str(path))
    outputs = [dict(zip(output_names, session.run(output_names, feeds), strict=True)) for _ in range(RUNS)]
    watched = _run_watched(model, checkable, feeds)

    comparisons = []
    for run, values in enumerate(watched):
        for node in checkable:
            got, expected = values[node.proto.output[0]], _recompute(node, values[node.proto.input[0]], run)
            comparisons.append(_compare(node.name, "reference", run, got, expected, required=True))
    body_bytes = nodes.body_bytes(model)
    if body_bytes:
        (values,) = _run_watched(nodes.without_noise(model), checkable, feeds, library=False)
        comparisons += [compare_body(node, values) for node in checkable]
        _plain_session(str(path)).run(output_names, feeds)
        if _is_noisy(layers):
            (values,) = _run_watched(model, checkable, feeds, library=False)
            comparisons += [row for node in checkable if not (row := _compare_noisy_body(node, values)).ok]
    notes: list[str] = []
    if reference is not None:
        arrays, noisy = list(feeds.values()), _is_noisy(layers)
        seeds = _seeds_of_calls(reference, arrays, layers) if noisy else {}
        exact = _is_exact(model, reference, layers, seeds, notes)
        for run, values in enumerate(outputs):
            expected_outputs = _run_torch(reference, arrays, run, seeds, noisy=noisy)
            if len(expected_outputs) != len(output_names):
                raise ValueError(
                    f"reference returns {len(expected_outputs)} tensors; the model in {str(path)!r} has "
                    f"{len(output_names)} outputs: allowed is the model that was exported"
                )
            for name, expected in zip(output_names, expected_outputs, strict=True):
                comparisons.append(_compare(name, "torch", run, values[name], expected, required=exact))

    import onnxruntime

    return VerifyReport(
        path=str(path),
        onnxruntime=onnxruntime.__version__,
        inputs={name: array.shape for name, array in feeds.items()},
        body_bytes=body_bytes,
        comparisons=comparisons,
        not_checked=[
            Left(node.name, "OpticalLinear", "it lies in a subgraph" if node.nested else "its W is not an initializer")
            for node in layers
            if node not in checkable
        ]
        + [Left(node.name or node.output[0], node.op_type, nodes.RENAMED) for node in renamed],
        notes=notes,
    )


def _run_watched(
    model: onnx.ModelProto, layers: list[nodes.OpticalNode], feeds: Arrays, *, library: bool = True
) -> list[Arrays]:
    """The inputs and outputs of the nodes in each run of one fresh session; one run without the library."""
    wanted = list(dict.fromkeys(name for node in layers for name in (node.proto.input[0], node.proto.output[0])))
    fed = {name: feeds[name] for name in wanted if name in feeds}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name in wanted}
    asked = [name for name in wanted if name not in fed and name not in stored]
    copy = nodes.showing(model, asked)
    session = files.session(copy, library=library)
    runs = [dict(zip(asked, session.run(asked, feeds), strict=True)) for _ in range(RUNS if library else 1)]
    return [values | fed | stored for values in runs]


def _plain_session(path: str) -> Any:
    """A session that does not know the operator."""
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def _arguments(node: nodes.OpticalNode) -> dict[str, Any]:
    """What the reference takes beside X."""
    assert node.weight is not None
    scale = numpy_helper.to_array(node.weight_scale) if node.weight_scale is not None else None
    return {
        **node.attributes,
        "weight": numpy_helper.to_array(node.weight),
        "bias": None if node.bias is None else numpy_helper.to_array(node.bias),
        "weight_scale": scale if node.attributes["weight_bits"] else None,
    }


def _recompute(node: nodes.OpticalNode, x: NDArray[Any], stream: int) -> NDArray[np.float32]:
    return plain.optical_linear(x, stream=stream, **_arguments(node))


def compare_body(node: nodes.OpticalNode, values: Arrays) -> Comparison:
    """A node of a run without library and noise; `values` are its input and output by name."""
    got = values[node.proto.output[0]]
    expected, distance = tolerance.allowed(values[node.proto.input[0]], **_arguments(node))
    row = _compare(node.name, "reference", 0, got, expected, required=True)
    within = got.shape == expected.shape and tolerance.is_within(got, expected, distance)
    return dataclasses.replace(row, library=False, within=within)


def _compare_noisy_body(node: nodes.OpticalNode, values: Arrays) -> Comparison:
    """A node of a run without library but with noise: finite where the reference is with noise and without."""
    got, x = values[node.proto.output[0]], values[node.proto.input[0]]
    expected, distance = tolerance.allowed(x, **_arguments(node))
    exempt = ~np.isfinite(expected) | np.isinf(distance) | ~np.isfinite(_recompute(node, x, 0))
    within = got.shape == expected.shape and bool((np.isfinite(got) | exempt).all())
    return dataclasses.replace(
        _compare(node.name, "reference", 0, got, expected, required=True), library=False, within=within
    )


def _is_noisy(layers: list[nodes.OpticalNode]) -> bool:
    return any(node.attributes[name] for node in layers for name in nodes.NOISE)


def _seeds_of_calls(
    reference: torch.nn.Module, arrays: list[NDArray[Any]], layers: list[nodes.OpticalNode]
) -> dict[torch.nn.Module, list[int]] | None:
    """The seeds that the file gives each optical module, one for each of its calls in a forward pass.

    Layers that share a seed in torch (a module called twice) have seeds of their own in the file. The calls of a
    forward pass are the file's nodes in their order; None where they are not.
    """
    from lumina_onnx import nn as optical

    calls: list[optical.OpticalLinear] = []
    modules = [module for module in reference.modules() if isinstance(module, optical.OpticalLinear)]
    hooks = [module.register_forward_pre_hook(lambda module, _: calls.append(module)) for module in modules]
    try:
        _run_torch(reference, arrays, 0, {}, noisy=False)
    finally:
        for hook in hooks:
            hook.remove()
    if len(calls) != len(layers):
        return None
    known = {module.seed for module in modules}
    seeds: dict[torch.nn.Module, list[int]] = {}
    for module, node in zip(calls, layers, strict=True):
        seed = node.attributes["seed"]
        if (module.in_features, module.out_features) != (node.in_features, node.out_features):
            return None
        if seed != module.seed and seed in known:
            return None
        seeds.setdefault(module, []).append(seed)
    return seeds


def _is_exact(
    model: onnx.ModelProto,
    reference: torch.nn.Module,
    layers: list[nodes.OpticalNode],
    seeds: dict[torch.nn.Module, list[int]] | None,
    notes: list[str],
) -> bool:
    """Whether torch must give the same bits."""
    from lumina_onnx import nn as optical

    others = set(nodes.operators(model)) - EXACT_OPERATORS
    if others:
        notes.append(
            f"torch may differ in {', '.join(sorted(others))}: operators whose last bits are an implementation's own"
        )
    if seeds is None:
        known = {module.seed for module in reference.modules() if isinstance(module, optical.OpticalLinear)}
        own = [node.name for node in layers if node.attributes["seed"] not in known]
        if own:
            notes.append(f"torch draws other noise for {', '.join(own)}: in the file they have seeds of their own")
    return not notes


def _run_torch(
    model: torch.nn.Module,
    arrays: list[NDArray[Any]],
    stream: int,
    seeds: dict[torch.nn.Module, list[int]] | None,
    *,
    noisy: bool,
) -> list[NDArray[Any]]:
    """The model's outputs, with the noise of this stream under the file's `seeds`."""
    import torch
    from torch.utils import _pytree as pytree

    from lumina_onnx import nn as optical

    from .capture import evaluating

    fixed = optical.noise(model, on=noisy, stream=stream if noisy else None)
    with torch.no_grad(), evaluating(model), fixed, _seeded(seeds or {}):
        result = model(*(torch.from_numpy(np.array(array)) for array in arrays))
    return [leaf.numpy() for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


@contextlib.contextmanager
def _seeded(seeds: dict[torch.nn.Module, list[int]]) -> Iterator[None]:
    """Gives each call of each module its seed, and the modules their own back."""
    before = {module: module.seed for module in seeds}
    left = {module: iter(each) for module, each in seeds.items()}

    def next_seed(module: Any, _: Any) -> None:
        module.seed = next(left[module])

    hooks = [module.register_forward_pre_hook(next_seed) for module in seeds]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, seed in before.items():
            module.seed = seed


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
