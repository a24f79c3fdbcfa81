"""Conversion of a model's `nn.Linear` layers to optical ones, and the report of what became of each."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from lumina_onnx._patterns import Patterns, chosen
from lumina_onnx._text import bits_text, noise_text, range_text
from lumina_onnx.nn import _checks
from lumina_onnx.nn._table import table
from lumina_onnx.nn._wrappers import check_is_whole, unwrapped
from lumina_onnx.nn.linear import OpticalLinear, become_optical, recomputed
from lumina_onnx.profile import OpticalProfile

_Model = TypeVar("_Model", bound=nn.Module)
# The attribute in which a layer keeps why it was skipped, so that report() needs only the model.
_SKIPPED = "_lumina_skipped"


def convert(
    model: _Model,
    profile: OpticalProfile,
    *,
    skip: str | Iterable[str] = (),
    overrides: Mapping[str, OpticalProfile] | None = None,
    seed: int = 0,
    gradient_bits: int | None = None,
    inplace: bool = False,
) -> _Model:
    """Makes every ``nn.Linear`` in `model` an :class:`OpticalLinear`; :func:`report` says what became of each.

    The model can then be trained with the noise in the loop, and :func:`lumina_onnx.exporter.export` writes it.
    ``lumina convert`` and :func:`lumina_onnx.exporter.rewrite` do the same to a ready .onnx file, without training:
    they take `profile`, `skip`, `overrides` and `seed` as this function does.

    Parameters, hooks, names and sharing stay as they are: tied weights stay tied, a module used twice stays one
    module. Each layer gets its own noise seed, derived from `seed` and its name. Two models whose layers have the same
    names therefore share their noise (under a fixed stream) unless they are converted with different seeds.

    Converting again changes nothing. A layer that is already optical takes `profile` (or its override) but keeps its
    seed and, where the new profile leaves a range dynamic, its static range; so a calibrated model can be given other
    bits or noise. (``layer.profile = profile`` makes its ranges dynamic again.) Of layers with the same seed, as copies
    have, the first keeps it.

    Left as they are, with the reason in the report: layers named by `skip`; subclasses of ``nn.Linear`` with a
    forward of their own; parametrised and lazy layers; the ``out_proj`` of ``nn.MultiheadAttention``, which reads
    its parameters without calling it; everything that is not a Linear. The fused inference path of
    ``nn.TransformerEncoderLayer``, which would bypass its Linear layers, is switched off where they are converted.

    Layers of a model inside ``torch.compile``, ``AveragedModel`` or a data-parallel wrapper go by their names there.

    Args:
        model: a model with float32 parameters on the CPU.
        profile: the hardware.
        skip: names of layers to leave as they are, or patterns of names (``*``, ``?``, ``[...]``, as in :mod:`fnmatch`;
            ``*`` crosses dots). A string that is a layer's name is not taken as a pattern.
        overrides: name pattern -> profile for the layers it matches; of several that match, the last counts.
        seed: 0..2^63-1; models converted with different seeds have different noise.
        gradient_bits: 8 makes the layers that take `profile` or an override compute their gradients with 8 bits (see
            :func:`lumina_onnx.nn.gradient_bits`); None leaves their setting as it is.
        inplace: converts `model` itself, rather than a deep copy.

    Returns:
        The converted model.

    Raises:
        ValueError: a pattern that matches no Linear layer, an empty layer, or a profile that does not fit a layer.
        TypeError: a layer that is not float32 on the CPU, or a model whose layers cannot be reached (torch.jit, FSDP).
        RuntimeError: `model` holds a tensor with a gradient's history and so cannot be copied.
    """
    check_is_whole(model)
    _checks.check_is_profile(profile)
    _checks.check_counter("seed", seed)
    _checks.check_gradient_bits(gradient_bits)
    overrides = dict(overrides or {})
    for pattern, override in overrides.items():
        _checks.check_is_profile(override, f"overrides[{pattern!r}]")
    if not inplace:
        model = _deep_copy(model)

    layers = [entry for entry in _entries(unwrapped(model)) if isinstance(entry.module, nn.Linear)]
    names = [entry.names for entry in layers]
    skips = Patterns("skip", skip, names, "Linear layer")
    overriding = Patterns("overrides", overrides, names, "Linear layer")

    plan: list[tuple[_Entry, OpticalProfile]] = []
    skipped: dict[nn.Module, str] = {}
    for entry in layers:
        skipping = skips.matching(*entry.names)
        if skipping and not isinstance(entry.module, OpticalLinear):
            skipped[entry.module] = skipping[0]
        elif not skipping and _why_left(entry) is None:
            plan.append((entry, _profile_for(entry, chosen(overriding, overrides, entry.names, profile))))
    _apply(plan, skipped, layers, seed, gradient_bits)
    _close_fast_paths(model)
    if not any(isinstance(module, OpticalLinear) for module in model.modules()):
        warnings.warn(
            "convert: no layer of the model was converted; lumina_onnx.nn.report(model) says why", stacklevel=2
        )
    return model


def _deep_copy(model: _Model) -> _Model:
    known: dict[int, Tensor] = {}
    for module in model.modules():
        for name, value in recomputed(module).items():
            known[id(module.__dict__[name])] = value.clone()
    try:
        return copy.deepcopy(model, cast("dict[int, object]", known))
    except RuntimeError as error:
        held = [name for name, value in _attributes(model) if value.grad_fn is not None and id(value) not in known]
        if not held:
            raise
        raise RuntimeError(
            f"model holds {', '.join(map(repr, held))}, of which torch makes no deep copy, since it has a gradient's "
            "history: detach it first, or convert with inplace=True"
        ) from error


def _attributes(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors that the modules hold besides their parameters, by name."""
    for prefix, module in model.named_modules():
        for name, value in (module.__dict__ | module._buffers).items():
            if isinstance(value, Tensor):
                yield f"{prefix}.{name}" if prefix else name, value


