"""The recipes for published models: their functions on small models, and their pages of measurements."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from lumina_onnx import OpticalProfile, exporter
from lumina_onnx import nn as optical
from lumina_onnx.cli import classifier

ROOT = Path(__file__).parents[2]
MEASUREMENTS = ROOT / "docs" / "measurements"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT / "export"))
    with classifier.one_thread():
        yield


@pytest.fixture
def published() -> Any:
    import _published

    return _published


@pytest.fixture
def minilm() -> Any:
    import minilm

    return minilm


@pytest.fixture
def encoder(minilm: Any) -> Any:
    """A small encoder with random weights."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        # Such that sentences differ as much as in a trained model.
        initializer_range=0.3,
    )
    return minilm.Encoder(transformers.BertModel(config, add_pooling_layer=False)).eval()


WORDS = ("light", "lens", "mirror", "laser", "detector", "phase", "noise", "beam", "fibre", "prism")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)), encoding="utf-8")
    return transformers.BertTokenizer(str(vocabulary))


def lines(count: int) -> list[str]:
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(WORDS, generator.integers(2, 9))) for _ in range(count)]


def test_sentences_are_whole_and_each_once(published: Any) -> None:
    found = published.sentences()
    assert len(found) == len(set(found)) > 1000
    assert found == published.sentences()
    for text in found:
        assert 6 <= len(text.split()) <= 40
        assert text[0].isupper()
        assert text.endswith(".")
        assert "\n" not in text
    assert published.texts() == published.texts()


def test_padding_and_order_do_not_change_embeddings(minilm: Any, encoder: Any, tokenizer: Any) -> None:
    texts = lines(70)
    sets = minilm.batches(texts, tokenizer)
    assert [len(places) for places, _ in sets] == [32, 32, 6]
    widths = [arguments["input_ids"].shape[1] for _, arguments in sets]
    assert widths == sorted(widths)
    found = minilm.embed(encoder, sets)
    assert found.shape == (70, 32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    for place in (0, 33, 69):
        tokens = tokenizer([texts[place]], return_tensors="pt")
        alone = encoder(tokens["input_ids"], tokens["attention_mask"]).detach().numpy()
        np.testing.assert_allclose(found[place : place + 1], alone, atol=1e-5)


def test_no_sentence_is_trained_on_and_evaluated(minilm: Any, tokenizer: Any) -> None:
    texts = [f"{text} {place}" for place, text in enumerate(lines(50))]
    tokens: dict[str, set[tuple[int, ...]]] = {}
    numbered = type(tokenizer)(vocab={**tokenizer.get_vocab(), **{str(n): 100 + n for n in range(50)}})
    sets = minilm.Sets.of(texts, numbered, calibration=8, evaluation=20)
    for name in ("calibration", "training", "evaluation"):
        tokens[name] = {tuple(row.tolist()) for _, batch in getattr(sets, name) for row in batch["input_ids"]}
        tokens[name] = {tuple(token for token in row if token) for row in tokens[name]}
    assert [len(tokens[name]) for name in ("calibration", "training", "evaluation")] == [8, 30, 20]
    assert tokens["calibration"] < tokens["training"]
    assert not tokens["training"] & tokens["evaluation"]


def test_scores_are_one_for_the_same_embeddings_and_fall_with_noise(minilm: Any) -> None:
    generator = np.random.default_rng(0)
    reference = generator.standard_normal((40, 16), np.float32)
    reference /= np.linalg.norm(reference, axis=1, keepdims=True)
    same = minilm.scores(reference, reference)
    assert same == pytest.approx({"cosine": 1, "spearman": 1, "neighbour": 1})
    previous = same
    for level in (0.1, 0.4, 5.0):
        found = reference + np.float32(level) * generator.standard_normal(reference.shape, np.float32)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        score = minilm.scores(found, reference)
        assert all(score[name] < previous[name] for name in score)
        previous = score
    # A rotation keeps all similarities, and moves every embedding.
    turned = minilm.scores(np.roll(reference, 1, axis=1), reference)
    assert turned["spearman"] == pytest.approx(1)
    assert turned["neighbour"] == 1
    assert turned["cosine"] < 0.5


def test_distillation_moves_towards_the_float_model(minilm: Any, encoder: Any, tokenizer: Any) -> None:
    sets = minilm.Sets.of(lines(120), tokenizer, calibration=20, evaluation=40)
    reference, targets = minilm.embed(encoder, sets.evaluation), minilm.embed(encoder, sets.training)
    model = minilm.hardware(encoder, 4, 0.05, sets.calibration)
    assert len(optical.report(model).converted) == 12
    before = minilm.rate(model, sets.evaluation, reference, 0.05, draws=3)
    assert len(set(before["cosine"])) == 3, "each draw is another one"
    tables = {name: value.clone() for name, value in model.state_dict().items() if ".embeddings." in name}
    ticks: list[None] = []
    minilm.distil(model, sets.training, targets, 30, lambda: ticks.append(None))
    assert len(ticks) == 30
    after = minilm.rate(model, sets.evaluation, reference, 0.05, draws=3)
    assert np.mean(after["cosine"]) > np.mean(before["cosine"]) + 0.01
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in tables.items())


