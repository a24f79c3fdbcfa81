"""The context managers `noise` and `frozen`."""

import contextvars
import copy
import pickle
import threading
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from torch import nn  # noqa: E402
from torch.optim.optimizer import _global_optimizer_post_hooks  # noqa: E402

from lumina_onnx.nn import OpticalLinear, _kernel, _scope, convert, frozen, noise  # noqa: E402
from lumina_onnx.nn.functional import optical_linear  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

from .cases import Case, assert_same_bits, cases  # noqa: E402

NOISY = OpticalProfile(noise_additive=0.1, output_range=2.0)


def model() -> Any:
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)), NOISY, inplace=True)


X = torch.linspace(-1, 1, 24).reshape(4, 6)


def is_noisy(net: Any) -> Any:
    return not torch.equal(net(X), net(X))


def test_noise_off_fixed_and_nested() -> None:
    net = model()
    assert is_noisy(net)
    with noise(net):
        clean = net(X)
        assert not is_noisy(net)
        with noise(net, True):
            assert is_noisy(net)
            with noise(net, True, stream=4):
                fixed = net(X)
                assert not is_noisy(net)
                with noise(net[2]):
                    assert not torch.equal(net(X), fixed)
                assert torch.equal(net(X), fixed)
            assert is_noisy(net)
        assert torch.equal(net(X), clean)
    assert is_noisy(net)
    assert not torch.equal(clean, fixed)


def test_a_fixed_stream_is_that_of_the_function() -> None:
    layer = OpticalLinear(6, 6, profile=NOISY, seed=3)
    with noise(layer, True, stream=5):
        y = layer(X)
    assert torch.equal(y, optical_linear(X, layer.weight, layer.bias, NOISY, seed=3, stream=5))


def test_layers_do_not_share_their_noise() -> None:
    net = model()
    with torch.no_grad():
        net[2].weight.copy_(net[0].weight)
        net[2].bias.copy_(net[0].bias)
    with noise(net, True, stream=0):
        assert not torch.equal(net[0](X), net[2](X))


def test_noise_off_keeps_bits_and_ranges() -> None:
    layer = OpticalLinear(6, 6, profile=NOISY)
    with noise(layer):
        assert torch.equal(layer(X), optical_linear(X, layer.weight, layer.bias, NOISY.replace(noise_additive=0.0)))


@pytest.mark.parametrize("context", [noise, frozen])
def test_an_exception_restores(context: Any) -> None:
    net = model()
    with pytest.raises(KeyError), context(net):
        raise KeyError
    assert _scope.current() == ()
    assert is_noisy(net)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "stream = 3 would be ignored: with on False no noise is drawn", {"stream": 3}),
        (ValueError, "stream = -1: allowed is 0..2", {"on": True, "stream": -1}),
        (TypeError, "stream is float 0.5: allowed is an int", {"on": True, "stream": 0.5}),
    ],
)
def test_bad_streams(error: Any, message: str, arguments: Any) -> None:
    with pytest.raises(error, match=message), noise(model(), **arguments):
        pass


@pytest.mark.parametrize("context", [noise, frozen])
def test_what_is_no_model(context: Any) -> None:
    with pytest.raises(TypeError, match=r"model is a list; allowed is a torch.nn.Module"), context([model()]):
        pass


@given(cases())
def test_a_frozen_layer_equals_the_reference(case: Case) -> None:
    layer = OpticalLinear.from_linear(linear(case), case.profile, seed=case.seed)
    with frozen(layer), noise(layer, True, stream=case.stream), torch.no_grad():
        assert_same_bits(layer(case.x), case.reference())
        assert_same_bits(layer(case.x), case.reference())


@given(cases())
def test_a_frozen_layer_trains_as_the_reference(case: Case) -> None:
    layer = OpticalLinear.from_linear(linear(case), case.profile, seed=case.seed)
    with frozen(layer), noise(layer, True, stream=case.stream):
        for _ in range(2):
            x = case.x.clone().requires_grad_()
            layer.zero_grad()
            y = layer(x)
            assert_same_bits(y, case.reference())
            y.backward(case.grad)
            for tensor, expected in zip((x, layer.weight, layer.bias), case.reference_gradients(), strict=True):
                if tensor is not None:
                    assert_same_bits(tensor.grad, expected)


