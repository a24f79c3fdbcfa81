"""Cells of a .onnx file against sessions and the reference that know nothing of sweeps."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import nn

import lumina_onnx
from lumina_onnx import OpticalProfile, exporter, reference
from lumina_onnx import nn as optical
from tests.sweep.conftest import PROFILE, SEED

Sweep = Callable[..., lumina_onnx.SweepResult]


def outputs_of(sweep: Sweep, grid: dict[str, Any], **options: Any) -> list[NDArray[np.float32]]:
    """The outputs in every cell, in the order of the grid."""
    with tempfile.TemporaryDirectory() as folder:

        def keep(outputs: NDArray[np.float32], labels: Any) -> float:
            np.save(f"{folder}/{len(os.listdir(folder)):04}.npy", outputs)
            return 0.0

        sweep(grid, metric=keep, **options)
        return [np.load(path) for path in sorted(Path(folder).iterdir())]


def run(path: Path, x: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
    session = lumina_onnx.load(path)
    return np.concatenate([session.run(None, {"input": x[i : i + batch]})[0] for i in range(0, len(x), batch)])


def written(model: onnx.ModelProto, tmp_path: Path) -> Path:
    onnx.save(model, tmp_path / "written.onnx")
    return tmp_path / "written.onnx"


def test_a_seed_is_that_of_convert(sweep: Sweep, network: nn.Module, data: dict[str, Any], tmp_path: Path) -> None:
    cells = outputs_of(sweep, {"noise_additive": [0.1, 0.3]}, seeds=[SEED, 9], batch=20)
    for index, (level, seed) in enumerate([(0.1, SEED), (0.1, 9), (0.3, SEED), (0.3, 9)]):
        converted = optical.convert(network, PROFILE.replace(noise_additive=level), seed=seed)
        path = tmp_path / f"{index}.onnx"
        exporter.export(converted, (torch.zeros(2, 6),), path)
        np.testing.assert_array_equal(cells[index], run(path, data["x"], 20))


def test_without_seeds_the_file_is_as_it_is(sweep: Sweep, file: Path, data: dict[str, Any]) -> None:
    (cell,) = outputs_of(sweep, {})
    np.testing.assert_array_equal(cell, run(file, data["x"], 256))


@pytest.mark.parametrize(
    ("grid", "changes"),
    [
        ({"output_bits": [3]}, {"0": {"output_bits": 3}, "2": {"output_bits": 3}}),
        ({"2:output_range": [1.5]}, {"2": {"output_range": [1.5]}}),
        ({"input_bits": [0]}, {name: {"input_bits": 0, "input_range": 0.0} for name in "02"}),
        ({"bias_stage": ["digital"]}, {name: {"bias_stage": "digital"} for name in "02"}),
        (
            {"noise_shot": [0.25], "0:noise_additive": [0.0]},
            {"0": {"noise_shot": 0.25, "noise_additive": 0.0}, "2": {"noise_shot": 0.25}},
        ),
    ],
    ids=str,
)
def test_an_axis_sets_attributes(
    sweep: Sweep,
    file: Path,
    data: dict[str, Any],
    tmp_path: Path,
    grid: dict[str, Any],
    changes: dict[str, dict[str, Any]],
) -> None:
    model = onnx.load(file)
    for node in model.graph.node:
        for name, value in changes.get(node.name, {}).items():
            (old,) = (attribute for attribute in node.attribute if attribute.name == name)
            node.attribute.remove(old)
            node.attribute.append(helper.make_attribute(name, value))
    (cell,) = outputs_of(sweep, grid)
    np.testing.assert_array_equal(cell, run(written(model, tmp_path), data["x"], 256))


def stored(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    return next(onnx.numpy_helper.to_array(each) for each in model.graph.initializer if each.name == name)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_weight_bits_quantise_what_the_file_stores(sweep: Sweep, file: Path, data: dict[str, Any], bits: int) -> None:
    (cell,) = outputs_of(sweep, {"weight_bits": [bits]}, batch=50)
    model, x = onnx.load(file), data["x"]
    for node in [node for node in model.graph.node if node.op_type == "OpticalLinear"]:
        attributes: dict[str, Any] = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        packed, scale, bias = (stored(model, name) for name in node.input[1:])
        codes = reference.unpack_weight(packed, 4, attributes["in_features"])
        weight: Any = codes if bits == 4 else codes.astype(np.float32) * scale[:, None]
        arguments = {name: attributes[name] for name in ("input_bits", "output_bits", "input_range", "noise_additive")}
        x = reference.optical_linear(
            x,
            weight,
            bias,
            **arguments,
            weight_bits=bits,
            weight_scale=scale if bits == 4 else None,
            output_range=tuple(attributes["output_range"]),
            seed=attributes["seed"],
            stream=0,
        )
        if node.name == "0":
            x = np.maximum(x, 0)
    np.testing.assert_array_equal(cell, x)


def test_a_file_with_float_weights_takes_all_weight_bits(
    network: nn.Module, sweep: Sweep, data: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "analog.onnx"
    exporter.export(optical.convert(network, PROFILE.replace(weight_bits=0), seed=SEED), (torch.zeros(2, 6),), path)
    cells = outputs_of(sweep, {"weight_bits": [0, 1, 4, 8, 12]}, model=path)
    for bits, cell in zip((0, 1, 4, 8, 12), cells, strict=True):
        own = tmp_path / f"{bits}.onnx"
        converted = optical.convert(network, PROFILE.replace(weight_bits=bits), seed=SEED)
        exporter.export(converted, (torch.zeros(2, 6),), own)
        np.testing.assert_array_equal(cell, run(own, data["x"], 256))


def test_a_cell_does_not_depend_on_the_cells_before_it(sweep: Sweep) -> None:
    grid: dict[str, list[Any]] = {"noise_additive": [0.1, 0.2], "weight_bits": [4, 2]}
    forth = outputs_of(sweep, grid, seeds=[3, 4])
    back = outputs_of(sweep, {name: values[::-1] for name, values in grid.items()}, seeds=[4, 3])
    for one, other in zip(forth, back[::-1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_beside_the_file(file: Path, sweep: Sweep, tmp_path: Path) -> None:
    model = onnx.load(file)
    path = tmp_path / "beside.onnx"
    onnx.save(model, path, save_as_external_data=True, location="data", size_threshold=0)
    grid = {"weight_bits": [3, 4], "noise_additive": [0.1, 0.2]}
    for one, other in zip(outputs_of(sweep, grid, model=path), outputs_of(sweep, grid), strict=True):
        np.testing.assert_array_equal(one, other)


class Two(nn.Module):
    """Two inputs, two outputs, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer(left), self.layer(left + right)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    path = tmp_path / "two.onnx"
    converted = optical.convert(Two(), OpticalProfile(noise_relative=0.1))
    exporter.export(converted, (torch.zeros(2, 4), torch.zeros(2, 4)), path)
    return path


