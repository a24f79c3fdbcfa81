"""`lumina::OpticalLinear` in standard operators: the function body that runs a file without the operator's library.

A file that carries a function of the operator's own domain and name runs in ONNX Runtime 1.17 or newer: if the library
is registered, its kernel is used; otherwise ONNX Runtime replaces each node by the body.

One body serves every node. Whatever depends on attributes and stored weights alone is constant, so ONNX Runtime folds
it when it creates a session and keeps only the taken branch of each `if`: a node is reduced to its DAC, one product and
its ADC. Work that nodes of the main graph have in common, such as unpacking a W that they share, is folded once. With
optimisation off, everything is computed in each run.

:mod:`.tolerance` computes how far the body's results may be from the operator's.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxscript
from onnx import helper, numpy_helper
from onnxscript import script
from onnxscript.values import Opset

from lumina_onnx.schema import DOMAIN, DOMAIN_VERSION

__all__ = ["OPSETS", "function"]

# onnxscript's type annotations do not allow a function's attributes as values.
op: Any = onnxscript.opset20

OPSETS = range(19, 27)
"""Opsets that the body can be written in: 19 is the first that compares strings, 26 the newest that was tried."""

NO_NORMALS = 22
"""From this opset on, ONNX Runtime on CPUs has no operator that draws numbers but `Dropout`."""

FLOAT, UINT8, INT8, INT32, INT64 = 1, 2, 3, 6, 7
END = 2**63 - 1


def function(opset: int) -> onnx.FunctionProto:
    """The body for a model at this opset, one of :data:`OPSETS`."""
    proto = OpticalLinear.to_function_proto()
    (imported,) = proto.opset_import
    imported.version = opset
    if opset >= NO_NORMALS:
        _draw_by_dropout(proto)
    _order(proto)
    _shorten(proto)
    return proto


@script(Opset(DOMAIN, DOMAIN_VERSION), default_opset=op)
def OpticalLinear(  # type: ignore[no-untyped-def]
    X,
    W,
    W_scale,
    B,
    input_bits: int = 0,
    weight_bits: int = 0,
    output_bits: int = 8,
    input_range: float = 0.0,
    output_range: Sequence[float] = (0.0,),
    noise_relative: float = 0.0,
    noise_additive: float = 0.0,
    noise_shot: float = 0.0,
    bias_stage: str = "analog",
    seed: int = 0,
    in_features: int = 0,
    op_version: int = 1,
):
    # Nodes that share a W unpack it once, because ONNX Runtime merges operations with equal inputs before folding them.
    # It recognises equal constants only if they have one element and no branch reads them. So all constants here have
    # one element, and branches have constants of their own.
    zero = op.Constant(value_float=0.0)
    one = op.Constant(value_float=1.0)
    two = op.Constant(value_float=2.0)
    zero_int = op.Constant(value_int=0)
    one_int = op.Constant(value_int=1)
    eight = op.Constant(value_int=8)
    byte_values = op.Constant(value_int=256)
    first = op.Constant(value_ints=[0])
    second = op.Constant(value_ints=[1])
    third = op.Constant(value_ints=[2])
    last = op.Constant(value_ints=[-1])
    end = op.Constant(value_ints=[END])
    start = op.Concat(first, first, axis=0)
    # A weight that a node does not need is sliced down to this corner, so that folding its dependents costs nothing.
    corner = op.Concat(second, second, axis=0)
    whole = op.Concat(end, end, axis=0)

    x_bits = op.Constant(value_int=input_bits)
    w_bits = op.Constant(value_int=weight_bits)
    y_bits = op.Constant(value_int=output_bits)
    x_range = op.Constant(value_float=input_range)
    y_range = op.Constant(value_floats=output_range)
    packed_k = op.Constant(value_int=in_features)
    analog_bias = op.Equal(op.Constant(value_string=bias_stage), op.Constant(value_string="analog"))

    # 2^(bits - 1), and the largest code L. With 0 bits neither is used.
    x_half = op.Pow(two, op.Sub(op.Cast(x_bits, to=FLOAT), one))
    w_half = op.Pow(two, op.Sub(op.Cast(w_bits, to=FLOAT), one))
    y_half = op.Pow(two, op.Sub(op.Cast(y_bits, to=FLOAT), one))
    x_levels = op.Max(op.Sub(x_half, one), one)
    w_levels = op.Max(op.Sub(w_half, one), one)
    y_levels = op.Max(op.Sub(y_half, one), one)

    has_dac = op.Greater(x_bits, zero_int)
    coded = op.Greater(w_bits, zero_int)
    one_bit = op.Equal(w_bits, one_int)
    packed = op.Greater(packed_k, zero_int)
    integer = op.And(op.And(has_dac, coded), op.LessOrEqual(op.Max(x_bits, w_bits), eight))
    # Cast to W's type, one half stays greater than 0 only if that type is float32.
    in_float = op.Greater(op.Cast(op.CastLike(op.Constant(value_float=0.5), W), to=FLOAT), zero)
    to_quantize = op.And(in_float, coded)

    # W stored in float32, and its codes.
    w_float = op.Cast(op.Slice(W, start, op.Where(in_float, whole, corner)), to=FLOAT)
    w_unquantized = op.Slice(w_float, start, op.Where(coded, whole, corner))
    w_inverse = op.Unsqueeze(op.Div(w_levels, op.Mul(W_scale, w_levels)), last)
    w_scaled = op.Mul(w_unquantized, op.Where(op.IsInf(w_inverse), zero, w_inverse))
    w_signs = op.Where(op.Less(w_unquantized, zero), op.Neg(one), one)
    w_rounded = op.Where(one_bit, w_signs, op.Round(op.Clip(w_scaled, op.Neg(w_levels), w_levels)))

    # Codes as int8: those above, or those in the bytes of W, looked up in a table with a row for each byte value. A
    # packed byte holds several fields of a few bits each, low bits first; an int8 is one field of 8 bits.
    w_integers = op.Cast(op.Slice(W, start, op.Where(in_float, corner, whole)), to=INT32)
    w_bytes = op.Where(to_quantize, op.Cast(w_rounded, to=INT32), w_integers)
    field_values = op.Where(packed, op.Cast(op.Mul(w_half, two), to=INT64), byte_values)
    fields = op.Where(packed, op.Div(eight, op.Max(w_bits, one_int)), one_int)
    field_starts = op.Pow(field_values, op.Range(zero_int, fields, one_int))
    every_byte = op.Unsqueeze(op.Range(zero_int, byte_values, one_int), last)
    unsigned = op.Cast(op.Mod(op.Div(every_byte, field_starts), field_values), to=FLOAT)
    unpacked = op.Where(one_bit, op.Sub(op.Mul(unsigned, two), one), op.Sub(unsigned, w_half))
    negative = op.Sub(unsigned, op.Cast(byte_values, to=FLOAT))
    signed = op.Where(op.Less(unsigned, op.Constant(value_float=128.0)), unsigned, negative)
    table = op.Cast(op.Where(packed, unpacked, signed), to=INT8)
    rows = op.Flatten(op.Gather(table, op.Mod(w_bytes, op.Cast(byte_values, to=INT32))))
    codes = op.Slice(rows, first, op.Where(packed, op.Reshape(packed_k, last), end), second)

    # W in the layout of the product, [K, N]: codes as signed and as unsigned bytes, values in float32.
    w_int8 = op.Transpose(codes)
    int8_zero = op.Cast(op.Constant(value_int=128), to=UINT8)
    w_uint8 = op.BitwiseXor(op.Cast(w_int8, to=UINT8), int8_zero)
    codes_float = op.Cast(op.Slice(codes, start, op.Where(integer, corner, whole)), to=FLOAT)
    w_values = op.Where(in_float, op.Where(coded, w_rounded, w_float), codes_float)
    w_values = op.Mul(op.Transpose(w_values), W_scale)
    w_steps = op.Unsqueeze(W_scale, first)

    # B; zeros if it is omitted.
    w_shape = op.Shape(W)
    zeros_n = op.Expand(zero, op.Concat(second, op.Slice(w_shape, first, second), axis=0))
    bias = op.Reshape(op.Gemm(op.Reshape(zero, corner), zeros_n, B), last)
    has_bias = op.Greater(op.ReduceMax(op.Abs(bias), keepdims=0), zero)

    # Branches compute only what depends on X. Everything else that is as large as an output is computed before them:
    # ONNX Runtime 1.24 to 1.27 refuse a branch in which they fold more than 127 bytes. These constants are for the
    # branches alone.
    unit = op.Constant(value_float=1.0)
    along = op.Constant(value_ints=[-1])
    # Full scales below this value are raised to it, so that L divided by it stays finite.
    least = op.Constant(value_float=1.17549435e-38)

    # The DAC, up to rounding. ReduceMax and integers lose a NaN; a product with zeros keeps it for the row's step.
    x_static = op.Greater(x_range, zero)
    x_lowest = op.Neg(x_levels)
    x_factor = op.Div(x_levels, x_range)
    x_static_step = op.Div(x_range, x_levels)
    x_least = op.Mul(x_levels, least)
    if has_dac:
        if x_static:
            scaled = op.Clip(op.Mul(X, x_factor), x_lowest, x_levels)
            x_step = op.Identity(x_static_step)
            watched = op.Identity(scaled)
        else:
            x_max = op.ReduceMax(op.Abs(X), along)
            scaled = op.Mul(X, op.Div(x_levels, op.Max(x_max, x_least)))
            x_step = op.Div(x_max, x_levels)
            watched = op.Identity(X)
    else:
        scaled = op.Identity(X)
        x_step = op.Identity(unit)
        watched = op.Identity(X)
    k = op.Where(packed, op.Reshape(packed_k, last), op.Slice(w_shape, second, third))
    step = op.Add(op.MatMul(watched, op.Expand(zero, op.Concat(k, second, axis=0))), x_step)

    # The product. A DAC code enters as an unsigned byte with its zero in the middle, since ONNX Runtime has no fast
    # kernel for signed bytes on x86. On x86 without VNNI it adds pairs of unsigned-by-signed products in 16 bits, which
    # 8 by 8 bits can overflow; pairs of unsigned-by-unsigned products do not overflow.
    x_zero = op.Cast(op.Min(x_half, op.Constant(value_float=128.0)), to=UINT8)
    fits_signed = op.Less(op.Add(x_bits, w_bits), op.Constant(value_int=16))
    if integer:
        x_codes = op.QuantizeLinear(scaled, unit, x_zero)
        if fits_signed:
            sums = op.MatMulInteger(x_codes, w_int8, x_zero)
        else:
            sums = op.MatMulInteger(x_codes, w_uint8, x_zero, int8_zero)
        # Written as a MatMul, the product of the steps is rounded like the operator's and is not fused away.
        signal = op.Mul(op.Cast(sums, to=FLOAT), op.MatMul(step, w_steps))
    else:
        if has_dac:
            values = op.Round(scaled)
        else:
            values = op.Identity(scaled)
        signal = op.Mul(op.MatMul(values, w_values), step)
    if op.And(has_bias, analog_bias):
        z = op.Add(signal, bias)
    else:
        z = op.Identity(signal)

    # One normal for all laws, whose variances add.
    static = op.Greater(op.ReduceMax(y_range, keepdims=0), zero)
    relative = op.Constant(value_float=noise_relative)
    additive = op.Constant(value_float=noise_additive)
    shot = op.Constant(value_float=noise_shot)
    shot_squared = op.Mul(shot, shot)
    scaled_laws = op.Greater(op.Add(additive, shot), zero)
    signal_laws = op.Greater(op.Add(relative, shot), zero)
    static_additive = op.Mul(additive, y_range)
    static_variance = op.Mul(static_additive, static_additive)
    static_shot = op.Mul(shot_squared, y_range)
    if op.Greater(op.Add(op.Add(relative, additive), shot), zero):
        normal = op.RandomNormalLike(z)
        if scaled_laws:
            if signal_laws:
                by_signal = op.Mul(relative, z)
                if static:
                    by_range = op.Add(op.Mul(op.Abs(z), static_shot), static_variance)
                else:
                    magnitude = op.Abs(z)
                    z_max = op.ReduceMax(magnitude, along)
                    by_scale = op.Mul(additive, z_max)
                    by_shot = op.Mul(op.Mul(magnitude, shot_squared), z_max)
                    by_range = op.Add(by_shot, op.Mul(by_scale, by_scale))
                deviation = op.Mul(op.Sqrt(op.Add(op.Mul(by_signal, by_signal), by_range)), normal)
            else:
                if static:
                    deviation = op.Mul(normal, static_additive)
                else:
                    deviation = op.Mul(normal, op.Mul(additive, op.ReduceMax(op.Abs(z), along)))
        else:
            # The sign does not matter: the normal distribution is even.
            deviation = op.Mul(op.Mul(relative, z), normal)
        v = op.Add(z, deviation)
    else:
        v = op.Identity(z)

    y_lowest = op.Neg(y_levels)
    y_factor = op.Div(y_levels, y_range)
    y_step = op.Div(y_range, y_levels)
    y_least = op.Mul(y_levels, least)
    if op.Greater(y_bits, zero_int):
        if static:
            y = op.Mul(op.Round(op.Clip(op.Mul(v, y_factor), y_lowest, y_levels)), y_step)
        else:
            v_max = op.ReduceMax(op.Abs(v), along)
            v_codes = op.Round(op.Mul(v, op.Div(y_levels, op.Max(v_max, y_least))))
            y = op.Mul(v_codes, op.Div(v_max, y_levels))
    else:
        y = op.Identity(v)

    if op.And(has_bias, op.Not(analog_bias)):
        Y = op.Add(y, bias)
    else:
        Y = op.Identity(y)
    return Y


RADIUS_BITS, ANGLE_BITS = 20, 12


def _draw_by_dropout(proto: onnx.FunctionProto) -> None:
    """Replaces the operator that draws normals: a `Dropout` of ones draws bits, which are the binary digits of a radius
    and an angle (G. Box, M. Muller, Ann. Math. Statist. 29, 1958, doi:10.1214/aoms/1177706645)."""
    bits = RADIUS_BITS + ANGLE_BITS
    digits = np.zeros((2, bits), np.float32)
    digits[0, :RADIUS_BITS] = 0.5 ** (1 + np.arange(RADIUS_BITS))
    digits[1, RADIUS_BITS:] = 0.5 ** (1 + np.arange(ANGLE_BITS))
    proto.node.insert(0, helper.make_node("Constant", [], ["digits"], value=numpy_helper.from_array(digits)))

    def constant(name: str, value: float) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value_float=value)

    def drawn(z: str, normal: str) -> list[onnx.NodeProto]:
        return [
            constant("unit_", 1.0),
            constant("ratio_", 0.5),
            constant("least_", 0.5 ** (RADIUS_BITS + 1)),
            constant("factor_", -2.0),
            constant("circle_", 2 * math.pi),
            helper.make_node("Constant", [], ["bits_"], value_ints=[bits]),
            helper.make_node("Constant", [], ["one_"], value_ints=[1]),
            helper.make_node("Constant", [], ["training_"], value=numpy_helper.from_array(np.array(True))),
            helper.make_node("Shape", [z], ["shape_"]),
            helper.make_node("Size", [z], ["size_"]),
            helper.make_node("Reshape", ["size_", "one_"], ["count_"]),
            helper.make_node("Concat", ["bits_", "count_"], ["sizes_"], axis=0),
            helper.make_node("Expand", ["unit_", "sizes_"], ["ones_"]),
            # Unless its mask is read, ONNX Runtime may remove a Dropout.
            helper.make_node("Dropout", ["ones_", "ratio_", "training_"], ["twice_", "mask_"]),
            helper.make_node("Cast", ["mask_"], ["kept_"], to=FLOAT),
            helper.make_node("MatMul", ["digits", "kept_"], ["uniform_"]),
            helper.make_node("Split", ["uniform_"], ["first_", "second_"], axis=0, num_outputs=2),
            helper.make_node("Add", ["first_", "least_"], ["positive_"]),
            helper.make_node("Log", ["positive_"], ["log_"]),
            helper.make_node("Mul", ["log_", "factor_"], ["square_"]),
            helper.make_node("Sqrt", ["square_"], ["radius_"]),
            helper.make_node("Mul", ["second_", "circle_"], ["angle_"]),
            helper.make_node("Cos", ["angle_"], ["cos_"]),
            helper.make_node("Mul", ["radius_", "cos_"], ["product_"]),
            helper.make_node("Reshape", ["product_", "shape_"], [normal], allowzero=1),
        ]

    for graph in (attribute.g for node in _walk(proto.node) for attribute in node.attribute if attribute.HasField("g")):
        for place, node in enumerate(graph.node):
            if node.op_type == "RandomNormalLike":
                new = [*graph.node[:place], *drawn(node.input[0], node.output[0]), *graph.node[place + 1 :]]
                copies = [onnx.NodeProto.FromString(each.SerializeToString()) for each in new]
                del graph.node[:]
                graph.node.extend(copies)
                return


def _order(proto: onnx.FunctionProto) -> None:
    """Puts the results of each `if` in the order in which its branch computes them: onnxscript's order is arbitrary."""
    for node in reversed(list(_walk(proto.node))):
        if node.op_type == "If":
            branches = [attribute.g for attribute in node.attribute]
            made = [name for inner in branches[0].node for name in inner.output]
            order = sorted(range(len(node.output)), key=lambda i: made.index(branches[0].output[i].name))
            node.output[:] = [node.output[i] for i in order]
            for branch in branches:
                outputs = [onnx.ValueInfoProto.FromString(branch.output[i].SerializeToString()) for i in order]
                del branch.output[:]
                branch.output.extend(outputs)


def _shorten(proto: onnx.FunctionProto) -> None:
    """Shortens value names to a letter or two and drops node names, since every file carries them."""
    result = "Y"
    names = {name: name for name in ("", *proto.input)} | {proto.output[0]: result}
    letters = itertools.chain.from_iterable(itertools.product(string.ascii_letters, repeat=n) for n in (1, 2))
    free = (name for name in map("".join, letters) if name not in names.values())

    def short(name: str) -> str:
        if name not in names:
            names[name] = next(free)
        return names[name]

    proto.output[:] = [result]
    for node in _walk(proto.node):
        node.ClearField("name")
        node.input[:] = map(short, node.input)
        node.output[:] = map(short, node.output)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                attribute.g.name = "g"
                for output in attribute.g.output:
                    output.name = short(output.name)


def _walk(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _walk(attribute.g.node)
