"""docs/measurements/precision.md: its figures, and the script and networks that they are measured with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lumina_onnx import OpticalProfile
from lumina_onnx import nn as optical

ROOT = Path(__file__).parents[2]


@pytest.fixture
def precision(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "export"))
    import precision

    return precision


def run(module: Any, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


def test_the_page_on_precision_shows_its_figures(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run(precision, monkeypatch, "--check")
    figures = json.loads((ROOT / "docs" / "measurements" / "precision.json").read_text(encoding="utf-8"))
    rows = precision.summary(figures)
    assert {(row["training"], row["precision"]) for row in rows} == {
        (training.name, asked) for training in precision.TRAININGS for asked in ("highest", "high", "8 bits")
    }
    for row in rows:
        assert row["accuracy"].count == 20
        assert row["accuracy"].mean > 0.9, row
        # As the page states: less than one of the 1,000 test images.
        assert abs(row["paired"].mean) < 1e-3, row
        assert row["within"], row
        same = row["paired"].mean == row["paired"].error == 0
        assert same == (row["precision"] == "highest"), row


def test_precision_trains_measures_and_checks(precision: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page, kept = tmp_path / "precision.md", tmp_path / "precision.json"
    page.write_text(f"{precision.PAGE.begin}\n{precision.PAGE.end}\n", encoding="utf-8")
    few = ("--seeds", 1, "--epochs", 1, "--draws", 1, "--images", 128, "--docs", tmp_path)
    run(precision, monkeypatch, *few)
    figures = json.loads(kept.read_text(encoding="utf-8"))
    assert figures["images"] == 128
    assert set(figures["trainings"]) == set(figures["epochs"]) == {each.name for each in precision.TRAININGS}
    for seeds in figures["trainings"].values():
        assert [set(seed) for seed in seeds] == [{"highest", "high", "8 bits"}]
    # Of a stopped run, with a value that nothing measures: what is there stays, and the rest is as without a stop.
    figures["trainings"]["vit-8bit"][0]["high"] = 2.0
    missing = figures["trainings"].pop("mnist5k-4bit")
    kept.write_text(json.dumps(figures), encoding="utf-8")
    run(precision, monkeypatch, *few, "--resume")
    resumed = json.loads(kept.read_text(encoding="utf-8"))
    assert resumed["trainings"] == {**figures["trainings"], "mnist5k-4bit": missing}
    run(precision, monkeypatch, "--check", "--docs", tmp_path)
    page.write_text(page.read_text(encoding="utf-8").replace('"8 bits"', '"low"'), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"precision\.md and precision\.json disagree: run precision\.py"):
        run(precision, monkeypatch, "--check", "--docs", tmp_path)


def test_precision_resumes_only_what_was_measured_alike(
    precision: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("precision.md", "precision.json"):
        (tmp_path / name).write_bytes((ROOT / "docs" / "measurements" / name).read_bytes())
    with pytest.raises(SystemExit, match=r"precision\.json was measured with other epochs, draws"):
        run(precision, monkeypatch, "--resume", "--epochs", 1, "--draws", 1, "--docs", tmp_path)


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "export"))
    import _networks

    return _networks


@pytest.mark.parametrize("name", ["vision_transformer", "mixer"])
def test_every_linear_layer_of_a_deep_network_becomes_optical(networks: Any, name: str) -> None:
    network = getattr(networks, name)(0)
    optical_network = optical.convert(network, OpticalProfile(8, 8, 8))
    kinds = [type(module) for module in optical_network.modules()]
    assert kinds.count(optical.OpticalLinear) == 26  # four in each of six blocks, one before and one after
    assert torch.nn.Linear not in kinds
    x = torch.rand(3, 784)
    y = optical_network(x)
    assert y.shape == (3, 10)
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in optical_network.parameters())
    assert torch.equal(network(x), getattr(networks, name)(0)(x))
    assert not torch.equal(network(x), getattr(networks, name)(1)(x))


def test_patches_are_squares_of_the_image(networks: Any) -> None:
    image = torch.arange(784.0).view(28, 28)
    patches = networks.Patches()(image.view(1, 784))
    assert patches.shape == (1, 16, 49)
    assert torch.equal(patches[0, 6], image[7:14, 14:21].flatten())
