"""States that change: entries written in place, as loaders write them, and averages of several states."""

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest

from lumina_onnx.profile import OpticalProfile

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import settings as settings_of  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from lumina_onnx.nn import calibrate, noise  # noqa: E402

from .state_cases import (  # noqa: E402
    EACH,
    ENTRIES,
    NOISY,
    RANGES,
    STATIC,
    average,
    layer,
    model,
    ranges,
    settings,
)

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized"),
]


# Writing in place, as loaders and averages do


def test_what_is_written_into_a_state_dict_reaches_the_layer() -> None:
    net, state, x = model(), model(STATIC, seed=3).state_dict(), torch.randn(4, 6)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            value.copy_(state[name])
        expected = model(STATIC, seed=3)
        with noise(net, True, stream=1), noise(expected, True, stream=1):
            assert torch.equal(net(x), expected(x))
    assert settings(net) == settings(expected)


@pytest.mark.parametrize(
    "look",
    [
        lambda net: net.profile,
        lambda net: net.eval(),
        lambda net: net.state_dict(),
        lambda net: copy.deepcopy(net),
        lambda net: pickle.dumps(net),
        lambda net: net(torch.zeros(1, 5)),
        lambda net: repr(net),
        lambda net: torch.compile(net, backend="aot_eager", fullgraph=True)(torch.zeros(1, 5)),
    ],
)
def test_a_write_is_seen_by_whatever_looks_next(look: Any) -> None:
    net = layer()
    with noise(net, True, stream=0):
        for name, entry in layer(EACH, 9).state_dict().items():
            net.state_dict()[name].copy_(entry)
        look(net)
        assert (net._profile, net.seed) == (EACH, 9)


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_program_has_what_was_written(strict: bool) -> None:
    net, expected, x = layer(), layer(EACH, 9), torch.randn(3, 5)
    state = net.state_dict()
    for name, entry in expected.state_dict().items():
        state[name].copy_(entry)
    with noise(net, True, stream=1), noise(expected, True, stream=1):
        program = torch.export.export(net, (x,), strict=strict).module()
        assert torch.equal(program(x), expected(x))
    assert settings(net) == settings(expected)


def test_a_write_that_means_nothing_is_refused_where_it_is_seen() -> None:
    net = layer(STATIC)
    net.state_dict()["input_range"].fill_(float("nan"))
    with pytest.raises(ValueError, match=r"input_range\[0\] = nan: allowed is a finite number"):
        net(torch.zeros(1, 5))
    assert net.profile == STATIC


def test_what_is_assigned_after_a_write_wins() -> None:
    net = layer()
    net.state_dict()["noise_seed"].zero_()
    net.profile = EACH
    assert settings(net) == [(EACH, 0)]


def test_a_layer_forgets_a_state_dict_that_nobody_has() -> None:
    net, x = layer(STATIC), torch.zeros(1, 5)
    state = {name: entry.detach() for name, entry in net.state_dict().items()}
    for _ in range(100):
        net(x)
    state["input_range"].fill_(2.0)
    net(x)
    assert net.profile.input_range == 2.0
    state = net.state_dict()
    del state
    net(x)
    assert net._held is None


def test_an_old_state_dict_keeps_its_values() -> None:
    net = layer(STATIC)
    state = net.state_dict()
    net.profile = EACH
    assert state["input_range"].tolist() == [0.3]
    net.load_state_dict(state)
    assert net.profile == STATIC


def test_a_compiled_model_stays_compiled() -> None:
    net, x = model(STATIC), torch.randn(4, 6)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with noise(net):
        y = compiled(x)
        state = net.state_dict()
        with torch.compiler.set_stance("fail_on_recompile"):
            assert torch.equal(compiled(x), y)
    assert len(state) == 12


# Averages


def ema(target: Any, source: Any, decay: Any, steps: Any) -> None:
    for _ in range(steps):
        for name, value in target.items():
            value.mul_(decay).add_(source[name], alpha=1 - decay)


