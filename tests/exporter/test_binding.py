"""A file's inputs and outputs match the right arguments and results of forward, also during verification."""

from __future__ import annotations

import dataclasses
import re
from collections import OrderedDict
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lumina_onnx import load
from lumina_onnx import nn as optical
from lumina_onnx.exporter import export, inspect, verify
from lumina_onnx.exporter.binding import Binding, leaves
from lumina_onnx.exporter.report import VerifyReport
from lumina_onnx.profile import OpticalProfile

X, Y, Z = (torch.randn(3, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(3))


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)


class Keywords(Base):
    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return self.layer(a) - 2 * b + 3 * c


class KeywordOnly(Base):
    def forward(self, x: Tensor, *, shift: Tensor, scale: float = 1.0) -> Tensor:
        return self.layer(x) * scale - shift


class PositionalOnly(Base):
    def forward(self, a: Tensor, /, b: Tensor) -> Tensor:
        return self.layer(a) - 2 * b


class Constants(Base):
    def forward(
        self, x: Tensor, scale: float = 1.0, mask: Tensor | None = None, negate: bool = False, mode: str = "relu"
    ) -> Tensor:
        x = self.layer(x) * scale
        x = -x if negate else x
        x = torch.relu(x) if mode == "relu" else x
        return x if mask is None else x * mask


class Nested(Base):
    def forward(self, batch: dict[str, Any], more: list[Tensor]) -> Tensor:
        return self.layer(batch["a"]) - 2 * batch["inner"][0] + 3 * more[1] - more[0]


class Numbers(Base):
    def forward(self, x: Tensor, scales: Any = (1.0, (2.0, 3.0)), *more: float, shift: Any = ()) -> Tensor:
        return self.layer(x) * scales[0] - sum(shift) * scales[1][1] + sum(more)


class VarPositional(Base):
    def forward(self, *xs: Tensor) -> Tensor:
        return self.layer(xs[0]) - 2 * xs[1] + 3 * xs[2]


class MixedPositional(Base):
    def forward(self, first: Tensor, *others: Tensor, **named: Tensor) -> Tensor:
        return self.layer(first) - 2 * others[0] + 3 * named["last"]


CALLS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "keywords in another order": (Keywords, (X, {"c": Z, "b": Y})),
    "one tensor in all places": (Keywords, (X, X, X)),
    "keyword-only, with a constant": (KeywordOnly, (X, {"scale": 2.5, "shift": Y})),
    "positional-only": (PositionalOnly, (X, {"b": Y})),
    "an infinite number": (Constants, (X, float("inf"))),
    "a tensor after constants": (Constants, (X, 3, Y, True, "none")),
    "None and truth": (Constants, (X, {"negate": True, "mask": None})),
    "nested": (Nested, ({"inner": (Y,), "a": X}, [Z, Y])),
    "tuples of numbers": (Numbers, (X, (3.0, (2.0, 5.0)), 4.0, 7.0, {"shift": (1.0, 2.0)})),
    "a list of numbers, and nothing": (Numbers, (X, [3.0, [2.0, 5.0]], 4.0, {"shift": [1.0]})),
    "numbers beside a tensor": (Numbers, (X, (3.0, (Y, Z)), 4.0, {"shift": (1.0, 2.0)})),
    "*args": (VarPositional, (X, Y, Z)),
    "*args and **kwargs": (MixedPositional, (X, Y, {"last": Z})),
}


@pytest.mark.parametrize("call", CALLS)
def test_arguments_of_every_kind(tmp_path: Path, noisy: OpticalProfile, call: str) -> None:
    make, args = CALLS[call]
    model = optical.convert(make(), noisy)
    path = tmp_path / "model.onnx"
    export(model, args, path)
    assert set(inspect(path).inputs.values()) == {"float[batch, 6]"}
    assert_equal_to_torch(verify(path, reference=model))
    # The check can fail, here for another model with the same forward.
    other: Any = optical.convert(make(), noisy)
    torch.nn.init.normal_(other.layer.weight)
    assert not verify(path, reference=other).ok


