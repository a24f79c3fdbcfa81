"""What a sweep asks of a model, whichever kind it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lumina_onnx.profile import OpticalProfile

from .data import Arrays

__all__ = ["Engine", "Source", "joined"]


class Source(Protocol):
    """A model that can be sent to a worker."""

    def digest(self) -> str:
        """A fingerprint of everything that the model's results depend on."""

    def versions(self) -> dict[str, str]:
        """The packages that run it."""

    def open(self) -> Engine:
        """The model, ready to be given the profiles of a point."""


class Engine(Protocol):
    """A model in one worker, of which each thread has its own. It computes on one thread."""

    @property
    def names(self) -> Sequence[str]:
        """The names of the optical layers."""

    @property
    def profiles(self) -> Sequence[OpticalProfile]:
        """Their profiles without the grid."""

    @property
    def inputs(self) -> Sequence[str]:
        """The names of the inputs, in their order."""

    def check_profile(self, place: int, profile: OpticalProfile) -> None:
        """Raises ValueError if the layer with this number cannot have a profile."""

    def check_inputs(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Raises ValueError if the model does not take these arrays as a batch."""

    def set_up(self, profiles: Sequence[OpticalProfile]) -> None:
        """Gives the layers these profiles."""

    def run(self, batches: Iterable[Arrays], seed: int | None) -> Any:
        """The outputs for batches in their order, joined along dimension 0, under the draw of a seed.

        Equal profiles, batches and seeds give equal outputs, whatever ran before. None: the model's own seeds.
        """

    def close(self) -> None:
        """Deletes what the model keeps in files."""


def joined(results: Sequence[Any]) -> Any:
    """Arrays, or equal structures of arrays, of several batches as one along dimension 0.

    Raises:
        TypeError: an output is no array.
    """
    first = results[0]
    if isinstance(first, Mapping):
        return {name: joined([result[name] for result in results]) for name in first}
    if isinstance(first, (tuple, list)):
        return tuple(joined(list(each)) for each in zip(*results, strict=True))
    if not isinstance(first, np.ndarray):
        raise TypeError(
            f"the model gives a {type(first).__name__}: allowed are tensors, and tuples and mappings of them"
        )
    return first if len(results) == 1 or not first.ndim else np.concatenate(results)
