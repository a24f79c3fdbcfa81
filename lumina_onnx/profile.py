"""Descriptions of optical hardware: :class:`OpticalProfile` and the presets with published numbers."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import numbers
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any, cast

import lumina_kernel
from lumina_onnx import schema

__all__ = ["NotModelledWarning", "OpticalProfile", "Preset", "Source"]


class NotModelledWarning(UserWarning):
    """A preset's hardware has effects that the operator does not model; the message lists them."""


@dataclass(frozen=True)
class OpticalProfile:
    """What an optical layer does to its numbers: resolutions, full scales and noise.

    Immutable, hashable and checked. z is the exact result of a row's product (with the bias where it is analog), R the
    full scale of the output: ``output_range`` where it is set, else max|z| of the row.

    Args:
        input_bits: DAC resolution of the inputs, 2..16 bits. 0 = analog: no DAC.
        weight_bits: modulator resolution of the weights, 1..16 bits. 0 = analog. 1 = {-1, +1}.
        output_bits: ADC resolution of the outputs, 2..16 bits. 0 = no ADC.
        input_range: DAC full scale in units of the input; inputs beyond it saturate. 0 = dynamic: max|x| of the row.
        output_range: ADC full scale in units of the output, a number or one number for each output. 0 = dynamic: the
            row's own maximum.
        noise_relative: sigma as a fraction of the signal: ``noise_relative * |z|``.
        noise_additive: sigma as a fraction of the full scale: ``noise_additive * R``.
        noise_shot: ``sigma = noise_shot * sqrt(|z| * R)``. A detector that counts N photons at full scale has
            ``noise_shot = 1 / sqrt(N)``, as a Poisson count of n has standard deviation sqrt(n).
        bias_stage: "analog": the bias enters before noise and ADC; "digital": after the ADC.
        tile_features: inputs that one pass of the core takes, 1..131072. A longer row is split into tiles; each has
            noise and an ADC of its own, and the results are added digitally. 0 = the whole row.
        output_bound: ADC full scale in products of two full-scale operands, as the hardware has it: R is
            ``output_bound`` times the full scale of the row's input times that of the output's weights. Takes the place
            of ``output_range``, and asks for input and weight bits and a digital bias. 0 = none.
        noise_read: sigma of each weight, drawn anew in each use, as a fraction of the weight's full scale.
        photons: photons that one product of two full-scale operands puts on the detector: shot noise of the light that
            is there, in place of ``noise_shot``. At least 1e-6; 0 = none.
        detection: what light the detector sees with ``photons``. "offset": weights are shifted into 0..1, and a
            negative input takes the complement; "balanced": both complementary ports.
        photon_reference: "full_scale", or "mean": ``photons`` is the mean over the row's inputs of the light that
            enters a product.
        input_noise_relative: sigma on the inputs behind the DAC, shared by all outputs of the row, as a fraction of the
            value, 0..1.
        input_noise_additive: the same as a fraction of the DAC's full scale, 0..1.
        weight_levels: the code that is a weight's full scale, in ``noise_read``, ``photons`` and ``output_bound``. 0 =
            the largest. Written where weights are already off their codes, by the error of a device.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a value is not allowed, or the other arguments make it meaningless.
    """

    input_bits: int = 8
    weight_bits: int = 8
    output_bits: int = 8
    input_range: float = 0.0
    output_range: float | tuple[float, ...] = 0.0
    noise_relative: float = 0.0
    noise_additive: float = 0.0
    noise_shot: float = 0.0
    bias_stage: str = "analog"
    tile_features: int = 0
    output_bound: float = 0.0
    noise_read: float = 0.0
    photons: float = 0.0
    detection: str = "offset"
    photon_reference: str = "full_scale"
    input_noise_relative: float = 0.0
    input_noise_additive: float = 0.0
    weight_levels: int = 0

    def __post_init__(self) -> None:
        self.params()
        for row in schema.LAYER:
            object.__setattr__(self, row.name, _CONVERSIONS[row.type](getattr(self, row.name)))
        _ = self._has_noise, self._text

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes the fields that this release has; what else a pickle holds was computed from those of its own."""
        defaults = {each.name: each.default for each in dataclasses.fields(self)}
        self.__dict__.update({name: state.get(name, default) for name, default in defaults.items()})
        _ = self._has_noise, self._params, self._text

    def params(self) -> lumina_kernel.Params:
        """The profile in the form that the kernel takes, with floats in 32 bits."""
        return self._params

    @functools.cached_property
    def _params(self) -> lumina_kernel.Params:
        """Made once, when the profile is checked, since every call of a layer needs it."""
        return lumina_kernel.Params(**_fields(self))

    @functools.cached_property
    def _has_noise(self) -> bool:
        """Whether any noise is drawn; made when the profile is checked, as `_params`."""
        return any(getattr(self, name) != 0 for name in schema.NOISE)

    @functools.cached_property
    def _text(self) -> str:
        """The fields as one text, which torch's operators take; made when the profile is checked, as `_params`."""
        return schema.text_of(getattr(self, row.name) for row in schema.LAYER)

    def replace(self, **changes: Any) -> OpticalProfile:
        """A copy with some fields changed, which is checked as well."""
        _check_names(changes)
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """The fields as a JSON object, which :meth:`from_json` reads back to an equal profile.

        Those that version 2 of the operator added are there if they are not at their defaults: a release that has
        version 1 alone refuses keys that it does not know.
        """
        return json.dumps(_written(self), indent=2)

    def quiet(self) -> OpticalProfile:
        """The profile without noise."""
        return self.replace(**schema.quiet(_fields(self)))

    def averaged(self, readings: int) -> OpticalProfile:
        """The profile of hardware that takes each pass `readings` times and averages the results before the ADC.

        Every sigma is divided by the square root of `readings`, and ``photons`` are multiplied by it (S. Garg et al.,
        "Dynamic Precision Analog Computing for Neural Networks", arXiv 2102.06365, 2021).

        Raises:
            TypeError: `readings` is not an integer.
            ValueError: `readings` is below 1, or a level becomes too small for the operator.
        """
        try:
            count = operator.index(readings)
        except TypeError:
            raise TypeError(f"readings is {type(readings).__name__}: allowed is int") from None
        if count < 1:
            raise ValueError(f"readings = {count}: allowed is 1 or more")
        root = math.sqrt(count)
        changes = {name: getattr(self, name) / root for name in schema.NOISE if name != "photons"}
        return self.replace(**changes, photons=self.photons * count)

    @classmethod
    def from_json(cls, text: str | bytes) -> OpticalProfile:
        """Reads a JSON object; absent fields take their defaults.

        Raises:
            ValueError: the text is not a JSON object, a key is unknown or occurs twice, or a value is not allowed.
            TypeError: a value has the wrong type.
        """
        fields = json.loads(text, object_pairs_hook=_without_repetition)
        if not isinstance(fields, dict):
            raise ValueError(f"a profile in JSON is {type(fields).__name__}: allowed is an object")
        _check_names(fields)
        return cls(**fields)

    @classmethod
    def from_luminaflow(cls, name: str, noise_std: float, precision_bits: int) -> OpticalProfile:
        """The profile of a ``HardwareProfile`` of LuminaFlow: ``from_luminaflow(**vars(hardware_profile))``.

        LuminaFlow's layer rounds inputs, weights and outputs to `precision_bits`, and its bias is analog. Its noise has
        a standard deviation of `noise_std` times that of all outputs together; here it is `noise_std` times each
        output's own magnitude (``noise_relative``), which has the same power where outputs have mean zero.

        Args:
            name: any text; a profile has no name.
            noise_std: >= 0.
            precision_bits: 2..16; 32 and more mean no quantisation, as there.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: a value is not allowed.
        """
        if not isinstance(name, str):
            raise TypeError(f"name is {type(name).__name__}: allowed is str")
        try:
            bits = operator.index(precision_bits)
        except TypeError:
            raise TypeError(f"precision_bits is {type(precision_bits).__name__}: allowed is int") from None
        if not (2 <= bits <= 16 or bits >= 32):
            raise ValueError(f"precision_bits = {bits}: allowed is 2..16, or 32 and more for no quantisation")
        if not isinstance(noise_std, numbers.Real):
            raise TypeError(f"noise_std is {type(noise_std).__name__}: allowed is float")
        if not 0 <= noise_std < math.inf:
            raise ValueError(f"noise_std = {noise_std!r}: allowed is >= 0 and finite")
        bits = 0 if bits >= 32 else bits
        return cls(input_bits=bits, weight_bits=bits, output_bits=bits, noise_relative=float(noise_std))

    @classmethod
    def preset(cls, name: str) -> OpticalProfile:
        """The profile of a published or designed piece of hardware; :meth:`presets` lists them with their sources.

        Warns:
            NotModelledWarning: the hardware has effects that the operator does not model.

        Raises:
            ValueError: there is no preset of that name.
        """
        presets = cls.presets()
        if name not in presets:
            raise ValueError(f"preset = {name!r}: allowed is {', '.join(map(repr, presets))}")
        preset = presets[name]
        if preset.not_modelled:
            missing = "; ".join(preset.not_modelled)
            warnings.warn(f"preset {name!r} does not model: {missing}", NotModelledWarning, stacklevel=2)
        return preset.profile

    @staticmethod
    def presets() -> Mapping[str, Preset]:
        """Every preset by name."""
        return _presets()


