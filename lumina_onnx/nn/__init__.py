"""Optical linear layers for PyTorch: train with the hardware's bits and noise in the loop.

``convert(model, profile)`` makes every ``nn.Linear`` optical, ``calibrate(model, batches)`` gives it fixed full scales,
and the model trains as before; ``noise`` and ``frozen`` are context managers for evaluation.
"""

from lumina_onnx.nn import functional
from lumina_onnx.nn.calibrate import CalibrationReport, LayerCalibration, calibrate
from lumina_onnx.nn.context import frozen, noise
from lumina_onnx.nn.convert import ConversionReport, LayerReport, convert, report
from lumina_onnx.nn.linear import OpticalLinear

__all__ = [
    "CalibrationReport",
    "ConversionReport",
    "LayerCalibration",
    "LayerReport",
    "OpticalLinear",
    "calibrate",
    "convert",
    "frozen",
    "functional",
    "noise",
    "report",
]
