"""Making text from outside, such as the names in a model's file, safe to show on a terminal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

_NOT_ASCII = re.compile(r"[^ -~]")


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
