"""A model from start to finish: trained with the noise in the loop, calibrated, exported, run in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import lumina_onnx
from lumina_onnx import nn as optical
from lumina_onnx.exporter import export, inspect, verify
from lumina_onnx.profile import OpticalProfile


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images.astype(np.float32) / 16, labels, test_size=0.25, random_state=0, stratify=labels)
    train_x, test_x, train_y, test_y = (torch.from_numpy(part) for part in split)
    return train_x, train_y, test_x, test_y


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(-1) == labels).double().mean().item()


@pytest.mark.parametrize("bits", [8, 4])
def test_digits_from_training_to_onnx_runtime(
    digits: tuple[Tensor, Tensor, Tensor, Tensor], bits: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    train_x, train_y, test_x, test_y = digits
    profile = OpticalProfile(weight_bits=bits, noise_additive=0.05)
    model = optical.convert(nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)), profile)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(15):
        for batch in torch.randperm(len(train_x)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(train_x[batch]), train_y[batch]).backward()
            optimizer.step()
    optical.calibrate(model, [train_x])
    model.eval()

    path = tmp_path / "digits.onnx"
    report = export(model, test_x[:1], path)
    assert [layer.weight_bits for layer in report.layers] == [bits, bits]
    assert all(layer.input_range > 0 and layer.output_range[0] > 0 for layer in inspect(path).layers)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert path.stat().st_size - report.body_bytes < parameters * bits / 8 + 4096

    session = lumina_onnx.load(path)
    for stream in range(3):
        (got,) = session.run(None, {"input": test_x.numpy()})
        with torch.no_grad(), optical.noise(model, True, stream=stream):
            expected = model(test_x)
        np.testing.assert_array_equal(got.view(np.uint32), expected.numpy().view(np.uint32))
        assert accuracy(torch.from_numpy(got), test_y) > 0.9
    with torch.no_grad(), optical.noise(model, True, stream=0), pytest.raises(AssertionError):
        # The noise is really on: another stream gives different bits.
        np.testing.assert_array_equal(got, model(test_x).numpy())
    assert verify(path, inputs=test_x[:64], reference=model).ok  # type: ignore[arg-type]

    silent = tmp_path / "silent.onnx"
    export(model, test_x[:1], silent, noise="off")
    (got,) = lumina_onnx.load(silent).run(None, {"input": test_x.numpy()})
    with torch.no_grad(), optical.noise(model):
        np.testing.assert_array_equal(got.view(np.uint32), model(test_x).numpy().view(np.uint32))
