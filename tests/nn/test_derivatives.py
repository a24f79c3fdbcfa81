"""Derivatives of gradients, gradients of each sample, and a layer's state under the transforms of torch.func."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from lumina_onnx.nn import calibrate, convert, frozen, noise  # noqa: E402
from lumina_onnx.nn.functional import optical_linear  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

CLEAN = OpticalProfile()
NONE = "optical_linear has no second derivative"


def model(profile: OpticalProfile = CLEAN, n: int = 5) -> Any:
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Linear(6, n)), profile, inplace=True)


def batch(m: int = 4) -> Any:
    return torch.randn(m, 6, generator=torch.Generator().manual_seed(1))


def squares(net: Any) -> Any:
    return lambda x: net(x).square().sum()


@pytest.mark.parametrize("profile", [CLEAN, OpticalProfile(0, 0, 0)])
@pytest.mark.parametrize(
    "ask",
    [
        lambda net, x: torch.autograd.functional.hvp(squares(net), x, x),
        lambda net, x: torch.autograd.functional.vhp(squares(net), x, x),
        lambda net, x: torch.autograd.functional.hessian(squares(net), x),
        lambda net, x: torch.autograd.functional.jvp(net, x, x),
    ],
    ids=["hvp", "vhp", "hessian", "jvp"],
)
@pytest.mark.parametrize("freeze", [False, True])
def test_torch_takes_no_missing_derivative_for_a_zero(profile: OpticalProfile, ask: Any, freeze: bool) -> None:
    net = model(profile)
    with frozen(net) if freeze else noise(net), pytest.raises(RuntimeError, match=NONE):
        ask(net, batch())


@pytest.mark.parametrize("by", ["x", "weight", "other"])
def test_a_gradient_has_what_it_was_computed_from_behind_it(by: str) -> None:
    net, x = model(), batch().requires_grad_()
    other = torch.ones(4, 5, requires_grad=True)
    loss = (net(x) * other).square().sum()
    gradients = torch.autograd.grad(loss, [x, net[0].weight, net[0].bias], create_graph=True)
    asked = {"x": x, "weight": net[0].weight, "other": other}[by]
    for gradient in gradients:
        with pytest.raises(RuntimeError, match=NONE):
            torch.autograd.grad(gradient.sum(), asked, allow_unused=True, retain_graph=True)


def test_a_gradient_that_nobody_differentiates_is_the_same_with_create_graph() -> None:
    net, x = model(), batch().requires_grad_()
    wanted = [x, *net.parameters()]
    plain = torch.autograd.grad(squares(net)(x), wanted)
    graph = torch.autograd.grad(squares(net)(x), wanted, create_graph=True)
    assert all(torch.equal(a, b) and b.requires_grad for a, b in zip(plain, graph, strict=True))
    (some,) = torch.autograd.grad(net(x).sum(), net[0].bias, create_graph=True)
    assert torch.equal(some, torch.full((5,), 4.0))


# The ADC's mask takes ceil(n / 8) bytes per row, so the bytes of one sample may end at any address.
@pytest.mark.parametrize("n", [5, 9, 17, 30])
@pytest.mark.parametrize("profile", [OpticalProfile(output_range=1.0), OpticalProfile(0, 4, 6, output_range=0.5)])
def test_gradients_of_each_sample_with_a_static_output_range(n: int, profile: OpticalProfile) -> None:
    net, x = model(profile, n), batch()

    def loss(parameters: Any, row: Any) -> Any:
        return torch.func.functional_call(net, parameters, (row,)).square().sum()

    found = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(dict(net.named_parameters()), x)
    for index, row in enumerate(x):
        expected = torch.autograd.grad(squares(net)(row), list(net.parameters()))
        assert all(torch.equal(a[index], b) for a, b in zip(found.values(), expected, strict=True))


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_saved_bytes_may_lie_anywhere_in_a_pool(offset: int) -> None:
    def pooled(tensor: Any) -> Any:
        if tensor.dtype != torch.uint8:
            return tensor
        pool = torch.zeros(tensor.numel() + 64, dtype=torch.uint8)
        pool[offset : offset + tensor.numel()] = tensor
        return pool[offset : offset + tensor.numel()]

    net, x = model(OpticalProfile(output_range=1.0)), batch().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pooled, lambda tensor: tensor):
        loss = squares(net)(x)
    found = torch.autograd.grad(loss, [x, *net.parameters()])
    expected = torch.autograd.grad(squares(net)(x), [x, *net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("offset", [1, 5, 4096])
def test_saved_bytes_whose_storage_was_freed(offset: int) -> None:
    """Such bytes report their offset as their address, where there is no memory."""

    def freed(tensor: Any) -> Any:
        if tensor.dtype != torch.uint8:
            return tensor
        pool = torch.zeros(tensor.numel() + 8192, dtype=torch.uint8)
        part = pool[offset : offset + tensor.numel()]
        pool.untyped_storage().resize_(0)
        return part

    net, x = model(OpticalProfile(output_range=1.0)), batch()
    with torch.autograd.graph.saved_tensors_hooks(freed, lambda tensor: tensor):
        loss = squares(net)(x)
    with pytest.raises(ValueError, match="saved"):
        loss.backward()


# A layer's state


def calibrated(seed: Any, scale: Any) -> Any:
    torch.manual_seed(seed)
    net = convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), CLEAN, inplace=True)
    calibrate(net, [scale * batch(32)], progress=False)
    return net


def test_a_functional_call_with_the_state_of_another_model_inside_a_transform() -> None:
    net, other = calibrated(0, 1.0), calibrated(1, 3.0)
    before, state = net[0].profile, other.state_dict()
    parameters = {name: value for name, value in state.items() if name.endswith(("weight", "bias"))}
    entries = {name: value for name, value in state.items() if name not in parameters}

    def loss(parameters: Any, x: Any) -> Any:
        return torch.func.functional_call(net, (parameters, entries), (x,)).square().sum()

    found = torch.func.grad(loss)(parameters, batch())
    expected = torch.autograd.grad(squares(other)(batch()), list(other.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found.values(), expected, strict=True))
    assert net[0].profile == before != other[0].profile
    assert torch.func.grad(lambda x: x * net.state_dict()["0.input_range"].sum())(torch.tensor(1.0)) > 0


def test_ranges_of_several_models_under_vmap_are_refused_in_words() -> None:
    nets, x = [calibrated(0, 1.0), calibrated(1, 3.0)], batch()
    state = {name: torch.stack([net.state_dict()[name] for net in nets]) for name in nets[0].state_dict()}
    message = r"layer '0': input_range is a batch of torch.vmap: allowed is float64 \[1\], since all samples share"
    with pytest.raises(ValueError, match=message):
        torch.vmap(lambda state: torch.func.functional_call(nets[0], state, (x,)))(state)


# A stream from outside


@pytest.mark.parametrize("number", [-1, -(2**63)])
@pytest.mark.parametrize(
    "around",
    [
        lambda call: call,
        lambda call: torch.compile(call, backend="aot_eager"),
        lambda call: lambda stream: torch.vmap(call)(stream[None])[0],
    ],
    ids=["eager", "compiled", "vmap"],
)
def test_no_stream_of_a_user_turns_the_noise_off(number: int, around: Any) -> None:
    profile, weight, x = OpticalProfile(noise_additive=0.1), model()[0].weight.detach(), batch()

    def call(stream: Any) -> Any:
        return optical_linear(x, weight, None, profile, stream=stream)

    with pytest.raises(ValueError, match=r"stream = -\d+: allowed is 0\.\.2\^63-1"):
        around(call)(torch.tensor(number))
    assert torch.equal(around(call)(torch.tensor(3)), call(3))
