"""The `lumina` command: one module for each group of commands; `console` holds what they share.

torch, onnx and the data sets are imported only when a command that needs them runs.
"""

from lumina_onnx.cli.app import app, main

__all__ = ["app", "main"]
