"""Cells of a torch module against calls of the module."""

from __future__ import annotations

import concurrent.futures
import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lumina_onnx
from lumina_onnx import nn as optical
from tests.sweep.conftest import PROFILE, SEED

Sweep = Callable[..., lumina_onnx.SweepResult]


def total(outputs: Any, labels: Any) -> float:
    return float(np.asarray(outputs, np.float64).sum())


def by_hand(model: nn.Module, x: Any, seed: int, batch: int) -> float:
    """What a user would write."""
    with torch.no_grad():
        torch.manual_seed(seed)
        return total(np.concatenate([model(part).numpy() for part in torch.from_numpy(x).split(batch)]), None)


def test_cells_are_what_the_module_gives(
    sweep: Sweep, module: nn.Module, network: nn.Module, data: dict[str, Any]
) -> None:
    grid = {"weight_bits": [2, 8], "0:noise_additive": [0.0, 0.4]}
    result = sweep(grid, model=module, metric=total, seeds=[1, 2], batch=20)
    found = iter(result.cells["total"])
    for bits in (2, 8):
        for level in (0.0, 0.4):
            overrides = {"0": PROFILE.replace(weight_bits=bits, noise_additive=level)}
            made = optical.convert(network, PROFILE.replace(weight_bits=bits), overrides=overrides, seed=SEED)
            for seed in (1, 2):
                assert next(found) == by_hand(made, data["x"], seed, 20)


def test_the_callers_module_and_generator_stay_as_they_are(
    sweep: Sweep, module: nn.Module, data: dict[str, Any]
) -> None:
    module.train()
    before = copy.deepcopy(module.state_dict()), torch.get_rng_state(), torch.get_num_threads()
    sweep({"output_bits": [3]}, model=module, seeds=2)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before[0].items())
    assert torch.equal(before[1], torch.get_rng_state())
    assert torch.get_num_threads() == before[2]
    assert module.training
    assert [row.profile.output_bits for row in optical.report(module).converted if row.profile] == [8, 8]


class Noisy(nn.Module):
    """Randomness of its own, in eval mode too, two inputs, and outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        y = self.layer(left + right) * scale
        return {"y": y, "dropped": nn.functional.dropout(y, training=True)}


def test_several_inputs_and_outputs_and_other_randomness(sweep: Sweep) -> None:
    def sums(outputs: Any, labels: Any) -> dict[str, float]:
        return {name: float(array.sum()) for name, array in outputs.items()}

    arrays = {name: np.ones((30, 6), np.float32) for name in ("left", "right")}
    model = optical.convert(Noisy(), PROFILE)
    first, second = (sweep({}, model=model, data=arrays, metric=sums, seeds=4) for _ in range(2))
    np.testing.assert_array_equal(first.cells["dropped"], second.cells["dropped"])
    assert len(set(first.cells["dropped"])) > 1
    with pytest.raises(ValueError, match="data has the inputs 'left'; the model's are 'left', 'right'"):
        sweep({}, model=model, data={"left": arrays["left"]})


def test_noise_of_repeated_calls_differs(sweep: Sweep) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) - self.layer(x)

    def spread(outputs: Any, labels: Any) -> float:
        return float(np.abs(outputs).max())

    assert sweep({}, model=optical.convert(Twice(), PROFILE), metric=spread, seeds=1).cells["spread"][0] > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"grid": {"output_bits": [1]}}, ValueError, "grid: output_bits=1: layer '0': output_bits = 1: allowed is 0"),
        ({"data": {"x": np.zeros((2, 7), np.float32)}}, ValueError, r"does not run on the data .input float32\[2, 7\]"),
        ({"data": {"x": np.zeros((2, 6))}}, ValueError, "TypeError: .*torch.float64: allowed is torch.float32"),
        ({"grid": {"tail:output_bits": [3]}}, ValueError, "pattern 'tail' matches no layer: there are 0, 2"),
    ],
)
def test_what_a_sweep_of_a_module_refuses(
    sweep: Sweep, module: nn.Module, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sweep(**{"model": module, **options})


def test_a_module_without_optical_layers(sweep: Sweep, network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"Sequential has no optical layer: make some first, lumina_onnx.nn.convert"):
        sweep({}, model=network)


def test_threads_of_one_process_do_not_disturb_each_other(module: nn.Module, data: dict[str, Any]) -> None:
    """Workers of a cluster may have several threads."""
    from lumina_onnx.sweeping.of_module import Module

    def cells(seed: int) -> Any:
        opened = Module.of(module).open()
        return [opened.run([{"input": data["x"]}] * 20, seed) for _ in range(5)]

    expected = [cells(seed)[0] for seed in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for one, found in zip(expected, threads.map(cells, range(4)), strict=True):
            for each in found:
                np.testing.assert_array_equal(each, one)
