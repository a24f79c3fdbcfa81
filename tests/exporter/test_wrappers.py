"""Wrapped models: layers keep their names from the inner model; opaque wrappers are refused with a message."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lumina_onnx import nn as optical
from lumina_onnx.exporter import export, inspect, verify
from lumina_onnx.nn._wrappers import unwrapped
from lumina_onnx.profile import OpticalProfile

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def model(noisy: OpticalProfile) -> nn.Module:
    return optical.convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), noisy)


def compiled(net: nn.Module) -> nn.Module:
    wrapped: Any = torch.compile(net, backend="eager")
    with torch.no_grad():
        wrapped(X)
    return wrapped


def compiled_in_place(net: nn.Module) -> nn.Module:
    net.compile(backend="eager")
    net[2].compile(backend="eager")  # type: ignore[index]
    with torch.no_grad():
        net(X)
    return net


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "averaged": AveragedModel,
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "DataParallel": nn.DataParallel,
    "averaged, compiled": lambda net: AveragedModel(compiled(net)),
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
}


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")
@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrapped_models(tmp_path: Path, noisy: OpticalProfile, kind: str, request: pytest.FixtureRequest) -> None:
    if kind == "DistributedDataParallel":
        request.getfixturevalue("group")
    wrapped = WRAPPERS[kind](model(noisy))
    assert [row.name for row in optical.report(wrapped).converted] == ["0", "2"]
    found = optical.calibrate(wrapped, [X], progress=False)
    assert [row.name for row in found.layers] == ["0", "2"]
    assert all(row.values for row in found.layers)
    path = tmp_path / "model.onnx"
    report = export(wrapped, X, path)
    assert [layer.name for layer in report.layers] == ["0", "2"]
    assert report.left == []
    assert list(inspect(path).inputs) == ["input"]
    for reference in (wrapped, unwrapped(wrapped)):
        checked = verify(path, reference=reference)
        assert checked.ok
        assert checked.notes == []
    again = optical.convert(wrapped, OpticalProfile(weight_bits=2), skip="0", inplace=True)
    assert again is wrapped
    assert [row.profile.weight_bits for row in optical.report(wrapped).converted if row.profile] == [4, 2]


def test_a_wrapper_is_converted_as_the_model_inside(noisy: OpticalProfile) -> None:
    bare = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    expected = optical.report(optical.convert(bare, noisy))
    wrapped = optical.convert(AveragedModel(bare), noisy)
    assert isinstance(wrapped, AveragedModel)
    assert optical.report(wrapped) == expected


class Doubled(AveragedModel):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.module(x)


def test_a_wrapper_that_computes_something_is_part_of_the_model(tmp_path: Path, noisy: OpticalProfile) -> None:
    wrapped = Doubled(model(noisy))
    path = tmp_path / "model.onnx"
    assert [layer.name for layer in export(wrapped, X, path).layers] == ["module.0", "module.2"]
    checked = verify(path, reference=wrapped)
    assert checked.ok
    assert checked.notes == []


def refused(message: str, do: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        do()


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:FSDP is switching:UserWarning"
)
def test_what_cannot_be_looked_into(tmp_path: Path, noisy: OpticalProfile, group: None) -> None:
    path = tmp_path / "model.onnx"
    export(model(noisy), X, path)
    script = torch.jit.script(nn.Sequential(nn.Linear(6, 3)))
    trace = torch.jit.trace(nn.Linear(6, 3), X)
    sharded = torch.distributed.fsdp.FullyShardedDataParallel(model(noisy), device_id=torch.device("cpu"))
    for kind, net in {"torch.jit": nn.Sequential(script), "of torch.jit": trace, "(FSDP)": sharded}.items():
        refused("model holds a", lambda net=net: export(net, X, path))  # type: ignore[misc]
        refused("reference holds a", lambda net=net: verify(path, reference=net))  # type: ignore[misc]
        refused(kind, lambda net=net: optical.convert(net, noisy, inplace=True))  # type: ignore[misc]
    refused("allowed is the model that it was made from", lambda: export(script, X, path))
    refused("get_model_state_dict", lambda: export(sharded, X, path))
    program = torch.export.export(model(noisy).eval(), (X,)).module()
    refused("model holds a GraphModule of torch.export: it has no modes", lambda: export(program, X, path))
    refused("reference holds a GraphModule of torch.export", lambda: verify(path, reference=program))
    refused("reference is a str; allowed is a torch.nn.Module", lambda: verify(path, reference="x"))  # type: ignore[arg-type]


def test_a_graph_module_is_a_module(tmp_path: Path, noisy: OpticalProfile) -> None:
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return isinstance(module, optical.OpticalLinear) or super().is_leaf_module(module, name)

    net = model(noisy)
    traced = torch.fx.GraphModule(net, Tracer().trace(net))
    path = tmp_path / "model.onnx"
    assert [layer.name for layer in export(traced, X, path).layers] == ["0", "2"]
    assert verify(path, reference=traced).ok


def test_a_layer_whose_forward_is_called_without_the_layer(tmp_path: Path, noisy: OpticalProfile) -> None:
    """The call bypasses the hooks by which torch's exporter identifies the module."""

    class Forward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model(noisy)

        def forward(self, x: Tensor) -> Tensor:
            return self.net[2].forward(torch.relu(self.net[0].forward(x)))  # type: ignore[index]

    report = export(Forward(), X, tmp_path / "model.onnx")
    assert [layer.name for layer in report.layers] == ["net.0", "net.2"]
    assert report.left == []
