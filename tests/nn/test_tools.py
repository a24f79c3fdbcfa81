"""Tools that inspect a model: torch.fx.symbolic_trace and torch's counter of floating-point operations."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import fx, nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from lumina_onnx.nn import OpticalLinear, calibrate, convert, frozen, noise  # noqa: E402
from lumina_onnx.nn.functional import optical_linear  # noqa: E402

from .ecosystem_cases import CLEAN, NOISY, Doubled, batch, model  # noqa: E402


class Function(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(3))

    def forward(self, x: Any) -> Any:
        return optical_linear(x, self.weight, self.bias, NOISY.replace(output_range=(1.0, 2.0, 3.0)), seed=3, stream=2)


def test_symbolic_tracing_keeps_a_layer_whole() -> None:
    net, x = model(), batch()
    traced = torch.fx.symbolic_trace(net)
    assert [node.op for node in traced.graph.nodes] == ["placeholder", *["call_module"] * 3, "output"]
    assert traced.get_submodule("0") is net[0]
    for fixed in (traced, net):
        with noise(fixed, True, stream=1):
            assert torch.equal(traced(x), net(x))
    calibrate(traced, [x], progress=False)
    assert net[2].profile.output_range > 0
    with frozen(net), noise(net):
        assert torch.equal(torch.fx.symbolic_trace(net)(x), net(x))


def test_symbolic_tracing_of_the_function() -> None:
    net, x = Function(), batch()
    traced = torch.fx.symbolic_trace(net)
    assert optical_linear in [node.target for node in traced.graph.nodes]
    assert torch.equal(traced(x), net(x))
    traced(x).sum().backward()
    assert net.weight.grad is not None


class Whole(fx.Tracer):
    def is_leaf_module(self, m: Any, module_qualified_name: Any) -> Any:
        return isinstance(m, OpticalLinear) or super().is_leaf_module(m, module_qualified_name)


@pytest.mark.parametrize("kind", ["hook", "pruned", "subclass", "method", "global"])
def test_what_symbolic_tracing_would_do_twice_is_refused_in_words(kind: str) -> None:
    net = model(CLEAN)
    handle = None
    if kind == "hook":
        net[0].register_forward_hook(lambda module, inputs, y: 2 * y)
    elif kind == "pruned":
        prune.l1_unstructured(net[0], "weight", 0.5)
    elif kind == "subclass":
        net[0] = Doubled(6, 8, profile=CLEAN)
    elif kind == "method":
        forward = net[0].forward
        net[0].forward = lambda x: 2 * forward(x)
    else:
        handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, y: y)
    try:
        with pytest.raises(
            TypeError, match=r"x is a torch.fx.Proxy, .* trace a model that holds it, with a torch.fx.T"
        ):
            torch.fx.symbolic_trace(net)
    finally:
        if handle is not None:
            handle.remove()
    traced = torch.fx.GraphModule(net, Whole().trace(net))  # as the message says
    assert torch.equal(traced(batch()), net(batch()))


def test_symbolic_tracing_of_a_layer_alone() -> None:
    with pytest.raises(TypeError, match=r"layer '0': x is a torch.fx.Proxy, .* or is no part of a model"):
        torch.fx.symbolic_trace(model()[0])


@pytest.mark.parametrize("shape", [(6,), (16, 6), (2, 5, 6), (0, 6)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("for_x", [True, False])
def test_operations_are_counted_as_those_of_linear(shape: Any, bias: bool, for_x: bool) -> None:
    plain = nn.Sequential(nn.Linear(6, 8, bias), nn.ReLU(), nn.Linear(8, 3, bias))
    counts = []
    for net in (plain, convert(plain, NOISY)):
        x = torch.randn(shape).requires_grad_(for_x)
        with FlopCounterMode(display=False) as whole:
            net(x).sum().backward()
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            net(x)
        y = net(x).sum()
        with FlopCounterMode(display=False) as backward:
            y.backward()
        totals = [counter.get_total_flops() for counter in (whole, forward, backward)]
        assert totals[0] == totals[1] + totals[2]
        layers = {name: sum(counted.values()) for name, counted in whole.flop_counts.items()}
        counts.append((totals, layers))
    assert counts[0] == counts[1]
    assert (counts[0][0][0] > 0) == (0 not in shape)
    with frozen(net), FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    assert counter.get_total_flops() == counts[0][0][1]
