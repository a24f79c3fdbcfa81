"""Layers and networks in ONNX Runtime: the same session options for all sides, input and output bound."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
import torch.nn.functional as F

from benchmarks import sessions
from benchmarks.context import Context
from benchmarks.groups.forward import NOISE, use_threads
from benchmarks.peaks import ROOT
from benchmarks.results import Row, Shape, compare, quotients
from benchmarks.sessions import Bound, Floats, Layer
from benchmarks.timing import Call, Effort, Samples, interleave
from benchmarks.transformers import TINY, TRANSFORMERS, quantize, write
from lumina_onnx.exporter.twin import float_twin
from lumina_onnx.schema import OPERATOR

BITS = (8, 4, 2, 1)
#: The widths of weights that MatMulNBits supports.
N_BITS = (8, 4, 2)
BLOCKS = (32, 64, 128, 256)
#: The effort for choosing a block size.
BRIEF = Effort(rounds=3, burst=3e-3, settle=0.0)

SHAPES: tuple[Shape, ...] = ((1, 256, 256), (1, 1024, 1024), (1, 4096, 4096), (16, 1024, 1024), (16, 4096, 4096))
TINY_SHAPES: tuple[Shape, ...] = ((1, 128, 64), (16, 128, 64))
#: Inputs and outputs of the layers of a network.
SIZES = (784, 1024, 1024, 10)
TINY_SIZES = (96, 64, 10)

OURS, EMPTY, BODY = "ours", "an empty session", "its function body in standard operators"
ALONE = "ours on one thread"
FIXED, DYNAMIC = "fixed full scales", "dynamic full scales"
FLOAT_MODEL, QUANTIZED = "MatMul, float32: its model", "integer operators: quantize_dynamic"
TORCH, FLOAT, CHAIN = "PyTorch F.linear", "MatMul, float32", "DynamicQuantizeLinear and MatMulInteger"
EXACT_CHAIN = f"{CHAIN}, unsigned weights"


def _fastest(times: dict[str, Samples], names: Sequence[str]) -> str:
    """The one with the smallest median."""
    return min(names, key=lambda name: float(np.median(times[name].seconds)))


def _counts(context: Context) -> list[int]:
    return sorted({1, context.threads})


def _arrays(m: int, sizes: Sequence[int]) -> tuple[Floats, list[Floats]]:
    """An input and the weights of layers."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((m, sizes[0]), np.float32)
    return x, [generator.standard_normal((n, k), np.float32) for k, n in itertools.pairwise(sizes)]


def _compare(context: Context, times: dict[str, Samples], ours: str, other: str, **fields: Any) -> Row:
    """A row; with `less_empty` among the `fields`, the time of an empty session is subtracted on both sides."""
    less = times[EMPTY] if fields.pop("less_empty", False) else None
    mine, theirs = (times[name] if less is None else times[name].less(less) for name in (ours, other))
    return compare(mine, theirs, tier=context.machine.tier, **fields)


def _best_blocks(weights: Sequence[Floats], x: Floats, threads: int) -> dict[int, int]:
    """The block size with which MatMulNBits is fastest on this many threads, by its bits."""
    best = {}
    for bits in N_BITS:
        build = {block: [sessions.n_bits(weight, bits, block) for weight in weights] for block in BLOCKS}
        sides: dict[str, Call] = {
            str(block): Bound(sessions.model(build[block], len(x)), x, threads=threads) for block in BLOCKS
        }
        best[bits] = int(_fastest(interleave(sides, BRIEF, own_threads=threads > 1), list(sides)))
    return best


def _sides(x: Floats, weights: Sequence[Floats], threads: int, blocks: dict[int, int]) -> dict[str, Call]:
    """Every way to run the layers without noise."""
    tensors = [torch.from_numpy(weight) for weight in weights]
    x_tensor = torch.from_numpy(x)

    def pytorch() -> None:
        value = x_tensor
        for index, weight in enumerate(tensors):
            value = F.linear(F.relu(value) if index else value, weight)

    def bound(build: Callable[[Floats], Layer], *, library: bool = True) -> Bound:
        return Bound(sessions.model([build(weight) for weight in weights], len(x)), x, threads=threads, library=library)

    sides: dict[str, Call] = {
        TORCH: pytorch,
        FLOAT: bound(sessions.mat_mul),
        CHAIN: bound(sessions.integer_chain),
        EXACT_CHAIN: bound(partial(sessions.integer_chain, unsigned=True)),
        EMPTY: Bound(sessions.nothing(), np.zeros((1, 1), np.float32), threads=threads),
    }
    for bits in BITS:
        optical = partial(sessions.optical, bits=bits)
        sides[f"{OURS} {bits}"] = bound(optical)
        sides[f"{BODY} {bits}"] = bound(optical, library=False)
    for bits, block in blocks.items():
        sides[f"MatMulNBits {bits}, block {block}"] = bound(partial(sessions.n_bits, bits=bits, block=block))
    return sides


