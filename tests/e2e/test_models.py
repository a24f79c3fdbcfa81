"""The committed models and what their cards state; docs/measurements/physics.md and its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

import lumina_onnx
from lumina_onnx.exporter import body

ROOT = Path(__file__).parents[2]
NAMES = ("digits-4bit", "digits-8bit", "mnist5k-4bit", "mnist5k-8bit")


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "export" / f"{name}.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "export"))
    import _common

    return _common


def test_the_models_are_there_and_small() -> None:
    assert tuple(path.stem for path in sorted((ROOT / "models").glob("*.onnx"))) == NAMES
    for path in (ROOT / "models").glob("*.onnx"):
        assert path.stat().st_size < 200_000


@pytest.mark.parametrize("name", NAMES)
def test_the_models_carry_the_function_body_of_today(name: str) -> None:
    (function,) = onnx.load(ROOT / "models" / f"{name}.onnx").functions
    assert function == body.function(20), "run the recipes with --body"


def test_a_new_body_changes_nothing_else(common: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = (ROOT / "models" / "digits-4bit.onnx").read_bytes()
    outdated = onnx.load_from_string(before)
    del outdated.functions[0].node[-1]
    onnx.save(outdated, tmp_path / "digits-4bit.onnx")
    monkeypatch.setattr(common, "MODELS", tmp_path)
    monkeypatch.setattr(common, "CARDS", tmp_path / "README.md")
    monkeypatch.setattr(sys, "argv", ["digits.py", "--body"])
    recipe = common.Recipe("digits-4bit", "digits", lumina_onnx.OpticalProfile())
    common.main("digits.py", (recipe,))
    assert (tmp_path / "digits-4bit.onnx").read_bytes() == before
    assert common.card(ROOT / "models" / "digits-4bit.onnx") in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_cards_state_what_the_files_are() -> None:
    result = script("digits", "--check")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_card_that_states_something_else_is_found(common: Any, name: str, tmp_path: Path) -> None:
    """Changing the last layer's threshold changes sha256 and accuracy, and with them the card."""
    path = ROOT / "models" / f"{name}.onnx"
    card = common.card(path)
    assert card in (ROOT / "models" / "README.md").read_text(encoding="utf-8")
    model = onnx.load(path)
    last = [node for node in model.graph.node if node.op_type == "OpticalLinear"][-1]
    next(attribute for attribute in last.attribute if attribute.name == "noise_additive").f = 0.5
    onnx.save(model, tmp_path / path.name)
    changed = common.card(tmp_path / path.name)
    rows = [
        before.split(" | ")[0]
        for before, after in zip(card.splitlines(), changed.splitlines(), strict=True)
        if before != after
    ]
    assert any("with noise" in row for row in rows)
    assert "| sha256" in rows


def test_check_fails_where_the_cards_are_wrong(common: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing", encoding="utf-8")
    monkeypatch.setattr(common, "CARDS", tmp_path / "README.md")
    monkeypatch.setattr(common, "MODELS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["digits.py", "--check"])
    with pytest.raises(SystemExit, match=r"README\.md does not state what the files are: run digits\.py"):
        common.main("digits.py", ())


def test_a_recipe_makes_a_model_that_verifies(common: Any, tmp_path: Path) -> None:
    recipe = common.Recipe("tiny", "digits", lumina_onnx.OpticalProfile(4, 4, 4, noise_additive=0.05), epochs=1)
    for name in ("a.onnx", "b.onnx"):
        common.make(recipe, "digits.py", tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert "| network | 64-100-100-10," in common.card(tmp_path / "a.onnx")


def test_the_page_on_physics_shows_its_figures() -> None:
    result = script("physics", "--check")
    assert result.returncode == 0, result.stderr


def test_noise_aware_training_wins_back_most_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "export"))
    import physics

    figures = json.loads((ROOT / "docs" / "measurements" / "physics.json").read_text(encoding="utf-8"))
    assert (figures["bits"], figures["epochs"]) == (4, 30)
    rows = physics.summary(figures)
    assert {(row["data"], row["noise"]) for row in rows} == {
        (name, noise) for name in ("digits", "mnist5k") for noise in (0.05, 0.1)
    }
    for row in rows:
        assert row["float"].count == 5
        if row["data"] == "mnist5k":
            assert row["won"] >= 0.6, row


def test_physics_trains_measures_and_checks(tmp_path: Path) -> None:
    (tmp_path / "physics.md").write_text(
        "<!-- begin: results, written by export/physics.py -->\n<!-- end: results -->\n", encoding="utf-8"
    )
    result = script("physics", "--data", "digits", "--seeds", 1, "--epochs", 1, "--draws", 1, "--docs", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "physics.png").stat().st_size > 1000
    assert script("physics", "--check", "--docs", tmp_path).returncode == 0
    page = tmp_path / "physics.md"
    page.write_text(page.read_text(encoding="utf-8").replace("| digits | maximum |", "| digits | minimum |"))
    failed = script("physics", "--check", "--docs", tmp_path)
    assert failed.returncode == 1
    assert "physics.md and physics.json disagree" in failed.stderr
