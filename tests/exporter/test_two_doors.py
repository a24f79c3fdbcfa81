"""A model converted and exported, and its plain export rewritten: the same layers, the same results."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import lumina_onnx
from lumina_onnx import nn as optical
from lumina_onnx.exporter import export, inspect, nodes, rewrite
from lumina_onnx.profile import OpticalProfile

ANALOG = OpticalProfile(input_bits=0, weight_bits=0, output_bits=0)
# Without an ADC, whose dynamic range would be that of the rows that share a product.
FINE = OpticalProfile(input_bits=12, weight_bits=12, output_bits=0)


class Plain(nn.Linear):
    pass


def perceptron() -> tuple[nn.Module, tuple[Any, ...]]:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Plain(8, 8, bias=False), nn.GELU(), nn.LazyLinear(3))
    x = torch.randn(4, 6)
    model(x)
    return model, (x,)


class Encoder(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        result: Tensor = self.encoder(x, src_key_padding_mask=padding)
        return result


def encoder() -> tuple[nn.Module, tuple[Any, ...]]:
    return Encoder(batch_first=True), (torch.randn(3, 5, 8), torch.arange(5).expand(3, -1) > 3)


def encoder_norm_first() -> tuple[nn.Module, tuple[Any, ...]]:
    model = Encoder(norm_first=True, activation="gelu", bias=False)
    return model, (torch.randn(5, 3, 8), torch.arange(5).expand(3, -1) > 3)


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        late = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        result: Tensor = self.head(self.transformer(source, target, tgt_mask=late, tgt_is_causal=True))
        return result


def translator() -> tuple[nn.Module, tuple[Any, ...]]:
    return Translator(), (torch.randn(3, 5, 8), torch.randn(3, 4, 8))


class Reader(nn.Module):
    """Attention between signals of different widths, with keys of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, add_bias_kv=True, add_zero_attn=True, kdim=6, vdim=5)
        self.merge = nn.MultiheadAttention(8, 2, bias=False)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = self.attention(x, keys, values)
        return self.merge(x, y, y)[0], weights


def reader() -> tuple[nn.Module, tuple[Any, ...]]:
    return Reader(), (torch.randn(4, 3, 8), torch.randn(5, 3, 6), torch.randn(5, 3, 5))


class Block(nn.Module):
    """A block of torchvision's vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.self_attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 8), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(1, 8, 4, 4)
        self.class_token = nn.Parameter(torch.randn(1, 1, 8))
        self.pos_embedding = nn.Parameter(torch.randn(1, 5, 8))
        self.layers = nn.Sequential(Block(), Block())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv_proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), tokens], dim=1) + self.pos_embedding
        result: Tensor = self.head(self.layers(tokens)[:, 0])
        return result


def vision() -> tuple[nn.Module, tuple[Any, ...]]:
    return VisionTransformer(), (torch.randn(3, 1, 8, 8),)


class Decoder(nn.Module):
    """A block of GPT-2 in the transformers package."""

    def __init__(self) -> None:
        super().__init__()
        conv1d: Any = sys.modules["transformers.pytorch_utils"].Conv1D
        self.c_attn, self.c_proj, self.c_fc, self.head = conv1d(24, 8), conv1d(8, 8), conv1d(16, 8), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each.unflatten(-1, (2, 4)).transpose(1, 2) for each in self.c_attn(x).split(8, dim=2))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.c_proj(y)
        result: Tensor = self.head(nn.functional.gelu(self.c_fc(x)))
        return result


def decoder() -> tuple[nn.Module, tuple[Any, ...]]:
    return Decoder(), (torch.randn(3, 5, 8),)


class LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


def parametrised() -> tuple[nn.Module, tuple[Any, ...]]:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)), nn.ReLU(), Plain(8, 4))
    parametrizations.weight_norm(model[0])
    parametrize.register_parametrization(model[1], "weight", LowRank())
    prune.l1_unstructured(model[2], "weight", 0.5)
    prune.remove(model[2], "weight")
    parametrizations.spectral_norm(model[4])
    return model, (torch.randn(4, 8),)


class Adapted(nn.Module):
    """A mixer whose first layer has a low-rank adapter, not merged."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(8, 8), nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.tokens, self.channels = nn.Linear(5, 5), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.base(x) + 2 * self.up(self.down(x))
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        result: Tensor = x + self.channels(x)
        return result


def adapted() -> tuple[nn.Module, tuple[Any, ...]]:
    return Adapted(), (torch.randn(3, 5, 8),)


MODELS = [perceptron, encoder, encoder_norm_first, translator, reader, vision, decoder, parametrised, adapted]


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.usefixtures("conv1d")
@pytest.mark.parametrize("make", MODELS)
def test_both_give_the_same_layers_and_results(tmp_path: Path, make: Callable[[], tuple[nn.Module, Any]]) -> None:
    model, arguments = make()
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 and not parameter.any():
                parameter.normal_()
    torch.onnx.export(model, arguments, tmp_path / "plain.onnx", dynamo=True, verbose=False)
    callers = {node.name: caller(node) for node in onnx.load(tmp_path / "plain.onnx").graph.node}
    for profile in (ANALOG, FINE):
        paths = tmp_path / "exported.onnx", tmp_path / "rewritten.onnx"
        converted = optical.convert(model, profile)
        assert not [row for row in optical.report(converted).left if row.in_features]
        exported = export(converted, arguments, paths[0], dynamic_batch=False)
        rewritten = rewrite(tmp_path / "plain.onnx", paths[1], profile)
        assert [row.kind for row in exported.left] == [row.kind for row in rewritten.left]
        seeds = [layer.seed for layer in exported.layers]
        assert len(set(seeds)) == len(seeds)
        results = [results_of(path, arguments) for path in paths]
        tolerance = 1e-5 if profile is ANALOG else 2e-2
        for ours, theirs in zip(*results, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * abs(theirs).max())
        # What one product of the plain file computes may be several layers of torch's: query, key and value.
        weights = {**weights_of(paths[0]), **weights_of(paths[1])}
        waiting = inspect(paths[0]).layers
        for other in inspect(paths[1]).layers:
            parts: list[Any] = []
            while sum(part.out_features for part in parts) < other.out_features:
                parts.append(waiting.pop(0))
            found = np.concatenate([weights[part.name] for part in parts])
            np.testing.assert_allclose(found, weights[other.name], rtol=1e-5, atol=1e-6)
            for part in parts:
                assert callers[other.name] in (part.name, part.name.rpartition(".")[0])
                for what in ("in_features", "bits", "input_range", "output_range", "noise"):
                    assert getattr(part, what) == getattr(other, what)
        assert not waiting


def caller(node: onnx.NodeProto) -> str:
    """The path of the module that computes a node."""
    scopes = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "['', '']")
    path: str = ast.literal_eval(scopes)[-2]
    return path


def weights_of(path: Path) -> dict[str, NDArray[Any]]:
    """The weights of a file's layers by name, in the order of their calls."""
    return {
        layer.name: layer.weight.numpy() for layer in nodes.optical_nodes(ir.load(path)) if layer.weight is not None
    }


def results_of(path: Path, arguments: Any) -> list[NDArray[Any]]:
    session = lumina_onnx.load(path)
    feeds = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), arguments, strict=True)}
    results: list[NDArray[Any]] = session.run(None, feeds)
    return results
