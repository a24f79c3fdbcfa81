"""The operator in stock ONNX Runtime, without torch and the exporter: models are built with onnx.helper."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).parents[2]


def _build_library() -> str:
    """`liblumina_ort.so`, from LUMINA_ORT_LIBRARY or built from the checkout."""
    if path := os.environ.get("LUMINA_ORT_LIBRARY"):
        return path
    if shutil.which("cargo") is None:
        pytest.skip("liblumina_ort.so: LUMINA_ORT_LIBRARY is not set and there is no cargo to build it")
    command = ["cargo", "build", "--release", "--package", "lumina-ort", "--message-format=json-render-diagnostics"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    files = [name for message in messages if message["reason"] == "compiler-artifact" for name in message["filenames"]]
    (library,) = (name for name in files if Path(name).name == "liblumina_ort.so")
    return library


@pytest.fixture(scope="session")
def c_library() -> str:
    """The library for hosts without Python."""
    return _build_library()


@pytest.fixture(scope="session", params=["extension", "liblumina_ort"])
def library(request: pytest.FixtureRequest) -> str:
    """Each library file that holds the operator."""
    if request.param == "liblumina_ort":
        return str(request.getfixturevalue("c_library"))
    import lumina_onnx

    return lumina_onnx.library_path()
