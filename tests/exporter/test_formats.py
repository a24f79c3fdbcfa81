"""The IR version of a rewritten file: the oldest ONNX Runtime reads it, unless something in it needs a newer one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from lumina_onnx.exporter import rewrite, targets
from lumina_onnx.profile import OpticalProfile


def write(path: Path, opset: int, ir_version: int, *others: onnx.NodeProto, **parts: Any) -> Path:
    """Writes a file with a layer and other nodes beside it."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["X", "W"], ["Y"]), *others],
        "graph",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "W"), *parts.pop("stored", [])],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, **parts), path)
    return path


@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize(
    ("opset", "before", "after"), [(20, 10, 9), (20, 13, 9), (19, 10, 9), (20, 9, 9), (21, 10, 10), (21, 11, 11)]
)
def test_the_format_of_a_file(tmp_path: Path, opset: int, before: int, after: int, fallback: bool) -> None:
    source = write(tmp_path / "source.onnx", opset, before)
    report = rewrite(source, tmp_path / "out.onnx", OpticalProfile(), fallback=fallback)
    assert (report.opset, report.ir_version) == (opset, after)
    assert onnx.load(tmp_path / "out.onnx").ir_version == after


def test_a_raised_file(tmp_path: Path) -> None:
    report = rewrite(write(tmp_path / "source.onnx", 17, 10), tmp_path / "out.onnx", OpticalProfile())
    assert (report.opset, report.ir_version) == (20, 9)


def test_what_torch_exports_by_itself_loads_in_the_oldest_release(tmp_path: Path) -> None:
    source = tmp_path / "source.onnx"
    torch.onnx.export(nn.Sequential(nn.Linear(4, 3)).eval(), (torch.zeros(2, 4),), source, dynamo=True, verbose=False)
    report = rewrite(source, tmp_path / "out.onnx", OpticalProfile())
    oldest = targets.TARGETS["1.17"]
    assert (report.opset, report.ir_version) == (oldest.opset, oldest.ir_version)


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1])
@pytest.mark.parametrize("nested", [False, True])
def test_types_that_the_older_format_has_not(tmp_path: Path, kind: int, nested: bool) -> None:
    tensor = helper.make_tensor("small", kind, [2], b"\x12", raw=True)
    node = helper.make_node("Own", ["small"], ["out"], domain="own")
    stored = [tensor]
    if nested:
        info = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
        branch = helper.make_graph([node], "branch", [], [info], [tensor])
        stored = [numpy_helper.from_array(np.array(True), "yes")]
        node = helper.make_node("If", ["yes"], ["outer"], then_branch=branch, else_branch=branch)
    source = write(tmp_path / "source.onnx", 20, 11, node, stored=stored)
    # It keeps what is used alone.
    model = onnx.load(source)
    model.graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None))
    onnx.save(model, source)
    assert rewrite(source, tmp_path / "out.onnx", OpticalProfile(), fallback=False).ir_version == 11


def test_functions_of_one_name(tmp_path: Path) -> None:
    functions = []
    for overload in ("a", "b"):
        body = [helper.make_node("Neg", ["x"], ["y"])]
        functions.append(helper.make_function("own", "F", ["x"], ["y"], body, [helper.make_opsetid("", 20)]))
        functions[-1].overload = overload
    node = helper.make_node("F", ["X"], ["out"], domain="own", overload="b")
    source = write(tmp_path / "source.onnx", 20, 10, node, functions=functions)
    model = onnx.load(source)
    model.graph.output.append(helper.make_tensor_value_info("out", TensorProto.FLOAT, None))
    onnx.save(model, source)
    assert rewrite(source, tmp_path / "out.onnx", OpticalProfile(), fallback=False).ir_version == 10
