"""The cost of creating a session, with layers so large that several threads lay out their weights."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from op_model import assert_same_bits, make_session, random_layer, run

MIB = 2**20
#: Bytes allowed for the session itself and for what ONNX Runtime keeps besides the weights; and for an emulator, whose
#: translated code is in the same process, but fewer than a copy of the weights as floats would need.
SLACK = (16 if "LUMINA_EMULATOR" in os.environ else 2) * MIB

# Prints the peak of memory while a session is created, in bytes beyond those in use before.
PEAK = """
import re
import sys
from pathlib import Path
import onnxruntime

def status(name):
    return 1024 * int(re.search(rf"{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

library, first, model = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(library)
onnxruntime.InferenceSession(first, options)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
session = onnxruntime.InferenceSession(model, options)
print(status("VmHWM") - before)
"""


# Creates sessions until its input ends.
SESSIONS_UNTIL_EOF = """
import sys
import threading
import onnxruntime

library, model = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(library)
done = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
while not done.is_set():
    onnxruntime.InferenceSession(model, options)
"""


def save(model: bytes, path: Path) -> str:
    """Writes a model with its larger tensors in a file of their own, which ONNX Runtime maps."""
    external: dict[str, Any] = {"save_as_external_data": True, "location": f"{path.stem}.bin", "size_threshold": 1024}
    onnx.save(onnx.load_from_string(model), str(path), **external)
    return str(path)


@pytest.mark.parametrize(("storage", "file_bits"), [("uint8", 4), ("int8", 8), ("float32", 32)])
def test_weights_are_in_memory_as_stored_and_packed_and_no_more(
    library: str, storage: str, file_bits: int, tmp_path: Path
) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is read from /proc, which only Linux has")
    n, k, bits = 4096, 2048, 4
    first = save(random_layer(8, 8, weight_bits=bits, storage=storage, input_bits=8).model(), tmp_path / "first.onnx")
    model = save(random_layer(n, k, weight_bits=bits, storage=storage, input_bits=8).model(), tmp_path / "model.onnx")
    command = [sys.executable, "-c", PEAK, library, first, model]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    in_file, packed = n * k * file_bits // 8, n * k * bits // 8
    assert packed <= int(done.stdout) <= in_file + packed + SLACK


@pytest.mark.parametrize(("storage", "bits"), [("uint8", 4), ("uint8", 1), ("int8", 8), ("float32", 4), ("float32", 0)])
def test_layers_laid_out_by_several_threads(library: str, storage: str, bits: int) -> None:
    layer = random_layer(1100, 2400, weight_bits=bits, storage=storage, input_bits=8 if bits else 0, output_bits=8)
    x = np.random.default_rng(1).normal(size=(2, 2400)).astype(np.float32)
    assert_same_bits(run(make_session(layer.model(), library, threads=2), x), layer.expected(x))


def test_large_weights_are_laid_out_on_threads_of_their_own(library: str, tmp_path: Path) -> None:
    if cores() < 2 or not Path("/proc/self/task").exists():
        pytest.skip("needs two cores, and /proc to see the threads")
    model = save(random_layer(2048, 2048, weight_bits=4, storage="float32").model(), tmp_path / "model.onnx")
    command = [sys.executable, "-c", SESSIONS_UNTIL_EOF, library, model]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        try:
            end = time.monotonic() + 60
            seen: set[str] = set()
            while child.poll() is None and "lumina-create" not in seen and time.monotonic() < end:
                seen |= names_of_threads(child.pid)
        finally:
            child.stdin.close()
    assert child.returncode == 0
    assert "lumina-create" in seen


def cores() -> float:
    """The number of cores that the process may use; a cgroup's quota may allow fewer than its affinity."""
    allowed = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        return min(allowed, quota / period)
    return allowed


def names_of_threads(pid: int) -> set[str]:
    names = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            names.add((task / "comm").read_text().strip())
    return names
