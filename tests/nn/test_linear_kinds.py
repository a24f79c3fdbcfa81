"""Linear layers other than a plain `nn.Linear`: subclasses, lazy and parametrised ones, and transformers' `Conv1D`."""

import copy
import pickle
import sys
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402

from lumina_onnx import reference  # noqa: E402
from lumina_onnx.nn import OpticalLayer, OpticalLinear, calibrate, convert, frozen, noise, report  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

ANALOG = OpticalProfile(input_bits=0, weight_bits=0, output_bits=0)
CLEAN = OpticalProfile()
NOISY = OpticalProfile(noise_additive=0.1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Named(nn.Linear):
    """A subclass that adds a method, and no arithmetic."""

    def widths(self) -> tuple[int, int]:
        return self.in_features, self.out_features


class Standardised(nn.Linear):
    """A subclass with torch's forward, whose weight is computed where it is read."""

    def __init__(self, k: int, n: int) -> None:
        super().__init__(k, n)
        self._parameters["weight"] = nn.Parameter(torch.randn(n, k))

    @property
    def weight(self) -> Any:  # type: ignore[override]
        raw = self._parameters.get("weight")
        if raw is None:  # before nn.Linear has made it
            raise AttributeError
        return raw / raw.std(dim=1, keepdim=True)


class Halved(nn.Module):
    def forward(self, x: Any) -> Any:
        return x / 2


class LowRank(nn.Module):
    """LoRA as a parametrisation."""

    def __init__(self, n: int, k: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, k)), nn.Parameter(torch.randn(n, 2))

    def forward(self, weight: Any) -> Any:
        return weight + self.b @ self.a


