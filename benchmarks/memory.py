"""Peak memory of a training step, measured in a process of its own.

The measure is the process's resident memory, whoever allocated it: PyTorch's allocator, a library beneath it, our
kernel. Pages of mapped files, such as code, do not count. The process has run small steps before, so that code and
threads are loaded; its allocator returns freed memory at once.

The system records a peak, but may miss the last 128 KiB on each core, which is much for a small layer. So another
process watches as well, and the larger of the two counts. It needs a core to itself: while other work runs, only the
record is left. The result is the third quartile over steps: a look may come too late for a short peak, and now and then
an interpreter allocates. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from benchmarks.peaks import ROOT
from benchmarks.results import quartiles

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PAGE = os.sysconf("SC_PAGESIZE")
#: By default glibc keeps freed memory, and more of it the longer a process runs.
SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
#: Steps that are measured.
STEPS, QUICK_STEPS = 21, 3
#: A child that takes longer is stopped.
SECONDS = 600
#: Looks at the memory of a process between two looks at whether its step has ended.
LOOKS = 20
#: The child's exit status where the system cannot report the peak.
CANNOT = 3
#: A precision for :func:`peak` beside those of ``torch.set_float32_matmul_precision``.
EIGHT_BITS = "8 bits"


class Missing(RuntimeError):
    """The peak cannot be measured here; the message says why."""


class _EndedError(Exception):
    """The child process has ended."""


def peak(task: int, side: str, precision: str, threads: int, quick: bool) -> int:
    """Peak bytes of a step of a task (by its number in :func:`benchmarks.rivals.tasks`), beyond x, weights and the
    gradient of the output.

    Raises:
        Missing: the system cannot report the peak.
    """
    command = [sys.executable, "-m", "benchmarks.memory", str(task), side, precision, str(threads), str(int(quick))]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=os.environ | SETTINGS, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        timer = threading.Timer(SECONDS, child.kill)
        timer.start()
        try:
            return _peak(child.pid, child.stdin, child.stdout, QUICK_STEPS if quick else STEPS)
        except _EndedError:
            reason = child.stderr.read().decode()
            if child.wait() == CANNOT:
                raise Missing(reason.strip()) from None
            raise RuntimeError(f"{' '.join(command)} failed:\n{reason}") from None
        finally:
            timer.cancel()
            child.stdin.close()


def _peak(process: int, orders: IO[bytes], answers: IO[bytes], steps: int) -> int:
    """Peak bytes of a child's step beyond what it has now."""
    before = _answer(answers)
    with _memory_of(process) as memory:
        peaks = []
        for _ in range(steps):
            orders.write(b"\n")
            seen = 0
            while not select.select([answers], [], [], 0)[0]:
                seen = max(seen, *(memory() for _ in range(LOOKS)))
            peaks.append(max(seen, _answer(answers)) - before)
    return max(int(quartiles(peaks)[2]), PAGE)


def _answer(answers: IO[bytes]) -> int:
    line = answers.readline()
    if not line:
        raise _EndedError
    return int(line)


@contextlib.contextmanager
def _memory_of(process: int) -> Iterator[Callable[[], int]]:
    """What tells the bytes of memory that a process has at the moment, without pages of files."""
    file = os.open(f"/proc/{process}/statm", os.O_RDONLY)

    def now() -> int:
        _size, resident, shared, *_ = os.pread(file, 200, 0).split()
        return (int(resident) - int(shared)) * PAGE

    try:
        yield now
    finally:
        os.close(file)


# The child process


def _status(name: str) -> int:
    """A value of this process from /proc/self/status, in bytes, without pages of files."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    kilobytes = {line.split()[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
    return (kilobytes[f"{name}:"] - kilobytes["RssFile:"] - kilobytes["RssShmem:"]) * 1024


def _child(task: int, side: str, precision: str, threads: int, quick: bool) -> None:
    """Prints the memory before; then runs a step for each line that it reads, and prints the peak on record."""
    import torch

    from benchmarks import rivals
    from lumina_onnx import nn as optical

    try:
        RESET.write_text("5", encoding="ascii")
    except OSError as error:
        print(f"the system does not reset a process's peak of memory ({error})", file=sys.stderr)
        sys.exit(CANNOT)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest" if precision == EIGHT_BITS else precision)
    with optical.gradient_bits(8) if precision == EIGHT_BITS else contextlib.nullcontext():
        for tiny in rivals.tasks(quick=True):
            rivals.step(tiny, side)()
        step = rivals.step(rivals.tasks(quick)[task], side)
        gc.collect()
        with contextlib.suppress(AttributeError):  # systems without glibc
            ctypes.CDLL(None).malloc_trim(0)
        print(_status("VmRSS"), flush=True)
        for _ in sys.stdin:
            RESET.write_text("5", encoding="ascii")
            step()
            print(_status("VmHWM"), flush=True)


if __name__ == "__main__":
    _child(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5] == "1")
