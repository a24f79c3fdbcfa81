"""inspect, verify, run and bench on small models."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import lumina_onnx
from lumina_onnx import exporter
from lumina_onnx.cli import models, timing


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_inspect_lists_the_layers(lumina: Any, model: Any) -> None:
    result = lumina("inspect", model)
    assert result.exit_code == 0
    assert "4/4/4" in result.stdout
    assert "additive 0.1" in result.stdout
    assert "1 Relu" in result.stdout


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_inspect_cuts_nothing_on_a_narrow_terminal(
    lumina: Any, model: Any, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = lumina("inspect", model).stdout
    assert "…" not in text
    for layer in exporter.inspect(model).layers:
        for value in (layer.name, layer.seed, layer.bits, layer.noise, layer.in_features, layer.out_features):
            assert str(value) in " ".join(text.split())


def test_inspect_as_json(lumina: Any, model: Any) -> None:
    facts = json.loads(lumina("inspect", model, "--json").stdout)
    assert [(layer["in_features"], layer["out_features"]) for layer in facts["layers"]] == [(6, 5), (5, 3)]
    assert facts["file_bytes"] == model.stat().st_size


def test_inspect_as_json_of_numbers_that_json_lacks(lumina: Any, model: Any, tmp_path: Path) -> None:
    broken = onnx.load(model)
    for node, value in zip([node for node in broken.graph.node if node.domain], (np.nan, -np.inf), strict=True):
        del node.attribute[:]
        node.attribute.add(name="noise_shot", f=value, type=onnx.AttributeProto.FLOAT)
    onnx.save(broken, tmp_path / "broken.onnx")
    facts = json.loads(lumina("inspect", tmp_path / "broken.onnx", "--json").stdout)
    assert [layer["noise_shot"] for layer in facts["layers"]] == ["nan", "-inf"]


def test_verify_passes(lumina: Any, model: Any) -> None:
    result = lumina("verify", model)
    assert result.exit_code == 0
    assert "ok: with the library every bit as promised, without it within the tolerance" in result.stdout


def test_verify_takes_inputs(lumina: Any, model: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((7, 6), np.float32))
    facts = json.loads(lumina("verify", model, "--input", tmp_path / "x.npy", "--json").stdout)
    assert facts["ok"] is True
    assert facts["inputs"] == {"input": [7, 6]}
    assert all(row["shape"][0] == 7 for row in facts["comparisons"])


def test_verify_fails_with_1_where_bits_differ(lumina: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lumina_onnx import reference

    right = reference.optical_linear
    monkeypatch.setattr(reference, "optical_linear", lambda *args, **options: -right(*args, **options))
    result = lumina("verify", model)
    assert result.exit_code == 1
    assert "DIFFERENT" in result.stdout
    assert json.loads(lumina("verify", model, "--json").stdout)["ok"] is False


def test_verify_says_what_it_did_not_check_and_passes(lumina: Any, model: Any, tmp_path: Path) -> None:
    """The unchecked layer is in a branch that the input does not reach."""
    proto = onnx.load(model)
    layers = [node for node in proto.graph.node if node.op_type == "OpticalLinear"]
    last = layers[-1]
    result, x = last.output[0], last.input[0]
    branches = []
    for name in ("taken", "other"):
        inner = onnx.NodeProto.FromString(last.SerializeToString())
        inner.name, inner.output[0] = name, f"{name}_result"
        output = onnx.helper.make_tensor_value_info(f"{name}_result", onnx.TensorProto.FLOAT, None)
        branches.append(onnx.helper.make_graph([inner], name, [], [output]))
    truth = onnx.helper.make_node("IsNaN", [x], ["nan"])
    cast = onnx.helper.make_node("Cast", ["nan"], ["number"], to=onnx.TensorProto.FLOAT)
    most = onnx.helper.make_node("ReduceMax", ["number"], ["most"], keepdims=0)
    flag = onnx.helper.make_node("Cast", ["most"], ["flag"], to=onnx.TensorProto.BOOL)
    choice = onnx.helper.make_node("If", ["flag"], [result], then_branch=branches[1], else_branch=branches[0])
    proto.graph.node.remove(last)
    proto.graph.node.extend([truth, cast, most, flag, choice])
    onnx.save(proto, tmp_path / "if.onnx")
    checked = lumina("verify", tmp_path / "if.onnx")
    assert checked.exit_code == 0, checked.output
    reason = "it lies in a subgraph that these inputs do not reach"
    assert f"not checked: other (OpticalLinear): {reason}" in checked.stdout
    assert "but 1 layer NOT CHECKED: see above" in checked.stdout
    facts = json.loads(lumina("verify", tmp_path / "if.onnx", "--json").stdout)
    assert facts["ok"] is True
    assert facts["not_checked"] == [{"name": "other", "kind": "OpticalLinear", "reason": reason}]


def test_verify_finds_inputs_that_do_and_says_what_others_would_be(lumina: Any, model: Any, tmp_path: Path) -> None:
    proto = onnx.load(model)
    first = proto.graph.input[0].name
    node = onnx.helper.make_node("Reshape", ["flat", "shape"], [first])
    proto.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("flat", onnx.TensorProto.FLOAT, ["n"]))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([5, 6]), "shape"))
    proto.graph.node.insert(0, node)
    onnx.save(proto, tmp_path / "flat.onnx")
    facts = json.loads(lumina("verify", tmp_path / "flat.onnx", "--json").stdout)
    assert facts["ok"] is True
    assert facts["inputs"] == {"flat": [30]}
    np.save(tmp_path / "x.npy", np.ones(30, np.float32))
    assert lumina("verify", tmp_path / "flat.onnx", "--input", tmp_path / "x.npy").exit_code == 0
    del proto.graph.initializer[-1]
    proto.graph.input.append(onnx.helper.make_tensor_value_info("shape", onnx.TensorProto.INT64, [2]))
    onnx.save(proto, tmp_path / "shaped.onnx")
    result = lumina("verify", tmp_path / "shaped.onnx")
    assert result.exit_code == 1
    assert "does not run on random inputs" in result.stderr
    advice = "give inputs of yours, inputs=... or --input, of flat float[n], shape int64[2]. ONNX Runtime says: "
    assert advice in result.stderr
    np.savez(tmp_path / "x.npz", flat=np.ones(12, np.float32), shape=np.array([2, 6]))
    assert lumina("verify", tmp_path / "shaped.onnx", "--input", tmp_path / "x.npz").exit_code == 0


def test_verify_recomputes_as_many_rows_as_it_is_told(lumina: Any, model: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((70, 6), np.float32))
    for options, rows in (((), 64), (("--rows", 9), 9), (("--all-rows",), None), (("--rows", 70), None)):
        facts = json.loads(lumina("verify", model, "--input", tmp_path / "x.npy", *options, "--json").stdout)
        assert facts["ok"] is True
        assert {row["rows"] for row in facts["comparisons"]} == {rows}
    assert lumina("verify", model, "--rows", 0).exit_code == 2
    assert inspect.signature(exporter.verify).parameters["rows"].default == models.ROWS


def test_verify_without_optical_layers(lumina: Any, tmp_path: Path) -> None:
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "relu.onnx")
    result = lumina("verify", tmp_path / "relu.onnx")
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: path = '{tmp_path / 'relu.onnx'}': the model has no lumina::OpticalLinear node to verify\n"
    )


def test_run_writes_what_onnxruntime_computes(lumina: Any, model: Any, tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    expected = lumina_onnx.load(model).run(None, {"input": x})[0]
    np.save(tmp_path / "x.npy", x)
    write(tmp_path / "x.npz", input=x)
    for source, target in (("x.npy", "y.npz"), ("x.npz", "y.npy")):
        result = lumina("run", model, "--input", tmp_path / source, "--output", tmp_path / target)
        assert result.exit_code == 0
        assert "written to" in result.stdout
        content = np.load(tmp_path / target)
        got = content if target == "y.npy" else content["output"]
        np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


def test_run_draws_inputs_of_the_models_shapes(lumina: Any, model: Any) -> None:
    facts = json.loads(lumina("run", model, "--batch", 5, "--json").stdout)
    assert [(row["kind"], row["shape"]) for row in facts["tensors"]] == [("input", [5, 6]), ("output", [5, 3])]
    assert facts["written"] is None
    first, again, other = (lumina("run", model, "--seed", seed, "--json").stdout for seed in (0, 0, 1))
    assert first == again != other


def test_run_with_several_inputs_and_outputs(lumina: Any, two: Any, tmp_path: Path) -> None:
    ones = np.ones((3, 4), np.float32)
    source = write(tmp_path / "in.npz", left=ones, right=ones)
    result = lumina("run", two, "--input", source, "--output", tmp_path / "out.npz")
    assert result.exit_code == 0
    session = lumina_onnx.load(two)
    expected = session.run(None, {"left": ones, "right": ones})
    with np.load(tmp_path / "out.npz") as got:
        for value, array in zip(session.get_outputs(), expected, strict=True):
            np.testing.assert_array_equal(got[value.name], array)


@pytest.mark.parametrize("columns", [70, 80, 160])
def test_run_shows_its_numbers_on_a_narrow_terminal(
    lumina: Any, model: Any, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = [line.split() for line in lumina("run", model).stdout.splitlines()]
    facts = json.loads(lumina("run", model, "--json").stdout)["tensors"]
    for row in facts:
        numbers = [f"{row[name]:.4g}" for name in ("minimum", "mean", "maximum")]
        shape = [f"[{row['shape'][0]},", f"{row['shape'][1]}]"]
        assert any(line[:7] == [row["name"], row["dtype"], *shape, *numbers] for line in lines)


def test_run_shows_values_that_are_not_finite(lumina: Any, model: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((1, 6), np.nan, np.float32))
    facts = json.loads(lumina("run", model, "--input", tmp_path / "x.npy", "--json").stdout)
    assert [row["finite"] for row in facts["tensors"]] == [False, False]


@pytest.mark.parametrize("name", ["run", "verify"])
def test_wrong_inputs_are_named(lumina: Any, model: Any, two: Any, tmp_path: Path, name: str) -> None:
    def message(net: Path, source: Path) -> str:
        result = lumina(name, net, "--input", source)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1
        return result.stderr.removeprefix(f"error: {source}: ").rstrip("\n")

    right = np.zeros((2, 6), np.float32)
    assert message(model, write(tmp_path / "a.npz", x=right)) == "holds 'x'; the model's inputs are 'input'"
    assert (
        message(model, write(tmp_path / "b.npz", input=right.astype(np.float64)))
        == "'input' has dtype float64; the model takes float32"
    )
    assert (
        message(model, write(tmp_path / "c.npz", input=right[:, :5].copy()))
        == "'input' has shape [2, 5]; the model takes [batch, 6]"
    )
    assert (
        message(model, write(tmp_path / "d.npz", input=right[0])) == "'input' has shape [6]; the model takes [batch, 6]"
    )
    np.save(tmp_path / "e.npy", right)
    assert message(two, tmp_path / "e.npy") == "one array, but the model has 2 inputs ('left', 'right'): use a .npz"
    (tmp_path / "f.npy").write_text("no array")
    assert message(model, tmp_path / "f.npy").startswith("not a readable .npy or .npz file (")
    np.save(tmp_path / "g.npy", np.array([{}]), allow_pickle=True)
    assert "allow_pickle=False" in message(model, tmp_path / "g.npy")


def test_run_refuses_npy_for_several_outputs(lumina: Any, two: Any, tmp_path: Path) -> None:
    result = lumina("run", two, "--output", tmp_path / "y.npy")
    assert result.exit_code == 1
    assert "the model has 2 outputs" in result.stderr
    assert not (tmp_path / "y.npy").exists()


@pytest.mark.parametrize(
    ("target", "words"), [("y.txt", "ends neither in .npz nor in .npy"), ("no/y.npz", "there is no folder")]
)
def test_run_refuses_other_targets(lumina: Any, model: Any, target: str, words: str, tmp_path: Path) -> None:
    result = lumina("run", model, "--output", tmp_path / target)
    assert result.exit_code == 2
    assert words.split() == [word for word in result.stderr.replace("│", " ").split() if word in words.split()]


@pytest.mark.parametrize("content", [b"no model", b"", b"\x08\x09", b"\n\0\n\0"], ids=["text", "empty", "IR", "fields"])
@pytest.mark.parametrize("name", ["run", "bench", "verify", "inspect", "convert"])
def test_a_file_that_is_no_model(lumina: Any, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "text.onnx").write_bytes(content)
    options = (tmp_path / "y.onnx", "-p", "edge") if name == "convert" else ()
    result = lumina(name, tmp_path / "text.onnx", *options)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert sorted(file.name for file in tmp_path.iterdir()) == ["text.onnx"]
    assert result.stderr.count("error: ") == 1
    assert "text.onnx" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "BURST", 1e-3)


@pytest.mark.usefixtures("quick")
def test_bench_measures_every_way_with_each_number_of_threads(lumina: Any, model: Any) -> None:
    result = lumina("bench", model, "--threads", 3, "--threads", 1, "--threads", 3, "--rounds", 2, "--json")
    facts = json.loads(result.stdout)
    sides = ["with the library", "without it", "float32 twin"]
    assert [(row["threads"], row["side"]) for row in facts["rows"]] == [(n, side) for n in (1, 3) for side in sides]
    assert facts["inputs"] == {"input": [1, 6]}
    assert facts["left_out"] == {}
    for row in facts["rows"]:
        assert 0 < row["p50"] <= row["p90"] <= row["p99"]
        assert row["runs"] >= 2
        twin = next(
            other for other in facts["rows"] if other["threads"] == row["threads"] and other["side"] == sides[2]
        )
        assert row["speed_up"] == twin["p50"] / row["p50"]
    files = {row["side"]: row["bytes"] for row in facts["rows"]}
    assert files["with the library"] == files["without it"] == model.stat().st_size
    assert files["float32 twin"] < model.stat().st_size  # The twin has no function body.
    assert "measure" in result.stderr


@pytest.mark.usefixtures("quick")
def test_bench_by_default_runs_on_one_thread_to_all_cores(
    lumina: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cores, counts in ((4, [1, 2, 3, 4]), (6, [1, 2, 3, 4, 6]), (16, [1, 2, 3, 4, 8, 16])):
        assert timing.thread_counts(cores) == counts
    for cores, counts in ((1, [1]), (2, [1, 2])):
        monkeypatch.setattr(timing, "usable_cores", lambda cores=cores: cores)
        facts = json.loads(lumina("bench", model, "--rounds", 1, "--json").stdout)
        assert sorted({row["threads"] for row in facts["rows"]}) == counts


def test_a_measurement_runs_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls take turns, and each gets its own times."""
    now, order = [0], []

    def call(name: str, nanoseconds: int) -> None:
        order.append(name)
        now[0] += nanoseconds

    monkeypatch.setattr("time.perf_counter_ns", lambda: now[0])
    rounds = []
    fast, slow = timing.measure(
        [lambda: call("a", 5_000_000), lambda: call("b", 20_000_000)], 3, lambda: rounds.append(order.copy())
    )
    assert (fast["p50"], fast["p90"], fast["p99"]) == pytest.approx((5e-3,) * 3)
    assert (slow["p50"], slow["p90"], slow["p99"]) == pytest.approx((20e-3,) * 3)
    assert (fast["runs"], slow["runs"]) == (12, 3)
    assert rounds[-1][8:] == [*"aaaaab", *"baaaaa", *"aaaaab"]  # An extra run precedes each burst of several.


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("columns", [80, 160])
def test_bench_as_a_table(lumina: Any, model: Any, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = lumina("bench", model, "--threads", 1, "--rounds", 1, "--batch", 4)
    assert result.exit_code == 0
    assert "…" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= columns
    text = " ".join(result.stdout.split())
    for words in ("inputs input [4, 6]", "p50 p90 p99 speed file", "with the library", "without it", "1.00x"):
        assert words in text


@pytest.mark.usefixtures("quick")
def test_bench_takes_inputs(lumina: Any, model: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((7, 6), np.float32))
    result = lumina("bench", model, "--input", tmp_path / "x.npy", "--threads", 1, "--rounds", 1, "--json")
    assert json.loads(result.stdout)["inputs"] == {"input": [7, 6]}
    np.save(tmp_path / "x.npy", np.ones((7, 5), np.float32))
    result = lumina("bench", model, "--input", tmp_path / "x.npy")
    assert result.exit_code == 1
    assert "'input' has shape [7, 5]; the model takes [batch, 6]" in result.stderr


@pytest.mark.usefixtures("quick")
def test_bench_says_what_it_leaves_out(lumina: Any, model: Any, tmp_path: Path) -> None:
    without_body = onnx.load(model)
    del without_body.functions[:]
    onnx.save(without_body, tmp_path / "needy.onnx")
    result = lumina("bench", tmp_path / "needy.onnx", "--threads", 1, "--rounds", 1, "--json")
    facts = json.loads(result.stdout)
    assert [row["side"] for row in facts["rows"]] == ["with the library", "float32 twin"]
    assert list(facts["left_out"]) == ["without it"]
    assert "OpticalLinear" in facts["left_out"]["without it"]

    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "relu.onnx")
    text = lumina("bench", tmp_path / "relu.onnx", "--threads", 1, "--rounds", 1).stdout
    assert "not measured: float32 twin: path = " in text
    assert "speed" not in text


