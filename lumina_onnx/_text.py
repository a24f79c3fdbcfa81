"""Text for a terminal: text from outside, such as the names in a model's file, made safe to show, and our own words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from lumina_onnx.schema import NOISE

if TYPE_CHECKING:
    from rich.text import Text

_NOT_ASCII = re.compile(r"[^ -~]")


class Hardware(Protocol):
    """The bits of a profile, or of a layer of a file."""

    @property
    def input_bits(self) -> int: ...
    @property
    def weight_bits(self) -> int: ...
    @property
    def output_bits(self) -> int: ...


def bits_text(hardware: Hardware) -> str:
    """The bits of input, weight and output as ``8/4/8``, "-" for an analog or absent stage."""
    return "/".join(str(bits or "-") for bits in (hardware.input_bits, hardware.weight_bits, hardware.output_bits))


def range_text(value: float | tuple[float, ...]) -> str:
    """A full scale, or the smallest and the largest of one per output; "dynamic" where it is each row's own."""
    if isinstance(value, tuple):
        return f"{min(value):.4g}..{max(value):.4g} per output"
    return f"{value:.4g}" if value else "dynamic"


class Scaled(Protocol):
    """The ADC's full scale of a profile, or of a layer of a file."""

    @property
    def output_range(self) -> float | tuple[float, ...]: ...
    @property
    def output_bound(self) -> float: ...


def output_text(hardware: Scaled) -> str:
    """The full scale of the ADC: in units of the output, or in products of two full-scale operands."""
    return f"{hardware.output_bound:.4g} products" if hardware.output_bound else range_text(hardware.output_range)


def features_text(count: int, tile: int) -> str:
    """The inputs of a layer; "784 by 64" where they are split."""
    return f"{count} by {tile}" if 0 < tile < count else str(count)


def noise_text(hardware: object) -> str:
    """The noise laws that are on in a profile, or in a layer of a file, with their levels; "none" if there are none."""
    levels = [f"{_spoken(name)} {level:g}" for name in NOISE if (level := getattr(hardware, name))]
    if getattr(hardware, "photons", 0):
        levels.append(f"{hardware.detection} detection")  # type: ignore[attr-defined]
    return ", ".join(levels) or "none"


def _spoken(name: str) -> str:
    """The name of a noise level, without the word that says so."""
    return name.removeprefix("noise_").replace("input_noise_", "input ")


def visible(words: str, *, keep: str = "") -> str:
    r"""Replaces each character that cannot be seen with an escape such as ``\x1b`` or ``\u202e``.

    These are the characters that a terminal obeys (controls, including line breaks and tabs, and direction marks),
    those that show nothing (joiners), and those that Unicode has not assigned. Characters in `keep` stay.
    """

    def shown(match: re.Match[str]) -> str:
        return match[0] if _is_seen(match[0]) or match[0] in keep else _escape(match[0])

    return _NOT_ASCII.sub(shown, words)


def text(*lines: str, style: str = "") -> Text:
    """Lines for a rich console, made :func:`visible`; nothing in them is taken for markup."""
    from rich.text import Text

    return Text("\n".join(map(visible, lines)), style=style)


def _is_seen(character: str) -> bool:
    # To isprintable() no space but the ASCII one is printable.
    return character.isprintable() or (character.isspace() and character > "\x9f" and character not in "\u2028\u2029")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
