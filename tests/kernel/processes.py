"""Runs scripts in processes of their own, after a prelude that defines a layer."""

from __future__ import annotations

import os
import subprocess
import sys

PRELUDE = """
import os, zlib, sys
import numpy as np
import lumina_kernel
generator = np.random.default_rng(0)
x = generator.standard_normal((150, 300)).astype(np.float32)
w = generator.standard_normal((130, 300)).astype(np.float32)
def run(**more):
    return lumina_kernel.optical_linear_forward(x, w, None, 0.1, 8, input_bits=8, weight_bits=8, **more)
"""


def python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in a process of its own; the time limit is only there to catch a deadlock."""
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "LUMINA_ISA")}
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + script],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def output(script: str, **environment: str) -> str:
    result = python(script, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