@pytest.mark.usefixtures("quick")
def test_bench_draws_a_picture(lumina: Any, model: Any, tmp_path: Path) -> None:
    target = tmp_path / "latency.png"
    result = lumina("bench", model, "--threads", 1, "--threads", 2, "--rounds", 1, "--plot", target)
    assert result.exit_code == 0
    assert f"drawn in {target}" in "".join(result.stdout.splitlines())
    assert target.read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("target", "words"),
    [("y.pdf", "does not end in .png"), ("no/y.png", "there is no folder"), (".", "is a directory")],
)
def test_bench_refuses_other_targets(lumina: Any, model: Any, target: str, words: str, tmp_path: Path) -> None:
    result = lumina("bench", model, "--plot", tmp_path / target)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())


def test_bench_help_shows_what_stands_in_brackets(lumina: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = " ".join(lumina("bench", "--help").stdout.replace("│", " ").split())
    assert "[default: 1, 2, 3, 4, 8 and so on, up to all usable cores]" in text
    assert "pip install 'lumina-onnx[plot]'" in text


@pytest.mark.parametrize("command", ["inspect", "verify", "run", "bench", "convert"])
def test_data_that_are_missing_are_named(
    lumina: Any, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Data of the same name in the current folder are not taken for the model's."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a" / "small.onnx"
    path.parent.mkdir()
    onnx.save(onnx.load(model), path, save_as_external_data=True, location="small.data", size_threshold=0)
    assert command == "convert" or lumina("verify", path).exit_code == 0
    (path.parent / "small.data").rename("small.data")
    result = lumina(command, path, *(("y.onnx", "-p", "edge") if command == "convert" else ()))
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert str(path.parent / "small.data") in line
