"""A torch module in a sweep: its optical layers get other profiles, and each cell runs the module."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import lumina_onnx
from lumina_onnx import nn as optical
from lumina_onnx.nn import _checks
from lumina_onnx.nn._modes import uncompiled
from lumina_onnx.nn._wrappers import check_is_whole, unwrapped
from lumina_onnx.nn.linear import optical_layers
from lumina_onnx.profile import OpticalProfile

from .data import Arrays
from .engine import joined
from .fingerprint import of_arrays, of_function

__all__ = ["Module"]


@dataclass(frozen=True)
class Module:
    """A copy of a module."""

    module: nn.Module

    @classmethod
    def of(cls, module: nn.Module) -> Module:
        """Checks and copies it: a sweep changes nothing of the caller's.

        Raises:
            TypeError: its layers cannot be reached.
        """
        check_is_whole(module)
        return cls(copy.deepcopy(unwrapped(module)))

    def digest(self) -> str:
        """Of its structure, the code of its own classes, and its state."""
        found = hashlib.sha256()
        for name, module in self.module.named_modules():
            kind = type(module)
            found.update(f"{name} {kind.__module__}.{kind.__qualname__} {module.extra_repr()}\n".encode())
            if kind.__module__.split(".")[0] not in ("torch", "lumina_onnx"):
                found.update(of_function(kind.forward).encode())
        for name, layer in optical_layers(self.module):
            found.update(f"{name} {layer.profile!r} {layer.seed}\n".encode())
        tensors = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        found.update(of_arrays({name: tensor.detach().numpy() for name, tensor in sorted(tensors.items())}).encode())
        return found.hexdigest()

    def versions(self) -> dict[str, str]:
        """torch's, and ours."""
        return {"lumina_onnx": lumina_onnx.__version__, "torch": str(torch.__version__)}

    def open(self) -> Opened:
        """The module as an engine, which leaves it in eval mode and with the profiles of its last point."""
        return Opened(self.module)


class Opened:
    """A module as an engine, see :class:`.engine.Engine`."""

    def __init__(self, module: nn.Module) -> None:
        """Takes over `module`."""
        self._module = module.eval()
        named = optical_layers(module)
        if not named:
            raise ValueError(
                f"model = {type(module).__name__} has no optical layer: make some first, "
                "lumina_onnx.nn.convert(model, profile)"
            )
        self._layers = [layer for _, layer in named]
        self.names = [name or type(layer).__name__ for name, layer in named]
        self.profiles = [layer.profile for layer in self._layers]
        parameters = inspect.signature(module.forward).parameters.values()
        self.inputs = [
            each.name
            for each in parameters
            if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) and each.default is each.empty
        ]

    def check_profile(self, place: int, profile: OpticalProfile) -> None:
        """Whether the layer's size allows the profile."""
        _checks.check_profile(profile, self._layers[place].out_features)

    def check_inputs(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """A module declares nothing: its first run tells."""

    def set_up(self, profiles: Sequence[OpticalProfile]) -> None:
        """Gives the layers these profiles."""
        for layer, profile in zip(self._layers, profiles, strict=True):
            if layer.profile != profile:
                layer.profile = profile

    def run(self, batches: Iterable[Arrays], seed: int | None) -> Any:
        """What ``torch.manual_seed(seed)`` and then calls of the module give; without a seed it is 0."""
        results = []
        with _alone, _one_thread(), torch.no_grad(), uncompiled(), optical.frozen(self._module):
            torch.manual_seed(0 if seed is None else seed)
            for batch in batches:
                tensors = [torch.from_numpy(np.array(batch[name])) for name in self.inputs]
                results.append(_arrays(self._module(*tensors)))
        return joined(results)

    def close(self) -> None:
        """A module keeps nothing."""


_alone = threading.Lock()
"""The generator and the number of threads are torch's own; some workers of a cluster have several cells at once."""


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Restores both afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


def _arrays(result: Any) -> Any:
    """The tensors of a result as arrays, in its structure."""
    if isinstance(result, torch.Tensor):
        return result.numpy()
    if isinstance(result, Mapping):
        return {name: _arrays(each) for name, each in result.items()}
    if isinstance(result, (tuple, list)):
        return tuple(map(_arrays, result))
    return result
