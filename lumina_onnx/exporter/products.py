"""Which nodes multiply by stored weights: what a report of what was left must not forget."""

from __future__ import annotations

import onnx_ir as ir

from .constants import Constants
from .nodes import is_optical

__all__ = ["LEARNED", "multiplies_by_stored", "obstacle"]

LEARNED = frozenset(("LinearClassifier", "LinearRegressor", "SVMClassifier", "SVMRegressor"))
"""Operators of ai.onnx.ml whose weights are attributes."""

_WEIGHTS = {
    **dict.fromkeys(("MatMul", "Gemm", "MatMulInteger"), (0, 1)),
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "DeformConv", "CausalConvWithState"), (1,)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2)),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), (0, 3)),
}
"""Operators of the standard domain, and where their weights may stand. Any operand of an `Einsum` may be one."""

_OTHERS = frozenset(
    (
        # Tables that are looked up, rotations and masks among them.
        *("EmbedLayerNormalization", "QEmbedLayerNormalization", "GatherBlockQuantized", "GatherND", "GatherPacked"),
        *("TorchEmbedding", "RelativePositionBias", "RotaryEmbedding", "GemmaRotaryEmbedding", "MRotaryEmbedding"),
        *("RMSNormRotary", "GroupQueryAttention", "MultiHeadAttention", "PackedMultiHeadAttention", "SparseAttention"),
        *("DecoderMaskedMultiHeadAttention", "PagedAttention", "SparsePagedAttention", "DynamicSparseAttention"),
        *("BeamSearch", "WhisperBeamSearch", "GreedySearch", "Sampling", "MaxpoolWithMask", "CropAndResize"),
        # Element by element.
        *("BiasAdd", "BiasDropout", "BiasSoftmax", "BitmaskBiasDropout", "ComplexMul", "ComplexMulConj", "MulInteger"),
        *("QLinearAdd", "QLinearMul", "QLinearWhere", "QLinearConcat", "QuantizeLinear", "DequantizeLinear"),
    )
)
"""Operators of com.microsoft that take stored matrices and multiply by none."""


def multiplies_by_stored(node: ir.Node, known: Constants) -> bool:
    """Whether a node but an optical layer multiplies what an input reaches by weights that none reaches, or may do so.

    What an operator of a domain that is not ONNX's own does is not known: there every stored tensor of two or more
    dimensions counts, but for what com.microsoft is known to do with them.
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
    """What forbids to take the weights of such a node for stored ones; an empty string where nothing does."""
    found = (known.obstacle(value) for value in node.inputs if value is not None and not known.is_reached(value))
    return next((f"its weight is {each}" for each in found if each), "")


def _is_stored(value: ir.Value | None, known: Constants) -> bool:
    return value is not None and not known.is_reached(value)


def _is_matrix(value: ir.Value | None) -> bool:
    """Whether a value has two or more dimensions, or nobody says how many."""
    return value is not None and (value.shape is None or len(value.shape) > 1)
