"""What a measurement depends on: the processor, its clock and temperature, the memory.

Everything is read from Linux's files below `root`; what cannot be read is None. Nothing says whose machine it is.
"""

from __future__ import annotations

import os
import platform
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path("/")
# Arm's processors have numbers, not names, in /proc/cpuinfo.
ARM_PARTS = {
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse N1",
    0xD0D: "Cortex-A77",
    0xD40: "Neoverse V1",
    0xD41: "Cortex-A78",
    0xD49: "Neoverse N2",
}
ARM = 0x41


def processor(root: Path = ROOT) -> str:
    """The processor's name; the names of all kinds of cores, if there are several."""
    entries = _entries(_text(root / "proc/cpuinfo") or "")
    names = [_core(entry) for entry in entries]
    return " + ".join(dict.fromkeys(name for name in names if name)) or platform.processor() or "unknown"


def board(root: Path = ROOT) -> str | None:
    """The board's name, which only machines with a device tree have."""
    return _text(root / "proc/device-tree/model")


def facts(root: Path = ROOT) -> dict[str, Any]:
    """The machine as it is now."""
    clock = root / "sys/devices/system/cpu/cpu0/cpufreq"
    memory = re.search(r"MemTotal:\s+(\d+) kB", _text(root / "proc/meminfo") or "")
    return {
        "board": board(root),
        "processor": processor(root),
        "cores": os.cpu_count(),
        "memory_mib": int(memory[1]) // 1024 if memory else None,
        "clock_mhz": _megahertz(clock / "cpuinfo_max_freq"),
        "governor": _text(clock / "scaling_governor"),
        "kernel": platform.release(),
    }


def state(root: Path = ROOT) -> dict[str, Any]:
    """What changes while a measurement runs: clock, temperature, and whether the firmware throttled the processor."""
    temperature = _text(root / "sys/class/thermal/thermal_zone0/temp")
    return {
        "clock_mhz": _megahertz(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"),
        "celsius": int(temperature) / 1000 if temperature and re.fullmatch(r"-?\d+", temperature) else None,
        # Bits, of a Raspberry Pi: 0x4 throttled now, 0x40000 throttled since it was started, and more.
        "throttled": next(map(_text, root.glob("sys/devices/platform/soc*/soc*:firmware/get_throttled")), None),
    }


#: Bytes that are read to measure the memory: more than any cache of a board has.
READ_BYTES = 128 * 2**20
READ_TIMES = 5


def read_bandwidth(threads: int) -> float:
    """Bytes per second that threads read together from memory, at the best of some attempts."""
    words = np.ones(READ_BYTES // 4, np.int32)
    parts = np.array_split(words, threads)

    def read() -> float:
        start = time.perf_counter()
        list(pool.map(np.max, parts))
        return words.nbytes / (time.perf_counter() - start)

    with ThreadPoolExecutor(threads) as pool:
        return max(read() for _ in range(READ_TIMES))


def _entries(text: str) -> list[dict[str, str]]:
    """The entries of /proc/cpuinfo, one for each core."""
    lines = (line.partition(":") for line in text.splitlines())
    found: list[dict[str, str]] = []
    for key, _, value in lines:
        if key.strip() == "processor":
            found.append({})
        if found:
            found[-1][key.strip()] = value.strip()
    return found


def _core(entry: dict[str, str]) -> str:
    try:
        part = ARM_PARTS.get(int(entry["CPU part"], 0)) if int(entry["CPU implementer"], 0) == ARM else None
    except (KeyError, ValueError):
        part = None
    return part or entry.get("model name", "")


def _megahertz(path: Path) -> int | None:
    text = _text(path)
    return round(int(text) / 1000) if text and text.isdecimal() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return None
