"""Layers in branches and loops keep their names, their noise and their weights as torch computes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops import while_loop
from torch.nn.utils import parametrizations

from lumina_onnx import nn as optical
from lumina_onnx.exporter import verify
from lumina_onnx.nn import functional
from lumina_onnx.profile import OpticalProfile

X = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))


class Branches(nn.Module):
    """Two levels of branches: a layer also called in the main graph, one called twice, one that stays, a function."""

    def __init__(self, profile: OpticalProfile) -> None:
        super().__init__()
        self.profile = profile
        self.first = nn.Linear(16, 16)
        self.yes, self.no = nn.Sequential(nn.Linear(16, 16), nn.ReLU()), nn.Linear(16, 16)
        self.deep, self.plain = nn.Linear(16, 16), nn.Linear(16, 16)
        self.weight = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        def otherwise(x: Tensor) -> Tensor:
            more = torch.cond(x.max() > 1, self.deep, lambda x: x - 1, (x,))
            return self.no(self.no(x)) + more + 0 * self.plain(x)

        def function(x: Tensor) -> Tensor:
            return functional.optical_linear(self.yes(x), self.weight * 1.1, None, self.profile, seed=77)

        x = self.first(x)
        return self.first(torch.cond(x.sum() > 0, function, otherwise, (x,)))


def test_branches_of_cond(prover: Any) -> None:
    clean = OpticalProfile(weight_bits=4, noise_additive=0.05)
    model = optical.convert(Branches(OpticalProfile(weight_bits=4)), clean, skip="plain")
    parametrizations.weight_norm(model.no)
    parametrizations.weight_norm(model.yes[0])
    report = prover.export(model, torch.randn(2, 16))
    modules = dict(model.named_modules())
    assert [layer.name for layer in report.layers] == [
        *("first", "yes.0", "optical_linear", "deep", "no", "no_2", "first_2"),
    ]
    assert [left.name for left in report.left] == ["plain"]
    assert report.left[0].reason == "skip 'plain'"
    seeds = {layer.name: layer.seed for layer in report.layers}
    assert all(seeds[name] == modules[name].seed for name in ("first", "yes.0", "no", "deep"))
    assert seeds["optical_linear"] == 77
    taken = set()
    for x in (X, -X, 9 * X, -9 * X):
        with torch.no_grad(), optical.noise(model):
            h = model.first(x)
            taken.add((bool(h.sum() > 0), bool(h.max() > 1)))
        checked = verify(prover.path, inputs=[x.numpy()], reference=model)
        rows = [row for row in checked.comparisons if row.against == "torch"]
        assert len(rows) == 2
        assert all(row.equal for row in rows), str(checked)
        assert [note for note in checked.notes if "noise" in note] == []
    assert {sign for sign, _ in taken} == {True, False}


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        start = (torch.tensor(0), self.first(x))
        result: Tensor = while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, self.layer(x)), start)[1]
        return result


def test_a_loop(prover: Any, noisy: OpticalProfile) -> None:
    model = optical.convert(Loop(), noisy)
    parametrizations.weight_norm(model.layer)
    report = prover.export(model, torch.randn(2, 16))
    assert [layer.name for layer in report.layers] == ["first", "layer"]
    assert report.left == []
    assert [note for note in verify(prover.path, reference=model).notes if "noise" in note] == [
        "torch draws other noise for layer: in a loop torch has one stream for all passes, the file one for each"
    ]
    prover.export(model, torch.randn(2, 16), noise="off")
    rows = verify(prover.path, inputs=[X.numpy()], reference=model).comparisons
    assert all(row.equal for row in rows if row.against == "torch")