@settings_of(max_examples=40)
@given(ranges.filter(bool), ranges.filter(bool), st.integers(0, 2**63 - 1))
def test_an_average_of_ranges(first: Any, second: Any, seed: int) -> None:
    profiles = [NOISY.replace(input_range=scale, output_range=each) for scale, each in ((0.5, first), (1.5, second))]
    states = [layer(profile, seed).state_dict() for profile in profiles]
    net = layer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.load_state_dict(average(*states))
    assert net.seed == seed
    assert net.profile.input_range == 1.0
    expected = (np.broadcast_to(first, 4) + np.broadcast_to(second, 4)) / 2
    assert np.array_equal(np.broadcast_to(net.profile.output_range, 4), expected)
    assert isinstance(net.profile.output_range, tuple) == (isinstance(first, tuple) or isinstance(second, tuple))


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("profile", [NOISY, STATIC, EACH])
def test_an_average_of_equal_states_is_that_state(profile: OpticalProfile, count: int) -> None:
    seed, net = 2**63 - 1, layer()
    net.load_state_dict(average(*[layer(profile, seed).state_dict()] * count))
    assert net.seed == seed
    assert net.profile.input_range == pytest.approx(profile.input_range, rel=1e-15)
    assert net.profile.output_range == pytest.approx(profile.output_range, rel=1e-15)
    assert type(net.profile.output_range) is type(profile.output_range)


@pytest.mark.parametrize("decay", [0.9, 0.999])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_exponential_average_of_equal_states(decay: float, dtype: Any) -> None:
    for profile in (STATIC, EACH, NOISY):
        source = layer(profile, 2**63 - 1).state_dict()
        target = {name: value.to(dtype if name in ENTRIES else None, copy=True) for name, value in source.items()}
        ema(target, source, decay, 500)
        net = layer()
        net.load_state_dict(target)
        assert net.seed == 2**63 - 1
        assert net.profile.input_range == pytest.approx(profile.input_range, rel=1e-3)
        assert net.profile.output_range == pytest.approx(profile.output_range, rel=1e-3)
        assert type(net.profile.output_range) is type(profile.output_range)


def test_an_exponential_average_in_place() -> None:
    net = layer(NOISY.replace(input_range=1.0, output_range=4.0))
    average = copy.deepcopy(net)
    net.profile = NOISY.replace(input_range=2.0, output_range=8.0)
    for _ in range(3):
        ema(average.state_dict(), net.state_dict(), 0.5, 1)
    assert average.profile == NOISY.replace(input_range=1.875, output_range=7.5)
    assert average.seed == net.seed
    assert torch.equal(average.weight, net.weight)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (NOISY, NOISY.replace(input_range=0.5), r"range_kind\[0\] = 0.5: .*input range is static.* or 0 \(dynamic\)"),
        (NOISY, NOISY.replace(output_range=0.5), r"range_kind\[1\] = 0.5: .*output range is static.* or 0 \(dynamic\)"),
        (NOISY, EACH, r"range_kind\[0\] = 0.5: "),
    ],
)
@pytest.mark.parametrize("weight", [0.5, 0.999, 1e-4])
def test_an_average_of_a_static_and_a_dynamic_range_is_refused(
    first: Any, second: Any, message: str, weight: float
) -> None:
    states = [layer(profile).state_dict() for profile in (first, second)]
    mixed = {name: states[0][name] * (1 - weight) + states[1][name] * weight for name in states[0]}
    net = layer(STATIC, 3)
    with pytest.raises(ValueError, match=message.replace("0.5", f"{weight:g}", 1) + ".*an average of both is no range"):
        net.load_state_dict(mixed)
    assert settings(net) == [(STATIC, 3)]
    for name in RANGES:
        del mixed[name]
    with pytest.warns(UserWarning, match="lacks input_range, output_range, range_kind: the layer keeps its own"):
        net.load_state_dict(mixed)  # as the message says
    assert settings(net) == [(STATIC, 0)]


@settings_of(max_examples=40)
@given(st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=4, unique=True), st.booleans())
def test_an_average_of_different_seeds_is_no_seed(seeds: Any, near: bool) -> None:
    if near:  # neighbouring seeds have digits whose average is whole
        seeds = [min(seeds[0], 2**63 - 9) + 2 * index for index in range(len(seeds))]
    net = layer(seed=5)
    with pytest.warns(UserWarning, match="noise_seed averages different seeds, .* the layer keeps its own, 5"):
        net.load_state_dict(average(*[layer(STATIC, seed).state_dict() for seed in seeds]))
    assert settings(net) == [(STATIC, 5)]


def test_the_average_of_swa_utils() -> None:
    net = model()
    calibrate(net, [torch.randn(16, 6)], progress=False)
    for buffers in (False, True):
        averaged = torch.optim.swa_utils.AveragedModel(net, use_buffers=buffers)
        averaged.update_parameters(net)
        assert settings(averaged) == settings(net)
        other = torch.optim.swa_utils.AveragedModel(model(seed=3), use_buffers=buffers)
        other.load_state_dict(averaged.state_dict())
        assert settings(other) == settings(net)
    before = settings(net)
    calibrate(averaged, [3 * torch.randn(16, 6)], progress=False)
    assert settings(averaged) != before == settings(net)
