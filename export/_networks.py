"""Two deep networks for images of 28 x 28 pixels: a vision transformer and an MLP-mixer.

Both cut an image into 16 patches and have six blocks, each of two parts with a layer norm before and a sum after them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

PATCHES, PATCH = 4, 7
"""Patches along each side of an image, and their pixels."""
TOKENS = PATCHES**2
BLOCKS = 6
WIDTH = 32
HEADS = 2


def vision_transformer(seed: int) -> nn.Sequential:
    """Attention across the patches, then a perceptron in each; `seed` fixes the first weights."""
    return _seeded(seed, lambda: _network([Positions()], lambda: (Attention(), perceptron(WIDTH))))


def mixer(seed: int) -> nn.Sequential:
    """A perceptron across the patches, then one in each; `seed` fixes the first weights."""
    return _seeded(seed, lambda: _network([], lambda: (Across(), perceptron(WIDTH))))


def _seeded(seed: int, make: Callable[[], nn.Sequential]) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _network(first: Iterable[nn.Module], block: Callable[[], Iterable[nn.Module]]) -> nn.Sequential:
    parts = [Residual(part) for _ in range(BLOCKS) for part in block()]
    embed, classify = nn.Linear(PATCH**2, WIDTH), nn.Linear(WIDTH, 10)
    return nn.Sequential(Patches(), embed, *first, *parts, nn.LayerNorm(WIDTH), Mean(), classify)


def perceptron(width: int) -> nn.Sequential:
    """One hidden layer, twice as wide, with GELU."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class Patches(nn.Module):
    """[images, pixels] to [images, patches, pixels of a patch]."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.unflatten(1, (PATCHES, PATCH, PATCHES, PATCH)).transpose(2, 3)
        return rows.flatten(3).flatten(1, 2)


class Positions(nn.Module):
    """Adds what is learnt for each place in the image."""

    def __init__(self) -> None:
        super().__init__()
        # As large as the embedded patches: with the usual 0.02 it takes several epochs to tell places apart.
        self.table = nn.Parameter(torch.randn(TOKENS, WIDTH) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class Residual(nn.Module):
    """x + part(norm(x))."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.norm, self.part = nn.LayerNorm(WIDTH), part

    def forward(self, x: Tensor) -> Tensor:
        return x + self.part(self.norm(x))


class Attention(nn.Module):
    """Self-attention with layers for `convert`, which leaves a part of torch's own module as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Across(nn.Module):
    """The same perceptron for every channel, across the patches."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = perceptron(TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x.transpose(1, 2)).transpose(1, 2)


class Mean(nn.Module):
    """The mean over the patches."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)
