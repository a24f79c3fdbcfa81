"""`OpticalLayer`, what optical layers have in common, and `OpticalLinear`: a `torch.nn.Linear` on optical hardware."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, cast, overload

import torch
from torch import Tensor, nn
from torch._guards import active_fake_mode
from torch.compiler import is_dynamo_compiling
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import _disable_current_modes

from lumina_onnx._text import bits_text, noise_text, output_text, range_text
from lumina_onnx.nn import (
    _checks,
    _classes,
    _dispatch,
    _fx,
    _gradient_bits,
    _scope,
    _state,
    _streams,
    _torch_state,
)
from lumina_onnx.nn._modes import evaluating
from lumina_onnx.nn._parameters import quiet
from lumina_onnx.nn._wrappers import unwrapped
from lumina_onnx.profile import OpticalProfile

_Module = TypeVar("_Module", bound=nn.Module)
_Layer = TypeVar("_Layer", bound="OpticalLayer")
_Operands = tuple[Tensor, "Tensor | None"]
# Attributes that are neither copied nor pickled: the layer's identity in this process (see `_scope`), what `noise` sets
# for it inside a compiled function, and the entries that it has handed out.
_TRANSIENT = ("_identity", "_noise_when_traced", "_held")
_OF_OLD_PICKLES = ("name", "_noise", "_frozen", "_observer")
_OWN = ("_profile", "_quiet", "seed", "_name", "_label", "_gradient_bits", *_TRANSIENT)
#: What no subclass of a module that becomes an optical layer may have for itself.
ATTRIBUTES = (
    *("profile", "seed", "gradient_bits", "name", "label", "noise_is_on"),
    *("input_range", "output_range", "range_kind", "noise_seed", "output_bound"),
)


class Substitute(Protocol):
    """What runs in a layer's place inside a block: an observer of the layer's signals, or its frozen weights."""

    def forward(
        self, layer: OpticalLayer, x: Tensor, weight: Tensor, bias: Tensor | None, call: _dispatch.Call
    ) -> Tensor:
        """The layer's output; the arguments are what it would compute itself, as the blocks around the call set it."""


class _Entry:
    """An entry of the layer's state as an attribute, as torch's own entries are."""

    def __init__(self, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, layer: None, owner: type) -> _Entry: ...
    @overload
    def __get__(self, layer: OpticalLayer, owner: type) -> Tensor: ...
    def __get__(self, layer: OpticalLayer | None, owner: type) -> _Entry | Tensor:
        if layer is None:
            return self
        entries = layer._hand_out()
        if self._name not in entries:
            raise AttributeError(self._name)  # which nn.Module words
        return entries[self._name]

    def __set__(self, layer: OpticalLayer, value: Tensor) -> None:
        layer._take({self._name: value}, "")


