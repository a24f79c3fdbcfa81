"""Random calls across the boundary of Python, in a process of their own: a crash is a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CASES = 500


def test_right_calls_are_right_and_wrong_ones_are_refused() -> None:
    script = Path(__file__).with_name("boundary.py")
    # The limit catches a deadlock, nothing else.
    child = subprocess.run(
        [sys.executable, str(script), str(CASES)], capture_output=True, text=True, timeout=900, check=False
    )
    assert child.returncode == 0, f"ended with {child.returncode}: {child.stderr[-3000:]}"
    refused = {mode: int(count) for mode, count in (line.split() for line in child.stdout.splitlines())}
    assert list(refused) == ["forward", "prepared", "training", "storage", "layers"]
    # Both kinds were among them.
    assert all(CASES // 8 < count < 3 * CASES for count in refused.values()), refused