def assert_equal_to_torch(report: VerifyReport, outputs: int = 1) -> None:
    rows = [row for row in report.comparisons if row.against == "torch"]
    assert len(rows) == 2 * outputs
    assert all(row.equal and row.required for row in rows), str(report)
    assert report.ok
    assert report.notes == []


def test_values_reach_the_arguments_that_they_are_for(tmp_path: Path) -> None:
    """Checked without torch, by a computation that distinguishes every argument from the others."""
    model = optical.convert(Keywords(), OpticalProfile(0, 0, 0))
    with torch.no_grad():
        model.layer.weight.copy_(torch.eye(6))
        model.layer.bias.zero_()
    values = {name: np.full((2, 6), number, np.float32) for name, number in {"a": 1, "b": 10, "c": 100}.items()}
    for name, (args, said) in {"a": ((X, Y, Z), False), "b": ((X, {"c": Z, "b": Y}), True)}.items():
        path = tmp_path / f"{name}.onnx"
        export(model, args, path)
        # For a plain call, the names of the inputs say everything.
        assert ("lumina.call" in inspect(path).metadata) == said
        (got,) = load(path).run(None, values)
        np.testing.assert_array_equal(got, np.full((2, 6), 1 - 20 + 300, np.float32))
        assert_equal_to_torch(verify(path, inputs=values, reference=model))


@dataclasses.dataclass
class Known:
    hidden: Tensor
    logits: Tensor


torch.export.register_dataclass(Known, serialized_type_name="lumina tests Known")


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Results(Base):
    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Any:
        h = self.layer(x)
        return {
            "z": h,
            "a": OrderedDict(first=torch.relu(h), last=[None, x]),
            "tuples": (3, (Pair(h + 1, h), "word"), 2.5, x.shape[0]),
            "known": Known(h - 1, self.constant),
        }


def test_results_of_every_kind(tmp_path: Path, noisy: OpticalProfile) -> None:
    """They include an input, a parameter, one tensor twice, None, constants and a size."""
    if torch.__version__ < "2.9":
        pytest.skip("torch.onnx.export of torch 2.8 has no translation of None among the results")
    model = optical.convert(Results(), noisy)
    path = tmp_path / "model.onnx"
    export(model, (X,), path)
    assert list(inspect(path).inputs) == ["x"]
    assert list(inspect(path).outputs) == [f"output_{index}" for index in range(7)] + ["constant"]
    assert_equal_to_torch(verify(path, inputs=[Y.numpy()], reference=model), outputs=8)


def test_results_in_classes_that_torch_does_not_know() -> None:
    @dataclasses.dataclass
    class Unknown:
        logits: Tensor
        more: list[Tensor | None]

    class Mapping(OrderedDict[str, Any]):
        pass

    assert leaves(Unknown(X, [Y, None])) == [X, Y, None]
    assert leaves((Mapping(b=X, a=Unknown(Y, [])), Z)) == [X, Y, Z]