@dataclass(frozen=True)
class LayerReport:
    """One row of a :class:`ConversionReport`."""

    name: str
    """The module's name in the model."""
    aliases: tuple[str, ...]
    """Further names, where the module is used more than once."""
    kind: str
    """The module's class."""
    in_features: int
    """K; 0 if the module is not a Linear."""
    out_features: int
    """N; 0 if the module is not a Linear."""
    profile: OpticalProfile | None
    """The layer's profile; None if the layer was left as it is."""
    seed: int | None
    """Key of the layer's noise; None if the layer was left as it is."""
    reason: str
    """Why the layer was left as it is; empty if it was converted."""
    gradient_bits: int | None = None
    """Bits of the products in the layer's gradient; None where they are as exact as torch asks."""

    @property
    def converted(self) -> bool:
        """Whether the layer is optical."""
        return self.profile is not None


@dataclass(frozen=True)
class ConversionReport:
    """What became of each layer with a weight matrix. ``print(report)`` shows a table."""

    layers: tuple[LayerReport, ...]

    @property
    def converted(self) -> tuple[LayerReport, ...]:
        """The optical layers."""
        return tuple(layer for layer in self.layers if layer.converted)

    @property
    def left(self) -> tuple[LayerReport, ...]:
        """The layers left as they are."""
        return tuple(layer for layer in self.layers if not layer.converted)

    def __str__(self) -> str:
        header = ["layer", "kind", "N", "K", "bits x/w/y", "input range", "output range", "noise"]
        rows: list[list[object]] = [
            [
                " = ".join((layer.name or "(model)", *layer.aliases)),
                layer.kind,
                layer.out_features,
                layer.in_features,
                bits_text(profile),
                range_text(profile.input_range) if profile.input_bits else "-",
                range_text(profile.output_range),
                noise_text(profile),
            ]
            for layer in self.converted
            if (profile := layer.profile) is not None
        ]
        bits = [layer.gradient_bits for layer in self.converted]
        if any(bits):
            header.append("gradient")
            for row, own in zip(rows, bits, strict=True):
                row.append(f"{own} bits" if own else "-")
        kinds = Counter(layer.kind for layer in self.left)
        counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        parts = [f"{len(rows)} converted, {len(self.left)} left" + (f" ({counted})" if counted else "")]
        if rows:
            parts.append(table(header, rows))
        if self.left:
            parts.append(
                table(
                    ("left", "kind", "why"),
                    [(" = ".join((layer.name, *layer.aliases)), layer.kind, layer.reason) for layer in self.left],
                )
            )
        return "\n\n".join(parts)


def report(model: nn.Module) -> ConversionReport:
    """What became of each layer of `model` that has a weight matrix: its profile, or why it was left."""
    rows = []
    for entry in _entries(unwrapped(model)):
        module = entry.module
        if isinstance(module, OpticalLinear):
            profile, seed, reason = module.profile, module.seed, ""
        elif isinstance(module, nn.Linear):
            profile, seed, reason = None, None, _why_left(entry) or "not converted"
            if hasattr(module, _SKIPPED):
                reason = f"skip {getattr(module, _SKIPPED)!r}"
        elif _has_matrix(module):
            profile, seed, reason = None, None, "no Linear"
            if isinstance(module, nn.MultiheadAttention):
                reason = "its input projection is a parameter, no Linear"
        else:
            continue
        n, k = (module.out_features, module.in_features) if isinstance(module, nn.Linear) else (0, 0)
        kind, bits = type(module).__name__, module.gradient_bits if isinstance(module, OpticalLinear) else None
        rows.append(LayerReport(entry.names[0], entry.names[1:], kind, k, n, profile, seed, reason, bits))
    return ConversionReport(tuple(rows))


