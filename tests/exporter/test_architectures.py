"""Models of every shape: the file computes what torch computes, bit for bit, noise on."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import lumina_onnx
from lumina_onnx import nn as optical
from lumina_onnx.exporter import inspect, verify
from lumina_onnx.nn import functional
from lumina_onnx.profile import OpticalProfile


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 5))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3))
        self.head = nn.ModuleDict({"a": nn.Linear(6, 2), "b": nn.Linear(6, 3, bias=False)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for block in self.blocks:
            x = x + block(x)
        return {name: head(x) for name, head in self.head.items()}


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(x) + self.right(y), torch.relu(self.right(y))


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_mlp_with_a_dynamic_batch(prover: Any, noisy: OpticalProfile, batch: int) -> None:
    model = optical.convert(mlp(), noisy)
    prover.export(model, torch.randn(3, 9))
    prover.equal(model, torch.randn(batch, 9))


@pytest.mark.parametrize("example", [0, 1, 2])
def test_an_example_batch_of_any_size_gives_a_dynamic_one(prover: Any, noisy: OpticalProfile, example: int) -> None:
    model = optical.convert(mlp(), noisy)
    prover.export(model, torch.randn(example, 9))
    assert inspect(prover.path).inputs == {"input": "float[batch, 9]"}
    assert inspect(prover.path).outputs == {"output": "float[batch, 5]"}
    prover.equal(model, torch.randn(4, 9))


def test_inputs_of_three_dimensions(prover: Any, noisy: OpticalProfile) -> None:
    model = optical.convert(mlp(), noisy)
    prover.export(model, torch.randn(2, 3, 9))
    prover.equal(model, torch.randn(5, 3, 9))


def test_one_row_without_a_batch(prover: Any, noisy: OpticalProfile) -> None:
    model = optical.convert(nn.Linear(9, 4), noisy)
    prover.export(model, torch.randn(9), dynamic_batch=False)
    assert inspect(prover.path).inputs == {"input": "float[9]"}
    prover.equal(model, torch.randn(9))


def test_dynamic_shapes_of_the_callers_own(prover: Any, noisy: OpticalProfile) -> None:
    model = optical.convert(mlp(), noisy)
    shapes = ({0: torch.export.Dim("rows"), 1: torch.export.Dim("steps")},)
    prover.export(model, torch.randn(2, 3, 9), dynamic_shapes=shapes)
    assert inspect(prover.path).inputs == {"input": "float[rows, steps, 9]"}
    prover.equal(model, torch.randn(4, 5, 9))


def test_residual_blocks_in_containers(prover: Any, noisy: OpticalProfile) -> None:
    model = optical.convert(Residual(), noisy)
    report = prover.export(model, torch.randn(2, 6))
    assert [layer.name for layer in report.layers] == ["blocks.0.0", "blocks.1.0", "blocks.2.0", "head.a", "head.b"]
    assert [layer.bias for layer in report.layers] == ["analog"] * 4 + [""]
    modules = dict(model.named_modules())
    assert [layer.seed for layer in report.layers] == [modules[layer.name].seed for layer in report.layers]
    assert report.left == []
    prover.equal(model, torch.randn(3, 6))


def test_two_inputs_and_two_outputs(prover: Any, noisy: OpticalProfile) -> None:
    model = optical.convert(TwoInputs(), OpticalProfile(output_bits=0))
    prover.export(model, (torch.randn(2, 4), torch.randn(2, 5)))
    found = inspect(prover.path)
    assert found.inputs == {"x": "float[batch, 4]", "y": "float[batch, 5]"}
    assert list(found.outputs) == ["output_0", "output_1"]
    prover.equal(model, torch.randn(3, 4), torch.randn(3, 5))


def test_keyword_arguments(prover: Any, noisy: OpticalProfile) -> None:
    model = optical.convert(TwoInputs(), OpticalProfile(output_bits=0))
    prover.export(model, (torch.randn(2, 4), {"y": torch.randn(2, 5)}))
    assert inspect(prover.path).inputs == {"x": "float[batch, 4]", "y": "float[batch, 5]"}
    prover.equal(model, torch.randn(3, 4), torch.randn(3, 5))


def test_shared_weights_are_stored_once(prover: Any, noisy: OpticalProfile) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 6, bias=False))
    model[2].weight = model[0].weight
    model = optical.convert(model, noisy, overrides={"3": dataclasses.replace(noisy, weight_bits=2)})
    model[3].weight = model[0].weight
    report = prover.export(model, torch.randn(2, 6))
    assert [layer.shared_with for layer in report.layers] == ["", "0", ""]
    codes = [
        tensor for tensor in onnx.load(prover.path).graph.initializer if tensor.data_type == onnx.TensorProto.UINT8
    ]
    assert sorted(tuple(tensor.dims) for tensor in codes) == [(6, 2), (6, 3)]
    assert report.stored_bytes == 6 * 3 + 6 * 2 + 2 * 6 * 4
    prover.equal(model, torch.randn(3, 6))


class Twice(nn.Module):
    """One module called twice on one input: equal weights, separate noise."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), self.layer(x)


