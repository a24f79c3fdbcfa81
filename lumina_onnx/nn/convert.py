"""Conversion of a model's linear layers to optical ones, and the report of what became of each."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from lumina_onnx._patterns import Patterns, chosen
from lumina_onnx._seeds import layer_seed
from lumina_onnx._text import bits_text, features_text, noise_text, output_text, range_text
from lumina_onnx.nn import _checks
from lumina_onnx.nn._table import table
from lumina_onnx.nn._transposed import OpticalTransposed, conv1d, in_features
from lumina_onnx.nn._wrappers import check_is_whole, unwrapped
from lumina_onnx.nn.attention import (
    PROJECTIONS,
    OpticalMultiheadAttention,
    OpticalProjection,
    add_projection,
    attended,
    operands,
    size,
)
from lumina_onnx.nn.linear import ATTRIBUTES, OpticalLayer, OpticalLinear, become_optical, looked_at, recomputed
from lumina_onnx.profile import OpticalProfile

_Model = TypeVar("_Model", bound=nn.Module)
# The attribute in which a module keeps why a layer was skipped, so that report() needs only the model.
_SKIPPED = "_lumina_skipped"
#: The reason why a layer that could be converted has not been.
NOT_CONVERTED = "not converted"


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
    """Makes the linear layers in `model` optical; :func:`report` says what became of each.

    An ``nn.Linear`` becomes an :class:`OpticalLinear`, an ``nn.MultiheadAttention`` an
    :class:`OpticalMultiheadAttention` with the layers `q_proj`, `k_proj`, `v_proj` and `out_proj`, and so those of
    ``nn.TransformerEncoderLayer``, ``nn.TransformerDecoderLayer`` and torchvision's vision transformers. The ``Conv1D``
    of the transformers package (GPT-2) becomes a layer too. Subclasses that keep torch's forward remain instances of
    their class. A parametrised or pruned layer computes with the weight that it has at each call.

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

    Left as they are, with the reason in the report: layers named by `skip`; modules with a forward of their own, or
    with an attribute that optical layers have, such as ``seed``; lazy layers before their first call; everything that
    is no linear layer, such as convolutions. Layers inside a parametrisation are digital, and are left as well: their
    result is the weight. The fused inference paths of ``nn.TransformerEncoderLayer`` and ``nn.MultiheadAttention``,
    which would bypass their layers, are not taken where those are converted, and ``nn.TransformerEncoder`` makes no
    nested tensors.

    Layers of a model inside ``torch.compile``, ``AveragedModel`` or a data-parallel wrapper go by their names there.

    Args:
        model: a model with float32 parameters on the CPU.
        profile: the hardware.
        skip: names of layers to leave as they are, or patterns of names (``*``, ``?``, ``[...]``, as in :mod:`fnmatch`;
            ``*`` crosses dots). A string that is a layer's name is not taken as a pattern. The name of an attention
            module stands for its projections.
        overrides: name pattern -> profile for the layers it matches; of several that match, the last counts.
        seed: 0..2^63-1; models converted with different seeds have different noise.
        gradient_bits: 8 makes the layers that take `profile` or an override compute their gradients with 8 bits (see
            :func:`lumina_onnx.nn.gradient_bits`); None leaves their setting as it is.
        inplace: converts `model` itself, rather than a deep copy.

    Returns:
        The converted model.

    Raises:
        ValueError: a pattern that matches no linear layer, an empty layer, or a profile that does not fit a layer.
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

    layers = [entry for entry in _entries(unwrapped(model)) if entry.is_layer]
    names = [entry.names for entry in layers] + list(dict.fromkeys(entry.within for entry in layers))
    skips = Patterns("skip", skip, names, "Linear layer")
    overriding = Patterns("overrides", overrides, names, "Linear layer")

    plan: list[tuple[_Entry, OpticalProfile]] = []
    skipped: list[tuple[_Entry, str]] = []
    for entry in layers:
        own = (*entry.names, *entry.within)
        skipping = skips.matching(*own)
        if skipping and entry.optical is None:
            skipped.append((entry, skipping[0]))
        elif not skipping and _why_left(entry) is None:
            plan.append((entry, _profile_for(entry, chosen(overriding, overrides, own, profile))))
    _apply(plan, skipped, layers, seed, gradient_bits)
    _close_fast_paths(model)
    if not _holds_layers(model):
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
    """The module's class; for a projection that was left, the attention's."""
    in_features: int
    """K; 0 if the module is no linear layer."""
    out_features: int
    """N; 0 if the module is no linear layer."""
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
                features_text(layer.in_features, profile.tile_features),
                bits_text(profile),
                range_text(profile.input_range) if profile.input_bits else "-",
                output_text(profile),
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
        name, *aliases = entry.names
        layer = entry.optical
        if layer is not None:
            k, n, why = layer.in_features, layer.out_features, ""
        elif entry.is_layer:
            skipped = entry.module.__dict__.get(entry.skipped)
            (n, k), why = entry.size(), f"skip {skipped!r}" if skipped else _why_left(entry) or NOT_CONVERTED
        elif _has_matrix(entry.module):
            n, k, why = 0, 0, "no Linear"
        else:
            continue
        profile, seed, bits = (None,) * 3 if layer is None else (layer.profile, layer.seed, layer.gradient_bits)
        kind = type(entry.module).__name__
        rows.append(LayerReport(name, tuple(aliases), kind, k, n, profile, seed, why, bits))
    return ConversionReport(tuple(rows))


