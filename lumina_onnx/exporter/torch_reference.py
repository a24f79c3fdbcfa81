"""The torch model that a file was made from, run on the file's inputs with the file's noise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lumina_onnx import nn as optical
from lumina_onnx.nn._modes import evaluating, uncompiled
from lumina_onnx.nn._wrappers import check_is_whole, unwrapped

from . import nodes
from .binding import Binding, bind, leaves
from .feeds import Arrays
from .nodes import subgraphs

__all__ = ["TorchReference"]


class TorchReference:
    """Computes a file's outputs in torch.

    Raises:
        TypeError: `reference` is not a module whose layers can be reached.
        ValueError: its forward cannot be called with the file's inputs, or returns another number of outputs.
    """

    def __init__(self, reference: nn.Module, model: ir.Model, layers: list[nodes.OpticalNode], feeds: Arrays) -> None:
        check_is_whole(reference, "reference")
        self._reference = unwrapped(reference)
        self._model = model
        self._feeds = feeds
        noisy = [node for node in layers if node.is_noisy]
        self._noisy = bool(noisy)
        self._seeds: dict[optical.OpticalLayer, list[int]] = {}
        self.notes: list[str] = []
        """Reasons why torch cannot produce the same bits."""
        if self._noisy:
            self._assign_seeds(layers, {node.name for node in noisy})

    def run(self, stream: int) -> Arrays:
        """The outputs by name, with the noise of this stream under the file's seeds."""
        noise = optical.noise(self._reference, on=self._noisy, stream=stream if self._noisy else None)
        with noise, _seeded(self._seeds):
            result = leaves(self._call())
        names = [str(value.name) for value in self._model.graph.outputs]
        binding = Binding.read(self._model)
        tensors: list[Any] = [leaf for leaf in result if isinstance(leaf, Tensor)]
        if binding is not None and binding.outputs and max(binding.outputs) < len(result):
            tensors = [result[index] for index in binding.outputs]
        elif len(tensors) != len(names):  # Sizes that forward computes are outputs too.
            tensors = [leaf for leaf in result if isinstance(leaf, (Tensor, bool, int, float))]
        if len(tensors) != len(names):
            raise ValueError(
                f"reference: {type(self._reference).__name__}.forward returns {len(tensors)} tensors, and the file has "
                f"{len(names)} outputs, {', '.join(map(repr, names))}; allowed is the model that was exported"
            )
        return {name: _array(tensor) for name, tensor in zip(names, tensors, strict=True)}

    def _call(self) -> object:
        model = self._reference
        arguments, keywords = bind(self._model, model, self._feeds)
        # Compiled models and the branches of torch.cond run their original code, so that hooks see each call.
        with torch.no_grad(), evaluating(model), uncompiled():
            try:
                return model(*arguments, **keywords)
            except Exception as error:
                raise ValueError(
                    f"reference: {type(model).__name__}.forward fails on the file's inputs: {type(error).__name__}: "
                    f"{error}"
                ) from error

    def _assign_seeds(self, layers: list[nodes.OpticalNode], noisy: set[str]) -> None:
        """Finds the file's seeds for each optical module, one per call in a forward pass, and notes which `noisy`
        layers have other seeds than in torch.

        Modules that share a seed in torch, and repeated calls of one module, have separate seeds in the file.
        """
        repeated = [name for name in self._repeated() if name in noisy]
        if repeated:
            self.notes.append(
                f"torch draws other noise for {', '.join(repeated)}: in a loop torch has one stream for all passes, "
                "the file one for each"
            )
            return
        calls = self._calls()
        known = {module.seed for module in self._reference.modules() if isinstance(module, optical.OpticalLayer)}
        owners = self._owners(layers, calls, known)
        apart = [
            node.name
            for node, owner in zip(layers, owners, strict=True)
            if owner is None and node.attributes["seed"] not in known
        ]
        for module in dict.fromkeys(owner for owner in owners if owner is not None):
            own = [node for node, owner in zip(layers, owners, strict=True) if owner is module]
            seeds = [node.attributes["seed"] for node in own]
            count = calls.count(module)
            if count == len(own) or len(set(seeds)) == 1:
                self._seeds[module] = seeds[:1] * count if count != len(own) else seeds
            elif count:  # The inputs decide which of the module's calls are made.
                apart += [node.name for node in own if node.attributes["seed"] != module.seed]
        apart = [name for name in apart if name in noisy]
        if apart:
            self.notes.append(
                f"torch draws other noise for {', '.join(apart)}: in the file they have seeds of their own"
            )

    def _calls(self) -> list[optical.OpticalLayer]:
        """The optical modules in the order of their calls in a forward pass."""
        calls: list[optical.OpticalLayer] = []
        hooks = [
            module.register_forward_pre_hook(lambda module, _: calls.append(module))
            for module in self._reference.modules()
            if isinstance(module, optical.OpticalLayer)
        ]
        try:
            with optical.noise(self._reference):
                self._call()
        finally:
            for hook in hooks:
                hook.remove()
        return calls

    def _owners(
        self, layers: list[nodes.OpticalNode], calls: list[optical.OpticalLayer], known: set[int]
    ) -> Sequence[optical.OpticalLayer | None]:
        """The module that each node stands for: that of the call at the same position, or else the one that the node is
        named after ("head", or "head_2" for its second call)."""
        if len(calls) == len(layers) and all(
            _fits(module, node) and (node.attributes["seed"] == module.seed or node.attributes["seed"] not in known)
            for module, node in zip(calls, layers, strict=True)
        ):
            return calls
        modules = {
            nodes.spelled(name): module
            for name, module in self._reference.named_modules(remove_duplicate=False)
            if isinstance(module, optical.OpticalLayer)
        }
        owners: list[optical.OpticalLayer | None] = []
        for node in layers:
            base, _, number = node.name.rpartition("_")
            owner = modules.get(node.name) or (modules.get(base) if number.isdigit() else None)
            owners.append(owner if owner is not None and _fits(owner, node) else None)
        return owners

    def _repeated(self) -> list[str]:
        """The layers that a run of the file may compute more than once."""
        found = []
        waiting = [(node, False) for node in self._model.graph]
        while waiting:
            node, loops = waiting.pop()
            if loops and nodes.is_optical(node):
                found.append(node.name or str(node.outputs[0].name))
            for _, graph in subgraphs(node):
                waiting += [(inner, loops or node.op_type in ("Loop", "Scan")) for inner in graph]
        return found[::-1]


def _fits(module: optical.OpticalLayer, node: nodes.OpticalNode) -> bool:
    return (module.in_features, module.out_features) == (node.in_features, node.out_features)


@contextlib.contextmanager
def _seeded(seeds: dict[optical.OpticalLayer, list[int]]) -> Iterator[None]:
    """Gives each call of each module its seed, and restores the modules' own seeds afterwards."""
    before = {module: module.seed for module in seeds}
    left = {module: iter(each) for module, each in seeds.items()}

    def next_seed(module: optical.OpticalLayer, _: object) -> None:
        module.seed = next(left[module])

    hooks = [module.register_forward_pre_hook(next_seed) for module in seeds]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, seed in before.items():
            module.seed = seed


def _array(value: Tensor | float) -> NDArray[np.generic]:
    if not isinstance(value, Tensor):
        kind = np.bool_ if isinstance(value, bool) else np.int64 if isinstance(value, int) else np.float32
        return np.asarray(value, dtype=kind)
    array: NDArray[np.generic] = value.detach().resolve_neg().resolve_conj().numpy()
    return array
