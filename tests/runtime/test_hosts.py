"""The library files themselves, and hosts written in C, C++ and Rust."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from op_model import Array, Layer, assert_same_bits, make_session, random_layer

import lumina_onnx

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
# Where this Python is emulated, the compilers are cross compilers (cargo has a variable of its own for that), and
# programs need the emulator in front.
CC = os.environ.get("CC", "cc")
CXX = os.environ.get("CXX", "c++")
EMULATOR = os.environ.get("LUMINA_EMULATOR", "").split()


def skip_without(*programs: str) -> None:
    if missing := [program for program in programs if shutil.which(program) is None]:
        pytest.skip(f"needs {', '.join(missing)}")


def run(*command: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, env=env)


def output(*command: object) -> str:
    done = run(*command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_symbols_for_hosts_are_all_that_is_exported(c_library: str) -> None:
    skip_without("nm")

    def exported(path: str) -> set[str]:
        return {line.split()[-1] for line in output("nm", "-D", "--defined-only", path).splitlines()}

    assert exported(c_library) == {"RegisterCustomOps"}
    assert exported(lumina_onnx.library_path()) == {"RegisterCustomOps", "PyInit_lumina_kernel"}


def test_the_c_library_asks_for_nothing_of_python(c_library: str) -> None:
    skip_without("nm")
    undefined = output("nm", "-D", "--undefined-only", c_library)
    assert " Py" not in undefined
    assert " _Py" not in undefined


def test_the_files_stay_in_the_process(library: str) -> None:
    skip_without("readelf")
    assert "NODELETE" in output("readelf", "-d", library)


@pytest.fixture(scope="module")
def runtime() -> Path:
    """ONNX Runtime's own shared library."""
    libraries = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    if not libraries:
        pytest.skip(f"onnxruntime {onnxruntime.__version__} comes without libonnxruntime.so (1.31 and newer have it)")
    return libraries[0]


def headers() -> Path:
    """The folder of ONNX Runtime's headers: from ORT_INCLUDE, the system, or else Debian's package."""
    if include := os.environ.get("ORT_INCLUDE"):
        return Path(include)
    if (include_of_debian := Path("/usr/include/onnxruntime")).is_dir():
        return include_of_debian
    found = run(ROOT / "tests" / "runtime" / "headers", ROOT / "build" / "onnxruntime-headers")
    if found.returncode == 3:
        pytest.skip(f"ORT_INCLUDE is not set, and the headers of ONNX Runtime cannot be had: {found.stderr}")
    found.check_returncode()
    return Path(found.stdout.strip())


