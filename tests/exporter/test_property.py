"""Random small networks with random hardware: PyTorch, ONNX Runtime and the reference agree bit for bit."""

from __future__ import annotations

import itertools
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from effects import effects
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lumina_onnx import nn as optical
from lumina_onnx import schema
from lumina_onnx.exporter import export, verify
from lumina_onnx.profile import OpticalProfile

levels = st.sampled_from([0.0, 0.03, 0.7])
ranges = st.sampled_from([0.0, 0.5, 3.0])


@st.composite
def profiles(draw: st.DrawFn, n: int) -> OpticalProfile:
    input_bits = draw(st.sampled_from([0, *range(2, 17)]))
    per_output = draw(st.booleans())
    weight_bits = draw(st.integers(0, 16))
    profile = OpticalProfile(
        input_bits=input_bits,
        weight_bits=weight_bits,
        output_bits=draw(st.sampled_from([0, *range(2, 17)])),
        input_range=draw(ranges) if input_bits else 0.0,
        output_range=tuple(draw(st.floats(0.125, 9.0, width=32)) for _ in range(n)) if per_output else draw(ranges),
        noise_relative=draw(levels),
        noise_additive=draw(levels),
        noise_shot=draw(levels),
        bias_stage=draw(st.sampled_from(["analog", "digital"])),
    )
    return profile.replace(**draw(effects(input_bits, weight_bits)))


class Network(nn.Module):
    def __init__(self, layers: list[nn.Module], residual: list[bool]) -> None:
        super().__init__()
        self.layers, self.residual = nn.ModuleList(layers), residual

    def forward(self, x: Tensor) -> Tensor:
        for layer, residual in zip(self.layers, self.residual, strict=True):
            y = torch.relu(layer(x))
            x = x + y if residual else y
        return x.flatten(1)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    sizes = draw(st.lists(st.integers(1, 19), min_size=2, max_size=4))
    layers: list[nn.Module] = []
    residual = []
    torch.manual_seed(draw(st.integers(0, 2**31)))
    for k, n in itertools.pairwise(sizes):
        profile = draw(profiles(n))
        layers.append(optical.OpticalLinear(k, n, draw(st.booleans()), profile=profile))
        residual.append(k == n and draw(st.booleans()))
    if len(sizes) > 2 and sizes[0] == sizes[1] == sizes[2] and draw(st.booleans()):
        layers[1].weight = layers[0].weight
    return Network(layers, residual)


@settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(networks(), st.sampled_from([(0,), (1,), (5,), (3, 2)]))
def test_random_networks(network: Network, leading: tuple[int, ...]) -> None:
    k = network.layers[0].in_features
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        later = any(schema.later(vars(layer.profile)) for layer in network.layers)
        export(network, torch.randn(*(2,) * len(leading), k), path, fallback=not later)  # type: ignore[call-overload]
        report = verify(path, inputs=4 * torch.randn(*leading, k), reference=network)  # type: ignore[call-overload]
    assert report.ok, str(report)
    assert all(row.equal and row.required for row in report.comparisons if row.library), str(report)