def test_files_equal_torch_and_are_compared(minilm: Any, encoder: Any, tokenizer: Any, tmp_path: Path) -> None:
    sets = minilm.Sets.of(lines(90), tokenizer, calibration=20, evaluation=40)
    models = {bits: minilm.hardware(encoder, bits, minilm.STORED[bits], sets.calibration) for bits in (8, 4)}
    facts = minilm.store(encoder, models, sets, tmp_path, rounds=1)
    assert {name: file["layers"] for name, file in facts["written"].items()} == {
        "minilm-8bit.onnx": 12,
        "minilm-4bit.onnx": 12,
    }
    for name, file in facts["written"].items():
        assert file["cosine"] > 0.99
        assert file["bytes"] == (tmp_path / name).stat().st_size
    assert facts["int8"]["cosine"] > 0.95
    names = [file["name"] for file in facts["latency"]["files"]]
    assert names == ["float", "ONNX Runtime's dynamic int8", "optical, 8 bits", "optical, 4 bits"]
    reference = minilm.embed(encoder, sets.evaluation)
    found = minilm.embed_in_file(tmp_path / "minilm-float.onnx", sets.evaluation)
    np.testing.assert_allclose(found, reference, atol=1e-5)


def test_measuring_gives_a_row_for_each_setting(
    minilm: Any, encoder: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minilm, "NOISES", (0.0, 0.02))
    monkeypatch.setattr(minilm, "TRAINED", (0.02,))
    sets = minilm.Sets.of(lines(60), tokenizer, calibration=10, evaluation=20)
    rows, models = minilm.measure(encoder, sets, steps=2, draws=2)
    assert [(row["bits"], row["noise"], "after" in row) for row in rows] == [
        (8, 0.0, False),
        (8, 0.02, True),
        (4, 0.0, False),
        (4, 0.02, True),
    ]
    assert [len(row["before"]["cosine"]) for row in rows] == [1, 2, 1, 2]
    assert {
        bits: model.bert.encoder.layer[0].intermediate.dense.profile.weight_bits for bits, model in models.items()
    } == {
        8: 8,
        4: 4,
    }


