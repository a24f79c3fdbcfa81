"""Sweeps: a model's accuracy, or another metric, over a grid of hardware parameters and draws of the noise.

Needs joblib, cloudpickle and pyarrow; of a .onnx file also onnx and onnx_ir, of a module torch.
"""

from .result import SweepResult
from .running import sweep

__all__ = ["SweepResult", "sweep"]
