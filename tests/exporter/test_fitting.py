"""Random inputs have sizes at which a model runs: those its graph requires, or the first that do when tried."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import lumina_onnx
from lumina_onnx import OpticalProfile
from lumina_onnx.exporter import rewrite, verify
from lumina_onnx.exporter.fitting import UnfitError, fitting
from lumina_onnx.exporter.sizes import required

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
RNG = np.random.default_rng(0)
Shape = Sequence[int | str | None] | None


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(" "), output.split(), name=f"{kind}_{output}", **attributes)


def model(content: list[onnx.NodeProto], inputs: dict[str, Shape], **stored: Any) -> onnx.ModelProto:
    """A model of float inputs, or of int64 inputs where the name is in capitals, to Y."""
    graph = helper.make_graph(
        content,
        "graph",
        [
            helper.make_tensor_value_info(name, INT64 if name.isupper() else FLOAT, dims)
            for name, dims in inputs.items()
        ],
        [helper.make_tensor_value_info("Y", FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


W = floats(6, 4)
LSTM = {"w": floats(1, 16, 6), "r": floats(1, 16, 4), "state": floats(1, 2, 4)}

# A model, what its graph requires of its sizes, and the shapes at which it runs first.
CASES: dict[str, tuple[onnx.ModelProto, dict[str, int], list[list[int]]]] = {
    "nothing is symbolic": (model([node("MatMul", "x W", "Y")], {"x": [3, 6]}, W=W), {}, [[3, 6]]),
    "the last size of a product": (
        model([node("Relu", "x", "r"), node("MatMul", "r W", "Y")], {"x": ["rows", "n"]}, W=W),
        {"n": 6},
        [[2, 6]],
    ),
    "one without a name": (
        model([node("Gemm", "x W", "Y", transB=1)], {"x": [None, None]}, W=W),
        {"x[1]": 4},
        [[2, 4]],
    ),
    "two inputs of one size": (
        model([node("Mul", "x z", "m"), node("MatMul", "m W", "Y")], {"x": ["b", "n"], "z": ["b", "n"]}, W=W),
        {"n": 6},
        [[2, 6], [2, 6]],
    ),
    "positions": (
        model([node("Add", "x P", "Y")], {"x": ["batch", "words", 6]}, P=floats(1, 7, 6)),
        {"words": 7},
        [[2, 7, 6]],
    ),
    "channels of a convolution": (
        model([node("Conv", "x F", "Y", group=2)], {"x": ["b", "c", "h", "w"]}, F=floats(4, 3, 1, 1)),
        {"c": 6},
        [[2, 6, 3, 4]],
    ),
    "a reshape of all": (model([node("Reshape", "x S", "Y")], {"x": ["n"]}, S=np.array([3, 4])), {"n": 12}, [[12]]),
    "a reshape of some": (
        model([node("Reshape", "x S", "Y")], {"x": [4, "n"]}, S=np.array([-1, 6])),
        {"n": 3},
        [[4, 3]],
    ),
    "a normalisation": (
        model([node("LayerNormalization", "x S", "Y")], {"x": ["b", "n"]}, S=floats(5)),
        {"n": 5},
        [[2, 5]],
    ),
    "a recurrent layer": (
        model(
            [node("LSTM", "x w r   state c", "Y", hidden_size=4)],
            {"x": ["steps", "batch", "n"], "c": ["one", "batch", "cells"]},
            **LSTM,
        ),
        {"n": 6, "batch": 2, "one": 1, "cells": 4},
        [[2, 2, 6], [1, 2, 4]],
    ),
    "joined": (
        model([node("Concat", "x P", "Y", axis=1)], {"x": ["a", "b", "c"]}, P=floats(3, 2, 5)),
        {"a": 3, "c": 5},
        [[3, 2, 5]],
    ),
    "an expression of others": (
        model(
            [node("Concat", "past x", "all", axis=1), node("Mul", "all mask", "Y")],
            {"x": ["b", "now", 4], "past": ["b", "before", 4], "mask": ["b", "before + now", 1]},
        ),
        {},
        [[2, 3, 4], [2, 4, 4], [2, 7, 1]],
    ),
    "a cache without a length in common": (
        model(
            [node("Concat", "past x", "all", axis=1), node("Mul", "all mask", "Y")],
            {"x": ["b", "now", 4], "past": ["b", "past length", 4], "mask": ["b", "total", 4]},
        ),
        {},
        [[2, 2, 4], [2, 0, 4], [2, 2, 4]],
    ),
    "different names for equal sizes": (
        model([node("MatMul", "x z", "Y")], {"x": ["a", "b"], "z": ["c", "d"]}),
        {},
        [[2, 2], [2, 2]],
    ),
    "an image of at least 30 pixels": (
        model(
            [node("MaxPool", "x", "p", kernel_shape=[30, 30]), node("Conv", "p F", "Y")],
            {"x": ["b", "c", "h", "w"]},
            F=floats(2, 3, 1, 1),
        ),
        {"c": 3},
        [[2, 3, 32, 32]],
    ),
    "a batch of one": (
        model(
            [node("Reshape", "x S", "r"), node("MatMul", "r W", "Y")],
            {"x": ["batch", "words", 5]},
            S=np.array([1, 8, 5]),
            W=floats(5, 2),
        ),
        {},
        [[1, 8, 5]],
    ),
    "a batch that a reshape flattens": (
        model(
            [node("Reshape", "x S", "r"), node("MatMul", "r W", "Y")],
            {"x": ["batch", 4, 4]},
            S=np.array([-1, 16]),
            W=floats(16, 2),
        ),
        {},
        [[2, 4, 4]],
    ),
    "an unknown rank": (model([node("Conv", "x F", "Y")], {"x": None}, F=floats(2, 3, 1, 1)), {}, [[2, 3, 3, 4]]),
    "a scalar": (
        model(
            [node("Unsqueeze", "x A", "u"), node("MatMul", "u W", "Y")], {"x": None}, A=np.array([0]), W=floats(1, 2)
        ),
        {},
        [[2, 1]],
    ),
}


def session(proto: onnx.ModelProto) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(proto.SerializeToString(), options)


@pytest.mark.parametrize("case", CASES)
def test_sizes_at_which_a_model_runs(case: str) -> None:
    proto, _, shapes = CASES[case]
    opened = session(proto)
    kinds, results = fitting(ir.from_proto(proto), lambda arrays: opened.run(None, arrays))
    assert [list(kind.shape or ()) for kind in kinds.values()] == shapes
    assert len(results) == 1


@pytest.mark.parametrize("case", CASES)
def test_sizes_that_the_graph_requires(case: str) -> None:
    proto, sizes, _ = CASES[case]
    made = ir.from_proto(proto)
    for value in made.graph.inputs:
        if value.shape is not None:
            named = [
                f"{value.name}[{i}]" if size == ir.SymbolicDim(None) else size for i, size in enumerate(value.shape)
            ]
            value.shape = ir.Shape(named)
    before = ir.to_proto(made).SerializeToString()
    assert required(made) == sizes
    assert ir.to_proto(made).SerializeToString() == before


def test_what_an_error_tells() -> None:
    proto = model([node("Reshape", "x SHAPE", "Y")], {"x": ["n", 4], "SHAPE": [2]})
    opened = session(proto)
    message = (
        r"^the model does not run on random inputs, which it gets where there are no others \(x float32\[2, 4\], SHAPE "
        r"int64\[2\], nor of \d+ other sizes\): give inputs of yours, inputs=\.\.\. or --input, of x float\[n, 4\], "
        r"SHAPE int64\[2\]\. ONNX Runtime says: .*Reshape"
    )
    with pytest.raises(UnfitError, match=message):
        fitting(ir.from_proto(proto), lambda arrays: opened.run(None, arrays))


def test_sizes_that_are_too_large_are_not_tried() -> None:
    """Six symbolic sizes of 512 each would take more memory than there is."""
    proto = model([node("Reshape", "x SHAPE", "Y")], {"x": ["a", "b", "c", "d", "e", "f"], "SHAPE": [1]})
    tried: list[int] = []

    def runs(arrays: dict[str, np.ndarray]) -> None:
        tried.append(arrays["x"].size)
        raise RuntimeError("no")

    with pytest.raises(UnfitError, match="ONNX Runtime says: no"):
        fitting(ir.from_proto(proto), runs)
    assert len(tried) > 3
    assert max(tried) <= 2**25


def test_a_file_that_fits_is_verified(tmp_path: Path) -> None:
    """The sizes 2, 3, ... would not do."""
    content = [node("Add", "x P", "sum"), node("MatMul", "sum W", "z"), node("Add", "z B", "Y")]
    proto = model(content, {"x": ["batch", "words", "n"]}, P=floats(1, 9, 6), W=W, B=floats(4))
    onnx.save(proto, tmp_path / "s.onnx")
    rewrite(tmp_path / "s.onnx", tmp_path / "y.onnx", OpticalProfile(noise_additive=0.1))
    report = verify(tmp_path / "y.onnx")
    assert report.ok
    assert report.inputs == {"x": (2, 9, 6)}
    x = floats(2, 9, 6)
    assert lumina_onnx.load(tmp_path / "y.onnx").run(None, {"x": x})[0].shape == (2, 9, 4)
