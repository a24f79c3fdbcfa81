"""Hooks of the site beyond Markdown: the repository's address, and links to files outside docs/."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def address() -> str:
    """The repository's address, as pyproject.toml states it.

    Raises:
        ValueError: pyproject.toml states none.
    """
    found = re.search(r'^Repository = "([^"]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError("pyproject.toml has no Repository under [project.urls]")
    return found[1]


def on_config(config: Any) -> Any:
    """Tells the theme where the sources are."""
    config.repo_url = address()
    config.repo_name = "Source"
    return config


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Points links that leave docs/ to the repository. A link to a missing file stays and so fails the build."""
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def replaced(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        if target.startswith("docs/") or not (ROOT / target).exists():
            return match[0]
        return f"{match[1]}{address()}/blob/main/{target}{match[3] or ''})"

    return LINK.sub(replaced, markdown)