@dataclass(frozen=True)
class Host:
    """A program of examples/."""

    path: Path
    environment: Mapping[str, str]

    def __call__(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return run(*EMULATOR, self.path, *arguments, env={**os.environ, **self.environment, **environment})


WARNINGS = "-O1 -Wall -Wextra -Wpedantic -Werror"


def build_c(build: Path, runtime: Path) -> Host:
    skip_without("make", CC)
    output("make", "-C", EXAMPLES / "c_host", f"ORT_LIB={runtime}", f"BUILD={build}", f"CFLAGS={WARNINGS}")
    return Host(build / "c_host", {})


def build_c_with_header(build: Path, runtime: Path) -> Host:
    skip_without("make", CC)
    options = [f"ORT_LIB={runtime}", f"ORT_INCLUDE={headers()}", f"BUILD={build}", f"CFLAGS={WARNINGS}"]
    output("make", "-C", EXAMPLES / "c_host", *options)
    return Host(build / "c_host", {})


def build_cpp(build: Path, runtime: Path) -> Host:
    skip_without("make", CXX)
    options = [f"ORT_LIB={runtime}", f"ORT_INCLUDE={headers()}", f"BUILD={build}", f"CXXFLAGS={WARNINGS}"]
    output("make", "-C", EXAMPLES / "cpp_host", *options)
    return Host(build / "cpp_host", {})


def build_rust(build: Path, runtime: Path) -> Host:
    skip_without("cargo")
    manifest = f"--manifest-path={EXAMPLES / 'rust_host' / 'Cargo.toml'}"
    fetched = run("cargo", "fetch", "--locked", manifest)
    if fetched.returncode:
        pytest.skip(f"cargo cannot fetch what the host needs: {fetched.stderr}")
    options = ["--locked", "--offline", f"--target-dir={ROOT / 'target' / 'rust_host'}"]
    built = output("cargo", "build", manifest, *options, "--message-format=json-render-diagnostics")
    messages = [json.loads(line) for line in built.splitlines()]
    (program,) = (message["executable"] for message in messages if message.get("executable"))
    return Host(Path(program), {"ORT_DYLIB_PATH": str(runtime)})


@pytest.fixture(
    scope="module", params=[build_c, build_c_with_header, build_cpp, build_rust], ids=["c", "c-header", "c++", "rust"]
)
def host(request: pytest.FixtureRequest, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """Each program, built."""
    built: Host = request.param(tmp_path_factory.mktemp("host"), runtime)
    return built


LAYER = random_layer(5, 9, weight_bits=2, storage="uint8", input_bits=6, noise_relative=0.1, noise_additive=0.1, seed=3)
X = ((np.arange(18) % 7 - 3) / 4).astype(np.float32).reshape(2, 9)


def values(line: str) -> Array:
    return np.array(line.split(), dtype=np.float32)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_host_gets_the_same_bits(host: Host, c_library: str, tmp_path: Path) -> None:
    model = write(tmp_path / "model.onnx", LAYER.model(x_shape=["batch", 9]))
    ran = host(c_library, model, 3)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 3
    for stream, line in enumerate(lines):
        assert_same_bits(values(line).reshape(2, 5), LAYER.expected(X, stream))


def test_a_host_runs_a_network_as_python_does(host: Host, c_library: str, tmp_path: Path) -> None:
    path = ROOT / "models" / "digits-4bit.onnx"
    images = np.random.default_rng(0).random((3, 64), dtype=np.float32)
    ran = host(c_library, path, 2, write(tmp_path / "images", images.tobytes()))
    assert ran.returncode == 0, ran.stderr
    session = make_session(str(path), c_library)
    for line in ran.stdout.splitlines():
        (expected,) = session.run(None, {session.get_inputs()[0].name: images})
        assert_same_bits(values(line).reshape(3, 10), expected)


def test_a_host_reads_the_message(host: Host, c_library: str, tmp_path: Path) -> None:
    wrong = Layer(LAYER.w, LAYER.w_scale, LAYER.b, {**LAYER.attributes, "output_bits": 99})
    failed = host(c_library, write(tmp_path / "model.onnx", wrong.model()))
    assert failed.returncode == 1
    message = 'lumina::OpticalLinear node "fc1": attribute output_bits = 99: allowed is 0 (no ADC), 2..16'
    assert message in failed.stderr


def test_a_host_says_which_file_is_wrong(host: Host, c_library: str, tmp_path: Path) -> None:
    model = write(tmp_path / "model.onnx", LAYER.model(x_shape=["batch", 9]))
    missing = tmp_path / "missing"
    text = write(tmp_path / "text", b"no model")
    for arguments, message in [
        ((missing, model), f"{missing}: cannot open shared object file: No such file or directory"),
        ((text, model), f"{text}: "),
        ((c_library, missing), f"{missing}"),
        ((c_library, text), f"Load model from {text} failed:Protobuf parsing failed."),
        ((c_library, model, 1, missing), "No such file or directory"),
        ((c_library, model, 1, tmp_path), "Is a directory"),
    ]:
        failed = host(*arguments)
        assert failed.returncode == 1
        assert failed.stdout == ""
        last = failed.stderr.splitlines()[-1]
        assert last.startswith(f"{host.path.name}: ")
        assert message in last


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        (["batch", 9], 18 * 4 + 3, "has 75 bytes, and a float32 value has 4"),
        (["batch", 9], 17 * 4, "has 17 values, and the model takes a multiple of 9"),
        (["batch", 9], 0, "has 0 values, and the model takes a multiple of 9"),
        ([2, 9], 17 * 4, "has 17 values, and the model takes 18"),
        (["batch", "features"], 18 * 4, "the model leaves several dimensions of its input open"),
    ],
)
def test_a_host_says_how_many_values_the_model_takes(
    host: Host, c_library: str, tmp_path: Path, shape: list[int | str], size: int, message: str
) -> None:
    model = write(tmp_path / "model.onnx", LAYER.model(x_shape=shape))
    data = write(tmp_path / "input", bytes(size))
    failed = host(c_library, model, 1, data)
    assert failed.returncode == 1
    assert failed.stdout == ""
    last = failed.stderr.splitlines()[-1]
    assert last.startswith(f"{host.path.name}: {data}")
    assert last.endswith(message)


def test_a_host_refuses_other_types(host: Host, c_library: str, tmp_path: Path) -> None:
    cast = [helper.make_node("Cast", ["Y"], ["Z"], to=TensorProto.FLOAT)]
    model = onnx.load_model_from_string(LAYER.model(x_shape=[2, 9], after=cast))
    model.graph.node[-1].attribute[0].i = model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    failed = host(c_library, write(tmp_path / "output.onnx", model.SerializeToString()))
    assert failed.returncode == 1
    assert re.search("output of the model is not float32|Cannot extract Tensor<f32>", failed.stderr)

    model.graph.node.insert(0, helper.make_node("Cast", ["I"], ["X"], to=TensorProto.FLOAT))
    model.graph.input[0].name = "I"
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    failed = host(c_library, write(tmp_path / "input.onnx", model.SerializeToString()))
    assert failed.returncode == 1
    assert "the input of the model is not float32" in failed.stderr


def test_a_host_says_how_it_is_called(host: Host, c_library: str) -> None:
    model = ROOT / "models" / "digits-4bit.onnx"
    for arguments in [
        (),
        (c_library,),
        (c_library, model, 0),
        (c_library, model, "1x"),
        (c_library, model, 1, "a", "b"),
    ]:
        failed = host(*arguments)
        assert failed.returncode == 2
        assert failed.stderr.startswith("usage: ")


def test_the_rust_host_says_where_the_runtime_comes_from(runtime: Path, c_library: str, tmp_path: Path) -> None:
    host = build_rust(tmp_path, runtime)
    missing = tmp_path / "libonnxruntime.so"
    failed = host(c_library, ROOT / "models" / "digits-4bit.onnx", ORT_DYLIB_PATH=str(missing))
    assert failed.returncode == 1
    assert f"`{missing}`" in failed.stderr
    assert "ORT_DYLIB_PATH" in failed.stderr
