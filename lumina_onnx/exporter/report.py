"""What the exporter did or found, as dataclasses that print as tables and turn into JSON."""

from __future__ import annotations

import dataclasses
import io
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table

from lumina_onnx._text import bits_text, features_text, noise_text, text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Comparison", "ExportReport", "InspectReport", "Layer", "Left", "Report", "RewriteReport", "VerifyReport"]


class Report:
    """Base of all reports: ``print(report)`` shows tables, :meth:`to_dict` returns JSON types."""

    def to_dict(self) -> dict[str, Any]:
        """The report as dicts, lists, strings and numbers; numbers that JSON lacks are "inf", "-inf" and "nan"."""
        fields = dataclasses.asdict(cast("DataclassInstance", self))
        return {"report": type(self).__name__, **_plain(fields)}

    def __rich__(self) -> RenderableType:
        raise NotImplementedError

    def __str__(self) -> str:
        page = io.StringIO()
        Console(file=page, width=160, color_system=None).print(self, soft_wrap=True)
        return "\n".join(line.rstrip() for line in page.getvalue().rstrip().split("\n"))


@dataclass(frozen=True)
class Layer:
    """One `OpticalLinear` node of a file."""

    name: str
    in_features: int
    """K."""
    out_features: int
    """N."""
    input_bits: int
    weight_bits: int
    output_bits: int
    input_range: float
    """DAC full scale in units of X; 0 = each row's maximum."""
    output_range: tuple[float, ...]
    """ADC full scale in units of Y, one for the layer or one per output; (0,) = each row's maximum."""
    noise_relative: float
    noise_additive: float
    noise_shot: float
    bias: str
    """"analog", "digital", or "" if there is no bias."""
    seed: int
    float_bytes: int
    """The size of W in float32."""
    stored_bytes: int
    """The size of W and W_scale in the file; 0 if both are stored with another layer."""
    shared_with: str = ""
    """The layer whose stored W this one reads."""
    tile_features: int = 0
    """Inputs of one pass of the core; 0 = the whole row."""
    output_bound: float = 0.0
    """ADC full scale in products of two full-scale operands; 0 = none."""
    noise_read: float = 0.0
    photons: float = 0.0
    detection: str = "offset"
    photon_reference: str = "full_scale"
    input_noise_relative: float = 0.0
    input_noise_additive: float = 0.0
    weight_levels: int = 0
    """The code that is a weight's full scale; 0 = the largest."""

    @property
    def bits(self) -> str:
        """Input, weight and output bits, "-" for an analog or absent stage."""
        return bits_text(self)

    @property
    def noise(self) -> str:
        """The noise laws that are on, with their levels; "none" if none is on."""
        return noise_text(self)


@dataclass(frozen=True)
class Left:
    """Something that stays an ordinary operator or is not in the file, with the reason."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """One tensor compared with its expected value."""

    name: str
    against: str
    """"reference", or "torch"."""
    run: int
    """The index of the run within its session; in the main graph also the noise's stream."""
    shape: tuple[int, ...]
    equal: bool
    """Bit for bit; NaN equals NaN."""
    max_difference: float
    """The largest absolute difference; infinite where shapes or non-finite values disagree."""
    required: bool
    """Whether the contract promises equal bits here or, without the library, a difference within the tolerance."""
    library: bool = True
    """Whether the file ran with the operator's library; without it, the function body ran."""
    within: bool = False
    """Whether the difference is within the function body's tolerance (without the library)."""
    executions: int = 1
    """How often the tensor was computed in this run, which may be many times in a subgraph. The row covers them all."""
    rows: int | None = None
    """How many rows of the tensor were compared; None for all."""

    @property
    def ok(self) -> bool:
        """Whether the result is as promised."""
        return self.equal or self.within or not self.required

    @property
    def verdict(self) -> str:
        """The result of the comparison in a word or two."""
        if self.equal:
            return "equal"
        if self.within:
            return "within tolerance"
        return "DIFFERENT" if self.required else "different (allowed)"


