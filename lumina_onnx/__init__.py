"""Analog optical linear layers for ONNX Runtime and PyTorch.

Importing this package needs numpy alone. `lumina_onnx.nn` needs torch, `lumina_onnx.exporter` torch, onnx and
onnxscript; onnxruntime is imported by the first call that runs a model.
"""

from lumina_kernel import __version__
from lumina_onnx.profile import NotModelledWarning, OpticalProfile
from lumina_onnx.runtime import library_path, load

__all__ = ["NotModelledWarning", "OpticalProfile", "__version__", "library_path", "load"]
