"""Arrays that change while they are read: the outcome is a result or a clear error."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHANGED = (
    r"(weight|codes|packed)\[#\] changed while it was read: allowed is memory that nobody writes to during the call"
)
NOT_FINITE = r"(weight|bias)\[#\] = (NaN|-?inf): allowed is a finite number"
CODE = r"(codes|packed)\[#\] = (-128|-2|-8|1|3|15): allowed is (a code -L|0 in the bits that fill up a row)"


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that writes into shared memory")
def test_a_result_or_an_error_in_words() -> None:
    child = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("races.py"))],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    results = json.loads(child.stdout)
    assert len(results) == 26
    for name, outcomes in results.items():
        for outcome in outcomes:
            allowed = outcome == "done" or re.match(f"ValueError: ({CHANGED}|{NOT_FINITE}|{CODE})", outcome)
            assert allowed, f"{name}: {outcome}"
