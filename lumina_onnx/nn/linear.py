"""`OpticalLinear`: a `torch.nn.Linear` on optical hardware."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from lumina_onnx.nn import _checks, _ops, functional
from lumina_onnx.profile import OpticalProfile

if TYPE_CHECKING:
    from lumina_onnx.nn.calibrate import Observer
    from lumina_onnx.nn.context import Frozen

_Module = TypeVar("_Module", bound=nn.Module)
_STATE_VERSION = 1
_STATE_KEY = "_extra_state"
# What holds only inside a context manager: not copied, not pickled.
_TRANSIENT = {"_noise": None, "_frozen": None, "_observer": None}
_OWN = ("_profile", "_quiet", "seed", "name", *_TRANSIENT)


class OpticalLinear(nn.Linear):
    """``y = ADC(DAC(x) @ weight.T + bias + noise)``: a :class:`torch.nn.Linear` on optical hardware.

    It has the parameters, the initialisation and the ``state_dict`` keys of ``nn.Linear``, and one entry more,
    ``_extra_state``: a uint8 tensor that holds the static ranges and the noise seed as JSON. A checkpoint without
    that entry (one of ``nn.Linear``) loads strictly and changes neither. The other way, ``to_linear()`` first.

    Noise is on in ``train()`` and in ``eval()``, as in the hardware: :func:`lumina_onnx.nn.noise` turns it off. It is
    drawn from torch's generator, so ``torch.manual_seed`` repeats a run.

    Shapes: x float32 ``[..., in_features]`` (or ``[in_features]``) -> y float32 ``[..., out_features]``, on the CPU.
    Under ``torch.autocast("cpu")`` an x of bfloat16 or float16, as other layers give it there, is cast to float32, and
    y is float32 all the same. The parameters stay float32.

    Args:
        in_features: K, size of an input row.
        out_features: N, size of an output row.
        bias: whether a bias is learnt; where it enters is ``profile.bias_stage``.
        profile: bits, ranges and noise of the hardware.
        seed: key of the layer's noise, 0..2^63-1. None: what torch's generator would draw next, without advancing it,
            so that the parameters are those of ``nn.Linear`` under the same ``torch.manual_seed``.
        device: the CPU, or "meta".
        dtype: ``torch.float32``.

    Attributes:
        profile: the :class:`~lumina_onnx.OpticalProfile`; assigning another one checks it against the layer's size.
        seed: the noise's key.
        name: what errors call the layer; :func:`lumina_onnx.nn.convert` sets it to the module's name.
    """

    seed: int
    name: str

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        profile: OpticalProfile,
        seed: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        if seed is None:
            if self.weight.device.type == "meta":
                seed = _draw_seed()
            else:
                with torch.random.fork_rng(devices=[]):
                    seed = _draw_seed()
        self._set_up(profile, seed, "")

    def _set_up(self, profile: OpticalProfile, seed: int, name: str) -> None:
        _checks.check_weight(self.weight, self.bias)
        functional.check_counter("seed", seed)
        self.seed = seed
        self.name = name
        self.__dict__.update(_TRANSIENT)
        self.profile = profile

    @property
    def profile(self) -> OpticalProfile:
        """Bits, ranges and noise of the hardware."""
        profile: OpticalProfile = self._profile
        return profile

    @profile.setter
    def profile(self, profile: OpticalProfile) -> None:
        functional.check_profile(profile, self.out_features)
        self._profile = profile
        self._quiet = quiet(profile)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, profile: OpticalProfile, *, seed: int | None = None, name: str = ""
    ) -> OpticalLinear:
        """The optical layer with the very parameters (and hooks) of `linear`.

        Without a `seed` one is drawn from torch's generator.

        Raises:
            TypeError: `linear` is no ``nn.Linear``, or not of float32 on the CPU.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear is {type(linear).__name__}: allowed is a torch.nn.Linear")
        layer = shallow_copy(linear)
        become_optical(layer, profile, _draw_seed() if seed is None else seed, name)
        assert isinstance(layer, OpticalLinear)
        return layer

    def to_linear(self) -> nn.Linear:
        """The ``nn.Linear`` with this layer's very parameters (and hooks)."""
        linear: nn.Linear = shallow_copy(self)
        for attribute in _OWN:
            del linear.__dict__[attribute]
        linear.__class__ = nn.Linear
        return linear

    def forward(self, input: Tensor) -> Tensor:
        if self._observer is not None:
            return self._observer.observe(self, input)
        on, stream = self._noise if self._noise is not None else (True, None)
        profile = self._profile if on else self._quiet
        if self._frozen is not None and not torch.compiler.is_compiling():
            return self._frozen.forward(self, input, profile, stream)
        weight: Any
        bias: Any
        try:  # past nn.Module's search for attributes, which takes half a microsecond for each
            weight, bias = self._parameters["weight"], self._parameters["bias"]
        except KeyError:  # a parametrised or pruned weight is an attribute
            weight, bias = self.weight, self.bias
        return functional.apply(input, weight, bias, profile, self.seed, stream, self.label)

    @property
    def label(self) -> str:
        """What errors call the layer."""
        return f"layer {self.name!r}" if self.name else f"OpticalLinear({self.in_features} -> {self.out_features})"

    @property
    def noise_is_on(self) -> bool:
        """Whether the next call draws noise."""
        return functional.has_noise(self._profile) and (self._noise is None or self._noise[0])

    def extra_repr(self) -> str:
        profile = self._profile
        noise = noise_text(profile)
        if functional.has_noise(profile):
            noise = f"{'on' if self.noise_is_on else 'off'} ({noise})"
        return (
            f"{super().extra_repr()}, bits={bits_text(profile)}, input_range={range_text(profile.input_range)}, "
            f"output_range={range_text(profile.output_range)}, bias_stage={profile.bias_stage}, noise={noise}"
        )

    def get_extra_state(self) -> Tensor:
        ranges = self._profile.output_range
        state = {
            "version": _STATE_VERSION,
            "seed": self.seed,
            "input_range": self._profile.input_range,
            "output_range": list(ranges) if isinstance(ranges, tuple) else ranges,
        }
        return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        try:
            read = json.loads(bytes(state.cpu().numpy()))
            if read["version"] != _STATE_VERSION:
                raise ValueError(f"it has version {read['version']}: allowed is {_STATE_VERSION}")
            seed, input_range, ranges = read["seed"], read["input_range"], read["output_range"]
        except (AttributeError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.label}: {_STATE_KEY} of the checkpoint is not one that this version wrote: {error}"
            ) from error
        try:
            functional.check_counter("seed", seed)
            self.profile = self._profile.replace(
                input_range=input_range, output_range=tuple(ranges) if isinstance(ranges, list) else ranges
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.label}: the checkpoint does not fit the layer's profile: {error}") from error
        self.seed = seed

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if prefix + _STATE_KEY in missing_keys:
            missing_keys.remove(prefix + _STATE_KEY)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **_TRANSIENT}  # type: ignore[no-untyped-call]

    if TYPE_CHECKING:
        _profile: OpticalProfile
        _quiet: OpticalProfile
        _noise: tuple[bool, int | None] | None
        _frozen: Frozen | None
        _observer: Observer | None


