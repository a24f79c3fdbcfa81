"""What a state_dict says of an optical layer: ranges and seed, whoever writes, averages and reads it."""

import copy
import io
import json
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.distributed.checkpoint as dcp  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import settings as settings_of  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402

from lumina_onnx.nn import OpticalLinear, calibrate, convert, frozen, noise  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

CLEAN = OpticalProfile()
NOISY = OpticalProfile(input_bits=4, weight_bits=4, output_bits=4, noise_additive=0.05)
STATIC = NOISY.replace(input_range=0.3, output_range=1.75)
EACH = NOISY.replace(input_range=0.1, output_range=(0.5, 1.1, 2.0, 1e-3))
ENTRIES = ("input_range", "output_range", "range_kind", "noise_seed")
RANGES = ENTRIES[:3]
STATES = Path(__file__).with_name("states")

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized"),
]

positive = st.floats(2.0**-20, 1000.0, width=32) | st.floats(1e-30, 1e30)
ranges = st.just(0.0) | positive | st.tuples(*[positive] * 4)


def layer(profile: OpticalProfile = NOISY, seed: int = 0, k: int = 5, n: int = 4) -> Any:
    return OpticalLinear(k, n, profile=profile, seed=seed)


def model(profile: OpticalProfile = NOISY, seed: int = 0) -> Any:
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), profile, seed=seed, inplace=True)


def settings(net: Any) -> Any:
    """The profile and seed of each layer."""
    return [(module.profile, module.seed) for module in net.modules() if isinstance(module, OpticalLinear)]


def saved_and_loaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def average(*states: Any) -> Any:
    return {key: sum(state[key] for state in states) / len(states) for key in states[0]}


# Round trips


