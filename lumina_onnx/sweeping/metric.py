"""Metrics: what a sweep makes of a model's outputs."""

from __future__ import annotations

import importlib
import importlib.util
import numbers
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Metric", "accuracy", "named", "values"]

Metric = Callable[[Any, Any], Any]


def accuracy(outputs: Any, labels: NDArray[Any] | None) -> float:
    """The fraction of samples whose largest output (the first, in a tie) is that of their label.

    Raises:
        ValueError: there are no labels, or outputs are not one array ``[samples, classes]``.
    """
    advice = "give a metric of yours, metric=... or --metric"
    if labels is None:
        raise ValueError(f"data has no labels, which the accuracy needs: name their array, labels=..., or {advice}")
    if not isinstance(outputs, np.ndarray) or outputs.ndim != 2:
        what = f"an array {list(outputs.shape)}" if isinstance(outputs, np.ndarray) else f"{len(outputs)} outputs"
        raise ValueError(f"the accuracy takes one output [samples, classes], and the model gives {what}: {advice}")
    if labels.shape != outputs.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels are {labels.dtype}{list(labels.shape)}, and the accuracy takes the number of a class for each of "
            f"{len(outputs)} samples: {advice}"
        )
    return float((outputs.argmax(axis=1) == labels).mean())


def values(result: Any, name: str) -> dict[str, float]:
    """What a metric returned, by name; one number has the metric's own.

    Raises:
        TypeError: it is neither a number nor a mapping from names to numbers.
    """
    found = dict(result) if isinstance(result, Mapping) else {name: result}
    for key, value in found.items():
        if isinstance(value, np.ndarray) and value.ndim == 0:
            found[key] = value = value.item()
        if not isinstance(value, (numbers.Real, np.bool_)) or not isinstance(key, str):
            raise TypeError(
                f"the metric returned {key!r}: {type(value).__name__}; allowed is a number, or a mapping from names to "
                "numbers"
            )
    if not found:
        raise TypeError("the metric returned an empty mapping; allowed is at least one number")
    return {key: float(value) for key, value in found.items()}


def named(text: str, argument: str) -> Callable[..., Any]:
    """The function that ``MODULE:NAME`` or ``FILE.py:NAME`` names.

    Raises:
        ValueError: the text has another form, or there is no such function.
    """
    place, _, name = text.rpartition(":")
    allowed = "allowed is MODULE:NAME or FILE.py:NAME, of a function"
    if not place or not name:
        raise ValueError(f"{argument} = {text!r}: {allowed}")
    try:
        module = _file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        raise ValueError(
            f"{argument} = {text!r}: {place!r} cannot be imported ({type(error).__name__}: {error})"
        ) from error
    found = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ValueError(f"{argument} = {text!r}: {place!r} has no function {name!r}; {allowed}")
    return found


def _file(path: Path) -> Any:
    """A module from a file; its functions travel to workers by value, since these cannot import it."""
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    name = f"lumina_sweep_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    import cloudpickle

    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)
    return module
