"""`OpticalLinear` for onnx's reference evaluator, which runs a model in numpy, node by node."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from lumina_onnx import reference
from lumina_onnx.schema import DOMAIN

from .onnx_schema import completed

__all__ = ["OpticalLinear", "reference_ops"]


class OpticalLinear(OpRun):
    """Runs a `lumina::OpticalLinear` node by :func:`lumina_onnx.reference.optical_linear`.

    As in a session of ONNX Runtime, each run of the node draws the next noise of its seed, from stream 0 on.
    """

    op_domain = DOMAIN

    def __init__(self, onnx_node: Any, run_params: dict[str, Any], schema: Any = None) -> None:
        super().__init__(onnx_node, run_params, schema)
        self._stream = 0

    def _run(
        self,
        x: NDArray[Any],
        weight: NDArray[Any],
        weight_scale: NDArray[Any],
        bias: NDArray[Any] | None = None,
        **given: Any,
    ) -> tuple[NDArray[np.float32]]:
        attributes = completed({name: value for name, value in given.items() if value is not None})
        arguments: dict[str, Any] = {
            **attributes,
            "weight_scale": weight_scale if attributes["weight_bits"] else None,
            "stream": self._stream,
        }
        y = reference.optical_linear(x, weight, bias, **arguments)
        self._stream += 1
        return (y,)


def reference_ops() -> list[type[OpRun]]:
    """The operators that ``onnx.reference.ReferenceEvaluator(model, new_ops=reference_ops())`` needs for our files.

    The results are those of ONNX Runtime with the operator's library, bit for bit where the rest of the model is. Slow:
    this is the scalar definition in numpy. Without them the evaluator runs the function body that a file carries, as it
    does for layers in other functions of the model, to which it hands no operators:
    ``onnx.inliner.inline_selected_functions`` puts those layers into the graph.
    """
    return [OpticalLinear]
