"""The memory that a process holds on to."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")

STEPS = """
import os
from pathlib import Path
import torch
from lumina_onnx import OpticalProfile
from lumina_onnx.nn.functional import optical_linear

def step(size, bits):
    x, weight = torch.randn(4, size, requires_grad=True), torch.randn(size, size, requires_grad=True)
    optical_linear(x, weight, None, OpticalProfile(bits, bits, 8)).sum().backward()

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

sizes = [int(256 * 1.03**power) for power in range(75)]
for bits in (0, 8):
    step(sizes[0], bits)
before = resident()
for size in sizes:  # each larger than all that was kept before
    for bits in (0, 8):
        step(size, bits)
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_steps_of_ever_larger_shapes_do_not_add_up() -> None:
    """Scratch of one call serves the next, and panels are freed; if they added up, they would come to over 300 MiB."""
    # Without these settings, glibc itself keeps freed memory.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", STEPS]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 32 << 20