@pytest.mark.parametrize("bits", [0, 1, 2, 4, 8, 9, 16])
def test_a_frozen_layer_saves_the_bytes_that_it_saves_outside(bits: int) -> None:
    layer = OpticalLinear(40, 30, profile=NOISY.replace(weight_bits=bits))
    x = torch.randn(4, 40, requires_grad=True)

    def saved() -> Any:
        with noise(layer):
            y = layer(x)  # kept: torch 2.8 frees what is saved for a result along with it
            return [tensor for tensor in y.grad_fn.saved_tensors if tensor is not None]

    alone = saved()
    with frozen(layer):
        calls = [saved() for _ in range(3)]
    for tensors in calls:
        assert all(torch.equal(a, b) for a, b in zip(tensors, alone, strict=True))
    assert len({tensors[-1].data_ptr() for tensors in calls}) == 3


def test_backward_after_frozen() -> None:
    """What the gradient needs outlives the block."""
    net = model()
    gradients = []
    for context in (frozen(net), noise(net, True)):
        torch.manual_seed(3)
        net.zero_grad()
        with context:
            loss = net(X).square().sum()
        with torch.no_grad():
            net[0].weight.mul_(2)  # no gradient needs it: X is data
        loss.backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
        with torch.no_grad():
            net[0].weight.div_(2)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def linear(case: Any) -> Any:
    n, k = case.weight.shape
    layer = nn.Linear(k, n, case.bias is not None)
    layer.weight = nn.Parameter(case.weight)
    if case.bias is not None:
        layer.bias = nn.Parameter(case.bias)
    return layer


def test_frozen_prepares_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    prepare = _kernel.prepare
    monkeypatch.setattr(_kernel, "prepare", lambda *args: made.append(1) or prepare(*args))  # type: ignore[func-returns-value]
    net = model().eval()
    with torch.no_grad():
        with frozen(net):
            assert len(made) == 2
            with frozen(net), torch.inference_mode():
                for _ in range(5):
                    net(X)
            net(X)
        net(X)
    assert len(made) == 2


@pytest.mark.parametrize("on", [False, True])
def test_frozen_prepares_for_the_noise_in_force(monkeypatch: pytest.MonkeyPatch, on: bool) -> None:
    made = []
    prepare = _kernel.prepare
    monkeypatch.setattr(_kernel, "prepare", lambda *args: made.append(1) or prepare(*args))  # type: ignore[func-returns-value]
    net = model()
    with noise(net, on), frozen(net):
        assert len(made) == 2
        net(X).sum().backward()
        with torch.no_grad():
            net(X)
        assert len(made) == 2
        with noise(net, not on):  # the other profile is prepared once, when it is first needed
            net(X)
            net(X)
        net(X)
    assert len(made) == 4


def test_transforms_inside_frozen() -> None:
    """Transforms read the current weights: those that functional_call passes, or those that were changed."""
    net = model()
    parameters = {name: 2 * parameter.detach() for name, parameter in net.named_parameters()}

    def loss(parameters: Any, x: Any) -> Any:
        return torch.func.functional_call(net, parameters, (x,)).square().sum()

    def found() -> Any:
        gradients = torch.func.grad(loss)(parameters, X)
        values = torch.func.vmap(net, randomness="same")(X[:, None])
        return [*gradients.values(), values, torch.func.vjp(net, X)[0]]

    with noise(net):
        expected = found()
        with frozen(net):
            assert all(map(torch.equal, found(), expected))
            with torch.no_grad():
                net[0].weight.mul_(2)
            changed = found()
            with pytest.raises(RuntimeError, match="layer '0': weight was changed in place inside frozen"):
                net(X)
        assert all(map(torch.equal, changed, found()))
    assert not torch.equal(changed[-1], expected[-1])


def test_noise_inside_frozen() -> None:
    net = model()
    with noise(net):
        clean = net(X)
    with frozen(net), torch.no_grad():
        assert is_noisy(net)
        with noise(net):
            assert torch.equal(net(X), clean)
        assert is_noisy(net)


def test_frozen_draws_as_the_function_does() -> None:
    net = model()
    results = []
    with torch.no_grad():
        for context in (frozen(net), noise(net, True)):
            torch.manual_seed(11)
            with context:
                results.append(net(X))
    assert torch.equal(*results)


def test_gradients_inside_frozen() -> None:
    net = model()
    gradients = []
    for context in (frozen(net), noise(net, True)):
        torch.manual_seed(2)
        net.zero_grad()
        with context:
            net(X).square().sum().backward()
            net(X).square().sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("grad", [True, False])
