"""Layers and networks as ONNX models: with our operator, and in the ways that ONNX Runtime itself offers.

Models are made node by node, and each runs in a session with its input and output bound, so that the comparison is
between operators. There is no bias; weights [N, K] are constants.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import lumina_kernel
import lumina_onnx
from lumina_onnx.exporter import body
from lumina_onnx.schema import DOMAIN, OPERATOR, VERSION

Floats = NDArray[np.float32]
Array = NDArray[np.generic]

OPSET = 20


@dataclass(frozen=True)
class Layer:
    """Nodes from X [m, K] to Y [m, N] and their constants."""

    shape: tuple[int, int]
    """N, K."""
    nodes: Sequence[onnx.NodeProto]
    constants: dict[str, Array]

    def renamed(self, source: str, target: str) -> Layer:
        """The same layer from `source` to `target`; all other names begin with `target`."""

        def name(old: str) -> str:
            return {"X": source, "Y": target}.get(old, f"{target}_{old}")

        nodes = []
        for node in self.nodes:
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            copy.input[:], copy.output[:] = map(name, node.input), map(name, node.output)
            nodes.append(copy)
        return Layer(self.shape, nodes, {name(old): value for old, value in self.constants.items()})


def model(layers: Sequence[Layer], m: int) -> bytes:
    """A model of m rows through the layers, with ReLU between them, and the function body of our operator."""
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {}
    for index, layer in enumerate(layers):
        source, last = f"a{index}" if index else "X", index == len(layers) - 1
        layer = layer.renamed(source, "Y" if last else f"y{index}")
        nodes += layer.nodes
        constants |= layer.constants
        if not last:
            nodes.append(node("Relu", f"y{index}", f"a{index + 1}"))
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [m, layers[0].shape[1]])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [m, layers[-1].shape[0]])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    domains = [("", OPSET), ("com.microsoft", 1), (DOMAIN, VERSION)]
    imports = [helper.make_opsetid(domain, version) for domain, version in domains]
    functions = [body.function(OPSET)] if any(node.domain == DOMAIN for node in nodes) else []
    proto = helper.make_model(graph, opset_imports=imports, ir_version=9, functions=functions)
    return bytes(proto.SerializeToString())


def node(operator: str, inputs: str, output: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    """A node; its inputs are given in one string."""
    return helper.make_node(operator, inputs.split(), [output], domain=domain, **attributes)


def optical(weight: Floats, bits: int, *, noise_relative: float = 0.0) -> Layer:
    """Our operator: 8-bit DAC and ADC, weights packed at `bits`."""
    n, k = weight.shape
    codes, scale = lumina_kernel.quantize_weight(weight, bits)
    packed = bits in (1, 2, 4)
    stored = lumina_kernel.pack_weight(codes, bits) if packed else codes
    attributes = {"input_bits": 8, "weight_bits": bits, "output_bits": 8, "noise_relative": noise_relative, "seed": 1}
    if packed:
        attributes["in_features"] = k
    return Layer((n, k), [node(OPERATOR, "X W S", "Y", DOMAIN, **attributes)], {"W": stored, "S": scale})


def mat_mul(weight: Floats) -> Layer:
    """MatMul in float32."""
    n, k = weight.shape
    return Layer((n, k), [node("MatMul", "X W", "Y")], {"W": weight.T})


def integer_chain(weight: Floats, *, unsigned: bool = False) -> Layer:
    """DynamicQuantizeLinear, MatMulInteger and the scaling, which ONNX Runtime fuses; one scale per channel.

    On x86 without VNNI its kernel for signed weights adds pairs of products in saturating 16 bits; the kernel for
    `unsigned` weights is exact.
    """
    n, k = weight.shape
    codes, scale = lumina_kernel.quantize_weight(weight, 8)
    quantize = helper.make_node("DynamicQuantizeLinear", ["X"], ["q", "s", "z"])
    nodes = [
        quantize,
        node("MatMulInteger", "q W z W_zero", "i"),
        node("Cast", "i", "f", to=TensorProto.FLOAT),
        node("Mul", "s S", "scale"),
        node("Mul", "f scale", "Y"),
    ]
    stored, zero = _stored(codes, unsigned)
    return Layer((n, k), nodes, {"W": stored.T, "W_zero": np.full(n, zero, stored.dtype), "S": scale})


def _stored(codes: Array, unsigned: bool) -> tuple[Array, int]:
    """8-bit codes as int8, or shifted into uint8, and the zero point."""
    return ((codes.astype(np.int16) + 128).astype(np.uint8), 128) if unsigned else (codes, 0)


def n_bits(weight: Floats, bits: int, block: int) -> Layer:
    """MatMulNBits on 8-bit integers (accuracy level 4): one scale for each `block` weights of a row, the last block
    padded with zeros."""
    n, k = weight.shape
    count = -(-k // block)
    blocks = np.pad(weight, ((0, 0), (0, count * block - k))).reshape(n, count, block)
    top = 2 ** (bits - 1)
    scale = np.maximum(np.abs(blocks).max(-1, keepdims=True) / max(top - 1, 1), np.finfo(np.float32).tiny)
    codes = np.clip(np.rint(blocks / scale) + top, 0, 2 * top - 1).astype(np.uint8)
    per_byte = 8 // bits
    parts = codes.reshape(n, count, block // per_byte, per_byte)
    packed = np.zeros(parts.shape[:-1], np.uint8)
    for index in range(per_byte):
        packed |= parts[..., index] << (bits * index)
    attributes = {"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": 4}
    constants: dict[str, Array] = {"W": packed, "S": scale.astype(np.float32).reshape(-1)}
    return Layer((n, k), [node("MatMulNBits", "X W S", "Y", "com.microsoft", **attributes)], constants)


#: The ways in which :func:`standard_operators` multiplies.
PRODUCTS = ("float product", "integer product", "integer product, unsigned weights")


def standard_operators(weight: Floats, noise_relative: float, product: str) -> Layer:
    """The semantics of our operator at 8/8/8 bits in standard operators, with the weights quantised beforehand.

    The product is one of :data:`PRODUCTS`: of floats, or of codes by MatMulInteger. X's codes enter as unsigned bytes,
    since ONNX Runtime has no fast kernel for two signed sides on x86; for the weights see :func:`integer_chain`.
    """
    n, k = weight.shape
    codes, scale = lumina_kernel.quantize_weight(weight, 8)
    constants: dict[str, Array] = {"L": np.array(127, np.float32), "last": np.array([-1], np.int64)}

    def scaler(source: str, target: str) -> list[onnx.NodeProto]:
        return [
            node("Abs", source, f"{target}_magnitude"),
            node("ReduceMax", f"{target}_magnitude last", f"{target}_range"),
            node("Div", f"{target}_range L", f"{target}_step"),
            node("Div", f"{source} {target}_step", f"{target}_scaled"),
        ]

    def quantizer(source: str, target: str) -> list[onnx.NodeProto]:
        return [*scaler(source, target), node("Round", f"{target}_scaled", f"{target}_code")]

    if product == PRODUCTS[0]:
        constants["W"] = (codes * scale[:, None]).T.astype(np.float32)
        nodes = [*quantizer("X", "a"), node("Mul", "a_code a_step", "a"), node("MatMul", "a W", "z")]
    else:
        stored, zero = _stored(codes, product == PRODUCTS[2])
        constants |= {"W": stored.T, "W_zero": np.array(zero, stored.dtype), "S": scale}
        constants |= {"one": np.array(1, np.float32), "middle": np.array(128, np.uint8)}
        nodes = [
            *scaler("X", "a"),
            node("QuantizeLinear", "a_scaled one middle", "a_byte"),
            node("MatMulInteger", "a_byte W middle W_zero", "i"),
            node("Cast", "i", "f", to=TensorProto.FLOAT),
            node("Mul", "a_step S", "scale"),
            node("Mul", "f scale", "z"),
        ]
    # onnxruntime aborts on a scale of 0.
    if noise_relative:
        nodes += [
            node("RandomNormalLike", "z", "eps", scale=noise_relative),
            node("Mul", "z eps", "noise"),
            node("Add", "z noise", "v"),
        ]
    nodes += [*quantizer("v" if noise_relative else "z", "y"), node("Mul", "y_code y_step", "Y")]
    return Layer((n, k), nodes, constants)


@functools.cache
def signed_products_are_exact() -> bool:
    """Whether ONNX Runtime multiplies unsigned by signed bytes exactly here (see :func:`integer_chain`)."""
    ones = np.ones((16, 64), np.float32)
    # A single row may use another kernel than several.
    return all(bool((Bound(model([integer_chain(ones)], m), ones[:m]).output() == 64).all()) for m in (1, 16))


def exact_products() -> tuple[str, ...]:
    """Those of :data:`PRODUCTS` that are exact on this processor."""
    floats, signed, unsigned = PRODUCTS
    return (floats, unsigned, signed) if signed_products_are_exact() else (floats, unsigned)


def nothing() -> bytes:
    """A model of one number, to measure the cost of running a session by itself."""
    return model([Layer((1, 1), [node("Neg", "X", "Y")], {})], 1)


def session(
    source: bytes | str | os.PathLike[str], threads: int = 1, *, library: bool = True
) -> onnxruntime.InferenceSession:
    """A session with the same options for all sides; `library` says whether our operator is registered."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if library:
        options.register_custom_ops_library(lumina_onnx.library_path())
    source = source if isinstance(source, bytes) else os.fspath(source)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class Bound:
    """A session with its inputs and float32 outputs bound; calling it runs it."""

    def __init__(
        self, source: bytes | str | os.PathLike[str], x: Array, *more: Array, threads: int = 1, library: bool = True
    ) -> None:
        self.session = session(source, threads, library=library)
        binding = self.session.io_binding()
        for info, value in zip(self.session.get_inputs(), (x, *more), strict=True):
            binding.bind_ortvalue_input(info.name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
        self._outputs = []
        for target in self.session.get_outputs():
            # The batch dimension may be a name instead of a number.
            shape = [size if isinstance(size, int) else len(x) for size in target.shape]
            self._outputs.append(onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32))
            binding.bind_ortvalue_output(target.name, self._outputs[-1])
        self._run: Callable[[], None] = lambda: self.session.run_with_iobinding(binding)

    def __call__(self) -> None:
        self._run()

    def output(self) -> Floats:
        """The first output, after a run."""
        self._run()
        return np.array(self._outputs[0].numpy())