@dataclass(frozen=True)
class _Entry:
    """A module with all its names, and the attention module that bypasses it, if one does."""

    module: nn.Module
    names: tuple[str, ...]
    bypassed_by: nn.Module | None


def _entries(model: nn.Module) -> Iterator[_Entry]:
    names: dict[nn.Module, list[str]] = {}
    bypassed: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
        if isinstance(module, nn.MultiheadAttention):
            bypassed[module.out_proj] = module
    for module, aliases in names.items():
        yield _Entry(module, tuple(aliases), bypassed.get(module))


def _why_left(entry: _Entry) -> str | None:
    """Why a Linear cannot be converted; None where it can."""
    module = cast("nn.Linear", entry.module)
    if isinstance(module, OpticalLinear):
        return None
    if entry.bypassed_by is not None:
        return f"{type(entry.bypassed_by).__name__} reads its parameters without calling it"
    if is_lazy(module.weight):
        return "not initialised yet: run a batch before converting"
    if parametrize.is_parametrized(module):
        return "parametrised: convert first, then register the parametrisation"
    if type(module).forward is not nn.Linear.forward or "forward" in module.__dict__:
        return f"{type(module).__name__} has a forward of its own"
    return None


def _has_matrix(module: nn.Module) -> bool:
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag, parametrize.ParametrizationList)):
        return False
    return any(is_lazy(p) or p.dim() >= 2 for p in module.parameters(recurse=False))


def _profile_for(entry: _Entry, profile: OpticalProfile) -> OpticalProfile:
    """The profile that the layer takes, checked against the layer."""
    module = cast("nn.Linear", entry.module)
    label = f"layer {entry.names[0]!r}"
    try:
        _checks.check_weight(module.weight, module.bias)
    except (TypeError, ValueError) as error:
        empty = module.weight is not None and module.weight.numel() == 0
        advice = f"; skip={entry.names[0]!r} leaves it as it is" if empty and entry.names[0] else ""
        raise type(error)(f"{label}: {error}{advice}") from None
    if isinstance(module, OpticalLinear):
        changes: dict[str, float | tuple[float, ...]] = {}
        if profile.input_range == 0 and profile.input_bits > 0:
            changes["input_range"] = module.profile.input_range
        if profile.output_range == 0:
            changes["output_range"] = module.profile.output_range
        profile = profile.replace(**changes)
    try:
        _checks.check_profile(profile, module.out_features)
    except ValueError as error:
        raise _checks.named(error, label) from None
    return profile


def _apply(
    plan: list[tuple[_Entry, OpticalProfile]],
    skipped: dict[nn.Module, str],
    layers: list[_Entry],
    seed: int,
    gradient_bits: int | None,
) -> None:
    for module, pattern in skipped.items():
        setattr(module, _SKIPPED, pattern)
    owners: dict[int, nn.Module] = {}
    for entry in layers:
        if isinstance(entry.module, OpticalLinear):
            owners.setdefault(entry.module.seed, entry.module)
    for entry, profile in plan:
        module, name = cast("nn.Linear", entry.module), entry.names[0]
        module.__dict__.pop(_SKIPPED, None)
        if isinstance(module, OpticalLinear):
            module.profile = profile
            module.name = name
            if gradient_bits is not None:
                module.gradient_bits = gradient_bits
            if owners[module.seed] is not module:
                module.seed = _free_seed(seed, name, owners)
                owners[module.seed] = module
        else:
            layer_seed = _free_seed(seed, name, owners)
            become_optical(module, profile, layer_seed, name, gradient_bits)
            owners[layer_seed] = module


def _free_seed(seed: int, name: str, taken: Container[int]) -> int:
    layer_seed = _layer_seed(seed, name)
    while layer_seed in taken:
        layer_seed = (layer_seed + 1) % _checks.COUNTERS
    return layer_seed


def _layer_seed(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _checks.COUNTERS


def _close_fast_paths(model: nn.Module) -> None:
    """Makes transformer layers call their Linear layers in eval() too.

    ``nn.TransformerEncoderLayer`` takes its fused kernel only where ``activation_relu_or_gelu`` is true, and
    ``nn.TransformerEncoder`` packs padded batches into nested tensors, which only that kernel reads.
    """
    for module in model.modules():
        if not isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerEncoder)):
            continue
        if any(isinstance(child, OpticalLinear) for child in module.modules()):
            if isinstance(module, nn.TransformerEncoderLayer):
                module.activation_relu_or_gelu = 0
            else:
                module.use_nested_tensor = False
