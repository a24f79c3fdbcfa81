"""What the installed package and the project's files promise."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lumina_kernel
import lumina_onnx

ROOT = Path(__file__).parents[2]


def tool(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def checked(*arguments: object) -> str:
    """What tests/wheel/check_files.py, which checks what is built, says of files."""
    if shutil.which("nm") is None or shutil.which("readelf") is None:
        pytest.skip("nm or readelf is not installed")
    command = [sys.executable, ROOT / "tests" / "wheel" / "check_files.py", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else f"REFUSED {done.stderr}"


def test_the_library() -> None:
    assert re.fullmatch(r"\S+: \d+ bytes, stripped, needs glibc [\d.]+\n", checked(lumina_onnx.library_path()))


def test_a_library_that_is_not_as_promised_is_refused(tmp_path: Path) -> None:
    library = lumina_onnx.library_path()
    assert re.search(r"REFUSED .*needs glibc [\d.]+: allowed is up to 2\.2", checked("--glibc", "2.2", library))
    other = "x86_64" if platform.machine() == "aarch64" else "aarch64"
    assert f"is not for {other}" in checked("--machine", other, library)
    for_c = shutil.copy(library, tmp_path / "liblumina_ort.so")
    assert "exports PyInit_lumina_kernel, RegisterCustomOps: allowed is RegisterCustomOps" in checked(for_c)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("lumina_onnx-1.0-cp311-cp311-linux_MACHINE.whl", [], "its name is not lumina_onnx-VERSION-cp310-abi3-"),
        ("lumina_onnx-1.0-cp310-abi3-linux_MACHINE.whl", ["tests/a.py"], "holds what is not of the package: tests/a"),
        ("lumina_onnx-1.0-cp310-abi3-linux_MACHINE.whl", ["lumina_onnx/py.typed"], "lacks licenses/LICENSE, licenses/"),
    ],
    ids=["name", "strange", "missing"],
)
def test_a_wheel_that_is_not_as_promised_is_refused(
    name: str, content: list[str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / name.replace("MACHINE", platform.machine())
    with zipfile.ZipFile(path, "w") as wheel:
        for file in content:
            wheel.writestr(file, "")
    assert message in checked(path)


def test_versions_agree() -> None:
    cargo = re.search(r'\[workspace\.package\]\nversion = "([^"]+)"', (ROOT / "Cargo.toml").read_text())
    assert cargo is not None
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None
    installed = importlib.metadata.version("lumina-onnx")
    assert cited[1] == installed == cargo[1] == lumina_kernel.__version__ == lumina_onnx.__version__


def test_extras() -> None:
    extras = importlib.metadata.metadata("lumina-onnx").get_all("Provides-Extra")
    assert extras is not None
    assert set(extras) == {"train", "demo", "plot", "sweep", "sweep-ray", "sweep-dask", "docs", "recipes", "dev"}
    base = [line for line in importlib.metadata.requires("lumina-onnx") or [] if "extra ==" not in line]
    assert sorted(re.split(r"[<>=! ]", line)[0] for line in base) == ["numpy", "onnxruntime", "rich", "typer"]


def test_the_notices_of_linked_crates_are_installed() -> None:
    metadata = importlib.metadata.metadata("lumina-onnx")
    assert metadata.get_all("License-File") == ["LICENSE", "THIRD-PARTY-NOTICES.txt"]
    distribution = importlib.metadata.distribution("lumina-onnx")
    notices = distribution.read_text("licenses/THIRD-PARTY-NOTICES.txt")
    assert notices == (ROOT / "THIRD-PARTY-NOTICES.txt").read_text(encoding="utf-8")
    # `cargo tree` is independent of `cargo metadata`, from which the file is made.
    command = ("cargo", "tree", "--locked", "--package=lumina-python", "--edges=normal,no-proc-macro", "--prefix=none")
    linked = {line.split(" (")[0].replace(" v", " ") for line in tool(*command, "--format={p}").splitlines()}
    linked -= {f"{name} {lumina_kernel.__version__}" for name in ("lumina-kernel", "lumina-ort", "lumina-python")}
    assert {"numpy", "pyo3", "rand_xoshiro", "rayon"} < {crate.split()[0] for crate in linked}
    assert {crate for crate in linked if not re.search(rf"^{re.escape(crate)} \(", notices, re.MULTILINE)} == set()
    for terms in (
        "Copyright (c) 2017, Toshiki Teramura",
        "Redistributions in binary form",
        "The Rust standard library",
    ):
        assert terms in notices


def test_the_library_is_found_by_a_stock_session() -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(lumina_onnx.library_path())