def _integer(times: dict[str, Samples], bits: int, blocks: dict[int, int]) -> str:
    """ONNX Runtime's fastest exact integer operator with this many bits, or with the fewest that it has."""
    width = max(bits, min(N_BITS))
    names = [f"MatMulNBits {width}, block {blocks[width]}"]
    if bits == 8:
        names += [EXACT_CHAIN] + [CHAIN] * sessions.signed_products_are_exact()
    return _fastest(times, names)


@torch.no_grad()
def layers(context: Context) -> Iterator[Row]:
    """One layer without noise, then with everything on."""
    shapes = TINY_SHAPES if context.quick else SHAPES
    for shape in shapes:
        m, k, n = shape
        x, weights = _arrays(m, (k, n))
        for threads in _counts(context):
            context.say(f"{' x '.join(map(str, shape))}, {threads} threads")
            use_threads(threads)
            blocks = _best_blocks(weights, x, threads=threads)
            yield from _layer(context, shape, threads, x, weights, blocks)
    for shape in shapes[:1] if context.quick else [shapes[1], shapes[3]]:
        for threads in _counts(context):
            context.say(f"with noise, {' x '.join(map(str, shape))}, {threads} threads")
            yield from _everything_on(context, shape, threads)


def _layer(
    context: Context, shape: Shape, threads: int, x: Floats, weights: list[Floats], blocks: dict[int, int]
) -> Iterator[Row]:
    m, k, n = shape
    sides = _sides(x, weights, threads, blocks)
    read = context.peaks is not None and m == 1 and threads == 1
    memories = {bits: context.peaks.memory(n * k * bits // 8) for bits in BITS} if read and context.peaks else {}
    for bits, memory in memories.items():
        sides[f"read {bits}"] = memory.read
    times = interleave(sides, context.effort, own_threads=threads > 1)
    for bits in BITS:
        ours = f"{OURS} {bits}"
        fields: dict[str, Any] = {
            "group": "session",
            "what": f"{bits}-bit weights, DAC and ADC",
            "shape": shape,
            "threads": threads,
        }
        if bits in memories:
            # The time to read the weights, as a fraction of the node's time.
            part = n * k * bits / 8 / memories[bits].bytes_read
            _, of_peak, _ = quotients(times[ours].less(times[EMPTY]), times[f"read {bits}"], part)
            fields |= {"of_peak": of_peak, "peak": "read"}
        single = m == 1 and bits in (8, 4) and k >= 1024
        goals = {
            TORCH: context.goal(**({"intel": 8.0, "amd": 5.0} if bits == 8 else {"intel": 12.0, "amd": 7.0})),
            FLOAT: context.goal(any=3.5 if bits == 8 else 8.0),
        }
        for other, goal in goals.items():
            yield _compare(context, times, ours, other, against=other, goal=goal if single else None, **fields)
        best = _integer(times, bits, blocks)
        least = {8: (1.1, 1.0), 4: (1.5, 2.0), 2: (1.5, 2.0)}
        goal = context.goal(any=least[bits][m > 1]) if bits in least else None
        yield _compare(
            context,
            times,
            ours,
            best,
            against=f"integer operators: {best}",
            goal=goal,
            or_of_peak=0.9 if bits in memories and goal else None,
            less_empty=True,
            **fields,
        )
        if bits == 8 and best != CHAIN:
            exact = sessions.signed_products_are_exact()
            against = f"integer operators: {CHAIN}" if exact else f"{CHAIN}, which saturates here"
            yield _compare(context, times, ours, CHAIN, against=against, less_empty=True, **fields)
        yield _compare(context, times, ours, f"{BODY} {bits}", against=BODY, less_empty=True, **fields)


def _everything_on(context: Context, shape: Shape, threads: int) -> Iterator[Row]:
    m, k, n = shape
    x, (weight,) = _arrays(m, (k, n))
    ours = sessions.model([sessions.optical(weight, 8, noise_relative=NOISE)], m)
    sides: dict[str, Call] = {
        OURS: Bound(ours, x, threads=threads),
        BODY: Bound(ours, x, threads=threads, library=False),
    }
    products = sessions.exact_products()
    for product in products:
        standard = sessions.model([sessions.standard_operators(weight, NOISE, product)], m)
        sides[product] = Bound(standard, x, threads=threads)
    times = interleave(sides, context.effort, own_threads=threads > 1)
    fields: dict[str, Any] = {
        "group": "session",
        "what": "8-bit weights, DAC, noise and ADC",
        "shape": shape,
        "threads": threads,
    }
    best = _fastest(times, [*products, BODY])
    goal = context.goal(any=4.0)
    for other in (best, *(side for side in (products[0], BODY) if side != best)):
        against = other if other == BODY else f"standard operators: {other}"
        yield _compare(context, times, OURS, other, against=against, goal=goal if other == best else None, **fields)


@torch.no_grad()
def networks(context: Context) -> Iterator[Row]:
    """A perceptron at each width of weights, and the models in models/."""
    sizes = TINY_SIZES if context.quick else SIZES
    for m in (1, 16):
        x, weights = _arrays(m, sizes)
        for threads in _counts(context):
            context.say(f"a perceptron, {m} rows, {threads} threads")
            use_threads(threads)
            blocks = _best_blocks(weights, x, threads=threads)
            times = interleave(_sides(x, weights, threads, blocks), context.effort, own_threads=threads > 1)
            for bits in BITS:
                best = _integer(times, bits, blocks)
                for other in (TORCH, FLOAT, best, f"{BODY} {bits}"):
                    names = {best: f"integer operators: {best}", f"{BODY} {bits}": BODY}
                    yield _compare(
                        context,
                        times,
                        f"{OURS} {bits}",
                        other,
                        against=names.get(other, other),
                        group="models",
                        what=f"a perceptron, {bits}-bit weights",
                        shape=(m, *sizes),
                        threads=threads,
                    )
    paths = sorted((ROOT / "models").glob("*.onnx"))
    for path in paths[:1] if context.quick else paths:
        for threads in _counts(context):
            context.say(f"{path.name}, {threads} threads")
            yield from _committed(context, path, threads)


def _committed(context: Context, path: Path, threads: int) -> Iterator[Row]:
    model = onnx.load(path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    outputs = [constants[node.input[2]].dims[0] for node in model.graph.node if node.op_type == OPERATOR]
    dims = [dim.dim_value or 1 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).random(dims, np.float32)
    sides: dict[str, Call] = {
        OURS: Bound(path, x, threads=threads),
        BODY: Bound(path, x, threads=threads, library=False),
        FLOAT: Bound(ir.to_proto(float_twin(path)).SerializeToString(), x, threads=threads),
    }
    times = interleave(sides, context.effort, own_threads=threads > 1)
    for other in (FLOAT, BODY):
        yield _compare(
            context,
            times,
            OURS,
            other,
            against=other,
            group="models",
            what=path.name,
            shape=(*dims, *outputs),
            threads=threads,
        )


@torch.no_grad()
def chains(context: Context) -> Iterator[Row]:
    """Layers one after another, for one row: two threads against one, and against ONNX Runtime's on two."""
    if context.threads == 1:
        return
    sizes, counts = ((64,), (2,)) if context.quick else ((256, 1024, 2048), (1, 2, 3, 6, 12))
    blocks = {}
    for size in sizes:
        x, weights = _arrays(1, (size, size))
        blocks[size] = _best_blocks(weights, x, 2)
    for size, count, bits in itertools.product(sizes, counts, N_BITS):
        context.say(f"{count} layers of {size} x {size}, {bits} bits")
        x, weights = _arrays(1, [size] * (count + 1))
        block = blocks[size][bits]
        layers = [sessions.optical(weight, bits) for weight in weights]
        rival = f"MatMulNBits {bits}, block {block}"
        sides: dict[str, Call] = {
            OURS: Bound(sessions.model(layers, 1), x, threads=2),
            ALONE: Bound(sessions.model(layers, 1), x),
            rival: Bound(sessions.model([sessions.n_bits(weight, bits, block) for weight in weights], 1), x, threads=2),
        }
        times = interleave(sides, context.effort, own_threads=True)
        for other, against in ((ALONE, ALONE), (rival, f"integer operators: {rival}")):
            yield _compare(
                context,
                times,
                OURS,
                other,
                against=against,
                group="chains",
                what=f"{count} layers of {size} x {size}, {bits}-bit weights",
                shape=(1, *[size] * (count + 1)),
                threads=2,
                goal=context.goal(any=0.97),
            )


def whole(context: Context) -> Iterator[Row]:
    """Transformers, against their float32 models and ONNX Runtime's quantisation of these."""
    for transformer in TINY if context.quick else TRANSFORMERS:
        for batch in (1,) if context.quick else (1, 8):
            with tempfile.TemporaryDirectory() as folder:
                kinds = (FIXED, DYNAMIC, FLOAT_MODEL, QUANTIZED)
                files = {kind: Path(folder) / f"{index}.onnx" for index, kind in enumerate(kinds)}
                for kind in (FIXED, DYNAMIC):
                    inputs = write(transformer, batch, files[kind], static=kind == FIXED)
                ir.save(float_twin(files[FIXED]), files[FLOAT_MODEL])
                quantize(files[FLOAT_MODEL], files[QUANTIZED])
                for threads in _counts(context):
                    context.say(f"{transformer.name}, batch {batch}, {threads} threads")
                    yield from _whole(context, transformer.name, files, [x.numpy() for x in inputs], threads)


def _whole(
    context: Context, name: str, files: dict[str, Path], inputs: list[sessions.Array], threads: int
) -> Iterator[Row]:
    sides: dict[str, Call] = {kind: Bound(path, *inputs, threads=threads) for kind, path in files.items()}
    sides[BODY] = Bound(files[FIXED], *inputs, threads=threads, library=False)
    times = interleave(sides, context.effort, own_threads=threads > 1)
    comparisons = [
        *((ours, FLOAT_MODEL, f"8 bits, {ours}", 2.2) for ours in (FIXED, DYNAMIC)),
        *((ours, QUANTIZED, f"8 bits, {ours}", 1.1) for ours in (FIXED, DYNAMIC)),
        (FIXED, BODY, f"8 bits, {FIXED}", None),
        (BODY, FLOAT_MODEL, "8 bits, without the library", 1 / 1.1),
    ]
    for ours, other, what, goal in comparisons:
        yield _compare(
            context,
            times,
            ours,
            other,
            against=other,
            group="whole",
            what=f"{name}, {what}",
            shape=inputs[0].shape,
            threads=threads,
            goal=None if goal is None else context.goal(any=goal),
        )


def creation(context: Context) -> Iterator[Row]:
    """Creating sessions for a large layer."""
    shape: Shape = (1, 128, 64) if context.quick else (1, 4096, 4096)
    m, k, n = shape
    _, (weight,) = _arrays(m, (k, n))
    layers = {FLOAT: sessions.mat_mul(weight)}
    for bits in BITS:
        layers[f"{OURS} {bits}"] = sessions.optical(weight, bits)
    for bits in N_BITS:
        layers[f"MatMulNBits {bits}, block 128"] = sessions.n_bits(weight, bits, 128)
    effort = dataclasses.replace(context.effort, rounds=min(context.effort.rounds, 5))
    alive: list[onnxruntime.InferenceSession] = []

    def create(path: Path) -> None:
        alive.append(sessions.session(path))

    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, Call] = {}
        for index, (name, layer) in enumerate(layers.items()):
            path = Path(folder) / f"{index}.onnx"
            proto = onnx.load_from_string(sessions.model([layer], m))
            onnx.save(proto, path, save_as_external_data=True, location=f"{index}.bin", size_threshold=1024)
            sides[name] = partial(create, path)
        times = interleave(sides, effort)
    for bits in BITS:
        for other in (f"MatMulNBits {max(bits, min(N_BITS))}, block 128", FLOAT):
            yield _compare(
                context,
                times,
                f"{OURS} {bits}",
                other,
                against=other if other == FLOAT else f"integer operators: {other}",
                group="creation",
                what=f"a session of a layer with {bits}-bit weights",
                shape=shape,
                threads=1,
            )
