"""The `lumina` command: one module for each group of commands, what they share in `console`.

torch, onnx and the data sets are imported by the commands that need them, when they run.
"""

from lumina_onnx.cli.app import app, main

__all__ = ["app", "main"]
