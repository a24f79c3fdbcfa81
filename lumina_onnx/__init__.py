"""Analog optical linear layers for ONNX Runtime and PyTorch.

Importing this package needs numpy alone. `lumina_onnx.nn` needs torch, `lumina_onnx.exporter` torch, onnx and
onnxscript, `lumina_onnx.sweep` joblib; onnxruntime is imported by the first call that runs a model.
"""

from typing import TYPE_CHECKING, Any

from lumina_kernel import __version__
from lumina_onnx.profile import NotModelledWarning, OpticalProfile
from lumina_onnx.runtime import library_path, load

if TYPE_CHECKING:
    from lumina_onnx.sweeping import SweepResult, sweep

__all__ = ["NotModelledWarning", "OpticalProfile", "SweepResult", "__version__", "library_path", "load", "sweep"]


def __getattr__(name: str) -> Any:
    # What sweeps need is imported only for those who sweep.
    if name in ("SweepResult", "sweep"):
        from lumina_onnx import sweeping

        return getattr(sweeping, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
