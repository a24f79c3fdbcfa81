"""`OpticalProfile`: checks, JSON and presets."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import pickle
import re
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lumina_kernel
from lumina_onnx import profile as module
from lumina_onnx import reference, schema
from lumina_onnx.profile import NotModelledWarning, OpticalProfile

FIELDS = [field.name for field in dataclasses.fields(OpticalProfile)]
#: Those that version 1 of the operator has.
FIRST = [row.name for row in schema.LAYER if row.since == 1]
PRESETS = list(OpticalProfile.presets())

levels = st.floats(0, 10, width=32)
ranges = st.floats(1e-44, 3e38)
profiles = st.builds(
    OpticalProfile,
    input_bits=st.integers(2, 16),
    weight_bits=st.sampled_from([0, *range(1, 17)]),
    output_bits=st.sampled_from([0, *range(2, 17)]),
    input_range=st.one_of(st.just(0.0), ranges),
    output_range=st.one_of(st.just(0.0), ranges, st.lists(ranges, min_size=1, max_size=4)),
    noise_relative=levels,
    noise_additive=levels,
    noise_shot=levels,
    bias_stage=st.sampled_from(["analog", "digital"]),
)


def test_defaults() -> None:
    assert OpticalProfile() == OpticalProfile(8, 8, 8, 0.0, 0.0, 0.0, 0.0, 0.0, "analog")


def test_fields_are_the_operators() -> None:
    table = [row["name"] for row in lumina_kernel.schema()]
    assert set(FIELDS) == set(table) - {"weight_scale", "seed", "stream", "in_features"}


@given(profiles)
def test_json_both_ways(profile: OpticalProfile) -> None:
    assert OpticalProfile.from_json(profile.to_json()) == profile
    assert OpticalProfile.from_json(profile.to_json().encode()) == profile
    assert list(json.loads(profile.to_json())) == FIRST


@given(profiles)
def test_params_are_the_kernels(profile: OpticalProfile) -> None:
    params = profile.params()
    for name in FIELDS:
        value, kept = getattr(profile, name), getattr(params, name)
        assert kept == value if isinstance(value, str | int) else np.array_equal(kept, np.float32(value))


@given(profiles)
def test_a_value(profile: OpticalProfile) -> None:
    assert pickle.loads(pickle.dumps(profile)) == profile
    assert OpticalProfile(*schema.read(profile._text)) == profile
    assert hash(profile.replace()) == hash(profile)
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile.input_bits = 3  # type: ignore[misc]


def test_absent_keys_take_defaults() -> None:
    assert OpticalProfile.from_json('{"input_bits": 4}') == OpticalProfile(input_bits=4)


class Stage(str, enum.Enum):
    DIGITAL = "digital"


def test_types_are_settled() -> None:
    profile = OpticalProfile(
        np.int64(4),
        np.uint8(4),
        4,
        np.float32(1),
        np.array([1, 2], np.float32),  # type: ignore[arg-type]
        0,
        np.float64(0.5),
    )
    assert profile == OpticalProfile(4, 4, 4, 1.0, (1.0, 2.0), 0.0, 0.5)
    assert [type(getattr(profile, name)) for name in FIRST] == [int] * 3 + [float, tuple] + [float] * 3 + [str]
    digital = OpticalProfile(bias_stage=Stage.DIGITAL)
    assert type(digital.bias_stage) is str
    assert digital._text == OpticalProfile(bias_stage="digital")._text
    for one in ([2.0], (2,), np.array([2.0]), np.array(2.0), 2):
        assert OpticalProfile(output_range=one).output_range == 2.0  # type: ignore[arg-type]
        assert type(OpticalProfile(output_range=one).output_range) is float  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_bits": 1}, "input_bits = 1: allowed is 0 (analog), 2..16"),
        ({"weight_bits": 17}, "weight_bits = 17: allowed is 0 (analog), 1..16"),
        ({"output_bits": 1}, "output_bits = 1: allowed is 0 (no ADC), 2..16"),
        ({"input_range": -1.0}, "input_range = -1: allowed is a finite number >= 0"),
        ({"input_bits": 0, "input_range": 1.0}, "input_range = 1 would be ignored: with input_bits 0 there is no DAC"),
        ({"output_range": (1.0, 0.0)}, "output_range[1] = 0: allowed is a single 0 (dynamic), or 1 or N finite"),
        ({"output_range": ()}, "output_range has 0 elements: allowed is a single 0"),
        ({"noise_relative": math.nan}, "noise_relative = NaN: allowed is a finite number >= 0"),
        ({"noise_additive": -0.1}, "noise_additive = -0.1: allowed is a finite number >= 0"),
        ({"noise_shot": math.inf}, "noise_shot = inf: allowed is a finite number >= 0"),
        ({"bias_stage": "late"}, 'bias_stage = "late": allowed is "analog", "digital"'),
    ],
)
def test_wrong_values(changes: dict[str, Any], message: str) -> None:
    for build in (
        lambda: OpticalProfile(**changes),
        lambda: OpticalProfile().replace(**changes),
        lambda: OpticalProfile.from_json(json.dumps(changes)),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            build()


@pytest.mark.parametrize("changes", [{"input_bits": "8"}, {"noise_shot": "0"}, {"bias_stage": 3}, {"input_bits": 8.5}])
def test_wrong_types(changes: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(changes))):
        OpticalProfile(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"bits": 4, "input_bits": 4, "noise": 1}', "unknown 'bits', 'noise': allowed is input_bits, weight_bits"),
        ("[1, 2]", "a profile in JSON is list: allowed is an object"),
        ('{"input_bits": 4, "input_bits": 5}', "'input_bits' occurs twice: allowed is each key once"),
        ("{", "Expecting property name"),
    ],
)
def test_wrong_json(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        OpticalProfile.from_json(text)


def test_json_has_the_fields_of_version_2_where_they_are_used() -> None:
    """A release that has version 1 alone refuses keys that it does not know."""
    first = set(FIRST)
    assert set(json.loads(OpticalProfile().to_json())) == first
    lit = OpticalProfile(photons=2.5, detection="balanced", tile_features=64)
    assert set(json.loads(lit.to_json())) == first | {"photons", "detection", "tile_features"}
    assert OpticalProfile.from_json(lit.to_json()) == lit


def test_averaged_readings() -> None:
    """The noise is that of the mean of so many draws."""
    core = OpticalProfile(
        8, 8, 0, noise_relative=0.1, noise_additive=0.05, noise_read=0.02, photons=20.0, input_noise_relative=0.1
    )
    averaged = core.averaged(4)
    assert averaged == core.replace(
        noise_relative=0.05, noise_additive=0.025, noise_read=0.01, photons=80.0, input_noise_relative=0.05
    )
    assert core.averaged(1) == core
    assert OpticalProfile(noise_shot=0.5).averaged(25) == OpticalProfile(noise_shot=0.1)
    generator = np.random.default_rng(0)
    x, weight = generator.standard_normal((1, 60), np.float32), generator.standard_normal((40, 60), np.float32)

    def draws(profile: OpticalProfile) -> Any:
        fields = dataclasses.asdict(profile)
        runs = [reference.optical_linear(x, weight, **fields, stream=stream)[0] for stream in range(1600)]
        return np.array(runs, np.float64)

    means = draws(core).reshape(400, 4, -1).mean(axis=1).std(axis=0)
    assert np.sqrt((draws(averaged).std(axis=0) ** 2).mean() / (means**2).mean()) == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize(
    ("readings", "error", "message"),
    [
        (0, ValueError, r"readings = 0: allowed is 1 or more"),
        (-3, ValueError, r"readings = -3: allowed is 1 or more"),
        (2.0, TypeError, r"readings is float: allowed is int"),
        (400, ValueError, r"input_noise_additive = 0.001: allowed is 0, or at least 0.0047"),
    ],
)
def test_readings_that_cannot_be_averaged(readings: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OpticalProfile(input_noise_additive=0.02).averaged(readings)


def test_replace_names_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="unknown 'bits': allowed is input_bits"):
        OpticalProfile().replace(bits=4)


def test_presets_are_there() -> None:
    assert set(PRESETS) == {
        "lightning", "lightening-transformer", "pace", "tfln-homodyne-8x8", "tfln-homodyne-256x100", "pcm-crossbar",
        "mzi-mesh", "nano", "micro", "edge", "datacenter",
    }  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_its_origin(name: str) -> None:
    preset = OpticalProfile.presets()[name]
    assert preset.name == name
    assert preset.grade in module.GRADES
    assert all([preset.title, preset.published, preset.derivation])
    if preset.grade == "design":
        assert preset.source is None
    else:
        assert preset.source is not None
        assert all(dataclasses.astuple(preset.source))
        assert preset.source.link in str(preset.source)
        assert preset.source.link.startswith("https://")
        assert preset.not_modelled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotModelledWarning)
        assert OpticalProfile.preset(name) == preset.profile


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_file_names_all_fields(name: str) -> None:
    files = module.resources.files("lumina_onnx") / "profiles"  # type: ignore[attr-defined]
    fields = json.loads((files / f"{name}.json").read_text(encoding="utf-8"))
    assert list(fields["parameters"])[: len(FIRST)] == FIRST


@pytest.mark.parametrize(("name", "bits"), [("pace", 7.61), ("tfln-homodyne-8x8", 7), ("tfln-homodyne-256x100", 6)])
def test_noise_follows_from_effective_bits(name: str, bits: float) -> None:
    profile = OpticalProfile.presets()[name].profile
    assert profile.noise_additive == pytest.approx(2 * 2**-bits / math.sqrt(12), rel=0.02)


def test_lightning_follows_from_its_emulator() -> None:
    profile = OpticalProfile.presets()["lightning"].profile
    assert profile.noise_additive == pytest.approx(1.6569 / (2 ** (profile.output_bits - 1) - 1), rel=0.001)


def test_a_preset_warns_of_what_is_not_modelled() -> None:
    with pytest.warns(
        NotModelledWarning, match="preset 'lightening-transformer' does not model: input noise"
    ) as caught:
        OpticalProfile.preset("lightening-transformer")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OpticalProfile.preset("nano")


def test_a_repeated_use_warns_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            OpticalProfile.preset("pace")
    assert len(caught) == 1


def test_an_unknown_preset_lists_the_names() -> None:
    with pytest.raises(ValueError, match=r"^preset = 'lightening': allowed is ") as caught:
        OpticalProfile.preset("lightening")
    assert all(repr(name) in str(caught.value) for name in PRESETS)


def test_presets_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        OpticalProfile.presets()["nano"] = None  # type: ignore[index]


class HardwareProfile:
    """The fields of LuminaFlow's class of this name, and their defaults."""

    def __init__(self, name: str = "Lumina_Nano_v1", noise_std: float = 0.15, precision_bits: int = 4) -> None:
        self.name = name
        self.noise_std = noise_std
        self.precision_bits = precision_bits


