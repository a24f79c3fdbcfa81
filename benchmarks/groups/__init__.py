"""The groups of measurements: each is a function from a :class:`~benchmarks.context.Context` to rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.context import Context
from benchmarks.groups import forward, gemm, noise, packing, scaling, session, stream, training
from benchmarks.results import Row


@dataclass(frozen=True)
class Group:
    """A group.

    Attributes:
        about: What it measures, for the list of groups.
        run: Measures it, row by row.
        alone: Whether it needs a process in which PyTorch has not run.
        every_tier: Whether it is measured on every instruction-set tier of the processor, not only on the fastest.
        page: "training" or "edge" if it takes minutes and is on a page of its own; it is then measured only with the
            option of that name or if asked for by its own.
    """

    about: str
    run: Callable[[Context], Iterator[Row]]
    alone: bool = False
    every_tier: bool = False
    page: str = ""


GROUPS: dict[str, Group] = {
    "forward": Group("fused forward, weights quantised in each call, against eager PyTorch", forward.relative),
    "additive": Group("the same with noise of a fixed sigma", forward.additive),
    "prepared": Group("fused forward, weights quantised beforehand on both sides", forward.prepared),
    "seed": Group("analog inputs and weights, noise, ADC, against three lines of PyTorch", forward.seed),
    "noise": Group("Gaussian noise, against torch.randn", noise.run, every_tier=True),
    "gemm": Group("products alone, against the processor's peak and PyTorch", gemm.run, every_tier=True),
    "packing": Group("float32 weights quantised and packed, against read bandwidth", packing.run),
    "scaling": Group("two threads against one", scaling.run, alone=True),
    "training": Group("a training step of one layer through autograd", training.steps, page="training"),
    "step-scaling": Group("the same, two threads against one", training.scaling, page="training"),
    "networks": Group("a training step of whole networks", training.networks, page="training"),
    "aihwkit": Group(
        "the same against aihwkit's analog tile in C++",
        training.analog,
        alone=True,
        page="training",
    ),
    "memory": Group("memory of a training step", training.kept, page="training"),
    "epoch": Group(
        "an epoch of the recipes in export/mnist5k.py, one thread",
        training.epoch,
        page="training",
    ),
    "session": Group("one layer in ONNX Runtime, against its own operators", session.layers, page="edge"),
    "models": Group("whole networks in ONNX Runtime", session.networks, page="edge"),
    "creation": Group("making a session", session.creation, page="edge"),
    "chains": Group("layers one after another, two threads against one", session.chains, page="edge"),
    "whole": Group("transformers in ONNX Runtime", session.whole, page="edge"),
    "stream": Group("sessions whose weights come from memory, against read bandwidth", stream.run, page="edge"),
}
