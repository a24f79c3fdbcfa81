"""Rewrites an existing .onnx file so that its linear layers are `lumina::OpticalLinear` nodes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lumina_onnx._histogram import Method, check_method
from lumina_onnx._patterns import Patterns, chosen
from lumina_onnx.profile import OpticalProfile

from . import nodes, reading, writing
from .linears import linears
from .passes import run
from .passes.attach_body import AttachBody
from .passes.calibrate_ranges import CalibrateRanges
from .passes.lower_format import LowerFormat
from .passes.order_attributes import OrderAttributes
from .passes.own_tensors import OwnTensors
from .passes.remove_unused import RemoveUnused
from .passes.replace_linears import ReplaceLinears
from .passes.separate_seeds import SeparateSeeds
from .passes.stamp_metadata import StampMetadata
from .passes.store_weights import StoreWeights
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
    per_output: bool = False,
    skip: str | Iterable[str] = (),
    overrides: Mapping[str, OpticalProfile] | None = None,
    seed: int = 0,
    fallback: bool = True,
) -> RewriteReport:
    """Writes a copy of a .onnx file with a `lumina::OpticalLinear` node for each linear layer.

    This is ``lumina convert``. :func:`lumina_onnx.nn.convert` does the same to a PyTorch model, which can then be
    trained with the noise in the loop before :func:`lumina_onnx.exporter.export` writes it.

    A linear layer is a `MatMul` of a computed X and a stored matrix, optionally followed by the `Add` of a bias, or an
    equivalent `Gemm`. A stored value is an initializer, or computed from initializers alone by operators that give the
    same result in each run; a randomly drawn matrix is not stored. Matrices of float16, bfloat16 and float64 are taken
    in float32, between two `Cast` nodes. Products of codes, as ONNX Runtime's quantisers write them, are layers too;
    their symmetric 8-bit weights are kept with their scales if the profile has 8 weight bits. Everything else stays as
    it is: products of two computed tensors, as in attention, are not layers; other kinds of products, convolutions and
    other quantised operators are listed in the report with the reason.

    Each layer is named after its `MatMul` or `Gemm` and gets its own noise seed.

    Args:
        source: the file to read; it is not changed.
        path: the file to write, ``*.onnx``; its folder must exist, and an existing file is replaced.
        profile: the hardware.
        calibration: batches of inputs, each with arrays by input name or in the order of the model's inputs. They set
            static input and output ranges, as :func:`lumina_onnx.nn.calibrate` does. Without calibration, and for
            layers in subgraphs that no batch reaches, the ranges are the profile's.
        method: "max", "percentile" or "mse", as in :func:`lumina_onnx.nn.calibrate`.
        percentile: for method "percentile", above 0 and at most 100.
        per_output: whether each output gets a range of its own, as in :func:`lumina_onnx.nn.calibrate`.
        skip: names of layers to leave, or name patterns (``*``, ``?``, ``[...]``, as in :mod:`fnmatch`). A string that
            is exactly a layer's name is not taken as a pattern.
        overrides: name pattern -> profile for the layers that it matches; if several match, the last applies.
        seed: 0..2^63-1; the first layer's noise seed, from which the others are derived.
        fallback: attach the operator's body in standard operators, so that the file runs without the operator's
            library. The body needs opset 19 to 26; a file of an older opset is raised to 20 by onnx's version
            converter, and refused if ONNX Runtime then computes something else.

    Returns:
        What was written: layers with their storage, and what was left with the reason. ``print`` shows tables.

    Raises:
        OSError: ``source`` or its external data cannot be read, or ``path`` cannot be written.
        ValueError: ``source`` is not an ONNX model, its external data do not match its description of them, it has no
            layer to convert, a pattern matches no layer, weights or parameters are not allowed, calibration data do
            not fit, or the function body does not support the opset.
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
    model = read.graph
    found, left = linears(model)
    overrides = dict(overrides or {})
    names = [(linear.name,) for linear in found]
    skips, overriding = Patterns("skip", skip, names), Patterns("overrides", overrides, names)
    converted = []
    for linear in found:
        if skipping := skips.matching(linear.name):
            left.append(Left(linear.name, linear.node.op_type, f"skip {skipping[0]!r}"))
        else:
            converted.append((linear, chosen(overriding, overrides, (linear.name,), profile)))
    if not converted:
        reasons = "; ".join(f"{names} ({kind}): {reason}" for names, kind, reason in grouped(left))
        raise ValueError(
            f"source = {str(source)!r}: it holds no MatMul or Gemm to convert, with a stored matrix"
            + (f" (left: {reasons})" if left else "")
        )
    fixed = {name for layer, _ in converted for name in layer.fixed}
    _, taken = run(model, ReplaceLinears(converted, seed))
    # Frees the source's weights that these hold.
    del found, converted, linear
    # The notes on changed seeds are dropped: they matter only if someone chose the seeds.
    run(model, SeparateSeeds())
    _, notes = run(
        model,
        StoreWeights(),
        RemoveUnused(fixed),
        OwnTensors(),
        *(
            []
            if batches is None
            else [CalibrateRanges(itertools.chain(first, batches), method, percentile / 100, per_output)]
        ),
        LowerFormat(fallback),
        OrderAttributes(),
        StampMetadata(),
        *([AttachBody()] if fallback else []),
    )
    file_bytes, written = writing.save(model, file, sources=[read.stored], check=False)
    return RewriteReport(
        source=str(source),
        source_bytes=read.stored.bytes,
        path=str(path),
        file_bytes=file_bytes,
        opset=model.opset_imports[""],
        ir_version=model.ir_version,
        body_bytes=nodes.body_bytes(model),
        layers=nodes.layers(model),
        other_operators=nodes.operators(model),
        left=left,
        notes=[*read.notes, *taken, *notes, *written],
    )
