"""The processor's peaks, measured by rust_op/kernel/examples/peaks.rs loaded into this process."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.timing import Call, Effort, interleave

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "rust_op" / "kernel" / "examples" / "peaks.rs"

#: The instruction that a tier's integer products use.
DOT = {
    "amx": "tdpbsud",
    "avx512": "vpdpbusd.512",
    "avx512bw": "vpmaddwd.512",
    "avx2": "vpmaddwd.256",
    "neon_dotprod": "sdot.128",
    "neon": "smlal.128",
}
FMA = {
    "amx": "fma.512",
    "avx512": "fma.512",
    "avx512bw": "fma.512",
    "avx2": "fma.256",
    "neon_dotprod": "fmla.128",
    "neon": "fmla.128",
}
#: The instruction that multiplies pairs of 16-bit codes in a gradient.
PAIRS = {"amx": "vpdpwssd.512", "avx512": "vpdpwssd.512", "avx512bw": "vpmaddwd.512", "avx2": "vpmaddwd.256"}
#: Rounds of an instruction in one call: some 100 us.
ROUNDS = 50_000
VECTOR = 64
#: The least number of bytes that one call reads.
LEAST_READ = 2**20


class Missing(RuntimeError):
    """The peaks cannot be measured; the message says why."""


def build() -> Path:
    """Compiles the library if its source has changed since it was last compiled.

    Raises:
        Missing: there is no Rust compiler, or compiling failed.
    """
    library = ROOT / "target" / "benchmarks" / "libpeaks.so"
    if library.exists() and library.stat().st_mtime >= SOURCE.stat().st_mtime:
        return library
    rustc = shutil.which("rustc")
    if rustc is None:
        raise Missing("no rustc on the path")
    library.parent.mkdir(parents=True, exist_ok=True)
    temporary = library.with_suffix(".tmp")
    command = [rustc, "-O", "--edition", "2024", "--crate-type", "cdylib", "-o", str(temporary), str(SOURCE)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Missing(f"rustc: {result.stderr.strip()}")
    temporary.replace(library)
    return library


@dataclass(frozen=True)
class Memory:
    """Memory to read from.

    Attributes:
        words: The memory.
        read: Reads it, several times if it is small, so that the cost of the call itself is negligible.
        bytes_read: Bytes that one call of `read` reads.
    """

    words: NDArray[np.uint64]
    read: Call
    bytes_read: int


class Peaks:
    """The library that measures peaks.

    Raises:
        Missing: the library cannot be built.
    """

    def __init__(self) -> None:
        library = ctypes.CDLL(str(build()))
        self._peak, self._read = library.lumina_peak, library.lumina_read
        self._peak.argtypes, self._peak.restype = (ctypes.c_char_p, ctypes.c_uint64), ctypes.c_uint64
        self._read.argtypes, self._read.restype = (
            (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64),
            ctypes.c_uint64,
        )

    def has(self, name: str) -> bool:
        """Whether this processor has the instruction."""
        return self.operations(name, 1) > 0

    def operations(self, name: str, rounds: int = ROUNDS) -> int:
        """Runs the instruction and returns the number of operations (a multiply-add is two)."""
        return int(self._peak(name.encode(), rounds))

    def memory(self, size: int) -> Memory:
        """`size` bytes, in whole vectors of 64, written once so that the system has committed them."""
        vectors = max(1, size // VECTOR)
        room = np.arange((vectors + 1) * VECTOR // 8, dtype=np.uint64)
        skip = -room.ctypes.data % VECTOR // 8
        words = room[skip : skip + vectors * VECTOR // 8]
        address = words.ctypes.data
        times = max(1, LEAST_READ // words.nbytes)
        return Memory(words, lambda: self._read(address, vectors, times), times * words.nbytes)

    def rates(self, effort: Effort) -> dict[str, float]:
        """Operations per second of one core, by instruction, from the best sample of each."""
        names = [name for name in dict.fromkeys((*FMA.values(), *PAIRS.values(), *DOT.values())) if self.has(name)]
        calls = {name: (lambda name=name: self.operations(name)) for name in names}
        times = interleave(calls, effort)
        return {name: self.operations(name) / min(times[name].seconds) for name in names}

    def bandwidth(self, sizes: list[int], effort: Effort) -> dict[int, float]:
        """Bytes per second that one core reads from memory of each size, read repeatedly: medians."""
        result = {}
        for size in sizes:
            memory = self.memory(size)
            times = interleave({"read": memory.read}, effort)
            result[size] = memory.bytes_read / float(np.median(times["read"].seconds))
        return result