@dataclass(frozen=True)
class InspectReport(Report):
    """What a file holds."""

    path: str
    file_bytes: int
    """The size of the .onnx file, its external data included."""
    opset: int
    """The version of the standard operators; 0 if the file imports none."""
    ir_version: int
    inputs: dict[str, str]
    outputs: dict[str, str]
    body_bytes: int
    """The size of the function body in the file; 0 if there is none, so that the file needs the library."""
    layers: list[Layer]
    other_operators: dict[str, int]
    """Operators other than `OpticalLinear`, with the number of times each occurs."""
    metadata: dict[str, str]
    notes: list[str] = field(default_factory=list)

    def __rich__(self) -> RenderableType:
        opset = f"opset {self.opset}" if self.opset else "no standard operators"
        lines = [
            f"{self.path}: {_size(self.file_bytes)}, {opset}, IR {self.ir_version}",
            "inputs: " + ", ".join(f"{name} {kind}" for name, kind in self.inputs.items()),
            "outputs: " + ", ".join(f"{name} {kind}" for name, kind in self.outputs.items()),
            *_operator_line(self.other_operators),
            *([_body_line(self.body_bytes)] if self.layers else []),
        ]
        notes = [text(f"note: {note}") for note in self.notes]
        return Group(text(*lines), _LayerTable(self.layers), *notes)


@dataclass(frozen=True, kw_only=True)
class _Written(Report):
    """A file that was written."""

    path: str
    file_bytes: int
    """The size of the .onnx file, its external data included."""
    opset: int
    ir_version: int
    body_bytes: int
    """The size of the function body in the file; 0 if there is none, so that the file needs the library."""
    layers: list[Layer]
    other_operators: dict[str, int]
    left: list[Left]
    notes: list[str] = field(default_factory=list)

    @property
    def float_bytes(self) -> int:
        """The size of all layers' weights in float32, shared ones counted once."""
        return sum(layer.float_bytes for layer in self.layers if not layer.shared_with)

    @property
    def stored_bytes(self) -> int:
        """The size of these weights in the file, with their scales."""
        return sum(layer.stored_bytes for layer in self.layers)

    def _page(self, made: str) -> RenderableType:
        lines = [
            f"{self.path}: {_size(self.file_bytes)}, {made}",
            f"{len(self.layers)} OpticalLinear, weights {_size(self.float_bytes)} -> {_size(self.stored_bytes)}",
            *_operator_line(self.other_operators),
            _body_line(self.body_bytes),
        ]
        parts: list[RenderableType] = [text(*lines)]
        parts.append(_LayerTable(self.layers))
        if self.left:
            table = Table("name", "what", "why", title="Left as they are", title_justify="left")
            for row in grouped(self.left):
                table.add_row(*map(text, row))
            parts.append(table)
        parts.extend(text(f"note: {note}") for note in self.notes)
        return Group(*parts)


@dataclass(frozen=True, kw_only=True)
class ExportReport(_Written):
    """What an export wrote."""

    target: str
    """The oldest ONNX Runtime that the file is made for."""

    def __rich__(self) -> RenderableType:
        return self._page(f"for ONNX Runtime {self.target} or newer (opset {self.opset}, IR {self.ir_version})")


@dataclass(frozen=True, kw_only=True)
class RewriteReport(_Written):
    """What a rewrite made of an existing file."""

    source: str
    source_bytes: int
    """The size of the file that was read, its external data included."""

    def __rich__(self) -> RenderableType:
        return self._page(f"opset {self.opset}, IR {self.ir_version}, from {self.source} ({_size(self.source_bytes)})")


