"""What a graph computes from constants alone, and its value."""

from __future__ import annotations

from typing import Any, cast

import onnx
import onnx.reference
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["constant", "is_constant", "is_replaceable"]

Arrays = dict[str, NDArray[Any]]


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value depends on nothing but constants."""
    if value is None or value.const_value is not None:
        return True
    node = value.producer()
    return node is not None and not _has_subgraph(node) and all(is_constant(source) for source in node.inputs)


def constant(value: ir.Value, opset: int) -> NDArray[Any] | None:
    """The value as an array where :func:`is_constant`, computed by onnx's reference evaluator; else None."""
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is None or not is_constant(value):
        return None
    feeds: Arrays = {}
    for source in node.inputs:
        if source is not None:
            array = constant(source, opset)
            assert array is not None
            feeds[str(source.name)] = array
    proto = ir.serde.serialize_node(node)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [proto],
            "constant",
            [onnx.helper.make_tensor_value_info(name, _type(array), array.shape) for name, array in feeds.items()],
            [onnx.helper.make_tensor_value_info(str(value.name), onnx.TensorProto.UNDEFINED, None)],
        ),
        opset_imports=[onnx.helper.make_opsetid(node.domain, opset)],
    )
    (result,) = cast("list[NDArray[Any]]", onnx.reference.ReferenceEvaluator(model).run(None, feeds))
    return result


def is_replaceable(value: ir.Value) -> bool:
    """Whether a constant depends on an initializer that is an input of the model as well."""
    if value.is_graph_input():
        return True
    node = value.producer()
    return node is not None and any(source is not None and is_replaceable(source) for source in node.inputs)


def _has_subgraph(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def _type(array: NDArray[Any]) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
