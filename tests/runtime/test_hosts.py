"""The library files themselves, and a host written in C."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from op_model import Layer, assert_same_bits, random_layer

import lumina_onnx

C_HOST = Path(__file__).parents[2] / "examples" / "c_host"
# Where this Python is emulated, the C compiler is a cross compiler, and programs need the emulator in front.
CC = os.environ.get("CC", "cc")
EMULATOR = os.environ.get("LUMINA_EMULATOR", "").split()


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def output(*command: object) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


@needs("nm")
def test_the_symbols_for_hosts_are_all_that_is_exported(c_library: str) -> None:
    def exported(path: str) -> set[str]:
        return {line.split()[-1] for line in output("nm", "-D", "--defined-only", path).splitlines()}

    assert exported(c_library) == {"RegisterCustomOps"}
    assert exported(lumina_onnx.library_path()) == {"RegisterCustomOps", "PyInit_lumina_kernel"}


@needs("nm")
def test_the_c_library_asks_for_nothing_of_python(c_library: str) -> None:
    undefined = output("nm", "-D", "--undefined-only", c_library)
    assert " Py" not in undefined
    assert " _Py" not in undefined


@needs("readelf")
def test_the_files_stay_in_the_process(library: str) -> None:
    assert "NODELETE" in output("readelf", "-d", library)


@pytest.fixture(scope="module")
def c_host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    libraries = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    if not libraries:
        pytest.skip(f"onnxruntime {onnxruntime.__version__} comes without libonnxruntime.so (1.31 and newer have it)")
    build = tmp_path_factory.mktemp("c_host")
    flags = "CFLAGS=-O1 -Wall -Wextra -Wpedantic -Werror"
    output("make", "-C", C_HOST, f"ORT_LIB={libraries[0]}", f"BUILD={build}", flags)
    return build / "c_host"


LAYER = random_layer(5, 9, weight_bits=2, storage="uint8", input_bits=6, noise_relative=0.1, noise_additive=0.1, seed=3)
X = ((np.arange(18) % 7 - 3) / 4).astype(np.float32).reshape(2, 9)


@needs("make", CC)
def test_a_c_host_gets_the_same_bits(c_host: Path, c_library: str, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(LAYER.model(x_shape=["batch", 9]))
    lines = output(*EMULATOR, c_host, c_library, model, 3).splitlines()
    assert len(lines) == 3
    for stream, line in enumerate(lines):
        y = np.array(line.split(), dtype=np.float32).reshape(2, 5)
        assert_same_bits(y, LAYER.expected(X, stream))


@needs("make", CC)
def test_a_c_host_reads_the_message(c_host: Path, c_library: str, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    wrong = Layer(LAYER.w, LAYER.w_scale, LAYER.b, {**LAYER.attributes, "output_bits": 99})
    model.write_bytes(wrong.model())
    failed = subprocess.run([*EMULATOR, c_host, c_library, model], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    message = 'lumina::OpticalLinear node "fc1": attribute output_bits = 99: allowed is 0 (no ADC), 2..16'
    assert message in failed.stderr
