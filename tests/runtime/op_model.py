"""Models of one OpticalLinear node, sessions for them, and their expected outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from lumina_onnx import reference

Array = NDArray[Any]
Shape = Sequence[int | str | None] | None


def make_model(
    w: Array,
    w_scale: Array | None = None,
    b: Array | None = None,
    *,
    x_shape: Shape = ("batch", "features"),
    x_type: int = TensorProto.FLOAT,
    y_shape: Shape = None,
    name: str = "fc1",
    graph_inputs: Sequence[str] = (),
    after: Sequence[NodeProto] = (),
    opset: int = 1,
    **attributes: Any,
) -> bytes:
    """X -> OpticalLinear -> Y (-> `after` -> Z). `w_scale` is ones by default; `graph_inputs` names initializers that
    are inputs of the graph as well. The file loads in ONNX Runtime 1.17."""
    w_scale = np.ones(len(w), np.float32) if w_scale is None else w_scale
    initializers = {"W": w, "W_scale": w_scale} | ({} if b is None else {"B": b})
    node = helper.make_node("OpticalLinear", ["X", *initializers], ["Y"], name=name, domain="lumina", **attributes)
    tensors = [numpy_helper.from_array(np.asarray(value), key) for key, value in initializers.items()]
    inputs = [helper.make_tensor_value_info("X", x_type, x_shape)] + [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in tensors
        if tensor.name in graph_inputs
    ]
    output = helper.make_tensor_value_info("Z" if after else "Y", TensorProto.FLOAT, y_shape)
    graph = helper.make_graph([node, *after], "graph", inputs, [output], tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("lumina", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def make_session(
    model: bytes | str, library: str, *, threads: int = 1, config: Mapping[str, str] | None = None
) -> onnxruntime.InferenceSession:
    """A session for a model, given as bytes or as a path, with the operator from `library`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, x: Array) -> Array:
    (y,) = session.run(None, {"X": x})
    return np.asarray(y)


def assert_same_bits(actual: Array, expected: Array, what: object = "") -> None:
    assert actual.dtype == expected.dtype == np.float32
    assert actual.shape == expected.shape, what
    different = np.argwhere(actual.view(np.uint32) != expected.view(np.uint32))
    assert not len(different), (
        f"{what}: {len(different)} of {actual.size} differ, first at {different[0]}: "
        f"{actual[tuple(different[0])]!r} instead of {expected[tuple(different[0])]!r}"
    )


@dataclass(frozen=True)
class Layer:
    """A layer as a model stores it."""

    w: Array
    w_scale: Array
    b: Array | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    def model(self, **more: Any) -> bytes:
        return make_model(self.w, self.w_scale, self.b, **self.attributes, **more)

    def expected(self, x: Array, stream: int = 0) -> Array:
        """The output of run number `stream`, by the reference."""
        attributes = {name: value for name, value in self.attributes.items() if name != "op_version"}
        scale = self.w_scale if attributes.get("weight_bits", 0) else None
        return reference.optical_linear(x, self.w, self.b, weight_scale=scale, stream=stream, **attributes)


def random_layer(
    n: int,
    k: int,
    *,
    weight_bits: int = 0,
    storage: str = "float32",
    bias: bool = True,
    seed: int = 0,
    **attributes: Any,
) -> Layer:
    """A layer with Gaussian weights, stored as float32, int8 or uint8."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(n, k)).astype(np.float32)
    b = rng.normal(size=n).astype(np.float32) if bias else None
    if weight_bits:
        attributes["weight_bits"] = weight_bits
        codes, scale = reference.quantize_weight(w, weight_bits)
        if storage == "int8":
            w = codes  # type: ignore[assignment]
        elif storage == "uint8":
            w = reference.pack_weight(codes, weight_bits)  # type: ignore[arg-type, assignment]
            attributes["in_features"] = k
    else:
        scale = np.ones(n, np.float32)
    return Layer(w, scale, b, attributes)


def few_rows_layer(bits: int) -> Layer:
    """A layer with every noise law, so large that few rows are cut by columns and a single row goes to several threads.

    Weights of fewer bytes need more outputs for that.
    """
    noise: dict[str, Any] = {"noise_relative": 0.05, "noise_additive": 0.02, "noise_shot": 0.01}
    outputs, storage = (1003, "int8") if bits == 8 else (2701, "uint8")
    return random_layer(outputs, 1030, weight_bits=bits, storage=storage, seed=bits, input_bits=8, **noise)
