"""The transforms of torch.func, and derivatives other than those of backward()."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from lumina_onnx.nn import noise  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

from .ecosystem_cases import CLEAN, all_equal, batch, model  # noqa: E402


def per_sample(net: Any, x: Any, **options: Any) -> Any:
    def loss(parameters: Any, row: Any) -> Any:
        return torch.func.functional_call(net, parameters, (row.unsqueeze(0),)).square().sum()

    gradients = torch.vmap(torch.func.grad(loss), in_dims=(None, 0), **options)(dict(net.named_parameters()), x)
    return [gradients[name] for name, _ in net.named_parameters()]


@pytest.mark.parametrize("profile", [CLEAN, OpticalProfile(0, 0, 0), OpticalProfile(9, 1, 4, 1.0, 2.0)])
def test_gradients_of_each_sample(profile: OpticalProfile) -> None:
    net, x = model(profile), batch()
    found = per_sample(net, x)
    for index, row in enumerate(x):
        expected = torch.autograd.grad(net(row.unsqueeze(0)).square().sum(), list(net.parameters()))
        assert all_equal([gradient[index] for gradient in found], expected)


def test_transforms_draw_what_a_plain_call_draws() -> None:
    net, x = model(), batch()

    def loss(parameters: Any) -> Any:
        return torch.func.functional_call(net, parameters, (x,)).square().sum()

    torch.manual_seed(2)
    found = torch.func.grad(loss)(dict(net.named_parameters()))
    torch.manual_seed(2)
    net(x).square().sum().backward()
    assert all_equal(found.values(), [parameter.grad for parameter in net.parameters()])


def test_noise_under_vmap_keeps_to_its_randomness() -> None:
    net, x = model(), batch()[:1].expand(4, 6)
    with pytest.raises(RuntimeError, match="called random operation while in randomness error mode"):
        torch.vmap(net)(x)
    same = torch.vmap(net, randomness="same")(x)
    assert all(torch.equal(row, same[0]) for row in same)
    different = torch.vmap(net, randomness="different")(x)
    assert not any(torch.equal(row, different[0]) for row in different[1:])
    with noise(net):
        assert torch.equal(torch.vmap(net)(x), net(x))
    assert not torch.equal(*per_sample(net, x, randomness="different")[0][:2])


def test_vmap_over_models() -> None:
    nets = [model() for _ in range(3)]
    for seed, net in enumerate(nets):
        torch.manual_seed(seed)
        nn.init.normal_(net[0].weight)
    parameters, buffers = torch.func.stack_module_state(nets)

    def run(parameters: Any, x: Any) -> Any:
        return torch.func.functional_call(nets[0], (parameters, buffers), (x,))

    with noise(nets[0], True, stream=1):
        found = torch.vmap(run, in_dims=(0, None))(parameters, batch())
    for net, y in zip(nets, found, strict=True):
        with noise(net, True, stream=1):
            assert torch.equal(net(batch()), y)


def test_vmap_over_no_sample() -> None:
    net, linear = model(), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    for x, dim in ((torch.empty(0, 4, 6), 0), (torch.empty(4, 0, 6), 1), (torch.empty(0, 0, 6), 0)):
        found, expected = (torch.vmap(each, in_dims=dim, randomness="different")(x) for each in (net, linear))
        assert found.shape == expected.shape
        assert found.numel() == 0
    found, expected = (per_sample(each, torch.empty(0, 6), randomness="different") for each in (net, linear))
    assert [gradient.shape for gradient in found] == [gradient.shape for gradient in expected]


def test_jacobians() -> None:
    net, x = model(CLEAN), batch()[:2]
    expected = torch.autograd.functional.jacobian(net, x)
    assert torch.equal(torch.func.jacrev(net)(x), expected)
    assert torch.equal(torch.autograd.functional.jacobian(net, x, vectorize=True), expected)


# torch's forward mode itself calls torch.jit.script.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("trains", [True, False])
def test_forward_mode_is_refused_in_words(trains: bool) -> None:
    net, x = model(CLEAN).requires_grad_(trains), batch()
    message = "optical_linear has no forward-mode derivative .* Use reverse mode"
    with pytest.raises(RuntimeError, match=message):
        torch.func.jvp(net, (x,), (x,))
    with pytest.raises(RuntimeError, match=message):
        torch.func.jacfwd(net)(x)
    with torch.autograd.forward_ad.dual_level():
        with pytest.raises(RuntimeError, match=message):
            net(torch.autograd.forward_ad.make_dual(x, x))
        assert net(x).shape == (16, 3)


def test_second_derivatives_are_refused_in_words() -> None:
    net, x = model(CLEAN), batch()[0]
    with pytest.raises(RuntimeError, match="optical_linear has no second derivative"):
        torch.func.jacrev(torch.func.jacrev(net))(x)
    with pytest.raises(RuntimeError, match="optical_linear has no forward-mode derivative"):
        torch.func.hessian(net)(x)
    with pytest.raises(RuntimeError, match="optical_linear has no second derivative"):
        torch.func.grad(lambda x: torch.func.grad(lambda x: net(x).sum())(x).sum())(x)