def test_two_calls_of_one_module_do_not_share_noise(prover: Any, noisy: OpticalProfile) -> None:
    model = optical.convert(Twice(), noisy)
    report = prover.export(model, torch.randn(2, 64))
    first, second = report.layers
    assert (first.name, second.name, second.shared_with) == ("layer", "layer_2", "layer")
    assert first.seed == model.layer.seed != second.seed
    assert report.notes == [
        f"layer_2 has the noise seed of layer ({first.seed}); in the file its seed is {second.seed}, so that the two "
        "do not share their noise"
    ]
    a, b = lumina_onnx.load(prover.path).run(None, {"x": np.ones((1, 64), np.float32)})
    assert (a != b).mean() > 0.5
    checked = verify(prover.path, reference=model)
    assert checked.ok
    assert checked.notes == []
    assert [row.required for row in checked.comparisons if row.against == "torch"] == [True] * 4
    assert model.layer.seed == first.seed
    # The comparison can fail, here with other weights.
    with torch.no_grad():
        model.layer.weight.neg_()
    assert not verify(prover.path, reference=model).ok
    with torch.no_grad():
        model.layer.weight.neg_()
    prover.export(model, torch.randn(2, 64), noise="off")
    prover.equal(model, torch.randn(3, 64))


def test_copies_of_a_layer_do_not_share_noise(prover: Any, noisy: OpticalProfile) -> None:
    layer = optical.convert(nn.Linear(64, 64), noisy)
    model = nn.Sequential(layer, copy.deepcopy(layer), nn.ReLU(), copy.deepcopy(layer))
    report = prover.export(model, torch.randn(2, 64))
    seeds = [layer.seed for layer in report.layers]
    assert len(set(seeds)) == 3
    assert len(report.notes) == 2
    checked = verify(prover.path, reference=model)
    assert checked.ok
    assert checked.notes == []
    assert all(row.equal and row.required for row in checked.comparisons if row.library)
    # Layers converted together have separate seeds from the start.
    model = optical.convert(model, noisy)
    report = prover.export(model, torch.randn(2, 64))
    assert report.notes == []
    prover.equal(model, torch.randn(3, 64))


def test_a_layer_whose_call_is_not_in_the_file(prover: Any, noisy: OpticalProfile) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = optical.convert(nn.Linear(8, 8), noisy)
            self.copy, self.unused = copy.deepcopy(self.layer), copy.deepcopy(self.layer)

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x)
            result: Tensor = self.copy(self.layer(x))
            return result

    model = Model()
    prover.export(model, torch.randn(2, 8))
    checked = verify(prover.path, reference=model)
    assert checked.ok
    assert checked.notes == []
    assert all(row.equal and row.required for row in checked.comparisons if row.library)


def test_the_function_on_computed_weights(prover: Any, noisy: OpticalProfile) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            y = functional.optical_linear(x, self.weight, self.bias, noisy, seed=11, stream=0)
            return functional.optical_linear(y, self.weight.t() * 2.0, None, noisy, seed=12, stream=0)

    model = Model()
    report = prover.export(model, torch.randn(2, 8))
    assert [(layer.in_features, layer.out_features, layer.seed) for layer in report.layers] == [(8, 6, 11), (6, 8, 12)]
    assert not any(tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2
                   for tensor in onnx.load(prover.path).graph.initializer)  # fmt: skip
    x = torch.randn(3, 8)
    (got,) = lumina_onnx.load(prover.path).run(None, {"x": x.numpy()})
    np.testing.assert_array_equal(got.view(np.uint32), model(x).detach().numpy().view(np.uint32))
    assert verify(prover.path).ok