def test_several_inputs_and_outputs(sweep: Sweep, two: Path) -> None:
    names = [value.name for value in onnx.load(two).graph.output]
    assert len(names) == 2

    def both(outputs: dict[str, Any], labels: Any) -> dict[str, float]:
        assert labels is None
        return {f"of_{name}": float(outputs[name].sum()) for name in names}

    arrays = {"left": np.ones((3, 4), np.float32), "right": np.ones((3, 4), np.float32)}
    result = sweep({}, model=two, data=arrays, metric=both, seeds=2)
    assert result.metrics == tuple(f"of_{name}" for name in names)
    # Calls of one layer have noise of their own.
    session_noise = result.cells[f"of_{names[0]}"] * 2 - result.cells[f"of_{names[1]}"]
    assert (session_noise != 0).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"grid": {"weight_bits": [5]}},
            ValueError,
            r"weight_bits=5: layer '0': .* in 4 bits; allowed is 1..4. For oth",
        ),
        (
            {"grid": {"weight_bits": [0]}},
            ValueError,
            r"weight_bits = 0: the file stores this layer's weights in 4 bits",
        ),
        ({"grid": {"output_bits": [1]}}, ValueError, r"grid: output_bits=1: layer '0': output_bits = 1: allowed is 0"),
        (
            {"data": {"a": np.zeros((2, 6), np.float32), "b": np.zeros(2)}},
            ValueError,
            "data has the inputs 'a', 'b'; the",
        ),
        (
            {"data": {"x": np.zeros((2, 6))}},
            ValueError,
            r"small.onnx' does not take the data: inputs\['input'\] has dt",
        ),
        ({"data": {"x": np.zeros((2, 7), np.float32)}}, ValueError, r"has shape \[2, 7\]; allowed is \[batch, 6\]"),
        ({"data": {"x": np.zeros((2, 6), np.float32)}}, ValueError, "data has no labels, which the accuracy needs"),
        ({"labels": "targets"}, ValueError, "data has the inputs 'x', 'labels'; the model's are 'input'"),
        ({"model": "nowhere.onnx"}, FileNotFoundError, "model = 'nowhere.onnx': there is no such file"),
        ({"model": 3}, TypeError, "model is a int; allowed is the path of a .onnx file, or a torch.nn.Module"),
        ({"batch": 0}, ValueError, "batch = 0: allowed is a number from 1"),
        ({"workers": 0}, ValueError, "workers = 0: allowed is a number from 1"),
        ({"backend": "spark"}, ValueError, "backend = 'spark': allowed is 'loky', 'ray', 'dask'"),
        ({"existing": "keep"}, ValueError, "existing = 'keep': allowed is 'resume', 'extend', 'overwrite'"),
        ({"address": "tcp://x"}, ValueError, "address = 'tcp://x' would be ignored"),
        ({"metric": "recall"}, TypeError, "metric = 'recall': allowed is 'accuracy', or a callable"),
        ({"out": "results.txt"}, ValueError, "out = 'results.txt': allowed is a name that ends in .csv, .parquet"),
        ({"out": "nowhere/r.csv"}, FileNotFoundError, "the folder 'nowhere' does not exist"),
    ],
)
def test_what_a_sweep_refuses(sweep: Sweep, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sweep(**options)


def test_a_file_without_optical_layers(sweep: Sweep, tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 6]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "plain", [x], [y])
    path = written(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path)
    with pytest.raises(ValueError, match=r"has no optical layer: make some first, .* or lumina convert"):
        sweep({}, model=path)


