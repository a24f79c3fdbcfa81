"""A small noisy model, and the command as users start it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from lumina_onnx import OpticalProfile, exporter
from lumina_onnx import nn as optical
from lumina_onnx.cli import app

Lumina = Callable[..., Result]
Process = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model [batch, 6] -> [batch, 3] of two 4-bit layers with noise."""
    torch.manual_seed(0)
    net = optical.convert(
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), OpticalProfile(4, 4, 4, noise_additive=0.1)
    )
    path = tmp_path_factory.mktemp("cli") / "small.onnx"
    exporter.export(net, (torch.zeros(2, 6),), path)
    return path


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer(left), self.layer(left + right)


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with two inputs [batch, 4] and two outputs [batch, 2]."""
    path = tmp_path_factory.mktemp("cli") / "two.onnx"
    net = optical.convert(_Two(), OpticalProfile())
    exporter.export(net, (torch.zeros(2, 4), torch.zeros(2, 4)), path)
    return path


@pytest.fixture
def lumina() -> Lumina:
    """Runs the command in this process."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def process(tmp_path: Path) -> Process:
    """Runs the command in a process and a folder of its own; `hide` names packages that it cannot import."""

    def run(*arguments: object, hide: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
        script = (
            f"import sys\nfor name in {hide!r}: sys.modules[name] = None\nfrom lumina_onnx.cli import main\nmain()\n"
        )
        return subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, **environment},
        )

    return run