@dataclass(frozen=True)
class _Entry:
    """A module with all its names, or a projection that an attention module holds as a parameter."""

    module: nn.Module
    """The module; for such a projection, the attention."""
    names: tuple[str, ...]
    projection: str = ""
    """Which projection of the module it is."""
    attention: nn.MultiheadAttention | None = None
    """The attention module that it is a projection of, if it is one."""
    within: tuple[str, ...] = ()
    """The names of that module."""

    @property
    def optical(self) -> OpticalLayer | None:
        """The layer, if it is optical."""
        return self.module if isinstance(self.module, OpticalLayer) else None

    @property
    def is_layer(self) -> bool:
        """Whether it is a linear layer."""
        return bool(self.projection) or self.optical is not None or _kind(self.module) is not None

    @property
    def skipped(self) -> str:
        """The attribute of the module with the pattern by which the layer was skipped."""
        return f"{_SKIPPED}_{self.projection}" if self.projection else _SKIPPED

    def operands(self) -> tuple[Tensor, Tensor | None]:
        """W [N, K] and the bias."""
        module: Any = self.module
        if self.projection:
            return operands(module)[PROJECTIONS.index(self.projection)]
        if isinstance(module, OpticalLayer):
            return module._operands()
        return module.weight if _kind(module) is OpticalLinear else module.weight.t(), module.bias

    def size(self) -> tuple[int, int]:
        """N and K."""
        module: Any = self.module
        if self.projection:
            return size(module, self.projection)
        if _kind(module) is OpticalTransposed:
            return module.nf, in_features(module)
        return module.out_features, module.in_features


def _kind(module: nn.Module) -> type[OpticalLayer] | None:
    """The kind of optical layer that the module is or can become."""
    if isinstance(module, nn.Linear):
        return OpticalLinear
    transposed = conv1d()
    return OpticalTransposed if transposed is not None and isinstance(module, transposed) else None


def _entries(model: nn.Module) -> Iterator[_Entry]:
    """All modules but those that compute a parameter of another: they are digital, and their results are the weight."""
    lists = (module for module in model.modules() if isinstance(module, parametrize.ParametrizationList))
    parametrising = {module for each in lists for module in each.modules() if not isinstance(module, OpticalLayer)}
    names: dict[nn.Module, list[str]] = {}
    attentions: dict[nn.Module, nn.MultiheadAttention] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if module in parametrising:
            continue
        names.setdefault(module, []).append(name)
        if isinstance(module, nn.MultiheadAttention):
            for child in module.children():
                if child is module.out_proj or isinstance(child, OpticalProjection):
                    attentions[child] = module
    for module, aliases in names.items():
        if isinstance(module, nn.MultiheadAttention) and _has_projections(module):
            for projection in PROJECTIONS:
                known = nn.Module if _has_own_forward(module, nn.MultiheadAttention) else OpticalProjection
                if not isinstance(module._modules.get(projection), known):
                    paths = tuple(f"{name}.{projection}" if name else projection for name in aliases)
                    yield _Entry(module, paths, projection, module, tuple(aliases))
        elif module not in attentions or not isinstance(module, nn.Linear):
            yield _Entry(module, tuple(aliases))
        else:
            attention = attentions[module]
            yield _Entry(module, tuple(aliases), attention=attention, within=tuple(names[attention]))


def _has_projections(attention: nn.MultiheadAttention) -> bool:
    return any(
        attention._parameters.get(name) is not None
        or name in attention.__dict__
        or parametrize.is_parametrized(attention, name)
        for name in ("in_proj_weight", "q_proj_weight")
    )


