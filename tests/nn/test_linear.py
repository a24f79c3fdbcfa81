"""`OpticalLinear` has the parameters, the initialisation and the checkpoints of an nn.Linear."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from torch import nn  # noqa: E402

from lumina_onnx.nn import OpticalLinear, noise  # noqa: E402
from lumina_onnx.nn.functional import optical_linear  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

from .cases import Case, assert_same_bits, cases  # noqa: E402

CLEAN = OpticalProfile()
NOISY = OpticalProfile(input_bits=4, weight_bits=4, output_bits=4, noise_additive=0.05)


@given(cases())
def test_it_equals_the_reference(case: Case) -> None:
    n, k = case.weight.shape
    layer = OpticalLinear(k, n, bias=case.bias is not None, profile=case.profile, seed=case.seed)
    with torch.no_grad():
        layer.weight.copy_(case.weight)
        if case.bias is not None:
            layer.bias.copy_(case.bias)
    with noise(layer, True, stream=case.stream):
        assert_same_bits(layer(case.x), case.reference())
        with torch.no_grad():
            assert_same_bits(layer(case.x), case.reference())


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_and_initialisation_are_those_of_linear(bias: bool) -> None:
    torch.manual_seed(0)
    expected = [nn.Linear(7, 3, bias), nn.Linear(3, 2, bias)]
    torch.manual_seed(0)
    layers = [OpticalLinear(7, 3, bias, profile=NOISY), OpticalLinear(3, 2, bias, profile=NOISY)]
    for linear, optical in zip(expected, layers, strict=True):
        assert isinstance(optical, nn.Linear)
        assert (optical.bias is None) == (not bias)
        for (name, a), (other, b) in zip(linear.named_parameters(), optical.named_parameters(), strict=True):
            assert name == other
            assert torch.equal(a, b)
    assert layers[0].seed != layers[1].seed
    torch.manual_seed(0)
    assert OpticalLinear(7, 3, bias, profile=NOISY).seed == layers[0].seed


def test_noise_is_on_in_train_and_in_eval() -> None:
    layer, x = OpticalLinear(5, 4, profile=NOISY), torch.randn(3, 5)
    with noise(layer):
        clean = layer(x)
    for mode in (True, False):
        layer.train(mode)
        first, second = layer(x), layer(x)
        assert not torch.equal(first, second)
        assert not torch.equal(first, clean)


def test_a_run_repeats() -> None:
    def run() -> Any:
        torch.manual_seed(3)
        model = nn.Sequential(OpticalLinear(5, 6, profile=NOISY), nn.ReLU(), OpticalLinear(6, 2, profile=NOISY))
        optimiser = torch.optim.Adam(model.parameters())
        for _ in range(4):
            optimiser.zero_grad()
            model(torch.randn(8, 5)).square().sum().backward()
            optimiser.step()
        return [parameter.detach() for parameter in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_from_linear_and_back() -> None:
    linear = nn.Linear(5, 4).eval()
    calls = []
    linear.register_forward_hook(lambda *_: calls.append(1))
    optical = OpticalLinear.from_linear(linear, CLEAN)
    assert type(linear) is nn.Linear
    assert type(optical) is OpticalLinear
    assert optical.weight is linear.weight
    assert optical.bias is linear.bias
    assert not optical.training
    x = torch.randn(3, 5)
    assert torch.equal(optical(x), optical_linear(x, linear.weight, linear.bias, CLEAN))
    assert calls == [1]
    back = optical.to_linear()
    assert type(back) is nn.Linear
    assert back.weight is linear.weight
    assert set(back.state_dict()) == {"weight", "bias"}
    assert set(back.__dict__) == set(linear.__dict__)
    assert torch.equal(back(x), linear(x))
    optical.weight = nn.Parameter(torch.zeros(4, 5))
    assert linear.weight is not optical.weight


def test_from_linear_gives_each_its_own_seed() -> None:
    linear = nn.Linear(5, 4)
    assert OpticalLinear.from_linear(linear, CLEAN).seed != OpticalLinear.from_linear(linear, CLEAN).seed
    assert OpticalLinear.from_linear(linear, CLEAN, seed=4).seed == 4
    with torch.device("meta"):
        layers = [OpticalLinear(5, 4, profile=NOISY) for _ in range(2)]
        assert layers[0].seed != layers[1].seed
        assert layers[0](torch.zeros(3, 5)).shape == (3, 4)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies(duplicate: Any) -> None:
    layer = OpticalLinear(5, 4, profile=NOISY.replace(output_range=(1.0, 2.0, 3.0, 4.0)), seed=8)
    with noise(layer):
        other = duplicate(layer)
    assert other.profile == layer.profile
    assert other.seed == 8
    assert other.noise_is_on
    x = torch.randn(3, 5)
    with noise(layer, True, stream=2), noise(other, True, stream=2):
        assert torch.equal(layer(x), other(x))
    with torch.no_grad():
        other.weight.zero_()
    assert layer.weight.abs().sum() > 0


def test_repr() -> None:
    text = repr(OpticalLinear(5, 4, profile=CLEAN.replace(input_range=0.5, output_range=(1.0, 1.5, 2.0, 4.0))))
    assert text == (
        "OpticalLinear(in_features=5, out_features=4, bias=True, bits=8/8/8, input_range=0.5, "
        "output_range=1..4 per output, bias_stage=analog, noise=none)"
    )
    layer = OpticalLinear(5, 4, bias=False, profile=OpticalProfile(0, 0, 0, noise_shot=0.25, noise_relative=0.1))
    assert "bias=False, bits=-/-/-, input_range=dynamic, output_range=dynamic" in repr(layer)
    assert repr(layer).endswith("noise=on (relative 0.1, shot 0.25))")
    with noise(layer):
        assert repr(layer).endswith("noise=off (relative 0.1, shot 0.25))")


def test_the_profile_is_checked_when_it_is_set() -> None:
    layer: Any = OpticalLinear(5, 4, profile=CLEAN)
    with pytest.raises(ValueError, match=r"output_range has 3 elements: allowed is 1, or one for each of the N = 4"):
        layer.profile = CLEAN.replace(output_range=(1.0, 1.0, 1.0))
    with pytest.raises(TypeError, match=r"profile is str: allowed is a lumina_onnx.OpticalProfile"):
        layer.profile = "edge"
    assert layer.profile == CLEAN


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "weight is torch.float64: allowed is torch.float32", {"dtype": torch.float64}),
        (TypeError, "weight is torch.bfloat16: allowed is torch.float32", {"dtype": torch.bfloat16}),
        (TypeError, "profile is NoneType: allowed is a lumina_onnx.OpticalProfile", {"profile": None}),
        (ValueError, "seed = -1: allowed is 0..2", {"seed": -1}),
        (ValueError, r"weight has shape \[0, 5\]", {"out_features": 0}),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_bad_constructors(error: Any, message: str, arguments: Any) -> None:
    with pytest.raises(error, match=message):
        OpticalLinear(**{"in_features": 5, "out_features": 4, "profile": CLEAN, **arguments})


def test_from_linear_refuses_others() -> None:
    with pytest.raises(TypeError, match=r"linear is Conv1d: allowed is a torch.nn.Linear"):
        OpticalLinear.from_linear(nn.Conv1d(1, 1, 1), CLEAN)  # type: ignore[arg-type]
    half = nn.Linear(5, 4).half()
    with pytest.raises(TypeError, match=r"weight is torch.float16: allowed is torch.float32"):
        OpticalLinear.from_linear(half, CLEAN)
    assert type(half) is nn.Linear


def test_half_precision_is_refused_in_words() -> None:
    layer = OpticalLinear(5, 4, profile=CLEAN).half()
    with pytest.raises(TypeError, match=r"weight is torch.float16: allowed is torch.float32; convert it with .float"):
        layer(torch.randn(3, 5).half())
    assert layer.float()(torch.randn(3, 5)).dtype == torch.float32


@pytest.mark.parametrize("grad", [False, True])
def test_a_weight_that_is_not_finite_is_named_with_its_layer(grad: bool) -> None:
    layer = OpticalLinear(5, 4, profile=CLEAN)
    layer.name = "head"
    with torch.no_grad():
        layer.weight[3, 1] = float("nan")
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=r"^layer 'head': weight\[3, 1\] = NaN"):
        layer(torch.randn(3, 5))


def test_a_parametrisation_of_the_weight() -> None:
    layer: Any = OpticalLinear(5, 4, profile=CLEAN)
    before = layer.weight.detach().clone()

    class Double(nn.Module):
        def forward(self, weight: Any) -> Any:
            return 2 * weight

    nn.utils.parametrize.register_parametrization(layer, "weight", Double())
    x = torch.randn(3, 5)
    y = layer(x)
    assert_same_bits(y, optical_linear(x, 2 * before, layer.bias, CLEAN).detach().numpy())
    y.sum().backward()
    assert np.isfinite(layer.parametrizations.weight.original.grad.numpy()).all()


def test_repr_of_tiles_and_a_bound() -> None:
    layer = OpticalLinear(5, 4, profile=CLEAN.replace(tile_features=2, output_bound=1.5, bias_stage="digital"))
    assert "output_range=1.5 products, bias_stage=digital, noise=none, tile_features=2)" in repr(layer)