@dataclass(frozen=True)
class Source:
    """Where a preset's numbers come from."""

    authors: str
    title: str
    venue: str
    year: int
    link: str
    """DOI or preprint."""

    def __str__(self) -> str:
        return f'{self.authors}, "{self.title}", {self.venue}, {self.year}, {self.link}'


@dataclass(frozen=True)
class Preset:
    """A profile with its origin."""

    name: str
    title: str
    profile: OpticalProfile
    source: Source | None
    """None for design values."""
    grade: str
    """"A": read in the authors' code or paper, "B": second-hand, "C": from memory; "design": a target, not measured."""
    published: str
    """The numbers as published."""
    derivation: str
    """How the parameters follow from the published numbers."""
    not_modelled: tuple[str, ...]
    """Effects of the hardware that the operator does not model."""


GRADES = ("A", "B", "C", "design")
FIELDS = tuple(field.name for field in dataclasses.fields(OpticalProfile))


def _fields(profile: OpticalProfile) -> dict[str, Any]:
    return {name: getattr(profile, name) for name in FIELDS}


def _written(profile: OpticalProfile) -> dict[str, Any]:
    """The fields that files hold."""
    fields = _fields(profile)
    return {row.name: fields[row.name] for row in schema.LAYER if row.since == 1 or fields[row.name] != row.default}