@dataclass(frozen=True)
class VerifyReport(Report):
    """How a file's results compare with the expected ones."""

    path: str
    onnxruntime: str
    """The version of ONNX Runtime that ran the file."""
    inputs: dict[str, tuple[int, ...]]
    """The shapes of the inputs that it ran on."""
    body_bytes: int
    """The size of the function body in the file; 0 if there is none: then the file ran only with the library."""
    comparisons: list[Comparison]
    not_checked: list[Left] = field(default_factory=list)
    """Layers that were not compared, with the reason."""
    bypassing: list[Left] = field(default_factory=list)
    """Nodes that are optical layers but that the library does not recognise as such."""
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every comparison is as promised, and no layer bypasses the library.

        See ``not_checked`` for layers that were not compared.
        """
        return not self.bypassing and all(row.ok for row in self.comparisons)

    def to_dict(self) -> dict[str, Any]:
        """The report as dicts, lists, strings and numbers, as for all reports, plus whether it is ``ok``."""
        return {**super().to_dict(), "ok": self.ok}

    def __rich__(self) -> RenderableType:
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in self.inputs.items())
        table = Table("tensor", "library", "against", "run", "shape", "result", "largest difference")
        for row in self.comparisons:
            table.add_row(
                text(row.name),
                "with" if row.library else "without",
                row.against,
                str(row.run),
                text(str(list(row.shape)) + (f" x {row.executions}" if row.executions > 1 else "") + _sample(row)),
                row.verdict,
                f"{row.max_difference:g}",
            )
        title = text(f"{self.path} in ONNX Runtime {self.onnxruntime}, inputs {shapes}")
        parts: list[RenderableType] = [title, table]
        parts.extend(text(f"not checked: {left.name} ({left.kind}): {left.reason}") for left in self.not_checked)
        parts.extend(text(f"NOT run by the library: {left.name} is {left.reason}") for left in self.bypassing)
        parts.extend(text(f"note: {note}") for note in self.notes)
        if (rows := max((row.rows or 0 for row in self.comparisons), default=0)) > 0:
            parts.append(text(f"note: {rows} rows of each layer were recomputed; rows=None or --all-rows takes all"))
        parts.append(text(self._verdict()))
        return Group(*parts)

    def _verdict(self) -> str:
        if not self.ok:
            return "NOT ok: see above"
        unchecked = len(self.not_checked)
        if not self.comparisons:
            return f"the file runs, but NOT ONE of its {unchecked} layers was checked: see above"
        without = "without it within the tolerance" if self.body_bytes else "without it the file does not run"
        but = f", but {unchecked} layer{'s' if unchecked > 1 else ''} NOT CHECKED: see above" if unchecked else ""
        return f"ok: with the library every bit as promised, {without}{but}"


def grouped(left: list[Left]) -> list[tuple[str, str, str]]:
    """Names, kind and reason of each group with equal kind and reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in left:
        groups.setdefault((row.kind, row.reason), []).append(row.name)
    return [(listed(names), *group) for group, names in groups.items()]


def listed(names: list[str]) -> str:
    """The names; of four or more only two, and a count."""
    return ", ".join(names) if len(names) < 4 else f"{names[0]}, {names[1]} and {len(names) - 2} more"


_LAYER_COLUMNS = ("layer", "K", "N", "bits in/w/out", "input range", "output range", "noise", "bias", "seed")
_LAYER_BYTES = ("float32", "stored")


@dataclass(frozen=True)
class _LayerTable:
    """One row per layer; if the console is too narrow for the table, one paragraph per layer, so nothing is cut off."""

    layers: list[Layer]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [_layer_row(layer) for layer in self.layers]
        table = Table(*_LAYER_COLUMNS)
        for name in _LAYER_BYTES:
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(*map(text, row))
        if Measurement.get(console, options.update(width=_UNBOUNDED), table).maximum <= options.max_width:
            yield table
            return
        names = (*_LAYER_COLUMNS, *_LAYER_BYTES)[1:]
        for name, *values in rows:
            facts = ", ".join(f"{what} {value}" for what, value in zip(names, values, strict=True))
            paragraph = text(name, style="bold") + text(f": {facts}")
            paragraph.overflow = "fold"
            yield paragraph


_UNBOUNDED = 10**6


def _layer_row(layer: Layer) -> tuple[str, ...]:
    return (
        layer.name,
        features_text(layer.in_features, layer.tile_features),
        str(layer.out_features),
        layer.bits,
        f"{layer.input_range:g}" if layer.input_range else ("dynamic" if layer.input_bits else "-"),
        _output_range(layer),
        layer.noise,
        layer.bias or "none",
        str(layer.seed),
        _size(layer.float_bytes),
        f"with {layer.shared_with}" if layer.shared_with else _size(layer.stored_bytes),
    )


def _sample(row: Comparison) -> str:
    return "" if row.rows is None else f", {row.rows} rows"


def _output_range(layer: Layer) -> str:
    ranges = layer.output_range
    if not ranges:
        return "none"
    if layer.output_bound:
        return f"{layer.output_bound:g} products"
    if ranges == (0.0,):
        return "dynamic" if layer.output_bits or layer.noise_additive or layer.noise_shot else "-"
    return f"{ranges[0]:g}" if len(ranges) == 1 else f"{min(ranges):g}..{max(ranges):g} per output"


def _operator_line(operators: dict[str, int]) -> list[str]:
    counts = ", ".join(f"{count} {name}" for name, count in operators.items())
    return [f"other operators: {counts}"] if counts else []


def _body_line(count: int) -> str:
    if count:
        return f"without the operator's library: runs by its function body ({_size(count)})"
    return "without the operator's library: does not run"


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} B"
    for unit, scale in (("KiB", 2**10), ("MiB", 2**20)):
        if count < 1024 * scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 2**30:.2f} GiB"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