def test_a_recipe_says_what_is_not_installed(minilm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    with pytest.raises(
        ModuleNotFoundError, match=r"no_such_package is not installed: allowed is what pip install '\.\["
    ):
        minilm.load()


@pytest.fixture
def ocr() -> Any:
    import ocr

    return ocr


def test_lines_are_the_same_each_time(ocr: Any) -> None:
    found = ocr.lines(100)
    assert found == ocr.lines(100)
    assert len(set(found)) == 100
    assert all(text.isascii() and 12 <= len(text) <= 33 and text == text.strip() for text in found)
    with pytest.raises(ValueError, match=r"count = 100000: there are only \d+ lines"):
        ocr.lines(100000)


def test_pictures_differ_and_repeat(ocr: Any) -> None:
    def pictures() -> list[Any]:
        generator = np.random.default_rng(0)
        return [ocr.render("A line of light", generator) for _ in range(6)]

    found = pictures()
    assert all(map(np.array_equal, found, pictures()))
    assert len({picture.shape for picture in found}) > 3
    for picture in found:
        assert picture.dtype == np.uint8
        assert np.ptp(picture) >= 40, "the line is there"


def test_pictures_are_scaled_and_padded(ocr: Any) -> None:
    pictures = [np.full((24, 400), 255, np.uint8), np.zeros((96, 200), np.uint8)]
    ((places, batch),) = ocr.batches(pictures)
    assert places == [1, 0]
    assert batch.shape == (2, 3, 48, 800)
    assert (batch[0, :, :, :100] == -1).all()
    assert (batch[0, :, :, 100:] == 0).all()
    assert (batch[1] == 1).all()


def test_decoding_drops_blanks_and_repetitions(ocr: Any) -> None:
    best = np.array([[0, 1, 1, 0, 1, 2, 2, 2, 3, 0], [0] * 10])
    probabilities = np.eye(4, dtype=np.float32)[best]
    assert ocr.decode(probabilities, ["", "a", "b", " "]) == ["aab ", ""]


@pytest.mark.parametrize(
    ("found", "expected", "errors"),
    [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("abc", "abc", 0)],
)
def test_errors_are_counted(ocr: Any, found: str, expected: str, errors: int) -> None:
    assert ocr.distance(found, expected) == errors


def test_scores_of_lines(ocr: Any) -> None:
    assert ocr.score(["light", "lons"], ["light", "lens!"]) == {"characters": 0.2, "lines": 0.5}


@pytest.fixture
def recogniser(ocr: Any, tmp_path: Path) -> Path:
    """A recogniser that cannot read: a convolution, a linear layer in each column, and its characters."""
    generator = np.random.default_rng(0)

    def stored(name: str, *shape: int) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)

    nodes = [
        onnx.helper.make_node("Conv", ["x", "kernel"], ["c"], "conv", kernel_shape=[48, 4], strides=[48, 4]),
        onnx.helper.make_node("Squeeze", ["c", "axis"], ["s"], "squeeze"),
        onnx.helper.make_node("Transpose", ["s"], ["t"], "transpose", perm=[0, 2, 1]),
        onnx.helper.make_node("MatMul", ["t", "weight"], ["m"], "linear"),
        onnx.helper.make_node("Softmax", ["m"], ["y"], "softmax", axis=2),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "recogniser",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3, 48, "width"])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", "places", 5])],
        [stored("kernel", 8, 3, 48, 4), stored("weight", 8, 5), onnx.numpy_helper.from_array(np.array([2]), "axis")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    model.metadata_props.add(key="character", value="a\nb\nc")
    path = tmp_path / "recogniser.onnx"
    onnx.save(model, path)
    return path


def test_the_share_of_multiplications(ocr: Any, recogniser: Path) -> None:
    # A column: 8 kernels of 3 x 48 x 4 in the convolution, 8 x 5 in the layer.
    share = ocr.share(recogniser, ["linear"], np.zeros((2, 3, 48, 320), np.float32))
    assert share == pytest.approx(40 / (40 + 8 * 3 * 48 * 4))


def test_a_recogniser_is_measured(
    ocr: Any, published: Any, recogniser: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ocr, "source", lambda: recogniser)
    monkeypatch.setattr(ocr, "NOISES", (0.0, 0.01))
    monkeypatch.setattr(published, "versions", lambda *packages: {"rapidocr-onnxruntime": "1.4.4"})
    assert ocr.classes(recogniser) == ["", "a", "b", "c", " "]
    folder = tmp_path / "large"
    folder.mkdir()
    results = json.loads(json.dumps(ocr.run(folder, count=8, draws=2, rounds=1)))
    assert results["lines"] == {"calibration": 32, "evaluation": 8}
    assert results["layers"] == 1
    assert results["source"] == "recogniser.onnx"
    assert [(row["hardware"], row["noise"], len(row["lines"])) for row in results["rows"]] == [
        (hardware, noise, 2 if noise else 1) for noise in (0.0, 0.01) for hardware in ocr.HARDWARE
    ]
    assert results["float"]["lines"] == [0]
    assert sorted(path.name for path in folder.iterdir()) == ["ocr-4bit-weights.onnx", "ocr-8bit.onnx"]
    assert [file["bytes"] for file in results["written"].values()] == [
        (folder / name).stat().st_size for name in results["written"]
    ]
    ocr.plot(results, tmp_path / "ocr.png")
    assert (tmp_path / "ocr.png").stat().st_size > 1000
    assert "| 4 bits | 1 % |" in ocr.section(results)
    assert set(ocr.cards(results)) == {"ocr-8bit.onnx", "ocr-4bit-weights.onnx"}


def test_noise_makes_draws_that_differ(ocr: Any, recogniser: Path, tmp_path: Path) -> None:
    path = tmp_path / "noisy.onnx"
    exporter.rewrite(recogniser, path, OpticalProfile(noise_additive=0.3))
    sets = ocr.batches([ocr.render("noise", np.random.default_rng(seed)) for seed in range(20)])
    scores = ocr.rate(path, sets, ["abcabc"] * 20, ocr.classes(path), draws=3)["characters"]
    assert len(set(scores)) == 3


def test_what_the_page_of_minilm_says(minilm: Any) -> None:
    figures = minilm.PAGE.figures()
    assert figures["sentences"]["evaluation"] == 500
    rows = {(row["bits"], row["noise"]): row for row in figures["rows"]}
    assert set(rows) == {(bits, noise) for bits in minilm.BITS for noise in minilm.NOISES}
    assert {noise for (_, noise), row in rows.items() if "after" in row} == set(minilm.TRAINED)
    for name in ("cosine", "spearman"):
        assert rows[8, 0.0]["before"][name][0] > 0.98
        for bits, noise in ((4, 0.0), (4, 0.02), (8, 0.02)):
            row = rows[bits, noise]
            lost = [1 - np.mean(row[when][name]) for when in ("before", "after")]
            assert lost[1] < lost[0] / 2, "distillation wins more than half back"
    for name, file in figures["written"].items():
        assert file["layers"] == 36, name


def test_what_the_page_of_ocr_says(ocr: Any) -> None:
    figures = ocr.PAGE.figures()
    assert figures["lines"]["evaluation"] == 200
    rows = {(row["hardware"], row["noise"]): row for row in figures["rows"]}
    assert set(rows) == {(hardware, noise) for hardware in ocr.HARDWARE for noise in ocr.NOISES}
    errors = {setting: np.mean(row["characters"]) for setting, row in rows.items()}
    assert errors["8 bits", 0.0] < figures["float"]["characters"][0] + 0.005
    assert errors["4 bits", 0.0] > 2 * errors["8 bits", 0.0]
    assert figures["layers"] == 9


@pytest.mark.parametrize("name", ["minilm", "ocr"])
def test_pages_show_their_figures(name: str, tmp_path: Path) -> None:
    import _common

    recipe = importlib.import_module(name)
    page = recipe.PAGE
    page.check()
    for file in (f"{name}.md", f"{name}.json"):
        (tmp_path / file).write_bytes((MEASUREMENTS / file).read_bytes())
    changed = tmp_path / f"{name}.md"
    changed.write_text(changed.read_text(encoding="utf-8").replace("Made with", "Made of"), encoding="utf-8")
    with pytest.raises(SystemExit, match=rf"{name}\.md and {name}\.json disagree: run {name}\.py without --check"):
        page.check(tmp_path)
    page.render(tmp_path)
    assert changed.read_bytes() == (MEASUREMENTS / f"{name}.md").read_bytes()
    assert (tmp_path / f"{name}.png").stat().st_size > 1000
    cards = _common.CARDS.read_text(encoding="utf-8")
    for title, rows in recipe.cards(page.figures()).items():
        assert _common.table(f"### {title}", rows) in cards
