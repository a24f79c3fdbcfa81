"""Every refusal, checked by its message."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from lumina_onnx import nn as optical
from lumina_onnx.exporter import ExportError, export, inspect, targets, verify
from lumina_onnx.nn import functional
from lumina_onnx.profile import OpticalProfile


@pytest.fixture
def model(noisy: OpticalProfile) -> nn.Module:
    return optical.convert(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), noisy)


X = torch.zeros(2, 4)


def refused(error: type[Exception], message: str) -> Any:
    return pytest.raises(error, match=re.escape(message))


def test_a_model_that_was_not_converted(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    message = "model has no OpticalLinear: call lumina_onnx.nn.convert(model, profile) first (it holds 2 linear layers)"
    with refused(ValueError, message):
        export(plain, X, tmp_path / "model.onnx")

    class Own(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    with refused(ValueError, "first (of linear layers it holds what convert leaves: 0: Own has a forward of its own)"):
        export(nn.Sequential(Own(4, 4)), X, tmp_path / "model.onnx")
    with refused(ValueError, "first (it holds no linear layer either)"):
        export(nn.ReLU(), X, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_calls_none_of_its_layers(tmp_path: Path, model: nn.Module) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.inner[0].weight  # type: ignore[index]

    with refused(ValueError, "it holds 2 OpticalLinear modules, but its forward calls none of them"):
        export(Around(), X, tmp_path / "model.onnx")


def test_what_is_no_module(tmp_path: Path) -> None:
    with refused(TypeError, "model is a str; allowed is a torch.nn.Module"):
        export("model.pt", X, tmp_path / "model.onnx")  # type: ignore[arg-type]


def test_noise(tmp_path: Path, model: nn.Module) -> None:
    with refused(ValueError, 'noise = \'on\': allowed is "keep", "off"'):
        export(model, X, tmp_path / "model.onnx", noise="on")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "target", ["1.16", "1.9", "2", "2.0", "1", "1.", "1.x", "1.17rc1", " 1.17", "newest", "", 1.17, None]
)
def test_target(tmp_path: Path, model: nn.Module, target: Any) -> None:
    message = (
        f'target = {target!r}: allowed is the oldest ONNX Runtime release that the file must load in, "1.17" or newer'
    )
    with refused(ValueError, message):
        export(model, X, tmp_path / "model.onnx", target=target)


def test_paths(tmp_path: Path, model: nn.Module) -> None:
    with refused(IsADirectoryError, f"path = {str(tmp_path)!r} is a folder; allowed is the name of a file, *.onnx"):
        export(model, X, tmp_path)
    path = tmp_path / "model.pt"
    with refused(ValueError, f"path = {str(path)!r}: allowed is a name that ends in .onnx"):
        export(model, X, path)
    path = tmp_path / "missing" / "model.onnx"
    with refused(FileNotFoundError, f"path = {str(path)!r}: the folder {str(path.parent)!r} does not exist"):
        export(model, X, path)


def test_batches_of_different_sizes(tmp_path: Path, noisy: OpticalProfile) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return self.layer(x) + shift

    model = optical.convert(Sum(), noisy)
    message = (
        "args: dimension 0 of the inputs has sizes [2, 4], and dynamic_batch = True makes it one batch; allowed are "
        "equal sizes, dynamic_batch=False, or dynamic_shapes"
    )
    with refused(ValueError, message):
        export(model, (X, torch.zeros(4)), tmp_path / "model.onnx")
    export(model, (X, torch.zeros(4)), tmp_path / "model.onnx", dynamic_batch=False)


def test_a_forward_that_fixes_the_batch(tmp_path: Path, noisy: OpticalProfile) -> None:
    message = "dynamic_batch = True: forward works only where dimension 0 of input 'input' is 4; allowed are"
    with refused(ValueError, message):
        export(optical.convert(nn.Linear(4, 2), noisy), torch.zeros(4), tmp_path / "model.onnx")


def test_a_forward_that_fixes_a_dimension_that_was_to_be_dynamic(tmp_path: Path, noisy: OpticalProfile) -> None:
    model = optical.convert(nn.Linear(4, 2), noisy)
    shapes = ({0: torch.export.Dim("rows"), 1: torch.export.Dim("columns")},)
    message = (
        "dynamic_shapes names 2 dimensions, but forward works with 1 dynamic ones alone: input [rows, 4]; allowed are"
    )
    with refused(ValueError, message):
        export(model, X, tmp_path / "model.onnx", dynamic_shapes=shapes)
    assert list(tmp_path.iterdir()) == []


def test_a_forward_that_torch_cannot_capture(tmp_path: Path, model: nn.Module) -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if x.sum() > 0 else x

    outer = Branch().train()
    with refused(ExportError, "torch.onnx.export cannot capture Branch.forward") as caught:
        export(outer, X, tmp_path / "model.onnx")
    assert "data-dependent" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert caught.value.__cause__ is not None
    assert outer.training
    assert all(module.training for module in outer.modules())
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_depends_on_the_input(tmp_path: Path, noisy: OpticalProfile) -> None:
    class Hyper(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.optical_linear(x, x.t() @ x, None, noisy)

    with refused(ValueError, "optical_linear: its weight is computed from the model's inputs; allowed is a parameter"):
        export(Hyper(), X, tmp_path / "model.onnx")


@pytest.mark.parametrize(("name", "at"), [("weight", "[1, 2]"), ("bias", "[1]")])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite(tmp_path: Path, model: nn.Module, name: str, at: str, bad: float) -> None:
    with torch.no_grad():
        parameter = getattr(model[2], name)  # type: ignore[index]
        parameter[(1, 2) if name == "weight" else 1] = bad
    with refused(ValueError, f"2: {name}{at} = {bad}; allowed is a finite number"):
        export(model, X, tmp_path / "model.onnx")


def test_what_a_session_would_refuse(tmp_path: Path) -> None:
    class Function(nn.Module):
        def __init__(self, k: int, profile: OpticalProfile) -> None:
            super().__init__()
            self.weight, self.profile = nn.Parameter(torch.ones(2, k)), profile

        def forward(self, x: Tensor) -> Tensor:
            return functional.optical_linear(x, self.weight, None, self.profile)

    three = OpticalProfile(output_range=(1.0, 2.0, 3.0))
    with refused(ValueError, "optical_linear: output_range has 3 elements: allowed is 1, or one for each of the N = 2"):
        export(Function(4, three), X, tmp_path / "model.onnx")
    with refused(ValueError, "optical_linear: K (columns of weight) = 131073: allowed is at most 131072 where"):
        export(Function(131073, OpticalProfile()), torch.zeros(2, 131073), tmp_path / "model.onnx")


def test_a_failed_export_leaves_the_old_file(tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "model.onnx"
    export(model, X, path)
    before = path.read_bytes()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")  # type: ignore[index]
    with pytest.raises(ValueError, match="allowed is a finite number"):
        export(model, X, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("function", [inspect, verify])
def test_files_that_cannot_be_read(tmp_path: Path, function: Any) -> None:
    path = tmp_path / "model.onnx"
    with refused(FileNotFoundError, f"path = {str(path)!r}: there is no such file"):
        function(path)
    path.write_bytes(b"no model at all")
    with refused(ValueError, f"path = {str(path)!r}: not a readable ONNX model"):
        function(path)


def test_inputs_of_verify(tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "model.onnx"
    export(model, X, path)
    x = np.zeros((2, 4), np.float32)
    with refused(ValueError, "inputs has 2 arrays; allowed are 1: input"):
        verify(path, inputs=[x, x])
    with refused(ValueError, "inputs has the names ['x']; allowed are ['input']"):
        verify(path, inputs={"x": x})
    with refused(ValueError, "inputs['input'] has dtype float64; allowed is float32"):
        verify(path, inputs={"input": x.astype(np.float64)})
    with refused(ValueError, "inputs['input'] has shape [2, 5]; allowed is [batch, 4]"):
        verify(path, inputs=np.zeros((2, 5), np.float32))  # type: ignore[arg-type]


def test_a_reference_with_other_outputs(tmp_path: Path, model: nn.Module) -> None:
    class Two(nn.Module):
        def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
            return input, input

    path = tmp_path / "model.onnx"
    export(model, X, path)
    message = "reference: Two.forward returns 2 tensors, and the file has 1 outputs, 'output'; allowed is the model"
    with refused(ValueError, message):
        verify(path, reference=Two())


def test_targets_are_releases_in_order() -> None:
    versions = [tuple(map(int, name.split("."))) for name in targets.TARGETS]
    assert versions == sorted(versions)
    assert versions[0] == (1, 17)
    assert targets.resolve("1.17.3") == targets.resolve("1.17") == targets.Target("1.17", 20, 9)


@pytest.mark.parametrize("target", ["1.33", "1.33.1", "1.100"])
def test_a_release_after_the_newest_known_takes_what_that_reads(tmp_path: Path, model: nn.Module, target: str) -> None:
    newest = list(targets.TARGETS.values())[-1]
    report = export(model, X, tmp_path / "model.onnx", target=target)
    assert report.target == ".".join(target.split(".")[:2])
    assert (report.opset, report.ir_version) == newest[1:]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (X.double(), "TypeError: x is torch.float64: allowed is torch.float32; convert it with .float()"),
        (X.half(), "TypeError: x is torch.float16: allowed is torch.float32"),
        (X[:, :3], "ValueError: x has shape [2, 3]: allowed is [..., 4], as weight has 4 columns"),
        ((X, X), "TypeError: "),
        ((X, {"other": X}), "TypeError: "),
    ],
)
def test_args_that_forward_does_not_take(tmp_path: Path, model: nn.Module, args: Any, message: str) -> None:
    before = torch.get_rng_state()
    with refused(ExportError, f"{type(model).__name__}.forward fails on args: {message}"):
        export(model, args, tmp_path / "model.onnx")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("args", [None, {"input": X}, X.numpy(), "x"])
def test_args_that_are_neither_tensor_nor_sequence(model: nn.Module, tmp_path: Path, args: Any) -> None:
    with refused(TypeError, f"args is a {type(args).__name__}; allowed is a torch.Tensor, or a tuple or list of"):
        export(model, args, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def written(path: Path, weight: onnx.TensorProto, *attributes: onnx.AttributeProto) -> Path:
    """A file of one node with this W."""
    node = onnx.helper.make_node("OpticalLinear", ["X", "W", "W_scale"], ["Y"], domain="lumina")
    node.attribute.extend(attributes)
    scale = onnx.numpy_helper.from_array(np.ones(2, np.float32), "W_scale")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "XY"]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [weight, scale])
    onnx.save(onnx.helper.make_model(graph), path)
    return path


W = onnx.numpy_helper.from_array(np.ones((2, 4), np.float32), "W")


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        (onnx.helper.make_attribute("output_range", 1.0), "node 'Y': attribute output_range is not of type FLOATS"),
        (onnx.helper.make_attribute("seed", [1, 2]), "node 'Y': attribute seed is not of type INT"),
        (onnx.helper.make_attribute("op_version", 1.0), "node 'Y': attribute op_version is not of type INT"),
        (onnx.AttributeProto(name="bias_stage"), "node 'Y': attribute bias_stage is not of type STRING"),
    ],
)
@pytest.mark.parametrize("function", [inspect, verify])
def test_attributes_of_another_type(tmp_path: Path, function: Any, attribute: Any, message: str) -> None:
    with refused(ValueError, message):
        function(written(tmp_path / "model.onnx", W, attribute))


def test_a_weight_of_a_type_that_onnx_lacks(tmp_path: Path) -> None:
    strange = onnx.TensorProto(name="W", dims=[2, 4], data_type=999)
    with refused(ValueError, "tensor 'W' has data type 999, which onnx does not know"):
        inspect(written(tmp_path / "model.onnx", strange))


def test_what_no_layer_can_be_is_still_shown(tmp_path: Path) -> None:
    scalar = onnx.numpy_helper.from_array(np.float32(1), "W")
    ranges = onnx.AttributeProto(name="output_range", type=onnx.AttributeProto.FLOATS)
    report = inspect(written(tmp_path / "model.onnx", scalar, ranges))
    (layer,) = report.layers
    assert (layer.in_features, layer.out_features, layer.output_range) == (0, 0, ())
    assert "none" in str(report)
