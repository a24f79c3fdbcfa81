"""Shared by the exporter's tests: a helper that exports a model and proves that the file computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import lumina_onnx
from lumina_onnx import nn as optical
from lumina_onnx.exporter import ExportReport, export, verify
from lumina_onnx.profile import OpticalProfile


class Prover:
    """Exports models into one folder and compares the files' results with torch's."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model.onnx"

    def export(self, model: torch.nn.Module, args: Any, **options: Any) -> ExportReport:
        report = export(model, args, self.path, **options)
        onnx.checker.check_model(onnx.load(self.path), check_custom_domain=True, full_check=True)
        return report

    def equal(self, model: torch.nn.Module, *inputs: torch.Tensor) -> None:
        """Asserts that PyTorch, ONNX Runtime and the reference give the same bits in two runs, noise on."""
        noisy = any(layer.noise != "none" for layer in lumina_onnx.exporter.inspect(self.path).layers)
        session = lumina_onnx.load(self.path)
        feeds = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), inputs, strict=True)}
        for stream in range(2):
            with torch.no_grad(), optical.noise(model, noisy, stream=stream if noisy else None):
                expected = model(*inputs)
            got = session.run(None, feeds)
            for ours, torchs in zip(got, torch.utils._pytree.tree_leaves(expected), strict=True):
                np.testing.assert_array_equal(ours.view(np.uint32), torchs.numpy().view(np.uint32))
        report = verify(self.path, inputs=list(feeds.values()), reference=model)
        assert report.ok, str(report)
        assert all(row.equal and row.required for row in report.comparisons if row.library), str(report)
        assert any(not row.library for row in report.comparisons)


@pytest.fixture
def prover(tmp_path: Path) -> Prover:
    return Prover(tmp_path)


@pytest.fixture
def noisy() -> OpticalProfile:
    """8/4/8 bits with one law of noise."""
    return OpticalProfile(weight_bits=4, noise_additive=0.05)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
