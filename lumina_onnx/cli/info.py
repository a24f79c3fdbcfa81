"""`lumina info`: what a bug report needs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from typing import Any

from rich.table import Table

import lumina_kernel
import lumina_onnx
from lumina_onnx._text import text
from lumina_onnx.cli import machine
from lumina_onnx.cli.console import Debug, Json, command, show

EPILOG = "Example: lumina info --json > report.json"

PACKAGES = ("numpy", "onnxruntime", "torch", "onnx", "onnxscript", "scikit-learn", "mlxtend", "typer", "rich")
VARIABLES = ("LUMINA_ISA", "OMP_NUM_THREADS")


@command
def info(as_json: Json = False, debug: Debug = False) -> None:
    """Versions, instruction-set tier, threads and library path: what a bug report needs."""
    facts = collect()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if isinstance(value, dict):
            for inner, fact in value.items():
                table.add_row(text(inner), text(str(fact if fact is not None else "-")))
        else:
            table.add_row(text(name), text(", ".join(value) if isinstance(value, list) else str(value)))
    show(table, facts, as_json)


def collect() -> dict[str, Any]:
    """The facts; where a fact cannot be determined, the error takes its place."""
    return {
        "lumina": lumina_onnx.__version__,
        "tier": _told(lumina_kernel.isa),
        "tiers of this processor": lumina_kernel.available_isas(),
        "threads": lumina_kernel.num_threads(),
        "library": _told(lumina_onnx.library_path),
        "library in ONNX Runtime": _told(_registers),
        "processor": f"{machine.processor()} ({platform.machine()})",
        "cores usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": platform.platform(),
        "python": f"{platform.python_version()} ({sys.executable})",
        "packages": {name: _version(name) for name in PACKAGES},
        "environment": {name: os.environ.get(name) for name in VARIABLES},
    }


def _told(question: Callable[[], str]) -> str:
    try:
        return question()
    except Exception as error:
        return f"FAILS: {error}"


def _registers() -> str:
    import onnxruntime

    onnxruntime.SessionOptions().register_custom_ops_library(lumina_onnx.library_path())
    return f"loads in onnxruntime {onnxruntime.__version__}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
