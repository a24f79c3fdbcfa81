"""Finds nodes that multiply by stored weights, which a report must list if they are not converted."""

from __future__ import annotations

import onnx_ir as ir

from .constants import Constants
from .nodes import is_optical

__all__ = ["INTEGER", "LEARNED", "multiplies_by_stored", "obstacle"]

LEARNED = frozenset(("LinearClassifier", "LinearRegressor", "SVMClassifier", "SVMRegressor"))
"""Operators of ai.onnx.ml whose weights are attributes."""

INTEGER = frozenset(
    (
        *("MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"),
        *("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QGemm", "QAttention"),
        *("MatMulNBits", "MatMulBnb4", "MatMulFpQ4", "QMoE", "QOrderedMatMul"),
    )
)
"""Operators whose weights are codes."""

_WEIGHTS = {
    **dict.fromkeys(("MatMul", "Gemm", "MatMulInteger"), (0, 1)),
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "DeformConv", "CausalConvWithState"), (1,)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2)),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), (0, 3)),
}
"""Operators of the standard domain, with the input positions of weights. Any operand of an `Einsum` may be a weight."""

_OTHERS = frozenset(
    (
        # Lookup tables, including rotations and masks.
        *("EmbedLayerNormalization", "QEmbedLayerNormalization", "GatherBlockQuantized", "GatherND", "GatherPacked"),
        *("TorchEmbedding", "RelativePositionBias", "RotaryEmbedding", "GemmaRotaryEmbedding", "MRotaryEmbedding"),
        *("RMSNormRotary", "GroupQueryAttention", "MultiHeadAttention", "PackedMultiHeadAttention", "SparseAttention"),
        *("DecoderMaskedMultiHeadAttention", "PagedAttention", "SparsePagedAttention", "DynamicSparseAttention"),
        *("BeamSearch", "WhisperBeamSearch", "GreedySearch", "Sampling", "MaxpoolWithMask", "CropAndResize"),
        # Elementwise operators.
        *("BiasAdd", "BiasDropout", "BiasSoftmax", "BitmaskBiasDropout", "ComplexMul", "ComplexMulConj", "MulInteger"),
        *("QLinearAdd", "QLinearMul", "QLinearWhere", "QLinearConcat", "QuantizeLinear", "DequantizeLinear"),
    )
)
"""Operators of com.microsoft that take stored matrices but do no matrix product with them."""


def multiplies_by_stored(node: ir.Node, known: Constants) -> bool:
    """Whether a node other than an optical layer multiplies, or may multiply, an input-dependent value by weights.

    Weights are values that no input of the model reaches. What operators outside ONNX's own domains do is unknown, so
    every stored tensor of two or more dimensions counts there, except in the com.microsoft operators listed above.
    """
    if is_optical(node) or not any(map(known.is_reached, node.outputs)):
        return False
    inputs = list(node.inputs)
    if node.domain == "ai.onnx.ml":
        return node.op_type in LEARNED
    if node.domain in ("", "ai.onnx"):
        places = range(len(inputs)) if node.op_type == "Einsum" else _WEIGHTS.get(node.op_type, ())
        return any(_is_stored(value, known) for place in places for value in inputs[place : place + 1])
    if node.domain == "com.microsoft" and node.op_type in _OTHERS:
        return False
    return any(_is_stored(value, known) and _is_matrix(value) for value in inputs)


def obstacle(node: ir.Node, known: Constants) -> str:
    """Why the weights of such a node cannot count as stored; an empty string if they can."""
    found = (known.obstacle(value) for value in node.inputs if value is not None and not known.is_reached(value))
    return next((f"its weight is {each}" for each in found if each), "")


def _is_stored(value: ir.Value | None, known: Constants) -> bool:
    return value is not None and not known.is_reached(value)


def _is_matrix(value: ir.Value | None) -> bool:
    """Whether a value has two or more dimensions, or an unknown rank."""
    return value is not None and (value.shape is None or len(value.shape) > 1)
