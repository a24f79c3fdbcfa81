"""Random calls across the boundary to Python, in a process of their own, so that a crash is a failed test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CASES = 500


def test_right_calls_are_right_and_wrong_ones_are_refused() -> None:
    script = Path(__file__).with_name("boundary.py")
    # The time limit is only there to catch a deadlock.
    child = subprocess.run(
        [sys.executable, str(script), str(CASES)], capture_output=True, text=True, timeout=900, check=False
    )
    assert child.returncode == 0, f"ended with {child.returncode}: {child.stderr[-3000:]}"
    refused = {mode: int(count) for mode, count in (line.split() for line in child.stdout.splitlines())}
    assert list(refused) == ["forward", "prepared", "training", "storage", "layers"]
    # Each mode had both accepted and refused calls.
    assert all(CASES // 8 < count < 3 * CASES for count in refused.values()), refused