def test_a_linear_checkpoint_loads_strictly() -> None:
    linear, optical = nn.Linear(5, 4), layer(STATIC, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optical.load_state_dict(saved_and_loaded(linear.state_dict()), strict=True)
    assert torch.equal(optical.weight, linear.weight)
    assert settings(optical) == [(STATIC, 9)]


def test_a_checkpoint_lacking_a_weight_does_not_load() -> None:
    with pytest.raises(RuntimeError, match=r'Missing key.*"bias"'):
        layer().load_state_dict(nn.Linear(5, 4, bias=False).state_dict())


def test_an_entry_that_nobody_knows_is_unexpected() -> None:
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"output_gain"'):
        layer().load_state_dict({**layer().state_dict(), "output_gain": torch.ones(4)})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"_extra_state"'):
        layer().load_state_dict({**layer().state_dict(), "_extra_state": encoded({"version": 1})})


@settings_of(max_examples=40)
@given(st.just(0.0) | positive, ranges, st.integers(0, 2**63 - 1) | st.just(2**63 - 1))
def test_ranges_and_seed_survive_a_checkpoint(input_range: Any, output_range: Any, seed: Any) -> None:
    profile = NOISY.replace(input_range=input_range, output_range=output_range)
    before = layer(profile, seed)
    state = saved_and_loaded(before.state_dict())
    assert set(state) == {"weight", "bias", *ENTRIES}
    other = layer(EACH, 1)
    other.load_state_dict(state, strict=True)
    assert settings(other) == [(profile, seed)]
    assert type(other.profile.output_range) is type(profile.output_range)
    x = torch.randn(2, 5)
    with noise(before, True, stream=1), noise(other, True, stream=1):
        assert torch.equal(before(x), other(x))


@pytest.mark.parametrize("profile", [NOISY, STATIC, EACH, CLEAN.replace(input_bits=0)])
def test_shapes_follow_from_the_size_of_the_layer_alone(profile: OpticalProfile) -> None:
    state = layer(profile, 2**63 - 1).state_dict()
    assert {name: (state[name].dtype, *state[name].shape) for name in ENTRIES} == {
        "input_range": (torch.float64, 1),
        "output_range": (torch.float64, 4),
        "range_kind": (torch.float64, 3),
        "noise_seed": (torch.float64, 24),
    }
    assert state["output_range"].tolist() == list(np.broadcast_to(profile.output_range, 4))


def test_one_range_for_each_output_stays_one_for_each() -> None:
    alike = NOISY.replace(output_range=(2.0,) * 4)
    other = layer()
    other.load_state_dict(layer(alike).state_dict())
    assert other.profile.output_range == (2.0,) * 4
    other.load_state_dict(layer(NOISY.replace(output_range=2.0)).state_dict())
    assert other.profile.output_range == 2.0


def test_bits_and_noise_are_not_the_checkpoints_business() -> None:
    other = layer(CLEAN)
    other.load_state_dict(layer(STATIC).state_dict())
    assert other.profile == CLEAN.replace(input_range=0.3, output_range=1.75)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_change_of_type_leaves_the_entries_exact(dtype: Any) -> None:
    net = layer(EACH, 2**63 - 1).to(dtype)
    assert net.weight.dtype == dtype
    state = net.state_dict()
    other = layer().to(dtype)
    other.load_state_dict(state)
    assert settings(other) == [(EACH, 2**63 - 1)]
    assert settings(net.float()) == [(EACH, 2**63 - 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_checkpoint_that_was_cast(dtype: Any) -> None:
    """The seed stays whole, and ranges are as exact as the type."""
    state = {key: value.to(dtype) for key, value in layer(EACH, 2**63 - 1).state_dict().items() if key in ENTRIES}
    other = layer()
    state = {**other.state_dict(), **state}
    other.load_state_dict(state)
    assert other.seed == 2**63 - 1
    expected = state["output_range"].double().tolist()
    assert list(other.profile.output_range) == expected


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (1e5, torch.float16, r"output_range\[0\] = inf: allowed is a finite number"),
        (1e-9, torch.float16, r"output_range\[0\] = 0: allowed is a number > 0, as the range is static"),
        (1.0, torch.float8_e4m3fn, r"output_range is torch.float8_e4m3fn: allowed is float64 \[4\]"),
    ],
)
def test_a_checkpoint_that_a_cast_destroyed(value: float, dtype: Any, message: str) -> None:
    state = {**layer(STATIC.replace(output_range=value)).state_dict()}
    state["output_range"] = state["output_range"].to(dtype)
    with pytest.raises(ValueError, match=message):
        layer().load_state_dict(state)


def test_meta_and_assign() -> None:
    before = model(STATIC)
    with torch.device("meta"):
        net = nn.Sequential(OpticalLinear(6, 8, profile=NOISY), nn.ReLU(), OpticalLinear(8, 3, profile=NOISY))
        assert net.state_dict()["0.input_range"].device.type == "cpu"
    net.load_state_dict(saved_and_loaded(before.state_dict()), assign=True)
    assert settings(net) == settings(before)
    assert net[0].weight.device.type == "cpu"


def test_entries_without_values_change_nothing_and_say_so() -> None:
    state = {key: value.to("meta") for key, value in layer(STATIC, 3).state_dict().items()}
    other = layer(EACH, 4)
    with pytest.warns(UserWarning, match=r"input_range, .*, noise_seed: tensors without values"):
        other.load_state_dict(state, assign=True)
    assert settings(other) == [(EACH, 4)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = other.state_dict()
    with pytest.warns(UserWarning, match="tensors without values"):
        other.load_state_dict({name: fake[name] for name in ENTRIES}, strict=False)
    assert settings(other) == [(EACH, 4)]
    assert other.state_dict()["input_range"].tolist() == [0.1]


def test_under_inference_mode() -> None:
    with torch.inference_mode():
        state = layer(STATIC).state_dict()
        other = layer()
        other.load_state_dict(state)
        state["input_range"].fill_(2.0)
    assert other.profile == STATIC


def test_prefixes_and_hooks() -> None:
    before, net = model(STATIC), nn.Module()
    net.inner = model()
    state = before.state_dict(prefix="inner.")
    assert "inner.0.input_range" in state
    net.load_state_dict(state)
    assert settings(net) == settings(before)

    def renamed(module: Any, state_dict: Any, prefix: Any, *_: Any) -> None:
        for name in ("weight", "bias", *ENTRIES):
            state_dict[prefix + name] = state_dict.pop(prefix + "old_" + name)

    other = layer()
    other.register_load_state_dict_pre_hook(renamed)
    other.load_state_dict({"old_" + name: value for name, value in layer(EACH, 7).state_dict().items()})
    assert settings(other) == [(EACH, 7)]


def test_a_checkpoint_without_metadata() -> None:
    """As safetensors and numpy keep it."""
    arrays = {name: value.numpy() for name, value in model(STATIC).state_dict().items()}
    net = model(seed=5)
    net.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
    assert settings(net) == settings(model(STATIC))


def test_tied_and_shared_layers() -> None:
    net = nn.Sequential(*[layer(STATIC)] * 2)
    other = nn.Sequential(*[layer()] * 2)
    other.load_state_dict(net.state_dict())
    assert settings(other) == settings(net)


def test_a_state_of_a_parametrised_layer() -> None:
    net, other = layer(STATIC, 3), layer()
    for each in (net, other):
        nn.utils.parametrizations.weight_norm(each)
    other.load_state_dict(net.state_dict())
    assert settings(other) == [(STATIC, 3)]


def test_frozen_layers_see_ranges_that_change() -> None:
    net = layer()
    with frozen(net), torch.no_grad():
        net.load_state_dict({**net.state_dict(), **{name: layer(STATIC).state_dict()[name] for name in RANGES}})
        with pytest.raises(RuntimeError, match="changed in place inside frozen"):
            net(torch.randn(2, 5))


def test_a_linear_refuses_an_optical_checkpoint() -> None:
    with pytest.raises(
        RuntimeError, match=r'Unexpected key.*"input_range", "output_range", "range_kind", "noise_seed"'
    ):
        nn.Linear(5, 4).load_state_dict(layer().state_dict())
    plain = layer().to_linear()
    assert set(plain.state_dict()) == {"weight", "bias"}
    assert plain.state_dict()._metadata[""] == {"version": 1}


class Own(OpticalLinear):
    """A subclass with a state of its own."""

    _version = 3
    own = 0

    def get_extra_state(self) -> Any:
        return torch.tensor(self.own)

    def set_extra_state(self, state: Any) -> None:
        self.own = int(state)


def test_a_subclass_with_an_extra_state() -> None:
    net, other = Own(5, 4, profile=STATIC), Own(5, 4, profile=NOISY)
    net.own = 8
    other.load_state_dict(net.state_dict())
    assert other.own == 8
    assert settings(other) == settings(net)


# What is there in part


@pytest.mark.parametrize("absent", ENTRIES)
@pytest.mark.parametrize("metadata", [True, False])
def test_an_absent_entry_keeps_what_the_layer_has(absent: Any, metadata: bool) -> None:
    state = layer(EACH, 7).state_dict()
    del state[absent]
    other = layer(STATIC, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        other.load_state_dict(state if metadata else dict(state), strict=True)
    messages = [str(warning.message) for warning in caught]
    if absent == "noise_seed":
        assert messages == []
    else:
        assert len(messages) == 1
        assert f"one of an optical layer but lacks {absent}: the layer keeps its own" in messages[0]
    assert other.seed == (3 if absent == "noise_seed" else 7)
    assert other.profile.input_range == (0.3 if absent == "input_range" else 0.1)
    assert other.profile.output_range == (1.75 if absent == "output_range" else EACH.output_range) or (
        absent == "output_range" and other.profile.output_range == (1.75,) * 4
    )


def test_a_loader_that_leaves_out_what_is_no_parameter_is_warned_about() -> None:
    net, state = model(), model(STATIC).state_dict()
    names = [name for name, _ in net.named_parameters()]
    kept: Any = OrderedDict((name, value) for name, value in state.items() if name in names)
    kept._metadata = state._metadata
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net.load_state_dict(kept, strict=False)
    assert [str(warning.message).split(",")[0] for warning in caught] == [
        f"layer '{name}': the checkpoint is one of an optical layer but lacks {name}.input_range" for name in "02"
    ]
    assert settings(net) == settings(model())


@pytest.mark.parametrize("order", [ENTRIES, ENTRIES[::-1], ("range_kind", "output_range", "noise_seed", "input_range")])
@pytest.mark.parametrize("how", ["load", "set"])
def test_entries_that_come_one_at_a_time(order: Any, how: str) -> None:
    """As transformers loads them, and as torch.func.functional_call sets them."""
    for profile in (STATIC, EACH, NOISY):
        state, net = layer(profile, 7).state_dict(), layer(STATIC.replace(output_range=9.0), 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for name in ("weight", *order):
                if how == "set":
                    setattr(net, name, nn.Parameter(state[name]) if name == "weight" else state[name])
                else:
                    net.load_state_dict({name: state[name]}, strict=False, assign=True)
        assert settings(net) == [(profile, 7)]


def test_an_entry_is_no_parameter() -> None:
    with pytest.raises(KeyError, match="attribute 'input_range' already exists"):
        layer().input_range = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=r"OpticalLinear\(5 -> 4\): input_range is float: allowed is float64 \[1\]"):
        layer().input_range = 0.5


def test_functional_call_with_a_state_dict() -> None:
    net, other, x = model(STATIC), model(NOISY, seed=3), torch.randn(4, 6)
    before = settings(other)
    with noise(net, True, stream=1), noise(other, True, stream=1):
        assert not torch.equal(net(x), other(x))
        assert torch.equal(torch.func.functional_call(other, net.state_dict(), (x,)), net(x))
    assert settings(other) == before


# What is written in place, as loaders and averages do


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
    if near:  # neighbours have digits whose average is whole
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


# What is refused


def bad(name: Any, values: Any) -> Any:
    return lambda state: state.update({name: values if callable(values) else torch.tensor(values)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_range": [float("nan")]}, r"input_range\[0\] = nan: allowed is a finite number >= 0"),
        ({"input_range": [-0.5]}, r"input_range\[0\] = -0.5: allowed is a finite number >= 0"),
        ({"input_range": [float("inf")]}, r"input_range\[0\] = inf: allowed is a finite number >= 0"),
        ({"output_range": [1.0, 2.0, float("nan"), 1.0]}, r"output_range\[2\] = nan: allowed is a finite number"),
        ({"output_range": [1.0, 2.0, 1.0, -1.0]}, r"output_range\[3\] = -1: allowed is a finite number"),
        ({"output_range": [1.0, 0.0, 1.0, 1.0]}, r"output_range\[1\] = 0: allowed is a number > 0, as the range is st"),
        ({"output_range": [0.0] * 4}, r"output_range\[0\] = 0: allowed is a number > 0, as the range is static"),
        ({"input_range": [0.0]}, r"input_range\[0\] = 0: allowed is a number > 0, as the range is static"),
        ({"range_kind": [0.0, 1.0, 0.0]}, r"input_range\[0\] = 0.3: allowed is 0, as range_kind says that it is dyn"),
        ({"range_kind": [1.0, 0.0, 0.0]}, r"output_range\[0\] = 1.75: allowed is 0, as range_kind says that it is d"),
        ({"range_kind": [1.0, 2.0, 0.0]}, r"range_kind\[1\] = 2: allowed is 1 \(the output range is static\)"),
        ({"range_kind": [1.0, 1.0, 1.5]}, r"range_kind\[2\] = 1.5: allowed is 1 \(.* is one for each output\)"),
        ({"range_kind": [1.0, 1.0, float("nan")]}, r"range_kind\[2\] = nan: allowed is a finite number"),
        ({"output_range": [1.0, 2.0, 1.0, 1.0]}, r"output_range has several values: allowed is one"),
        ({"output_range": [1.0, 2.0]}, r"output_range has shape \[2\]: allowed is float64 \[4\]"),
        ({"input_range": 1.0}, r"input_range has shape \[\]: allowed is float64 \[1\]"),
        ({"input_range": [1]}, r"input_range is torch.int64: allowed is float64 \[1\]"),
        ({"input_range": [True]}, r"input_range is torch.bool: allowed is float64 \[1\]"),
        ({"input_range": [1j]}, r"input_range is torch.complex64: allowed is float64 \[1\]"),
        ({"input_range": [1e39]}, r"the checkpoint does not fit the layer's profile: input_range = 1000"),
        ({"noise_seed": [16.0] + [0.0] * 23}, r"noise_seed\[0\] = 16: allowed is 0..15, a digit in base 16"),
        ({"noise_seed": [0.0] * 23 + [float("nan")]}, r"noise_seed\[23\] = nan: allowed is a finite number"),
        ({"noise_seed": [0.0] * 16}, r"noise_seed has shape \[16\]: allowed is float64 \[24\]"),
    ],
)
def test_entries_that_are_no_state(change: Any, message: str) -> None:
    net = layer(EACH, 3)
    for prefix, holder in (("", net), ("0.", nn.Sequential(net))):
        state = nn.Sequential(layer(STATIC)).state_dict() if prefix else layer(STATIC).state_dict()
        for name, values in change.items():
            dtype = torch.float64 if isinstance(np.ravel(values)[0], float) else None
            state[prefix + name] = torch.tensor(values, dtype=dtype)
        expected = message if message.startswith("the checkpoint") else prefix.replace(".", r"\.") + message
        with pytest.raises(ValueError, match=r"^OpticalLinear\(5 -> 4\): " + expected):
            holder.load_state_dict(state)
        assert settings(net) == [(EACH, 3)]


def test_what_is_no_tensor() -> None:
    with pytest.raises(ValueError, match=r"output_range is ndarray: allowed is float64 \[4\]"):
        layer().load_state_dict({**layer().state_dict(), "output_range": np.ones(4)})


def test_a_range_for_a_dac_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"does not fit the layer's profile: .*input_range"):
        layer(CLEAN.replace(input_bits=0)).load_state_dict(layer(STATIC).state_dict())


def test_a_state_of_a_later_release() -> None:
    state = layer(STATIC).state_dict()
    state._metadata[""]["version"] = 3
    with pytest.raises(
        ValueError, match="has version 3 of its state, as a later release writes it: allowed is up to 2"
    ):
        layer().load_state_dict(state)


# torch.distributed.checkpoint


def read_in_place(folder: Path, net: Any, **options: Any) -> None:
    state = net.state_dict()
    dcp.load(state, checkpoint_id=folder, no_dist=True, **options)
    net.load_state_dict(state)


def test_a_distributed_checkpoint_into_a_fresh_model(tmp_path: Path) -> None:
    for index, profile in enumerate((STATIC, NOISY, EACH)):
        net = nn.Sequential(layer(profile, 2**63 - 1))
        dcp.save(net.state_dict(), checkpoint_id=tmp_path / str(index), no_dist=True)
        other = nn.Sequential(layer(STATIC.replace(output_range=9.0), 1))
        read_in_place(tmp_path / str(index), other)
        assert settings(other) == settings(net)
        assert torch.equal(other[0].weight, net[0].weight)


def test_the_model_state_of_torch_distributed(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    net, other = model(STATIC), model(seed=3)
    dcp.save(get_model_state_dict(net), checkpoint_id=tmp_path, no_dist=True)
    state = get_model_state_dict(other)
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    set_model_state_dict(other, state)
    assert settings(other) == settings(net)


def test_a_distributed_checkpoint_of_linear_layers(tmp_path: Path) -> None:
    dcp.save(nn.Sequential(nn.Linear(5, 4)).state_dict(), checkpoint_id=tmp_path, no_dist=True)
    net = nn.Sequential(layer(STATIC, 7))
    read_in_place(tmp_path, net, planner=dcp.DefaultLoadPlanner(allow_partial_load=True))
    assert settings(net) == [(STATIC, 7)]


# The first release


def encoded(state: Any) -> Any:
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def first_release() -> Any:
    """The model whose states are kept in states/, with other weights, ranges and seeds."""
    profile = OpticalProfile(input_bits=6, weight_bits=4, output_bits=8, noise_additive=0.05)
    torch.manual_seed(1)
    layers = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Linear(5, 3, bias=False)]
    return convert(nn.Sequential(*layers), profile.replace(output_range=7.0), seed=5)


def assert_is_of_the_first_release(net: Any) -> None:
    kept = torch.load(STATES / "result.pt", weights_only=True)
    assert [(profile.input_range, profile.output_range) for profile, _ in settings(net)] == [
        (0.0, 0.0),
        (0.3, 1.75),
        (0.0, (0.5, 1.1, 2.0)),
    ]
    assert [seed for _, seed in settings(net)] == [4095580443149560803, 6945362250095784762, 7724342125763136260]
    with noise(net, True, stream=3), torch.no_grad():
        assert torch.equal(net(kept["x"]), kept["y"])


def test_a_state_of_the_first_release() -> None:
    net = first_release()
    net.load_state_dict(torch.load(STATES / "json.pt", weights_only=True), strict=True)
    assert_is_of_the_first_release(net)
    other = first_release()
    other.load_state_dict(net.state_dict())
    assert_is_of_the_first_release(other)


def test_a_model_of_the_first_release() -> None:
    net = torch.load(STATES / "json-model.pt", weights_only=False)
    assert net[0].name == "0"
    assert net[0].label == "layer '0'"
    assert_is_of_the_first_release(net)
    assert_is_of_the_first_release(copy.deepcopy(net))
    assert type(net[0].to_linear()) is nn.Linear
    assert set(net[0].to_linear().__dict__) == set(nn.Linear(6, 8).__dict__)


def test_a_distributed_checkpoint_of_the_first_release(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(STATES / "json-distributed", tmp_path / "state.pt")
    net = first_release()
    net.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_is_of_the_first_release(net)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (torch.zeros(3), "_extra_state .* wrote: it is torch.float32: allowed is torch.uint8"),
        (torch.zeros(3, dtype=torch.uint8), "_extra_state of the checkpoint is not one that a release of this package"),
        (encoded([1]), "_extra_state of the checkpoint is not one that a release of this package wrote"),
        (encoded({"version": 1}), "_extra_state of the checkpoint is not one that a release of this package wrote"),
        (encoded({"version": 9}), "_extra_state .* wrote: it has version 9: allowed is 1"),
        (
            encoded({"version": 1, "seed": 0, "input_range": 0.5, "output_range": [1.0, 2.0]}),
            "the checkpoint does not fit the layer's profile: profile.output_range has 2 elements",
        ),
        (
            encoded({"version": 1, "seed": -1, "input_range": 0.5, "output_range": 0.0}),
            "_extra_state of the checkpoint: seed = -1: allowed is 0..2",
        ),
        (
            encoded({"version": 1, "seed": 0, "input_range": -1.0, "output_range": 0.0}),
            "the checkpoint does not fit the layer's profile: input_range = -1",
        ),
    ],
)
def test_an_entry_of_the_first_release_that_does_not_fit(entry: Any, message: str) -> None:
    net = layer(CLEAN, 3)
    state = {**nn.Linear(5, 4).state_dict(), "_extra_state": entry}
    with pytest.raises(ValueError, match=r"^OpticalLinear\(5 -> 4\): " + message):
        net.load_state_dict(state)
    assert settings(net) == [(CLEAN, 3)]


def test_an_average_of_the_first_release_is_refused() -> None:
    state = torch.load(STATES / "json.pt", weights_only=True)
    with pytest.raises(ValueError, match=r"_extra_state .* it is torch.float32: allowed is torch.uint8"):
        first_release().load_state_dict(average(state, state))