def _why_left(entry: _Entry) -> str | None:
    """Why a layer cannot be converted; None where it can."""
    module = entry.module
    if entry.optical is not None:
        return None
    if entry.attention is not None and _has_own_forward(entry.attention, nn.MultiheadAttention):
        kind = type(entry.attention).__name__
        return f"{kind} has a forward of its own" + ("" if entry.projection else ", and may not call it")
    if entry.projection:
        return f"the attention has another attribute {entry.projection}" if hasattr(module, entry.projection) else None
    weight = module._parameters.get("weight")
    if weight is not None and is_lazy(weight):
        return "not initialised yet: run a batch before converting"
    plain = nn.Linear if isinstance(module, nn.Linear) else conv1d()
    kind = type(module).__name__
    if _has_own_forward(module, cast("Any", plain)):
        return f"{kind} has a forward of its own"
    if parametrize.type_before_parametrizations(module) in (*OpticalLinear._replaced, plain):
        return None
    own = [name for name in ATTRIBUTES if hasattr(module, name)]
    return f"{kind} has an attribute {own[0]} of its own, which an optical layer has as well" if own else None


def _has_own_forward(module: nn.Module, plain: type[nn.Module]) -> bool:
    known = (plain.forward, OpticalMultiheadAttention.forward)
    return type(module).forward not in known or "forward" in module.__dict__


def _has_matrix(module: nn.Module) -> bool:
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention)):
        return False
    return any(is_lazy(p) or p.dim() >= 2 for p in module.parameters(recurse=False))


def _profile_for(entry: _Entry, profile: OpticalProfile) -> OpticalProfile:
    """The profile that the layer takes, checked against the layer."""
    label = f"layer {entry.names[0]!r}"
    layer = entry.optical
    weight, bias = looked_at(entry.module if layer is None else layer._holder(), entry.operands)
    try:
        _checks.check_weight(weight, bias)
    except (TypeError, ValueError) as error:
        empty = weight is not None and weight.numel() == 0
        advice = f"; skip={entry.names[0]!r} leaves it as it is" if empty and entry.names[0] else ""
        raise type(error)(f"{label}: {error}{advice}") from None
    if layer is not None:
        changes: dict[str, float | tuple[float, ...]] = {}
        if profile.input_range == 0 and profile.input_bits > 0:
            changes["input_range"] = layer.profile.input_range
        if profile.output_range == 0 and profile.output_bound == 0:
            changes["output_range"] = layer.profile.output_range
        profile = profile.replace(**changes)
    try:
        _checks.check_profile(profile, len(weight))
    except ValueError as error:
        raise _checks.named(error, label) from None
    return profile


def _apply(
    plan: list[tuple[_Entry, OpticalProfile]],
    skipped: list[tuple[_Entry, str]],
    layers: list[_Entry],
    seed: int,
    gradient_bits: int | None,
) -> None:
    for entry, pattern in skipped:
        setattr(entry.module, entry.skipped, pattern)
    owners: dict[int, OpticalLayer] = {}
    for entry in layers:
        if entry.optical is not None:
            owners.setdefault(entry.optical.seed, entry.optical)
    for entry, profile in plan:
        module, name, layer = entry.module, entry.names[0], entry.optical
        module.__dict__.pop(entry.skipped, None)
        if layer is not None:
            layer.profile = profile
            layer.name = name
            if gradient_bits is not None:
                layer.gradient_bits = gradient_bits
            if owners[layer.seed] is layer:
                continue
            layer.seed = layer_seed(seed, name, owners)
        else:
            own = layer_seed(seed, name, owners)
            if entry.projection:
                attention = cast("nn.MultiheadAttention", module)
                layer = add_projection(attention, entry.projection, profile, own, name, gradient_bits)
            else:
                ours = cast("type[OpticalLayer]", _kind(module))
                layer = become_optical(module, ours, profile, own, name, gradient_bits)
        owners[layer.seed] = layer


def _close_fast_paths(model: nn.Module) -> None:
    """Makes modules call their layers that would read the parameters of these instead.

    ``nn.TransformerEncoderLayer`` takes its fused kernel only where ``activation_relu_or_gelu`` is true, and
    ``nn.TransformerEncoder`` packs padded batches into nested tensors, which only that kernel reads.
    """
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            is_called = not _has_own_forward(module, nn.MultiheadAttention)
            if is_called and any(isinstance(child, OpticalLayer) for child in module.children()):
                attended(module)
        elif isinstance(module, nn.TransformerEncoderLayer) and _holds_layers(module):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder) and _holds_layers(module):
            module.use_nested_tensor = False


def _holds_layers(module: nn.Module) -> bool:
    return any(isinstance(each, OpticalLayer) for each in module.modules())
