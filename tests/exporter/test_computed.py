"""Computed weights: the file holds what torch computes, bit for bit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from lumina_onnx import nn as optical
from lumina_onnx.exporter import export
from lumina_onnx.exporter.capture import capture
from lumina_onnx.nn import functional
from lumina_onnx.profile import OpticalProfile

ANALOG = OpticalProfile(0, 0, 0)
"""The results of this profile show every bit of the weights."""


class LowRank(nn.Module):
    def __init__(self, n: int, k: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(n, 4)), nn.Parameter(torch.randn(4, k))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 0.1 * self.a @ self.b


FORMS: dict[str, Callable[[nn.Module], object]] = {
    "weight norm": parametrizations.weight_norm,
    "weight norm of old": nn.utils.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm of old": nn.utils.spectral_norm,
    # Computed by operators that ONNX does not have.
    "orthogonal": parametrizations.orthogonal,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned bias": lambda layer: prune.random_unstructured(layer, "bias", 0.5),
    "low rank": lambda layer: parametrize.register_parametrization(
        layer,
        "weight",
        LowRank(layer.out_features, layer.in_features),  # type: ignore[arg-type]
    ),
}


class Forms(nn.Module):
    """One layer of each form, each called twice; in between, its result is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name.replace(" ", "_"): nn.Linear(96, 96) for name in FORMS})

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(torch.relu_(layer(x))) for layer in self.layers.values()]


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.*:FutureWarning")
def test_weights_are_those_of_torch(prover: Any) -> None:
    model = optical.convert(Forms(), ANALOG)
    for form, layer in zip(FORMS.values(), model.layers.values(), strict=True):
        form(layer)
    model(torch.randn(2, 96))
    model.eval()
    report = prover.export(model, torch.randn(2, 96))
    names = [f"layers.{name.replace(' ', '_')}" for name in FORMS]
    assert [layer.name for layer in report.layers] == [f"{name}{call}" for name in names for call in ("", "_2")]
    assert report.other_operators == {"Relu": len(FORMS)}
    assert [layer.shared_with for layer in report.layers[1::2]] == names
    prover.equal(model, torch.randn(5, 96))


class Function(nn.Module):
    """Calls the function with a weight of its own."""

    def __init__(self, weight: Callable[[Function], Tensor]) -> None:
        super().__init__()
        self.make = weight
        self.w, self.low = nn.Parameter(torch.randn(24, 32)), LowRank(24, 32)
        self.register_buffer("count", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return functional.optical_linear(x, self.make(self), None, ANALOG, seed=3)


def changed_in_place(model: Function) -> Tensor:
    weight = model.w.clone()
    weight[1:].mul_(3)
    weight.add_(model.low(weight))
    return weight


COMPUTED: dict[str, Callable[[Function], Tensor]] = {
    "low rank": lambda model: model.low(model.w),
    "changed in place": changed_in_place,
    "by an exponential": lambda model: torch.matrix_exp(model.w @ model.w.t() / 99) @ model.w,
    "by softmax": lambda model: torch.softmax(model.w, 1),
    "of another type on the way": lambda model: model.w.double().exp().float(),
    "dropout that is off": lambda model: nn.functional.dropout(model.w * 1.1, 0.5, model.training),
    "a view": lambda model: model.w[:],
}


class All(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Function(weight) for weight in COMPUTED.values())

    def forward(self, x: Tensor) -> list[Tensor]:
        return [part(x) for part in self.parts]


def test_weights_of_the_function(prover: Any) -> None:
    model = All().eval()
    report = prover.export(model, torch.randn(2, 32))
    assert [layer.name for layer in report.layers] == [f"parts.{index}" for index in range(len(COMPUTED))]
    assert report.other_operators == {}
    prover.equal(model, torch.randn(5, 32))


def counted(model: Function) -> Tensor:
    model.count.add_(1)  # type: ignore[operator]
    return model.w * model.count  # type: ignore[operator]


CHANGING: dict[str, tuple[Callable[[Function], Tensor], str]] = {
    "a Bayesian layer": (lambda model: model.w + torch.randn_like(model.w), "is drawn at random"),
    "DropConnect": (lambda model: nn.functional.dropout(model.w, 0.5, True), "is drawn at random"),
    "Bernoulli": (lambda model: model.w * torch.bernoulli(model.w.sigmoid()), "is drawn at random"),
    "a buffer that counts": (counted, "comes from one that the forward pass changes in place (aten.add_.Tensor)"),
    "itself": (lambda model: model.w.detach().mul_(0.5), "comes from one that the forward pass changes in place"),
}


@pytest.mark.parametrize("how", CHANGING)
def test_a_weight_that_is_another_one_in_each_call(tmp_path: Path, how: str) -> None:
    make, why = CHANGING[how]
    model, x = Function(make), torch.randn(2, 32)
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    message = f"optical_linear: its weight {why}"
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        export(model, x, tmp_path / "model.onnx")
    assert "allowed is a parameter, a buffer or something computed from those alone" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(tmp_path.iterdir())


def test_an_operand_of_the_input_is_left_to_the_file() -> None:
    """Nothing is computed at this point: the pass that stores weights refuses it with its own message."""

    class Hyper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            weight = self.w.clone()
            weight.mul_(x.mean())
            return functional.optical_linear(x, weight, None, ANALOG)

    captured = capture(Hyper(), (torch.randn(2, 4),), dynamic_shapes=None, dynamic_batch=True, opset=20)
    assert [call.computed for call in captured.calls] == [{}]