class Adapted(nn.Module):
    """LoRA as a module around the layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Linear(base.in_features, 2, bias=False)
        self.b = nn.Linear(2, base.out_features, bias=False)
        self.merged = False

    def forward(self, x: Any) -> Any:
        return self.base(x) if self.merged else self.base(x) + self.b(self.a(x))

    def merge(self) -> None:
        with torch.no_grad():
            self.base.weight += self.b.weight @ self.a.weight
        self.merged = True


def lazy() -> Any:
    layer = nn.LazyLinear(5)
    layer(torch.randn(1, 6))
    return layer


def parametrised(by: str) -> Any:
    layer = nn.Linear(6, 5)
    if by == "two":
        parametrize.register_parametrization(layer, "weight", Halved())
        parametrize.register_parametrization(layer, "bias", Halved())
    elif by == "low rank":
        parametrize.register_parametrization(layer, "weight", LowRank(5, 6))
    elif by == "subclass":
        layer = parametrizations.weight_norm(Named(6, 5))
    elif by == "pruned":
        prune.l1_unstructured(layer, "weight", 0.5)
    else:
        getattr(parametrizations, by)(layer)
    return layer


BY = ["weight_norm", "spectral_norm", "orthogonal", "two", "low rank", "subclass", "pruned"]


def outcome(layer: Any, x: Any) -> Any:
    layer.zero_grad()
    y = layer(x)
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return [y, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize(
    "make", [lambda: Named(6, 5), lambda: Standardised(6, 5), lazy, *(lambda by=by: parametrised(by) for by in BY)]
)
def test_results_and_gradients_are_torchs(make: Any) -> None:
    plain = make()
    optical, x = convert(plain, ANALOG), torch.randn(7, 6)
    assert isinstance(optical, OpticalLinear)
    assert isinstance(optical, type(plain) if not parametrize.is_parametrized(plain) else type(plain).__mro__[1])
    assert not report(optical).left
    assert list(plain.state_dict()) == [key for key in optical.state_dict() if key in plain.state_dict()]
    optical.load_state_dict(plain.state_dict(), strict=True)
    for training in (True, False):
        for a, b in zip(outcome(optical.train(training), x), outcome(plain.train(training), x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    twin = copy.deepcopy(optical)
    assert type(twin) is type(optical) or parametrize.is_parametrized(twin)
    assert report(twin) == report(optical)
    with torch.no_grad():
        assert torch.equal(twin(x), optical.eval()(x))


@pytest.mark.parametrize("by", BY)
def test_the_operator_runs_on_the_computed_weight(by: str) -> None:
    optical, x = convert(parametrised(by), NOISY).eval(), torch.randn(7, 6)
    with noise(optical, True, stream=2), torch.no_grad():
        y = optical(x)
        arrays = [tensor.detach().numpy() for tensor in (x, optical.weight, optical.bias)]
    bits: Any = {"input_bits": 8, "weight_bits": 8, "output_bits": 8, "noise_additive": 0.1}
    np.testing.assert_array_equal(y, reference.optical_linear(*arrays, **bits, seed=optical.seed, stream=2))
    calibrate(optical, [x], progress=False)
    with frozen(optical), noise(optical, True, stream=2), torch.no_grad():
        again = optical(x)
        assert optical.profile.input_range > 0
        for parameter in optical.parameters():
            parameter.mul_(1.5)
        if "weight" not in optical._parameters:  # computed in each call, so not frozen
            assert optical(x).shape == again.shape


@pytest.mark.parametrize("kind", ["linear", "attention"])
def test_a_conversion_in_training_makes_no_step_of_a_spectral_norm(kind: str) -> None:
    attention = nn.MultiheadAttention(6, 2)
    parametrizations.spectral_norm(attention, "in_proj_weight")
    plain = attention if kind == "attention" else parametrised("spectral_norm")
    before = copy.deepcopy(plain.state_dict())
    optical = convert(convert(plain, NOISY), CLEAN)
    report(optical)
    assert optical.training
    assert all(module.training for module in optical.modules())
    assert all(torch.equal(optical.state_dict()[key], value) for key, value in before.items())


def test_parametrisations_come_off_and_on() -> None:
    optical, x = convert(parametrised("weight_norm"), NOISY), torch.randn(7, 6)
    row = report(optical).converted
    with noise(optical):
        before = optical(x)
    parametrize.remove_parametrizations(optical, "weight")
    assert type(optical) is OpticalLinear
    with noise(optical):
        torch.testing.assert_close(optical(x), before)
    assert report(optical).converted[0].seed == row[0].seed
    parametrizations.weight_norm(optical)
    with noise(optical):
        torch.testing.assert_close(optical(x), before)
    linear = optical.to_linear()
    assert type(linear).__mro__[1] is nn.Linear
    assert torch.equal(linear.weight, optical.weight)


def test_a_subclass_stays_one() -> None:
    net: Any = nn.Sequential(Named(6, 5))
    layer, weight = net[0], net[0].weight
    optical = convert(net, NOISY, inplace=True)
    assert optical[0] is layer
    assert optical[0].weight is weight
    assert issubclass(type(layer), Named)
    assert layer.widths() == (6, 5)
    assert [row.kind for row in report(net).converted] == ["OpticalNamed"]
    twin = pickle.loads(pickle.dumps(net)) if Named.__module__ in sys.modules else copy.deepcopy(net)
    assert type(twin[0]) is type(layer)
    assert report(twin) == report(net)
    assert type(layer.to_linear()) is Named
    assert layer.to_linear().weight is weight


def test_a_lazy_layer_after_its_first_call() -> None:
    net = nn.Sequential(nn.LazyLinear(5), nn.Linear(5, 3))
    assert [row.reason for row in report(convert(net, CLEAN)).left] == [
        "not initialised yet: run a batch before converting"
    ]
    net(torch.randn(2, 6))
    assert [(row.in_features, row.out_features) for row in report(convert(net, CLEAN)).converted] == [(6, 5), (5, 3)]


def test_an_adapter_before_and_after_it_is_merged() -> None:
    net, x = Adapted(nn.Linear(6, 5)), torch.randn(7, 6)
    optical = convert(net, ANALOG)
    assert [row.name for row in report(optical).converted] == ["base", "a", "b"]
    torch.testing.assert_close(optical(x), net(x), rtol=1e-4, atol=1e-5)
    optical.merge()
    torch.testing.assert_close(optical(x), net(x), rtol=1e-4, atol=1e-5)
    net.merge()
    torch.testing.assert_close(convert(net, ANALOG)(x), optical(x))


def test_conv1d_of_transformers(conv1d: Any) -> None:
    plain, x = conv1d(5, 6), torch.randn(2, 3, 6)
    with torch.no_grad():
        plain.bias.normal_()
    optical = convert(plain, ANALOG)
    assert isinstance(optical, conv1d)
    assert isinstance(optical, OpticalLayer)
    assert (optical.in_features, optical.out_features) == (6, 5)
    assert not report(optical).left
    optical.load_state_dict(plain.state_dict(), strict=True)
    for a, b in zip(outcome(optical, x), outcome(plain, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    net = convert(nn.Sequential(plain), NOISY, seed=3)
    layer: Any = net[0]
    assert [(row.name, row.kind, row.in_features, row.out_features) for row in report(net).converted] == [
        ("0", "OpticalConv1D", 6, 5)
    ]
    assert "in_features=6, out_features=5, bits=8/8/8" in repr(net)
    with noise(net, True, stream=4):
        expected = reference.optical_linear(
            *(tensor.detach().contiguous().numpy() for tensor in (x, layer.weight.t(), layer.bias)),
            input_bits=8, weight_bits=8, output_bits=8, noise_additive=0.1, seed=layer.seed, stream=4,
        )  # fmt: skip
        np.testing.assert_array_equal(net(x).detach(), expected)
        with frozen(net):
            np.testing.assert_array_equal(net(x).detach(), expected)
    calibrate(net, [x], progress=False)
    assert layer.profile.input_range > 0
    other = convert(nn.Sequential(conv1d(5, 6)), NOISY)
    other.load_state_dict(net.state_dict(), strict=True)
    assert report(other) == report(net)
    twin = copy.deepcopy(net)
    assert type(twin[0]) is type(layer)
    assert report(twin) == report(net)
    if "transformers" in sys.modules:
        assert report(pickle.loads(pickle.dumps(net))) == report(net)


def test_a_conv1d_with_a_forward_of_its_own(conv1d: Any) -> None:
    class Own(conv1d):
        def forward(self, x: Any) -> Any:
            return 2 * super().forward(x)

    with pytest.warns(UserWarning, match="no layer of the model was converted"):
        net = convert(nn.Sequential(Own(5, 6)), CLEAN)
    assert [row.reason for row in report(net).left] == ["Own has a forward of its own"]


class ByLayers(nn.Module):
    """Adds a product of two layers to a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(6, 2, bias=False)
        self.up = nn.Linear(2, 6, bias=False)

    def forward(self, weight: Any) -> Any:
        return weight + self.up(self.down(weight))


