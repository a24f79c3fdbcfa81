"""`lumina::OpticalLinear` as an ONNX operator schema, so that onnx can check models that use it and infer shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import onnx.defs
from onnx.defs import OpSchema

from lumina_onnx.schema import DOMAIN, DOMAIN_VERSION, OPERATOR, PARAMETERS, VERSION, VERSION_ATTRIBUTE

__all__ = ["completed", "defaults", "register"]

_KINDS = {
    "INT": OpSchema.AttrType.INT,
    "FLOAT": OpSchema.AttrType.FLOAT,
    "FLOATS": OpSchema.AttrType.FLOATS,
    "STRING": OpSchema.AttrType.STRING,
}


def defaults() -> dict[str, object]:
    """The operator's attributes that have a default, with that default, which applies if a node omits the attribute."""
    return {
        row.name: [row.default] if row.type == "FLOATS" else row.default
        for row in PARAMETERS
        if row.place == "attribute" and row.default is not None
    }


def completed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a node that has the `given` ones: those that it omits with their defaults, without its version.

    Raises:
        ValueError: the node is of a later version of the operator, or has an attribute of a later one than its own.
    """
    attributes: dict[str, Any] = defaults() | dict(given)
    version = attributes.pop(VERSION_ATTRIBUTE, 1)
    if not 1 <= version <= VERSION:
        raise ValueError(
            f"{VERSION_ATTRIBUTE} = {version}: this lumina_onnx has versions 1 to {VERSION} of the operator; a file of "
            "a later version needs a newer one"
        )
    for row in PARAMETERS:
        if version < row.since and attributes.get(row.name, row.default) != row.default:
            raise ValueError(
                f"{row.name} = {attributes[row.name]}: allowed is {row.default} in a node whose {VERSION_ATTRIBUTE} is "
                f"{version}; it needs {VERSION_ATTRIBUTE} {row.since}, by which older releases know that they lack it"
            )
    return attributes


def register() -> None:
    """Registers the operator's schema with onnx in this process, unless it is registered already.

    ``onnx.shape_inference`` then knows the shape of the operator's output, and ``onnx.checker.check_model(model,
    check_custom_domain=True)`` checks its nodes' inputs and attributes. It does not concern ONNX Runtime.
    """
    if not onnx.defs.has(OPERATOR, DOMAIN):
        onnx.defs.register_schema(_schema())


def _schema() -> OpSchema:
    optional = OpSchema.FormalParameterOption.Optional
    schema = OpSchema(
        OPERATOR,
        DOMAIN,
        DOMAIN_VERSION,
        doc="A linear layer on photonic hardware: Y = ADC(DAC(X) . W + B + noise).",
        inputs=[
            OpSchema.FormalParameter("X", "T", "[..., K]"),
            OpSchema.FormalParameter("W", "TW", "[N, K], or packed codes [N, ceil(K*weight_bits/8)]"),
            OpSchema.FormalParameter("W_scale", "T", "[N]: the step of one code, 1 where W is analog"),
            OpSchema.FormalParameter("B", "T", "[N]", param_option=optional),
        ],
        outputs=[OpSchema.FormalParameter("Y", "T", "[..., N]")],
        type_constraints=[
            ("T", ["tensor(float)"], "float32"),
            ("TW", ["tensor(float)", "tensor(int8)", "tensor(uint8)"], "values, codes or packed codes"),
        ],
        attributes=[
            OpSchema.Attribute(row.name, _KINDS[row.type], row.meaning, required=False)
            for row in PARAMETERS
            if row.place == "attribute"
        ]
        + [
            OpSchema.Attribute(
                VERSION_ATTRIBUTE,
                OpSchema.AttrType.INT,
                "the operator's version, 1 where it is left out",
                required=False,
            )
        ],
    )
    schema.set_type_and_shape_inference_function(_infer)
    return schema


def _infer(context: Any) -> None:
    """Y has X's leading dimensions and W's rows."""
    x, weight = context.get_input_type(0), context.get_input_type(1)
    result = onnx.TypeProto()
    result.tensor_type.elem_type = onnx.TensorProto.FLOAT
    if x.tensor_type.HasField("shape") and weight.tensor_type.HasField("shape"):
        result.tensor_type.shape.CopyFrom(x.tensor_type.shape)
        if len(result.tensor_type.shape.dim) and len(weight.tensor_type.shape.dim):
            result.tensor_type.shape.dim[-1].CopyFrom(weight.tensor_type.shape.dim[0])
    context.set_output_type(0, result)