def test_a_file_of_fixed_batches(sweep: Sweep, network: nn.Module, data: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "fixed.onnx"
    exporter.export(optical.convert(network, PROFILE, seed=SEED), (torch.zeros(8, 6),), path, dynamic_batch=False)
    with pytest.raises(ValueError, match=r"shape \[50, 6\]; allowed is \[8, 6\] \(batch = 256, of 50 samples\)"):
        sweep({}, model=path)
    with pytest.raises(ValueError, match=r"shape \[2, 6\]; allowed is \[8, 6\] \(batch = 8, of 50 samples\)"):
        sweep({}, model=path, batch=8)
    some = {name: array[:48] for name, array in data.items()}
    (cell,) = outputs_of(sweep, {}, model=path, data=some, batch=8)
    np.testing.assert_array_equal(cell, run(path, some["x"], 8))


def test_data_from_a_file_and_from_a_callable(sweep: Sweep, data: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", **data)
    expected = sweep({}).cells["accuracy"]
    assert sweep({}, data=tmp_path / "test.npz").cells["accuracy"] == expected
    assert sweep({}, data=lambda: data).cells["accuracy"] == expected
    named = {"input": data["x"], "y": data["labels"]}
    assert sweep({}, data=named, labels="y").cells["accuracy"] == expected


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (lambda: [1], TypeError, r"data\(\) returned a list: allowed is a .npz file"),
        (lambda: {"labels": np.zeros(3)}, ValueError, r"data\(\) returned 'labels': allowed are the model's inputs"),
        (
            lambda: {"x": np.zeros((3, 6)), "labels": np.zeros(2)},
            ValueError,
            r"x \[3, 6\], labels \[2\]: allowed is one",
        ),
        (lambda: {"x": np.zeros((0, 6))}, ValueError, r"x \[0, 6\]: .* and at least one"),
        ("nowhere.npz", FileNotFoundError, "data = 'nowhere.npz': there is no such file"),
        (__file__, ValueError, "not a readable .npz file"),
    ],
)
def test_data_that_are_none(sweep: Sweep, made: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sweep({}, data=made)


def test_the_accuracy(sweep: Sweep, file: Path, data: dict[str, Any]) -> None:
    expected = float((run(file, data["x"], 256).argmax(axis=1) == data["labels"]).mean())
    assert sweep({}).cells["accuracy"] == [expected]
    with pytest.raises(ValueError, match=r"labels are float32\[50\], and the accuracy takes the number of a class"):
        sweep({}, data={**data, "labels": data["labels"].astype(np.float32)})


def test_the_accuracy_of_something_else(sweep: Sweep, two: Path) -> None:
    arrays = {"left": np.ones((3, 4), np.float32), "right": np.ones((3, 4), np.float32), "labels": np.zeros(3, int)}
    with pytest.raises(ValueError, match=r"takes one output .samples, classes., and the model gives 2 outputs"):
        sweep({}, model=two, data=arrays)


def test_a_large_model_keeps_its_data_beside_it(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = {"weight_bits": [3, 4], "noise_additive": [0.1, 0.2]}
    expected = outputs_of(sweep, grid, seeds=2)
    monkeypatch.setattr("lumina_onnx.exporter.files._MAPPED", 100)
    monkeypatch.setattr("lumina_onnx.exporter.files._LEAST_BESIDE", 8)
    for one, other in zip(outputs_of(sweep, grid, seeds=2), expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("workers", [1, 2])
def test_other_random_operators_follow_the_seed(sweep: Sweep, file: Path, tmp_path: Path, workers: int) -> None:
    model = onnx.load(file)
    (output,) = model.graph.output
    model.graph.node.append(helper.make_node("Bernoulli", [output.name], ["drawn"]))
    model.graph.node.append(helper.make_node("RandomNormalLike", ["drawn"], ["normals"]))
    output.name = "normals"
    path = written(model, tmp_path)

    def first(outputs: Any, labels: Any) -> float:
        return float(outputs[0, 0])

    found = [sweep({}, model=path, seeds=6, metric=first, workers=count).cells["first"] for count in (1, workers)]
    np.testing.assert_array_equal(found[0], found[1])
    assert len(set(found[0])) == 6
