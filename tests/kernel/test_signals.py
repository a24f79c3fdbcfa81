"""Signals during calls: a handler's frame holds all registers of the interrupted code, matrix tiles among them."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

import lumina_kernel

from .processes import output, python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and their stacks as Linux has them")

CHECKSUM = "print(zlib.crc32(run(seed=3)))"

SMALL_STACK = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
def alternate_stack(size):
    memory = ctypes.create_string_buffer(size)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, size)), None):
        raise OSError(ctypes.get_errno(), "sigaltstack")
    return memory
"""


def has_matrix_tiles() -> bool:
    try:
        return " amx_int8" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


@pytest.mark.parametrize("tier", lumina_kernel.available_isas())
def test_calls_that_signals_interrupt(tier: str) -> None:
    script = """
import signal, time
seen = 0
def handler(*_):
    global seen
    seen += 1
signal.signal(signal.SIGALRM, handler)
expected = run(seed=3).tobytes()
signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
end = time.monotonic() + 0.5
wrong = 0
while time.monotonic() < end or seen < 20:
    wrong += run(seed=3).tobytes() != expected
signal.setitimer(signal.ITIMER_REAL, 0)
print(wrong)
"""
    assert output(script, LUMINA_ISA=tier) == "0"


def test_a_fault_after_a_call_is_shown() -> None:
    """faulthandler's own signal stack must be large enough for all the registers that a call uses."""
    script = """
import ctypes, faulthandler
run(seed=3)
faulthandler.enable()
run(seed=3)
ctypes.string_at(0)
"""
    result = python(script)
    assert result.returncode < 0
    assert "Fatal Python error: Segmentation fault" in result.stderr


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere the smallest stack is larger")
def test_bits_with_a_small_stack_for_signals() -> None:
    """A small signal stack before the first call: the system then refuses matrix tiles, and we silently go without."""
    expected = output(CHECKSUM)
    before = output(SMALL_STACK + "kept = alternate_stack(4096)\n" + CHECKSUM)
    assert before == expected


@pytest.mark.skipif(not has_matrix_tiles(), reason="the processor has no matrix tiles")
def test_matrix_tiles_that_the_system_refuses() -> None:
    """The thread's signal stack has no room for the registers of matrix tiles, so Linux refuses them."""
    script = SMALL_STACK + "kept = alternate_stack(4096)\n"
    told = output(script + "print(lumina_kernel.isa(), *lumina_kernel.available_isas())").split()
    assert told[0] == told[-1] == "avx512"
    assert "amx" not in told
    result = python(script + "lumina_kernel.isa()", LUMINA_ISA="amx")
    assert result.returncode != 0
    assert "ValueError: LUMINA_ISA = amx: this processor has portable, avx2, avx512bw, avx512" in result.stderr


@pytest.mark.skipif(not has_matrix_tiles(), reason="the processor has no matrix tiles")
def test_another_tier_leaves_small_stacks_for_signals_allowed() -> None:
    """Once a process may use matrix tiles, the system refuses stacks that could not hold them."""
    script = SMALL_STACK + "print(lumina_kernel.isa()); run(); kept = alternate_stack(8192)"
    assert output(script, LUMINA_ISA="avx512") == "avx512"