def test_profiles_of_luminaflow() -> None:
    assert OpticalProfile.from_luminaflow(**vars(HardwareProfile())) == OpticalProfile.preset("nano")
    for name, noise, bits in (("micro", 0.10, 8), ("edge", 0.20, 2), ("datacenter", 0.05, 12)):
        assert OpticalProfile.from_luminaflow(name, noise, bits) == OpticalProfile.preset(name)
    assert OpticalProfile.from_luminaflow("any", 0, 32) == OpticalProfile(0, 0, 0)
    assert OpticalProfile.from_luminaflow("any", 0.5, 64) == OpticalProfile(0, 0, 0, noise_relative=0.5)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "name is int: allowed is str", (3, 0.1, 4)),
        (TypeError, "noise_std is str: allowed is float", ("x", "0.1", 4)),
        (ValueError, "noise_std = -0.1: allowed is >= 0 and finite", ("x", -0.1, 4)),
        (ValueError, "noise_std = nan: allowed is >= 0 and finite", ("x", math.nan, 4)),
        (TypeError, "precision_bits is float: allowed is int", ("x", 0.1, 4.0)),
        (ValueError, "precision_bits = 1: allowed is 2..16, or 32 and more for no quantisation", ("x", 0.1, 1)),
        (ValueError, "precision_bits = 17: allowed is 2..16, or 32 and more for no quantisation", ("x", 0.1, 17)),
    ],
)
def test_profiles_that_luminaflow_cannot_have(error: type[Exception], message: str, arguments: Any) -> None:
    with pytest.raises(error, match=re.escape(message)):
        OpticalProfile.from_luminaflow(*arguments)