def silent(path: Path, names: dict[str, str] | None = None) -> Path:
    """A copy of a file without the record of forward's call, its inputs optionally renamed."""
    model = onnx.load(path)
    kept = [entry for entry in model.metadata_props if entry.key != "lumina.call"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for old, new in (names or {}).items():
        for value in model.graph.input:
            value.name = new if value.name == old else value.name
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                node.input[index] = new if name == old else name
    copy = path.with_name("silent.onnx")
    onnx.save(model, copy)
    return copy


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A file of :class:`Keywords`, and its model."""
    model = optical.convert(Keywords(), OpticalProfile(weight_bits=4, noise_additive=0.05))
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export(model, (X, {"b": Y, "c": Z}), path)
    return path, model


def test_a_file_that_does_not_say_how_it_was_called(exported: tuple[Path, nn.Module]) -> None:
    path, model = exported

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = model.layer

        def forward(self, a: Tensor, /, c: Tensor, *, b: Tensor) -> Tensor:
            return model(a, b, c)

    class Variadic(First):
        def forward(self, a: Tensor, *more: Tensor) -> Tensor:  # type: ignore[override]
            return model(a, *more)

    for reference in (model, First(), Variadic()):
        assert_equal_to_torch(verify(silent(path), reference=reference))
    # Matched in the order of the parameters.
    assert_equal_to_torch(verify(silent(path, {"a": "in.1", "b": "in.2", "c": "in.3"}), reference=model))


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ({"b": "other"}, "no parameter is named 'other'"),
        ({"b": "a_0"}, "no parameter is named 'a_0'"),
    ],
)
def test_inputs_that_belong_to_no_parameter(exported: tuple[Path, nn.Module], names: dict[str, str], why: str) -> None:
    path, model = exported
    with pytest.raises(
        ValueError, match=r"reference: Keywords\.forward\(a, b, c\) cannot be called with the file's inputs"
    ) as caught:
        verify(silent(path, names), reference=model)
    assert why in str(caught.value)
    assert "allowed is the model that was exported" in str(caught.value)
    with pytest.raises(ValueError, match="exported with an input 'b', which it no longer has"):
        Binding.read(ir.load(path)).call({"a": X})  # type: ignore[union-attr]


@pytest.mark.parametrize("said", [True, False])
def test_a_reference_of_another_signature(exported: tuple[Path, nn.Module], said: bool) -> None:
    path, _ = exported
    message = "reference: KeywordOnly.forward(x, *, shift, scale=1.0) cannot be called"
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        verify(path if said else silent(path, {"a": "p", "b": "q", "c": "r"}), reference=KeywordOnly())
    assert ("missing a required argument: 'shift'" if said else "too many positional arguments") in str(caught.value)


def test_a_reference_that_fails_on_the_inputs(exported: tuple[Path, nn.Module]) -> None:
    class Other(nn.Module):
        def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            raise RuntimeError("no such thing")

    message = "reference: Other.forward fails on the file's inputs: RuntimeError: no such thing"
    with pytest.raises(ValueError, match=re.escape(message)):
        verify(exported[0], reference=Other())


def test_names_of_dimensions_among_numbers(tmp_path: Path, noisy: OpticalProfile) -> None:
    """A tuple of Nones states that a tuple of numbers has no dimensions."""
    model = optical.convert(Numbers(), noisy)
    shapes = {"x": {0: "rows"}, "scales": (None, ({0: "rows"}, {0: "rows"})), "more": (None, None), "shift": (None,)}
    path = tmp_path / "model.onnx"
    export(model, (X, (3.0, (Y, Z)), 4.0, 7.0, {"shift": (1.0,)}), path, dynamic_shapes=shapes)
    assert set(inspect(path).inputs.values()) == {"float[rows, 6]"}
    assert_equal_to_torch(verify(path, reference=model))


class Unnamed(NamedTuple):
    first: Tensor
    second: Tensor


class TakesUnnamed(Base):
    def forward(self, pair: Unnamed) -> Tensor:
        return self.layer(pair.first) - pair.second


def test_a_model_that_takes_a_type_without_a_name(tmp_path: Path, noisy: OpticalProfile) -> None:
    """The error does not advise using the exported model, since that is the one that was given."""
    model = optical.convert(TakesUnnamed(), noisy)
    path = tmp_path / "model.onnx"
    export(model, (Unnamed(X, Y),), path)
    assert verify(path).ok
    with pytest.raises(ValueError, match=r"without a reference it can be verified$"):
        verify(path, reference=model)


def test_a_container_that_a_file_cannot_name() -> None:
    class Own:
        def __init__(self, tensors: list[Tensor]) -> None:
            self.tensors = tensors

    pytree.register_pytree_node(
        Own,
        lambda own: (own.tensors, None),
        lambda tensors, _: Own(list(tensors)),
        flatten_with_keys_fn=lambda own: ([(pytree.SequenceKey(0), own.tensors[0])], None),
    )

    class Takes(nn.Module):
        def forward(self, own: Own) -> Tensor:
            return own.tensors[0] + 1

    program = torch.export.export(Takes(), (Own([X]),))
    binding = Binding.of(program, signature(Takes().forward))
    with pytest.raises(ValueError, match="containers of a type that a file cannot name"):
        binding.call({"own_0": X})