def _range(value: Any) -> float | tuple[float, ...]:
    """A number, or a tuple if there are several."""
    values = (
        tuple(map(float, value))
        if isinstance(value, Iterable) and getattr(value, "ndim", None) != 0
        else (float(value),)
    )
    return values[0] if len(values) == 1 else values


# str.__str__: of a string that is a member of an Enum too, its value.
_CONVERSIONS: dict[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "FLOATS": _range, "STRING": str.__str__}


def _check_names(fields: Iterable[str]) -> None:
    unknown = [name for name in fields if name not in FIELDS]
    if unknown:
        raise ValueError(f"unknown {', '.join(map(repr, unknown))}: allowed is {', '.join(FIELDS)}")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{', '.join(map(repr, repeated))} occurs twice: allowed is each key once")
    return dict(pairs)


def _read(text: str) -> Preset:
    fields = cast("dict[str, Any]", json.loads(text, object_pairs_hook=_without_repetition))
    if fields["grade"] not in GRADES:
        raise ValueError(f"grade = {fields['grade']!r}: allowed is {', '.join(GRADES)}")
    profile = OpticalProfile(**fields.pop("parameters"))
    not_modelled = tuple(fields.pop("not_modelled"))
    source = fields.pop("source")
    return Preset(profile=profile, source=source and Source(**source), not_modelled=not_modelled, **fields)


@functools.cache
def _presets() -> Mapping[str, Preset]:
    files = resources.files(__package__) / "profiles"
    texts = (file.read_text(encoding="utf-8") for file in files.iterdir() if file.name.endswith(".json"))
    presets = sorted(map(_read, texts), key=lambda preset: (GRADES.index(preset.grade), preset.name))
    return MappingProxyType({preset.name: preset for preset in presets})