def test_frozen_prepares_once_for_gradients(monkeypatch: pytest.MonkeyPatch, grad: bool) -> None:
    made = []
    prepare = _kernel.prepare
    monkeypatch.setattr(_kernel, "prepare", lambda *args: made.append(1) or prepare(*args))  # type: ignore[func-returns-value]
    net = model()
    with torch.set_grad_enabled(grad), frozen(net):
        assert len(made) == 2
        with torch.enable_grad():
            for _ in range(3):
                net(X).sum().backward()
                with torch.no_grad():
                    net(X)
    assert len(made) == 2


def test_threads_in_a_frozen_model() -> None:
    net = model()
    with frozen(net), noise(net, True, stream=1):
        expected = [net(X).detach(), torch.autograd.grad(net(X).sum(), list(net.parameters()))]
        wrong = []

        def work() -> None:
            for _ in range(20):
                gradients = torch.autograd.grad(net(X).sum(), list(net.parameters()))
                same = torch.equal(net(X), expected[0]) and all(map(torch.equal, gradients, expected[1]))
                if not same:
                    wrong.append(1)

        threads = [threading.Thread(target=contextvars.copy_context().run, args=(work,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_of_a_frozen_model_is_not_frozen(duplicate: Any) -> None:
    net = model()
    with frozen(net):
        net(X)
        other = duplicate(net)
        step(other)
        assert not torch.equal(other[0].weight, net[0].weight)
        with noise(other), torch.no_grad():
            assert not torch.equal(other(X), net(X))
        net(X)
        with frozen(other):
            other(X)


def step(net: Any, **options: Any) -> None:
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, **options)
    net(X).sum().backward()
    optimiser.step()


def replace_parameter(net: Any) -> None:
    net[2].weight = nn.Parameter(net[2].weight.detach())


def set_profile(net: Any) -> None:
    net[2].profile = NOISY.replace(noise_additive=0.2)


def swap_data(net: Any) -> None:
    net[2].weight.data = net[2].weight.data.clone()


def change_bias(net: Any) -> None:
    with torch.no_grad():
        net[2].bias.add_(1)


def test_a_step_inside_frozen_on_other_weights_is_no_change() -> None:
    net, other = model(), model()
    net.requires_grad_(False)
    with frozen(net):
        everything = [*net.parameters(), *other.parameters()]
        other(net(X)).sum().backward()
        torch.optim.SGD(everything, lr=0.1, fused=True).step()
        net(X)
    assert not _global_optimizer_post_hooks, "the block takes its hook back"


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (step, "layer '0': weight was changed in place inside frozen"),
        (lambda net: step(net, foreach=True), "layer '0': weight was changed in place inside frozen"),
        (lambda net: step(net, fused=True), "layer '0': weight was changed in place inside frozen"),
        (lambda net: step(net[0], fused=True), "layer '0': weight was changed in place inside frozen"),
        (lambda net: net.load_state_dict(net.state_dict()), "layer '0': weight was changed in place inside frozen"),
        (swap_data, "layer '2': weight was changed in place inside frozen"),
        (change_bias, "layer '2': bias was changed in place inside frozen"),
        (replace_parameter, "layer '2': weight was replaced inside frozen"),
        (set_profile, "layer '2': profile was changed inside frozen"),
    ],
)
def test_a_change_inside_frozen_raises(change: Any, message: str, grad: bool) -> None:
    net = model()
    with frozen(net):
        net(X)
        change(net)
        with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=message):
            net(X)
    net(X)
    with frozen(net), torch.no_grad():
        net(X)


@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_what_is_not_finite_is_named_when_frozen(parameter: str) -> None:
    net = model()
    with torch.no_grad():
        getattr(net[2], parameter).view(-1)[1] = float("inf")
    message = rf"^layer '2': {parameter}\[.*1\] = inf: allowed is a finite number"
    with pytest.raises(ValueError, match=message), frozen(net):
        pass
    assert _scope.current() == ()


def test_inference_tensors_cannot_be_frozen() -> None:
    with torch.inference_mode():
        net = model()
        net(X)
    with pytest.raises(ValueError, match=r"layer '0': weight was made under torch.inference_mode"), frozen(net):
        pass


def test_frozen_checks_its_input() -> None:
    net = model()
    with frozen(net), torch.no_grad():
        with pytest.raises(ValueError, match=r"x has shape \[4, 5\]: allowed is \[..., 6\]"):
            net(X[:, :5])
        with pytest.raises(TypeError, match=r"x is torch.float64: allowed is torch.float32"):
            net(X.double())
        assert net(X[0]).shape == (6,)
        assert net(X[:0]).shape == (0, 6)


def test_inference_mode() -> None:
    net = model()
    with torch.inference_mode():
        assert is_noisy(net)
        with frozen(net):
            assert is_noisy(net)
