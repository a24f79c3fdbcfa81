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

    def __post_init__(self) -> None:
        self.params()
        for row in schema.LAYER:
            object.__setattr__(self, row.name, _CONVERSIONS[row.type](getattr(self, row.name)))
        _ = self._has_noise, self._text

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes the fields that this release has; what else a pickle holds was computed from those of its own."""
        self.__dict__.update({each.name: state[each.name] for each in dataclasses.fields(self) if each.name in state})
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
        """All fields as a JSON object, which :meth:`from_json` reads back to an equal profile."""
        return json.dumps(_fields(self), indent=2)

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