def test_a_drawn_stream_leaves_no_trace_in_the_file(prover: Any, noisy: OpticalProfile) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 8))

        def forward(self, x: Tensor) -> Tensor:
            return functional.optical_linear(x, self.weight, None, noisy, seed=3)

    report = prover.export(Model(), torch.randn(2, 8))
    assert [layer.seed for layer in report.layers] == [3]
    assert report.other_operators == {}
    assert verify(prover.path).ok


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_transformer_encoder(prover: Any, noisy: OpticalProfile, activation: str) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation=activation)
    model = optical.convert(nn.TransformerEncoder(layer, 2), noisy)
    report = prover.export(model, torch.randn(2, 5, 16))
    attention = [f"self_attn.{each}_proj" for each in ("q", "k", "v", "out")]
    names = [f"layers.{index}.{name}" for index in range(2) for name in (*attention, "linear1", "linear2")]
    assert [layer.name for layer in report.layers] == names
    assert report.left == []
    checked = verify(prover.path, inputs=torch.randn(3, 5, 16), reference=model)  # type: ignore[arg-type]
    assert checked.ok, str(checked)
    assert [row.name for row in checked.comparisons if row.library and row.against == "reference"] == names * 2
    torchs = [row for row in checked.comparisons if row.against == "torch"]
    assert [row.required for row in torchs] == [False, False]
    assert all(row.max_difference < 0.5 for row in torchs)


class Left(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 3, 1)
        self.plain, self.optical = nn.Linear(8, 8), nn.Linear(8, 8)
        self.bypassed, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.optical(self.plain(self.conv(x)))
        return x @ self.bypassed.weight.t()


def test_what_is_left_is_reported_with_its_reason(prover: Any, noisy: OpticalProfile) -> None:
    model = optical.convert(Left(), noisy, skip="plain")
    left = {row.name: (row.kind, row.reason) for row in prover.export(model, torch.randn(2, 3, 8)).left}
    assert left.pop("plain") == ("MatMul", "skip 'plain'")
    assert left.pop("conv") == ("Conv", "no Linear")
    assert left.pop("bypassed") == ("OpticalLinear", "not in the file: the model's forward does not call it")
    assert left.pop("unused") == ("OpticalLinear", "not in the file: the model's forward does not call it")
    assert [kind for kind, _ in left.values()] == ["MatMul"]
    assert [reason for _, reason in left.values()] == ["a product with a constant that belongs to no Linear"]


@pytest.mark.filterwarnings("error")  # Overrides the settings: an export emits no warnings of its own.
def test_a_recurrent_layer_is_left_and_reported(prover: Any, noisy: OpticalProfile) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0])

    model = optical.convert(Recurrent(), noisy)
    report = prover.export(model, torch.randn(2, 3, 4))
    assert [(left.name, left.kind, left.reason) for left in report.left] == [("rnn", "LSTM", "no Linear")]
    assert verify(prover.path, reference=model).ok


def test_training_mode_and_weights_are_left_alone(prover: Any, noisy: OpticalProfile) -> None:
    model = optical.convert(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9), nn.Linear(4, 2)), noisy)
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prover.export(model, torch.randn(2, 4))
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    model.eval()
    prover.equal(model, torch.randn(3, 4))


def test_noise_that_a_block_switched_off_is_kept_in_the_file(prover: Any, noisy: OpticalProfile) -> None:
    model = optical.convert(mlp(), noisy)
    with optical.noise(model):
        report = prover.export(model, torch.randn(2, 9))
    assert [layer.noise for layer in report.layers] == ["additive 0.05"] * 2


def test_noise_off(prover: Any, noisy: OpticalProfile) -> None:
    model = optical.convert(mlp(), noisy)
    report = prover.export(model, torch.randn(2, 9), noise="off")
    assert [layer.noise for layer in report.layers] == ["none", "none"]
    assert report.notes == []
    prover.equal(model, torch.randn(4, 9))
    session = lumina_onnx.load(prover.path)
    x = {"input": np.ones((2, 9), np.float32)}
    np.testing.assert_array_equal(session.run(None, x)[0], session.run(None, x)[0])


def test_a_vmap_beside_the_layers(prover: Any, noisy: OpticalProfile) -> None:
    """As the transformers package makes its masks: what begins and ends a torch.vmap has no result that is read."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            places = torch.arange(x.shape[1])
            late = torch.vmap(torch.vmap(torch.lt, (None, 0)), (0, None))(places, places)
            return late.to(x.dtype) @ self.layer(x)

    model = optical.convert(Masked(), noisy)
    report = prover.export(model, torch.randn(2, 5, 8))
    assert [layer.name for layer in report.layers] == ["layer"]
    assert verify(prover.path, reference=model).ok