def become_optical(linear: nn.Linear, profile: OpticalProfile, seed: int, name: str) -> None:
    """Turns `linear` itself into an OpticalLinear: whoever holds the module or its parameters keeps them."""
    before, attributes = linear.__class__, dict(linear.__dict__)
    linear.__class__ = OpticalLinear
    try:
        OpticalLinear._set_up(linear, profile, seed, name)  # type: ignore[arg-type]
    except Exception:
        linear.__class__ = before
        linear.__dict__.clear()
        linear.__dict__.update(attributes)
        raise


def shallow_copy(module: _Module) -> _Module:
    """A module of its own with the same parameters, buffers, children and hooks; not compiled, where `module` is."""
    copy = module.__class__.__new__(module.__class__)
    state: dict[str, Any] = nn.Module.__getstate__(module)  # type: ignore[no-untyped-call]
    copy.__dict__.update({key: value.copy() if isinstance(value, dict) else value for key, value in state.items()})
    return copy


def quiet(profile: OpticalProfile) -> OpticalProfile:
    """The profile without noise."""
    return profile.replace(noise_relative=0.0, noise_additive=0.0, noise_shot=0.0)


def range_text(value: float | tuple[float, ...]) -> str:
    """A range as a report shows it."""
    if isinstance(value, tuple):
        return f"{min(value):.4g}..{max(value):.4g} per output"
    return f"{value:.4g}" if value else "dynamic"


def bits_text(profile: OpticalProfile) -> str:
    """The bits of input, weight and output as a report shows them, "-" where analog."""
    return "/".join(str(bits or "-") for bits in (profile.input_bits, profile.weight_bits, profile.output_bits))


def noise_text(profile: OpticalProfile) -> str:
    """The profile's noise laws and levels in a few words."""
    laws = ("relative", "additive", "shot")
    levels = [f"{law} {level:g}" for law in laws if (level := getattr(profile, f"noise_{law}"))]
    return ", ".join(levels) or "none"


def _draw_seed() -> int:
    return int(torch.randint(0, _ops.STREAMS - 1, (), dtype=torch.int64, device="cpu"))
