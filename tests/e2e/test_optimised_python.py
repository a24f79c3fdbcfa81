"""`python -O`, which drops every assert, gives the same bits and the same errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from . import optimised_child


@pytest.fixture(scope="module")
def optimised(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [sys.executable, "-O", optimised_child.__file__, str(tmp_path_factory.mktemp("optimised"))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    assert found.pop("optimize") == 1
    return found


def test_bits_and_errors_are_those_of_any_python(optimised: dict[str, Any], tmp_path: Path) -> None:
    assert optimised["verified"]
    assert optimised["run"] == optimised["torch"]
    assert optimised == optimised_child.results(tmp_path)


def test_nothing_is_computed_from_memory_that_is_not_there(optimised: dict[str, Any]) -> None:
    shapes = {"x": [3, 6], "weight": [4, 6], "bias": [4], "grad": [3, 4]}
    for case, error in optimised["guards"].items():
        if case == "no weight, frozen":
            assert error == "TypeError: weight is NoneType: allowed is a torch.Tensor of float32 on the CPU"
            continue
        name = {"saved 0": "weight", "saved 1": "saved"}.get(case, case.split(",")[0])
        layer = "" if name in ("saved", "grad") or case.startswith("saved") else "layer 'head': "
        shape = shapes.get(name, "[")
        assert error.startswith(f"ValueError: {layer}{name} {shape}"), (case, error)
        assert "cannot be read: allowed is a tensor with its elements in the CPU's memory" in error
    assert len(optimised["guards"]) == 12