def test_layers_that_compute_a_weight_are_left() -> None:
    layer = nn.Linear(6, 5)
    parametrize.register_parametrization(layer, "weight", ByLayers())
    noisy = OpticalProfile(4, 4, 4, noise_additive=0.5)
    model = convert(nn.Sequential(layer), noisy)
    assert [row.name for row in report(model).layers] == ["0"]
    torch.testing.assert_close(model[0].weight, layer.weight, rtol=0, atol=0)
    with pytest.raises(ValueError, match="skip"):
        convert(nn.Sequential(layer), noisy, skip="0.parametrizations.weight.0.up")


@pytest.mark.parametrize("name", ["seed", "name", "profile", "input_range"])
def test_a_subclass_with_an_attribute_of_ours_is_left(name: str) -> None:
    class Own(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            if name == "input_range":
                self.register_buffer(name, torch.ones(1))
            else:
                setattr(self, name, 7)

    model = convert(nn.Sequential(Own(), nn.Linear(3, 3)), CLEAN)
    (left,) = report(model).left
    assert left.reason == f"Own has an attribute {name} of its own, which an optical layer has as well"
    assert getattr(model[0], name) is not None


def test_a_conv1d_that_does_not_keep_its_inputs(conv1d: Any) -> None:
    layer = conv1d(5, 6)
    del layer.nx
    model = convert(nn.Sequential(layer), ANALOG)
    (row,) = report(model).layers
    assert (row.in_features, row.out_features, row.converted) == (6, 5, True)
    optical: Any = model[0]
    assert (optical.in_features, optical.out_features) == (6, 5)
    x = torch.randn(3, 6)
    torch.testing.assert_close(model(x), x @ layer.weight + layer.bias)
    pruned = conv1d(5, 6)
    del pruned.nx
    prune.l1_unstructured(pruned, "weight", 0.5)
    assert [row.in_features for row in report(nn.Sequential(pruned)).layers] == [6]
