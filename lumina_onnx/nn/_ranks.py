"""Merges the histograms of several ``torch.distributed`` processes."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from lumina_onnx._histogram import Histogram
from lumina_onnx.nn.linear import OpticalLayer

Group = Any  # torch.distributed.ProcessGroup, where torch was built with it


@dataclass(frozen=True)
class _Told:
    """What a process tells the others before anything is added up."""

    failure: str = ""
    """The error that kept the process from observing; empty if there was none."""
    alike: tuple[tuple[str, object], ...] = ()
    """(name, value) pairs that must be the same in every process."""
    batches: int = 0
    spans: tuple[tuple[int, int], ...] = ()
    """For each histogram, the span of the bins that are not empty."""
    maxima: tuple[NDArray[np.float32], ...] = ()
    """For each histogram."""


class Together:
    """The processes that calibrate together; this one alone where torch.distributed is not in use.

    Raises:
        TypeError, ValueError: `group` is not a process group, or is one that this process does not belong to.
    """

    def __init__(self, group: Group | Literal[False] | None) -> None:
        running = dist.is_available() and dist.is_initialized()
        if group is None or group is False:
            self._group = dist.group.WORLD if running and group is None else None
        elif running and group == dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError("group is one that this process is no member of: allowed is one that it belongs to")
        elif running and isinstance(group, dist.ProcessGroup):
            self._group = group
        else:
            raise TypeError(
                f"group is {type(group).__name__} {group!r}: allowed is a process group of torch.distributed, None "
                "(the default one where it is initialised) or False (this process alone)"
            )
        self.rank = 0 if self._group is None else dist.get_rank(self._group)
        self.size = 1 if self._group is None else dist.get_world_size(self._group)

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Tells the other processes of an error inside the block, so that they raise too instead of waiting."""
        try:
            yield
        except Exception as error:
            if self.size > 1:
                self._tell(_Told(failure=f"{type(error).__name__}: {error}"))
            raise

    def merge(self, alike: Sequence[tuple[str, object]], histograms: Sequence[Histogram], batches: int) -> int:
        """Adds the other processes' counts to the histograms, in place.

        Args:
            alike: (name, value) pairs that must be the same in every process.
            histograms: this process's, in the same order in every process.
            batches: the number of batches that this process saw.

        Returns:
            The number of batches that all processes together saw.

        Raises:
            RuntimeError: another process has failed.
            ValueError: a value that must be the same differs between processes.
        """
        if self.size == 1:
            return batches
        spans = tuple(histogram.span() for histogram in histograms)
        maxima = tuple(histogram.maxima for histogram in histograms)
        told = self._tell(_Told("", tuple(alike), batches, spans, maxima))
        self._check(told)
        joint = [
            (min(low for low, _ in each), max(high for _, high in each))
            for each in zip(*(other.spans for other in told), strict=True)
        ]
        parts = [histogram.counts(*span) for histogram, span in zip(histograms, joint, strict=True)]
        counts = torch.from_numpy(np.concatenate([part.ravel() for part in parts])).to(_device(self._group))
        dist.all_reduce(counts, group=self._group)
        sums = np.split(counts.cpu().numpy(), np.cumsum([part.size for part in parts])[:-1])
        for index, (histogram, (low, _)) in enumerate(zip(histograms, joint, strict=True)):
            maxima = np.max([other.maxima[index] for other in told], axis=0)
            histogram.become(low, sums[index].reshape(parts[index].shape), maxima)
        return sum(other.batches for other in told)

    def _tell(self, told: _Told) -> list[_Told]:
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, told, group=self._group)
        return gathered

    def _check(self, told: list[_Told]) -> None:
        for rank, other in enumerate(told):
            if other.failure:
                raise RuntimeError(
                    f"calibrate: rank {rank} failed, so no rank has new ranges. Its error: {other.failure}"
                )
        for rank, other in enumerate(told):
            for (what, first), (_, value) in zip(told[0].alike, other.alike, strict=False):
                if first != value:
                    raise ValueError(
                        f"calibrate: {what} is {first} on rank 0 and {value} on rank {rank}: allowed is the same on "
                        "each rank, or group=False, with which each process calibrates a model of its own"
                    )


def described(layers: Sequence[tuple[str, OpticalLayer]]) -> Iterator[tuple[str, object]]:
    """(name, value) pairs of what the layers of all processes must have in common."""
    yield "the list of optical layers", ", ".join(name or "(model)" for name, _ in layers)
    for name, layer in layers:
        yield f"layer {name!r}", f"{layer.in_features} -> {layer.out_features}"
        yield f"the profile of layer {name!r}", layer.profile.replace(input_range=0.0, output_range=0.0)
        digest = hashlib.blake2b(digest_size=8)
        for parameter in layer._holder().parameters():
            digest.update(parameter.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        yield f"the hash of the weights of layer {name!r}", digest.hexdigest()


def _device(group: Group) -> torch.device:
    """The device on which the group's backend adds up: the GPU for a group that has NCCL alone."""
    served = str(dist.get_backend_config(group)).split(",")
    kinds = [backend.split(":")[0] for backend in served]
    return torch.device("cpu" if "cpu" in kinds else kinds[0])
