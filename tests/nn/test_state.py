"""What a state_dict holds of an optical layer, its ranges and its seed, and how it is written and read."""

import warnings
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from lumina_onnx.profile import OpticalProfile

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import settings as settings_of  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402

from lumina_onnx.nn import OpticalLinear, calibrate, frozen, noise  # noqa: E402

from .state_cases import (  # noqa: E402
    CLEAN,
    EACH,
    ENTRIES,
    NOISY,
    RANGES,
    STATIC,
    encoded,
    layer,
    model,
    positive,
    ranges,
    saved_and_loaded,
    settings,
)

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized"),
]


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
    """The seed survives unchanged, and the ranges are as exact as the type."""
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
    """safetensors and numpy store checkpoints without metadata."""
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


# Incomplete entries


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
    """This is how transformers loads entries, and how torch.func.functional_call sets them."""
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


BOUNDED = OpticalProfile(output_bound=2.0, bias_stage="digital", tile_features=3)


def test_a_bound_is_in_the_state() -> None:
    """What calibration found reaches a fresh model."""
    one, other = (OpticalLinear(6, 4, profile=BOUNDED) for _ in range(2))
    calibrate(one, [torch.randn(20, 6)], progress=False)
    assert one.profile.output_bound != 2.0
    assert set(one.state_dict()) - set(OpticalLinear(6, 4, profile=OpticalProfile()).state_dict()) == {"output_bound"}
    other.load_state_dict(one.state_dict())
    assert other.profile == one.profile
    x = torch.randn(5, 6)
    assert torch.equal(one(x), other(x))
    other.output_bound[0] = 7.5
    assert other.profile.output_bound == 7.5
    average = torch.optim.swa_utils.AveragedModel(one)
    average.update_parameters(one)
    assert average.module.profile == one.profile


def test_a_bound_that_does_not_fit() -> None:
    bounded, other = (OpticalLinear(6, 4, profile=profile) for profile in (BOUNDED, OpticalProfile()))
    with pytest.raises(ValueError, match=r"output_bound = 2: allowed is a checkpoint without it, since the layer's"):
        other.load_state_dict(bounded.state_dict())
    with pytest.raises(AttributeError, match="has no attribute 'output_bound'"):
        _ = other.output_bound
    with pytest.warns(UserWarning, match=r"lacks output_bound: the layer keeps its own"):
        bounded.load_state_dict(other.state_dict(), strict=False)
    assert bounded.profile == BOUNDED
    with pytest.raises(ValueError, match=r"output_bound = 0: allowed is a number > 0"):
        bounded.load_state_dict(bounded.state_dict() | {"output_bound": torch.zeros(1, dtype=torch.float64)})
    ranged = OpticalLinear(6, 4, profile=OpticalProfile(output_range=3.0))
    with pytest.raises(ValueError, match=r"output_bound = 2: allowed is 0 where output_range is given"):
        bounded.load_state_dict(ranged.state_dict(), strict=False)