class OpticalLayer(_classes.Counterpart, nn.Module):
    """What all optical layers have: a profile, a noise seed, a name, and their entries of the ``state_dict``.

    ``isinstance(module, OpticalLayer)`` tells the layers that :func:`lumina_onnx.nn.convert` makes from other modules.

    Attributes:
        in_features: K, size of an input row.
        out_features: N, size of an output row.
        profile: the :class:`~lumina_onnx.OpticalProfile`; assigning another one checks it against the layer's size.
        seed: the noise's key.
        gradient_bits: 8 or None; a block of :func:`lumina_onnx.nn.gradient_bits` goes before it. It is read in the
            forward pass, and is not part of the ``state_dict``.
        name: the layer's name in error messages; :func:`lumina_onnx.nn.convert` sets it to the module's name.
        input_range, output_range, range_kind, noise_seed: the entries of the ``state_dict`` as tensors, for loaders
            that look for them; `profile` and `seed` hold the same information. Also output_bound, where the profile has
            one.
    """

    seed: int
    _version = _state.VERSION
    input_range = _Entry("input_range")
    output_range = _Entry("output_range")
    range_kind = _Entry("range_kind")
    noise_seed = _Entry("noise_seed")
    output_bound = _Entry("output_bound")

    def _set_up(self, profile: OpticalProfile, seed: int, name: str, gradient_bits: int | None) -> None:
        self._become_someone()
        try:
            _checks.check_weight(*looked_at(self._holder(), self._operands))
        except (TypeError, ValueError) as error:
            raise type(error)(f"layer {name!r}: {error}" if name else str(error)) from None
        _checks.check_counter("seed", seed)
        self.seed = seed
        self.name = name
        self.gradient_bits = gradient_bits
        self.profile = profile

    def _operands(self) -> tuple[Tensor, Tensor | None]:
        """W [N, K] and the bias [N] of a call."""
        return self.weight, self.bias

    def _holder(self) -> nn.Module:
        """The module that has the layer's parameters."""
        return self

    def _stored(self) -> dict[str, Tensor | None] | None:
        """The parameters that hold the operands, by name; None where others are computed in each call."""
        parameters = self._parameters
        if "weight" in parameters and "bias" in parameters:
            return {"weight": parameters["weight"], "bias": parameters["bias"]}
        return None

    def _is_in(self, state_dict: Mapping[str, Any], prefix: str) -> bool:
        """Whether a ``state_dict`` has the layer's weight."""
        return prefix + "weight" in state_dict

    def _become_someone(self) -> None:
        self._identity = _scope.Identity()
        self._noise_when_traced = None
        self._held = None

    @property
    def name(self) -> str:
        """The layer's name in error messages."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self._name = name
        kind = type(self).__name__
        self._label = f"layer {name!r}" if name else f"{kind}({self.in_features} -> {self.out_features})"

    @property
    def profile(self) -> OpticalProfile:
        """Bits, ranges and noise of the hardware."""
        self._take_over()
        profile: OpticalProfile = self._profile
        return profile

    @profile.setter
    def profile(self, profile: OpticalProfile) -> None:
        _checks.check_profile(profile, self.out_features)
        self._profile = profile
        self._quiet = quiet(profile)
        self._held = None

    @property
    def gradient_bits(self) -> int | None:
        """Bits of the products in the layer's gradient: 8, or None for the precision that torch asks for."""
        return self._gradient_bits

    @gradient_bits.setter
    def gradient_bits(self, gradient_bits: int | None) -> None:
        _checks.check_gradient_bits(gradient_bits)
        self._gradient_bits = gradient_bits

    @_fx.leaf
    def forward(self, input: Tensor) -> Tensor:
        if is_dynamo_compiling():
            return self._compute_when_traced(input, *self._operands())
        return self._compute(input, *self._operands())

    def _compute(self, input: Tensor, weight: Any, bias: Any) -> Tensor:
        if self._held is not None:
            self._take_over()
        profile: OpticalProfile = self._profile
        stream: int | None = None
        bits = self._gradient_bits
        fixed = False
        if _scope.current():
            settings = _scope.settings_of(self._identity.number)
            on, stream = settings.get(_scope.NOISE, (True, None))
            fixed = (not on or stream is not None) and profile._has_noise
            profile = profile if on else self._quiet
            bits = settings.get(_scope.GRADIENT_BITS, bits)
            substitute: Substitute | None = settings.get(_scope.SUBSTITUTE)
            if substitute is not None:
                call = _dispatch.Call(profile, self.seed, stream, self._label, bits, fixed)
                return substitute.forward(self, input, weight, bias, call)
        if _dispatch.is_plain(input, weight, bias):
            return _dispatch.run_plain(input, weight, bias, profile, self.seed, stream, self._label, bits, fixed)
        call = _dispatch.Call(profile, self.seed, stream, self._label, bits, fixed)
        return _dispatch.run_checked(input, weight, bias, call)

    def _compute_when_traced(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The forward pass in code that Dynamo traces, which cannot read the context variable itself."""
        self._take_over_when_traced()
        profile: OpticalProfile = self._profile
        on = True
        stream: int | Tensor | None = None
        if self._noise_when_traced is not None:
            on, stream = self._noise_when_traced
        elif _torch_state.is_exporting():
            on, stream = _scope.noise_of(self._identity.number)
        elif profile._has_noise:
            stream = _streams.of_layer(self._identity.tensor)
        profile = profile if on else self._quiet
        call = _dispatch.Call(profile, self.seed, stream, self._label, _gradient_bits.of_call(self._gradient_bits))
        return _dispatch.run_checked(input, weight, bias, call)

    @property
    def label(self) -> str:
        """The layer's name as it begins error messages."""
        return self._label

    @property
    def noise_is_on(self) -> bool:
        """Whether the next call draws noise."""
        return self._profile._has_noise and _scope.noise_of(self._identity.number)[0]

    def extra_repr(self) -> str:
        profile = self.profile
        noise = noise_text(profile)
        if profile._has_noise:
            noise = f"{'on' if self.noise_is_on else 'off'} ({noise})"
        tile = f", tile_features={profile.tile_features}" if profile.tile_features else ""
        gradient = "" if self._gradient_bits is None else f", gradient_bits={self._gradient_bits}"
        sizes = super().extra_repr() or f"in_features={self.in_features}, out_features={self.out_features}"
        return (
            f"{sizes}, bits={bits_text(profile)}, input_range={range_text(profile.input_range)}, "
            f"output_range={output_text(profile)}, bias_stage={profile.bias_stage}, noise={noise}{tile}{gradient}"
        )

    def train(self: _Layer, mode: bool = True) -> _Layer:
        self._take_over()
        return super().train(mode)

    def _hand_out(self) -> dict[str, Tensor]:
        """The layer's entries of a ``state_dict``; writing into them in place changes the layer."""
        self._take_over()
        if active_fake_mode() is not None or _torch_state.is_transformed():  # tensors without memory to write into
            return _state.encode(self._profile, self.seed, self.out_features)
        if self._held is None or self._held.seed != self.seed:
            self._held = _state.Held(self._profile, self.seed, self.out_features)
        return self._held.entries()

    def _take_over(self) -> None:
        """Applies to the layer what was written in place into the entries that it has handed out."""
        held = self._held
        if held is None:
            return
        if held.is_changed():
            self._held = None
            self._take(held.changed(), "")
        elif held.is_forgotten():
            self._held = None

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _take_over_when_traced(self) -> bool:
        """:meth:`_take_over` for Dynamo, which runs it once for each graph."""
        with _disable_current_modes():
            self._take_over()
        return True

    def _take(self, entries: Mapping[str, Any], prefix: str) -> None:
        """Sets the ranges and the seed from entries of a ``state_dict``."""
        self._settle(_state.decode, entries, self._profile, self.seed, self.out_features, prefix)

    def _settle(self, decode: Callable[..., _state.Settings], *arguments: Any) -> None:
        try:
            settings = decode(*arguments)
        except ValueError as error:
            raise _checks.named(error, self.label) from error.__cause__
        if settings.note:
            warnings.warn(f"{self.label}: {settings.note}", stacklevel=2)
        if settings.profile != self._profile:
            self.profile = settings.profile
        self.seed = settings.seed

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """The layer's buffers and, if `recurse` is false, the entries of its state.

        This is how ``torch.distributed.checkpoint.state_dict``, which looks through a model module by module, finds the
        entries. A caller that asks a model for all of its buffers, as DistributedDataParallel does to broadcast them,
        gets buffers only.
        """
        yield from super().named_buffers(prefix, recurse, remove_duplicate)
        if not recurse:
            yield from ((f"{prefix}.{name}" if prefix else name, entry) for name, entry in self._hand_out().items())

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: entry for name, entry in self._hand_out().items()})

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
        entries = {name: state_dict[prefix + name] for name in _state.NAMES if prefix + name in state_dict}
        json_key = prefix + _state.JSON_NAME
        is_json = not entries and json_key in state_dict and type(self).set_extra_state is nn.Module.set_extra_state
        ours = [json_key] if is_json else [prefix + name for name in entries]
        unexpected_keys[:] = [key for key in unexpected_keys if key not in ours]
        version = local_metadata.get("version") or 1
        if version > self._version:
            raise ValueError(
                f"{self.label}: the checkpoint has version {version} of its state, as a later release writes it: "
                f"allowed is up to {self._version}"
            )
        if is_json:
            self._settle(_state.decode_json, state_dict[json_key], self._profile, self.out_features, json_key)
        elif entries:
            self._take(entries, prefix)
        if not is_json and self._is_in(state_dict, prefix):
            self._warn_of_absent(entries, prefix, version)

    def _warn_of_absent(self, entries: Mapping[str, Any], prefix: str, version: int) -> None:
        """Warns of ranges that an optical layer's checkpoint lacks: some loaders leave out what they do not know."""
        wanted = (*_state.RANGES, _state.BOUND) if self._profile.output_bound else _state.RANGES
        absent = [prefix + name for name in wanted if name not in entries]
        if absent and (entries or version >= _state.VERSION):
            warnings.warn(
                f"{self.label}: the checkpoint is one of an optical layer but lacks {', '.join(absent)}: the layer "
                "keeps its own. A loader that leaves out what is no parameter loses a layer's ranges",
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        self._take_over()
        state: dict[str, Any] = {**super().__getstate__(), **recomputed(self)}  # type: ignore[no-untyped-call]
        return {name: value for name, value in state.items() if name not in _TRANSIENT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        kept = {name: value for name, value in state.items() if name not in _OF_OLD_PICKLES}
        super().__setstate__({"_gradient_bits": None, **kept})  # type: ignore[no-untyped-call]
        self._become_someone()
        if "name" in state:  # as the first release pickled it
            self.name = state["name"]

    if TYPE_CHECKING:
        in_features: int
        out_features: int
        weight: Tensor
        bias: Any
        _profile: OpticalProfile
        _quiet: OpticalProfile
        _name: str
        _label: str
        _held: _state.Held | None
        _identity: _scope.Identity
        _noise_when_traced: tuple[bool, int | None] | None
        _gradient_bits: int | None


class OpticalLinear(OpticalLayer, nn.Linear):
    """``y = ADC(DAC(x) @ weight.T + bias + noise)``: a :class:`torch.nn.Linear` on optical hardware.

    It has the parameters, the initialisation and the ``state_dict`` keys of ``nn.Linear``, plus four entries that hold
    the static ranges and the noise seed: ``input_range`` [1], ``output_range`` [N], ``range_kind`` [3] and
    ``noise_seed`` [24], all float64, whatever the type of the weights. Any of them may be absent from a checkpoint, so
    that a checkpoint of ``nn.Linear`` loads strictly and changes neither ranges nor seed; if only some of the range
    entries are present, a warning says for which the layer keeps its own. An average of checkpoints gives averages of
    the ranges, but is refused where a range was static in one and dynamic in another; if the seeds differ, the layer
    keeps its own, and a warning says so. To load a checkpoint into an ``nn.Linear``, call ``to_linear()`` first.

    Noise is on in ``train()`` and in ``eval()``, as in the hardware: :func:`lumina_onnx.nn.noise` turns it off. It is
    drawn from torch's generator, so ``torch.manual_seed`` repeats a run.

    Shapes: x float32 ``[..., in_features]`` (or ``[in_features]``) -> y float32 ``[..., out_features]``, on the CPU.
    Under ``torch.autocast("cpu")`` a bfloat16 or float16 x, as other layers return it there, is cast to float32, and y
    is still float32. The parameters stay float32.

    Args:
        in_features: K, size of an input row.
        out_features: N, size of an output row.
        bias: whether to learn a bias; ``profile.bias_stage`` says where it enters.
        profile: bits, ranges and noise of the hardware.
        seed: key of the layer's noise, 0..2^63-1. None: what torch's generator would draw next, without advancing it,
            so that the parameters are those of ``nn.Linear`` under the same ``torch.manual_seed``.
        gradient_bits: 8 for a gradient in products of 8 bits, or None for one as exact as
            ``torch.set_float32_matmul_precision`` asks; the page of
            :func:`lumina_onnx.nn.functional.optical_linear` says how exact each is.
        device: the CPU, or "meta".
        dtype: ``torch.float32``.

    Its attributes are those of :class:`OpticalLayer`.
    """

    _plain: ClassVar = nn.Linear
    _replaced: ClassVar = (nn.Linear, NonDynamicallyQuantizableLinear)
    _of_subclasses: ClassVar = {"forward": OpticalLayer.forward}  # a subclass may compute its weight where it is read

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        profile: OpticalProfile,
        seed: int | None = None,
        gradient_bits: int | None = None,
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
        self._set_up(profile, seed, "", gradient_bits)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        profile: OpticalProfile,
        *,
        seed: int | None = None,
        name: str = "",
        gradient_bits: int | None = None,
    ) -> OpticalLinear:
        """An optical layer with the very parameters (and hooks) of `linear`.

        Without `seed`, one is drawn from torch's generator.

        Raises:
            TypeError: `linear` is not an ``nn.Linear``, or not float32 on the CPU.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear is {type(linear).__name__}: allowed is a torch.nn.Linear")
        layer = shallow_copy(linear)
        seed = _draw_seed() if seed is None else seed
        return cast("OpticalLinear", become_optical(layer, OpticalLinear, profile, seed, name, gradient_bits))

    def to_linear(self) -> nn.Linear:
        """An ``nn.Linear`` with this layer's very parameters (and hooks)."""
        return cast("nn.Linear", become_plain(shallow_copy(self)))

    @_fx.leaf
    def forward(self, input: Tensor) -> Tensor:
        if is_dynamo_compiling():
            return self._compute_when_traced(input, self.weight, self.bias)
        weight: Any
        bias: Any
        parameters = self._parameters
        try:  # past nn.Module's attribute lookup, which takes half a microsecond for each
            weight, bias = parameters["weight"], parameters["bias"]
        except KeyError:  # a parametrised or pruned weight is an attribute
            weight, bias = self.weight, self.bias
        return self._compute(input, weight, bias)


def become_optical(
    module: nn.Module,
    ours: type[OpticalLayer],
    profile: OpticalProfile,
    seed: int,
    name: str,
    gradient_bits: int | None,
) -> OpticalLayer:
    """Turns `module` itself into an optical layer, so that references to it and its parameters stay valid."""
    before, attributes = module.__class__, dict(module.__dict__)
    module.__class__ = _classes.optical_class(module, ours)
    layer = cast("OpticalLayer", module)
    try:
        layer._set_up(profile, seed, name, gradient_bits)
    except Exception:
        module.__class__ = before
        module.__dict__.clear()
        module.__dict__.update(attributes)
        raise
    return layer


def become_plain(layer: OpticalLayer) -> nn.Module:
    """Turns a layer into what it was before it became optical."""
    for attribute in _OWN:
        layer.__dict__.pop(attribute, None)
    layer.__class__ = _classes.plain_class(layer)
    return layer


def looked_at(holder: nn.Module, operands: Callable[[], _Operands]) -> _Operands:
    """Operands as they are in eval mode: a spectral norm makes a step whenever its weight is read in training."""
    if not parametrize.is_parametrized(holder):
        return operands()
    with evaluating(holder), torch.no_grad():
        return operands()


def recomputed(module: nn.Module) -> dict[str, Tensor]:
    """The values, without a gradient's history, of attributes that a hook computes before each call (a pruned weight).

    torch cannot deep-copy a tensor that has such a history, and a copy of the module has no use for it.
    """
    hooks = module._forward_pre_hooks.values()
    names = {getattr(hook, "_tensor_name", getattr(hook, "name", None)) for hook in hooks}
    values = {name: module.__dict__.get(name) for name in names if isinstance(name, str)}
    return {name: value.detach() for name, value in values.items() if isinstance(value, Tensor) and not value.is_leaf}


def shallow_copy(module: _Module) -> _Module:
    """A new module with the same parameters, buffers, children and hooks; not compiled even if `module` is."""
    copy = module.__class__.__new__(module.__class__)
    state: dict[str, Any] = nn.Module.__getstate__(module)  # type: ignore[no-untyped-call]
    copy.__dict__.update({key: value.copy() if isinstance(value, dict) else value for key, value in state.items()})
    return copy


def optical_layers(model: nn.Module) -> list[tuple[str, OpticalLayer]]:
    """The optical layers of a model by name, each once, in the model's order."""
    named = unwrapped(model).named_modules()
    return [(name, module) for name, module in named if isinstance(module, OpticalLayer)]


def _draw_seed() -> int:
    with _disable_current_modes():  # a real number, even where tensors are made fake
        return int(torch.randint(0, _checks.COUNTERS - 1, (), dtype=torch.int64, device="cpu"))
