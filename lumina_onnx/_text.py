"""Text on its way to a terminal: that of others, such as the names in a model's file, and words of our own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.text import Text

_NOT_ASCII = re.compile(r"[^ -~]")


class Hardware(Protocol):
    """Bits and noise, which a profile has and a layer of a file."""

    @property
    def input_bits(self) -> int: ...
    @property
    def weight_bits(self) -> int: ...
    @property
    def output_bits(self) -> int: ...
    @property
    def noise_relative(self) -> float: ...
    @property
    def noise_additive(self) -> float: ...
    @property
    def noise_shot(self) -> float: ...


def bits_text(hardware: Hardware) -> str:
    """The bits of input, weight and output as ``8/4/8``, "-" for an analog or absent stage."""
    return "/".join(str(bits or "-") for bits in (hardware.input_bits, hardware.weight_bits, hardware.output_bits))


def noise_text(hardware: Hardware) -> str:
    """The laws of noise that are on, with their levels; "none" where none is."""
    laws = ("relative", "additive", "shot")
    levels = [f"{law} {level:g}" for law in laws if (level := getattr(hardware, f"noise_{law}"))]
    return ", ".join(levels) or "none"


def visible(words: str, *, keep: str = "") -> str:
    r"""The words with an escape, such as ``\x1b`` or ``\u202e``, for each character that cannot be seen.

    These are the ones that a terminal obeys (controls, line breaks and tabs too, marks of direction), that show nothing
    (joiners), and that Unicode has not assigned. `keep` are some to leave.
    """

    def shown(match: re.Match[str]) -> str:
        return match[0] if _is_seen(match[0]) or match[0] in keep else _escape(match[0])

    return _NOT_ASCII.sub(shown, words)


def text(*lines: str, style: str = "") -> Text:
    """Lines for a rich console, :func:`visible`; nothing in them is markup."""
    from rich.text import Text

    return Text("\n".join(map(visible, lines)), style=style)


def _is_seen(character: str) -> bool:
    # Spaces of other widths count as not printable.
    return character.isprintable() or (character.isspace() and character > "\x9f" and character not in "\u2028\u2029")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
