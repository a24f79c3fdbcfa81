"""Transformers of usual sizes with random weights, as models for ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn
from torch.nn.functional import gelu

from lumina_onnx import OpticalProfile, exporter
from lumina_onnx import nn as optical


class Block(nn.Module):
    """Attention and a perceptron; the norms stand before them, or behind the sums as in BERT."""

    def __init__(self, width: int, heads: int, inner: int, *, norm_first: bool) -> None:
        super().__init__()
        self.heads, self.norm_first = heads, norm_first
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def attend(self, x: Tensor, past: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batch, tokens, width = x.shape
        query, key, value = (
            project(x).view(batch, tokens, self.heads, -1).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        if past:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        weights = (query @ key.transpose(-1, -2) / math.sqrt(width // self.heads)).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).reshape(batch, tokens, width)), (key, value)

    def perceive(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(gelu(self.up(x)))
        return result

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = x + self.attend(self.first_norm(x))[0]
            return x + self.perceive(self.second_norm(x))
        x = self.first_norm(x + self.attend(x)[0])
        result: Tensor = self.second_norm(x + self.perceive(x))
        return result


class MiniLM(nn.Module):
    """The sizes of MiniLM: 384 wide, 12 heads, a perceptron of 1,536; the mean over the tokens. Its vocabulary is
    smaller, which takes no time."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(1000, 384), nn.LayerNorm(384)
        self.places = nn.Parameter(torch.randn(1, 512, 384) / 50)
        self.blocks = nn.Sequential(*(Block(384, 12, 1536, norm_first=False) for _ in range(layers)))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.tokens(ids) + self.places[:, : ids.shape[1]])
        result: Tensor = self.blocks(x).mean(1)
        return result


class VisionTransformer(nn.Module):
    """ViT-Tiny on 196 patches of 16 x 16 pixels: 12 blocks, 192 wide, 3 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head, self.norm = nn.Linear(768, 192), nn.Linear(192, 1000), nn.LayerNorm(192)
        self.places = nn.Parameter(torch.randn(1, 196, 192) / 50)
        self.blocks = nn.Sequential(*(Block(192, 3, 768, norm_first=True) for _ in range(12)))

    def forward(self, patches: Tensor) -> Tensor:
        x = self.blocks(self.patch(patches) + self.places)
        result: Tensor = self.head(self.norm(x).mean(1))
        return result


class Decoder(nn.Module):
    """A block of GPT-2 (768 wide, 12 heads) for one more token, with the keys and values of those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(768, 12, 3072, norm_first=True)

    def forward(self, x: Tensor, past_key: Tensor, past_value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        block = self.block
        attended, (key, value) = block.attend(block.first_norm(x), (past_key, past_value))
        x = x + attended
        return x + block.perceive(block.second_norm(x)), key, value


@dataclass(frozen=True)
class Transformer:
    """A network and its inputs for a batch."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]


def _cached(batch: int) -> tuple[Tensor, ...]:
    past = [torch.randn(batch, 12, 128, 64) for _ in range(2)]
    return torch.randn(batch, 1, 768), *past


TRANSFORMERS = (
    Transformer("MiniLM-L3, 32 tokens", lambda: MiniLM(3), lambda batch: (torch.randint(1000, (batch, 32)),)),
    Transformer("MiniLM-L6, 32 tokens", lambda: MiniLM(6), lambda batch: (torch.randint(1000, (batch, 32)),)),
    Transformer("ViT-Tiny, 196 patches", VisionTransformer, lambda batch: (torch.randn(batch, 196, 768),)),
    Transformer("a block of GPT-2, one token after 128", Decoder, _cached),
)
TINY = (Transformer("MiniLM-L1, 4 tokens", lambda: MiniLM(1), lambda batch: (torch.randint(1000, (batch, 4)),)),)


def write(transformer: Transformer, batch: int, path: Path, *, static: bool) -> tuple[Tensor, ...]:
    """Writes the optical model at 8/8/8 bits; returns its inputs. The full scales are fixed, or follow the data."""
    torch.manual_seed(0)
    profile = OpticalProfile(input_bits=8, weight_bits=8, output_bits=8)
    model, inputs = transformer.build().eval(), transformer.inputs(batch)
    model = optical.convert(model, profile)
    if static:
        optical.calibrate(model, [inputs], forward=lambda model, batch: model(*batch), progress=False)
    exporter.export(model, inputs, path)
    return inputs


def quantize(source: Path, target: Path) -> None:
    """ONNX Runtime's own dynamic quantisation of a float32 model, with one scale for each output."""
    quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)
