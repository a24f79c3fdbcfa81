"""The machine and the versions that the figures were measured with."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import lumina_kernel


@dataclass(frozen=True)
class Machine:
    """The machine and versions, as stated at the beginning of a report.

    Attributes:
        cpu: The processor's name.
        vendor: "GenuineIntel", "AuthenticAMD", or what the system says.
        cores: Cores that this process may use.
        caches: Bytes by level: "L1d", "L2", "L3".
        load: The system's one-minute load average when the measurement began; anything but 0 means that the
            measurement is disturbed.
        tier: The kernel's instruction-set tier.
        versions: Versions by package.
    """

    cpu: str
    vendor: str
    cores: int
    caches: dict[str, int]
    load: float
    tier: str
    versions: dict[str, str]

    @property
    def kind(self) -> str | None:
        """The kind of machine, for goals; None if there are no goals for it."""
        if self.tier == "avx2":
            return "avx2"
        if self.tier not in ("avx512", "amx"):
            return None
        return {"AuthenticAMD": "amd-avx512", "GenuineIntel": "intel-avx512"}.get(self.vendor)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"kind": self.kind}


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines() if path.exists() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _caches() -> dict[str, int]:
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        match = re.fullmatch(r"(\d+)([KMG]?)", size)
        if kind != "Instruction" and match:
            unit = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[match[2]]
            found["L1d" if level == "1" else f"L{level}"] = int(match[1]) * unit
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> Machine:
    """This machine."""
    info = _cpuinfo()
    name = info.get("model name") or platform.processor() or platform.machine()
    if "model" in info:
        name += f" (family {info.get('cpu family', '?')}, model {info['model']})"
    packages = ["onnxruntime", "onnx", "numpy"]
    if importlib.util.find_spec("aihwkit"):
        packages.append("aihwkit")
    return Machine(
        cpu=name,
        vendor=info.get("vendor_id", platform.machine()),
        cores=cores(),
        caches=_caches(),
        load=os.getloadavg()[0],
        tier=lumina_kernel.isa(),
        versions={
            "lumina": lumina_kernel.__version__,
            "python": platform.python_version(),
            # Not from the metadata, which does not name the build ("+cpu", "+cu132") in every package.
            "torch": torch.__version__,
            **{package: _version(package) for package in packages},
        },
    )
