"""The context managers `noise` and `frozen`."""

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from torch import nn  # noqa: E402

import lumina_kernel  # noqa: E402
from lumina_onnx.nn import OpticalLinear, convert, frozen, noise  # noqa: E402
from lumina_onnx.nn.functional import optical_linear  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

from .cases import Case, assert_same_bits, cases  # noqa: E402

NOISY = OpticalProfile(noise_additive=0.1, output_range=2.0)


def model():
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)), NOISY, inplace=True)


X = torch.linspace(-1, 1, 24).reshape(4, 6)


def is_noisy(net):
    return not torch.equal(net(X), net(X))


def test_noise_off_fixed_and_nested():
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


def test_a_fixed_stream_is_that_of_the_function():
    layer = OpticalLinear(6, 6, profile=NOISY, seed=3)
    with noise(layer, True, stream=5):
        y = layer(X)
    assert torch.equal(y, optical_linear(X, layer.weight, layer.bias, NOISY, seed=3, stream=5))


def test_layers_do_not_share_their_noise():
    net = model()
    with torch.no_grad():
        net[2].weight.copy_(net[0].weight)
        net[2].bias.copy_(net[0].bias)
    with noise(net, True, stream=0):
        assert not torch.equal(net[0](X), net[2](X))


def test_noise_off_keeps_bits_and_ranges():
    layer = OpticalLinear(6, 6, profile=NOISY)
    with noise(layer):
        assert torch.equal(layer(X), optical_linear(X, layer.weight, layer.bias, NOISY.replace(noise_additive=0.0)))


@pytest.mark.parametrize("context", [noise, frozen])
def test_an_exception_restores(context):
    net = model()
    before = [(layer._noise, layer._frozen) for layer in (net[0], net[2])]
    with pytest.raises(KeyError), context(net):
        raise KeyError
    assert [(layer._noise, layer._frozen) for layer in (net[0], net[2])] == before


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "stream = 3 would be ignored: with on False no noise is drawn", {"stream": 3}),
        (ValueError, "stream = -1: allowed is 0..2", {"on": True, "stream": -1}),
        (TypeError, "stream is float 0.5: allowed is an int", {"on": True, "stream": 0.5}),
    ],
)
def test_bad_streams(error, message, arguments):
    with pytest.raises(error, match=message), noise(model(), **arguments):
        pass


@given(cases())
def test_a_frozen_layer_equals_the_reference(case: Case):
    layer = OpticalLinear.from_linear(linear(case), case.profile, seed=case.seed)
    with frozen(layer), noise(layer, True, stream=case.stream), torch.no_grad():
        assert_same_bits(layer(case.x), case.reference())
        assert_same_bits(layer(case.x), case.reference())


def linear(case):
    n, k = case.weight.shape
    layer = nn.Linear(k, n, case.bias is not None)
    layer.weight = nn.Parameter(case.weight)
    if case.bias is not None:
        layer.bias = nn.Parameter(case.bias)
    return layer


def test_frozen_prepares_once(monkeypatch):
    made = []
    prepare = lumina_kernel._prepare_at
    monkeypatch.setattr(lumina_kernel, "_prepare_at", lambda *args: made.append(1) or prepare(*args))
    net = model().eval()
    with torch.no_grad():
        with frozen(net):
            assert len(made) == 2
            with frozen(net):
                for _ in range(5):
                    net(X)
            net(X)
        net(X)
    assert len(made) == 2


def test_noise_inside_frozen():
    net = model()
    with noise(net):
        clean = net(X)
    with frozen(net), torch.no_grad():
        assert is_noisy(net)
        with noise(net):
            assert torch.equal(net(X), clean)
        assert is_noisy(net)


def test_frozen_draws_as_the_function_does():
    net = model()
    results = []
    with torch.no_grad():
        for context in (frozen(net), noise(net, True)):
            torch.manual_seed(11)
            with context:
                results.append(net(X))
    assert torch.equal(*results)


def test_gradients_inside_frozen():
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


def step(net):
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    net(X).sum().backward()
    optimiser.step()


def replace_parameter(net):
    net[2].weight = nn.Parameter(net[2].weight.detach())


def set_profile(net):
    net[2].profile = NOISY.replace(noise_additive=0.2)


def change_bias(net):
    with torch.no_grad():
        net[2].bias.add_(1)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (step, "layer '0': weight was changed in place inside frozen"),
        (lambda net: net.load_state_dict(net.state_dict()), "layer '0': weight was changed in place inside frozen"),
        (change_bias, "layer '2': bias was changed in place inside frozen"),
        (replace_parameter, "layer '2': weight was replaced inside frozen"),
        (set_profile, "layer '2': profile was changed inside frozen"),
    ],
)
def test_a_change_inside_frozen_raises(change, message, grad):
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
def test_what_is_not_finite_is_named_when_frozen(parameter):
    net = model()
    with torch.no_grad():
        getattr(net[2], parameter).view(-1)[1] = float("inf")
    message = rf"^layer '2': {parameter}\[.*1\] = inf: allowed is a finite number"
    with pytest.raises(ValueError, match=message), frozen(net):
        pass
    assert net[0]._frozen is None


def test_inference_tensors_cannot_be_frozen():
    with torch.inference_mode():
        net = model()
        net(X)
    with pytest.raises(ValueError, match=r"layer '0': weight was made under torch.inference_mode"), frozen(net):
        pass


def test_frozen_checks_its_input():
    net = model()
    with frozen(net), torch.no_grad():
        with pytest.raises(ValueError, match=r"x has shape \[4, 5\]: allowed is \[..., 6\]"):
            net(X[:, :5])
        with pytest.raises(TypeError, match=r"x is torch.float64: allowed is torch.float32"):
            net(X.double())
        assert net(X[0]).shape == (6,)
        assert net(X[:0]).shape == (0, 6)


def test_inference_mode():
    net = model()
    with torch.inference_mode():
        assert is_noisy(net)
        with frozen(net):
            assert is_noisy(net)
