"""Optical linear layers for PyTorch: train with the hardware's bits and noise in the loop.

``convert(model, profile)`` makes the linear layers optical, ``calibrate(model, batches)`` gives it fixed full scales,
and the model trains as before; ``noise``, ``frozen`` and ``gradient_bits`` are context managers.
"""

from lumina_onnx.nn import _torch_release as _torch_release
from lumina_onnx.nn import functional
from lumina_onnx.nn.attention import OpticalMultiheadAttention
from lumina_onnx.nn.calibrate import CalibrationReport, LayerCalibration, calibrate
from lumina_onnx.nn.context import frozen, gradient_bits, noise
from lumina_onnx.nn.convert import ConversionReport, LayerReport, convert, report
from lumina_onnx.nn.linear import OpticalLayer, OpticalLinear

__all__ = [
    "CalibrationReport",
    "ConversionReport",
    "LayerCalibration",
    "LayerReport",
    "OpticalLayer",
    "OpticalLinear",
    "OpticalMultiheadAttention",
    "calibrate",
    "convert",
    "frozen",
    "functional",
    "gradient_bits",
    "noise",
    "report",
]
