"""Tools that trace a model, or run it on tensors without values: fake tensors, torch.jit.trace, make_fx, aot_module."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from functorch.compile import aot_module, make_boxed_func  # noqa: E402
from torch import nn  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

from lumina_onnx.nn import OpticalLinear, convert, noise  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

NOISY = OpticalProfile(noise_additive=0.1)
CLEAN = OpticalProfile()


def model(profile: OpticalProfile = NOISY) -> Any:
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), profile, inplace=True)


def batch() -> Any:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def seeded(call: Any, *arguments: Any) -> Any:
    torch.manual_seed(2)
    return call(*arguments)


@pytest.mark.parametrize("grad", [False, True])
def test_a_noisy_model_runs_on_fake_tensors(grad: bool) -> None:
    with FakeTensorMode(), torch.set_grad_enabled(grad):
        net, x = model(), torch.ones(4, 6)
        for y in (net(x), OpticalLinear(6, 3, profile=NOISY)(x)):
            assert y.shape == (4, 3)
            if grad:
                y.sum().backward()
        for on, stream in ((False, None), (True, 3)):
            with noise(net, on, stream=stream):
                assert net(x).shape == (4, 3)
        assert not grad or net[0].weight.grad.shape == (8, 6)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_a_graph_of_make_fx_draws(mode: str) -> None:
    net, x = model(), batch()
    parameters = {name: value.detach() for name, value in net.named_parameters()}

    def call(parameters: Any, x: Any) -> Any:
        return torch.func.functional_call(net, parameters, (x,))

    graph = make_fx(call, tracing_mode=mode)(parameters, x)  # type: ignore[arg-type]
    assert torch.equal(seeded(graph, parameters, x), seeded(net, x))
    assert not torch.equal(graph(parameters, x), graph(parameters, x))


def test_aot_module_trains_as_the_model() -> None:
    net, x = model(), batch()
    compiled = aot_module(net, fw_compiler=lambda graph, _: make_boxed_func(graph))
    found, expected = (
        torch.autograd.grad(seeded(each, x).square().sum(), list(net.parameters())) for each in (compiled, net)
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(compiled(x), compiled(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace(_method)?` is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # from the checks of shapes
def test_jit_trace_checks_what_it_traced() -> None:
    net, x = model(CLEAN), batch()
    traced = torch.jit.trace(net, x)  # calls the model again without gradients, and expects the same graph
    found, expected = (torch.autograd.grad(each(x).sum(), list(net.parameters())) for each in (traced, net))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
