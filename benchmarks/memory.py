"""Peak memory of a training step, measured in a process of its own.

The measure is the process's resident set, whoever allocated it: PyTorch's allocator, a library beneath it, our kernel.
The child process has run small steps before, so that code and threads are loaded; its allocator returns freed memory at
once. Linux only: the measurement resets the peak that the system keeps.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.peaks import ROOT

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
#: By default glibc keeps freed memory, and more of it the longer a process runs.
SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
SECONDS = 120
#: The child's exit status where the system cannot report the peak.
CANNOT = 3


class Missing(RuntimeError):
    """The peak cannot be measured here; the message says why."""


def peak(task: int, side: str, threads: int, quick: bool) -> int:
    """Peak bytes of three steps of a task (by its number in :func:`benchmarks.rivals.tasks`), beyond x, weights and
    the gradient of the output.

    Raises:
        Missing: the system cannot report the peak.
    """
    command = [sys.executable, "-m", "benchmarks.memory", str(task), side, str(threads), str(int(quick))]
    result = subprocess.run(
        command, env=os.environ | SETTINGS, cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    if result.returncode == CANNOT:
        raise Missing(result.stderr.strip())
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    return int(result.stdout)


def _status(name: str) -> int:
    """A value from /proc/self/status, in bytes."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _child(task: int, side: str, threads: int, quick: bool) -> int:
    import torch

    from benchmarks import rivals

    try:
        RESET.write_text("5", encoding="ascii")
    except OSError as error:
        print(f"the system does not reset a process's peak of memory ({error})", file=sys.stderr)
        sys.exit(CANNOT)
    torch.set_num_threads(threads)
    for tiny in rivals.tasks(quick=True):
        rivals.step(tiny, side)()
    step = rivals.step(rivals.tasks(quick)[task], side)
    before = _status("VmRSS")
    RESET.write_text("5", encoding="ascii")
    for _ in range(3):
        step()
    return max(_status("VmHWM") - before, os.sysconf("SC_PAGESIZE"))


if __name__ == "__main__":
    print(_child(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1"))
