"""Any name that a module can have in torch becomes its node's name in the file, in reports and for patterns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import lumina_onnx
from lumina_onnx import nn as optical
from lumina_onnx.exporter import inspect, nodes, rewrite, verify
from lumina_onnx.profile import OpticalProfile

NAMES = [
    *(
        "Alzheimer's",
        "acc",
        "acc@1",
        'say "hi"',
        "both ' and \"",
        "a\\b",
        "\\",
        "\\n",
        "new\nline",
        "\x1b[31m",
        "nul\0",
    ),
    *("ü 中", "\u202e", "\ud800", "layer[0]", "layer0", "*", "{x}", "a b", "a_b", "class", "x" * 300),
]
PLAIN = ["Alzheimer's", "acc@1", 'say "hi"', "layer[0]", "\ud800"]


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(4, 4) for name in NAMES})
        self.plain = nn.ModuleDict({name: nn.Linear(4, 4) for name in PLAIN})

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.heads.values(), self.heads["acc"], *self.plain.values()):
            x = layer(x)
        return x


def test_names_of_every_kind(prover: Any, noisy: OpticalProfile) -> None:
    plain, heads = [f"plain.{name}" for name in PLAIN], [f"heads.{name}" for name in NAMES]
    model = optical.convert(Named(), noisy, skip=plain)
    converted = optical.report(model).converted
    assert [layer.name for layer in converted] == heads
    assert len({layer.seed for layer in converted}) == len(NAMES)
    report = prover.export(model, torch.randn(2, 4))
    expected = [*map(nodes.spelled, heads), "heads.acc_2"]
    assert [layer.name for layer in report.layers] == expected
    assert [layer.seed for layer in report.layers[:-1]] == [layer.seed for layer in converted]
    assert {left.name: left.reason for left in report.left} == {name: f"skip {name!r}" for name in plain}
    assert [layer.name for layer in inspect(prover.path).layers] == expected
    checked = verify(prover.path, reference=model)
    assert checked.ok
    assert checked.notes == ["torch may differ in Gemm: operators whose last bits are an implementation's own"]
    assert [row.name for row in checked.comparisons[: len(expected)]] == expected


class Clashes(nn.Module):
    """Names of modules, parameters and arguments that clash with those of nodes and values."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.output = nn.Parameter(torch.ones(6)), nn.Parameter(torch.full((6,), 2.0))
        self.node_relu, self.node_add, self.node_add_1 = (nn.Linear(6, 6) for _ in range(3))
        self.layer, self.layer_2, self.layer_2_2 = (nn.Linear(6, 6) for _ in range(3))
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.profile = OpticalProfile(weight_bits=4)

    def forward(self, x: Tensor, weight_int4: Tensor, weight_scale: Tensor) -> Tensor:
        x = self.node_relu(torch.relu(x) + self.x) + self.output + weight_int4 - 2 * weight_scale
        x = self.node_add_1(self.node_add(x))
        x = self.layer(self.layer(x)) + self.layer_2(x) + self.layer_2_2(self.layer_2(x))
        return optical.functional.optical_linear(x, self.weight, None, self.profile, seed=5, stream=0)


def test_names_that_others_have(prover: Any, noisy: OpticalProfile) -> None:
    model = optical.convert(Clashes(), noisy)
    report = prover.export(model, tuple(torch.randn(2, 6) for _ in range(3)))
    layers = [layer.name for layer in report.layers]
    assert layers == [
        *("node_relu", "node_add", "node_add_1", "layer", "layer_3", "layer_2", "layer_2_3", "layer_2_2"),
        "optical_linear",
    ]
    assert list(inspect(prover.path).inputs) == ["x", "weight_int4", "weight_scale"]
    graph = ir.load(prover.path).graph
    names = [node.name for node in graph.all_nodes()]
    assert len(set(names)) == len(names)
    values = [each.name for each in (*graph.inputs, *graph.initializers.values())]
    values += [value.name for node in graph.all_nodes() for value in node.outputs]
    assert len(set(values)) == len(values)
    with torch.no_grad(), optical.noise(model):
        inputs = [torch.randn(3, 6) for _ in range(3)]
        expected = model(*inputs)
    prover.export(model, tuple(inputs), noise="off")
    feeds = {name: value.numpy() for name, value in zip(["x", "weight_int4", "weight_scale"], inputs, strict=True)}
    (got,) = lumina_onnx.load(prover.path).run(None, feeds)
    np.testing.assert_array_equal(got, expected.numpy())


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")
@pytest.mark.parametrize("argument", ["skip", "overrides"])
def test_a_name_is_no_pattern(tmp_path: Path, argument: str, noisy: OpticalProfile) -> None:
    """Models and files use the same helper and give the same messages."""

    def options(*names: str) -> dict[str, Any]:
        return {argument: names if argument == "skip" else dict.fromkeys(names, OpticalProfile(weight_bits=2))}

    names = ["layer[0]", "layer0", "layer1", "*"]
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})
    model.forward = lambda input: torch.stack([layer(input) for layer in model.values()])
    source = tmp_path / "source.onnx"
    torch.onnx.export(model.eval(), (torch.randn(2, 4),), source, dynamo=True, verbose=False, external_data=False)
    file = onnx.load(source)
    products = [node for node in file.graph.node if node.op_type in ("Gemm", "MatMul")]
    for node, name in zip(products, names, strict=True):
        node.name = name
    onnx.save(file, source)

    def in_model(*patterns: str) -> set[str]:
        found = optical.report(optical.convert(model, noisy, **options(*patterns)))
        usual = {layer.name for layer in found.converted if layer.profile == noisy}
        return set(names) - usual

    def in_file(*patterns: str) -> set[str]:
        found = rewrite(source, tmp_path / "rewritten.onnx", noisy, **options(*patterns))
        return set(names) - {layer.name for layer in found.layers if layer.bits == "8/4/8"}

    for chosen in (in_model, in_file):
        assert chosen("layer[0]") == {"layer[0]"}
        assert chosen("*") == {"*"}
        assert chosen("layer[!0]", "layer[0]") == {"layer1", "layer[0]"}
        assert chosen("layer?") == {"layer0", "layer1"}
    for function, what in ((in_model, "Linear layer"), (in_file, "layer")):
        there = r"there are layer\[0\], layer0, layer1, \*"
        with pytest.raises(ValueError, match=rf"{argument} pattern 'layer\[2\]' matches no {what}: {there}$"):
            function("layer[2]")
        with pytest.raises(TypeError, match=rf"{argument} holds int 3: allowed is a name pattern, a str"):
            function(3)  # type: ignore[arg-type]
