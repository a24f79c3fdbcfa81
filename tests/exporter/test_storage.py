"""How weights are stored in the file for all bits, ranges and stages, and what stays beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import lumina_onnx
from lumina_onnx import nn as optical
from lumina_onnx import reference
from lumina_onnx.exporter import Layer, files, inspect, verify
from lumina_onnx.profile import OpticalProfile


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("bias", [True, False])
def test_weights_at_every_number_of_bits(prover: Any, bias: bool) -> None:
    """One model with a layer of each number of bits, one after another."""
    layers = nn.ModuleList(
        optical.OpticalLinear(13, 13, bias, profile=OpticalProfile(weight_bits=bits, noise_relative=0.1))
        for bits in range(17)
    )
    report = prover.export(nn.Sequential(*layers), torch.randn(2, 13))
    assert [layer.weight_bits for layer in report.layers] == list(range(17))
    for layer, module in zip(report.layers, layers, strict=True):
        check_storage(prover.path, layer, module)  # type: ignore[arg-type]
    assert len(initializers(prover.path)) == 17 * (3 if bias else 2)
    prover.equal(nn.Sequential(*layers), torch.randn(3, 13))


def check_storage(path: Path, layer: Layer, module: optical.OpticalLinear) -> None:
    bits = layer.weight_bits
    weight = module.weight.detach().numpy()
    (node,) = (node for node in onnx.load(path).graph.node if node.name == layer.name)
    tensors: Any = [initializers(path)[name] for name in node.input[1:]]
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if bits == 0:
        np.testing.assert_array_equal(tensors[0], weight)
        np.testing.assert_array_equal(tensors[1], np.ones(13, np.float32))
    else:
        codes, scale = reference.quantize_weight(weight, bits)
        np.testing.assert_array_equal(tensors[1].view(np.uint32), scale.view(np.uint32))
        if bits in (1, 2, 4):
            assert tensors[0].dtype == np.uint8
            np.testing.assert_array_equal(tensors[0], reference.pack_weight(codes, bits))  # type: ignore[arg-type]
        else:
            assert tensors[0].dtype == (np.int8 if bits <= 8 else np.float32)
            np.testing.assert_array_equal(tensors[0], codes if bits <= 8 else weight)
    assert attributes.get("in_features") == (13 if bits in (1, 2, 4) else None)
    assert len(tensors) == (2 if module.bias is None else 3)
    if module.bias is not None:
        np.testing.assert_array_equal(tensors[2], module.bias.detach().numpy())
    assert (layer.float_bytes, layer.stored_bytes) == (13 * 13 * 4, tensors[0].nbytes + 13 * 4)


@pytest.mark.parametrize(
    "profile",
    [
        OpticalProfile(input_bits=0, output_bits=0, weight_bits=0),
        OpticalProfile(input_bits=16, output_bits=16, weight_bits=16, noise_shot=0.01),
        OpticalProfile(input_range=1.5, output_range=2.5, noise_additive=0.1),
        OpticalProfile(output_range=(1.0, 2.0, 3.0, 4.0, 0.5), noise_additive=0.1, noise_shot=0.02, noise_relative=0.3),
        OpticalProfile(output_bits=0, output_range=3.0, noise_additive=0.1),
        OpticalProfile(bias_stage="digital", weight_bits=1, noise_relative=0.2),
    ],
    ids=lambda profile: f"{profile.input_bits}/{profile.weight_bits}/{profile.output_bits}/{profile.bias_stage}",
)
def test_ranges_stages_and_laws(prover: Any, profile: OpticalProfile) -> None:
    model = optical.convert(nn.Linear(13, 5), profile, seed=4)
    (layer,) = prover.export(model, torch.randn(2, 13)).layers
    ranges = profile.output_range if isinstance(profile.output_range, tuple) else (profile.output_range,)
    assert layer.output_range == ranges
    for name in ("input_bits", "weight_bits", "output_bits", "input_range"):
        assert getattr(layer, name) == getattr(profile, name)
    for name in ("noise_relative", "noise_additive", "noise_shot"):
        assert getattr(layer, name) == np.float32(getattr(profile, name))
    assert (layer.bias, layer.seed) == (profile.bias_stage, model.seed)
    prover.equal(model, torch.randn(3, 13))


def test_ranges_from_a_calibration(prover: Any) -> None:
    model: Any = optical.convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), OpticalProfile())
    optical.calibrate(model, [torch.randn(32, 6)])
    report = prover.export(model, torch.randn(2, 6))
    assert [layer.input_range for layer in report.layers] == [
        pytest.approx(module.profile.input_range) for module in (model[0], model[2])
    ]
    assert all(layer.input_range > 0 and layer.output_range[0] > 0 for layer in report.layers)
    prover.equal(model, torch.randn(3, 6))


@pytest.mark.parametrize(("bits", "fraction"), [(8, 1 / 4), (4, 1 / 8), (2, 1 / 16), (1, 1 / 32)])
def test_the_file_is_about_as_large_as_its_codes(prover: Any, bits: int, fraction: float) -> None:
    model = optical.convert(
        nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)), OpticalProfile(weight_bits=bits)
    )
    with_body = prover.export(model, torch.randn(2, 512))
    assert 0 < with_body.body_bytes < 8192
    report = prover.export(model, torch.randn(2, 512), fallback=False)
    assert report.body_bytes == 0
    assert with_body.file_bytes - report.file_bytes - with_body.body_bytes < 16
    codes = 2 * 512 * 512 * 4 * fraction
    scales_and_biases = 2 * 2 * 512 * 4
    assert report.file_bytes == prover.path.stat().st_size
    assert codes + scales_and_biases < report.file_bytes < codes + scales_and_biases + 4096


def test_a_weight_that_something_else_reads_stays_as_float32_too(prover: Any) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 6)
            self.head = nn.Linear(6, 10, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.embedding(tokens))

    model = optical.convert(Tied(), OpticalProfile())
    prover.export(model, torch.zeros(2, 3, dtype=torch.int64))
    dtypes = sorted(str(array.dtype) for array in initializers(prover.path).values() if array.ndim == 2)
    assert dtypes == ["float32", "int8"]
    tokens = torch.randint(0, 10, (4, 3))
    assert verify(prover.path, inputs=tokens, reference=model).ok  # type: ignore[arg-type]
    assert verify(prover.path, reference=model).ok


def test_weights_too_large_for_one_file_lie_beside_it(prover: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MAXIMUM_PROTOBUF", 10_000)
    model = optical.convert(nn.Linear(128, 128), OpticalProfile(weight_bits=8, noise_relative=0.1))
    report = prover.export(model, torch.randn(2, 128))
    data = prover.path.with_name("model.onnx.data")
    assert data.stat().st_size >= 128 * 128
    assert prover.path.stat().st_size < report.body_bytes + 4096
    assert report.file_bytes == prover.path.stat().st_size + data.stat().st_size
    assert inspect(prover.path).file_bytes == report.file_bytes
    assert report.notes == ["weights of 0.00 GiB do not fit into one .onnx file: keep model.onnx.data beside it"]
    prover.equal(model, torch.randn(3, 128))


def test_metadata_says_who_made_the_file_and_nothing_about_the_machine(prover: Any) -> None:
    hardware = OpticalProfile(weight_bits=4, noise_relative=0.5)
    model = optical.convert(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)), hardware)
    prover.export(model, torch.randn(2, 6))
    proto = onnx.load(prover.path)
    assert (proto.producer_name, proto.producer_version) == ("lumina_onnx", lumina_onnx.__version__)
    assert proto.graph.name == "Sequential"
    metadata = inspect(prover.path).metadata
    assert metadata["lumina.version"] == lumina_onnx.__version__
    assert metadata["lumina.operator"] == "lumina::OpticalLinear version 1"
    (text,) = (value for key, value in metadata.items() if key.startswith("lumina.profile."))
    assert json.loads(text) == {
        "input_bits": 8,
        "weight_bits": 4,
        "output_bits": 8,
        "noise_relative": 0.5,
        "noise_additive": 0.0,
        "noise_shot": 0.0,
        "bias_stage": "analog",
        "layers": ["0", "1"],
    }
    assert not re.search(rb"\.py|site-packages|/home|forward", prover.path.read_bytes())


def test_two_exports_are_the_same_bytes(prover: Any, noisy: OpticalProfile) -> None:
    model = optical.convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), noisy)
    prover.export(model, torch.randn(2, 6))
    first = prover.path.read_bytes()
    prover.export(model, torch.randn(5, 6))
    assert prover.path.read_bytes() == first
