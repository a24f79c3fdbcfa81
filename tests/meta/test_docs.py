"""The documentation: its examples run, what it names exists, and both languages say the same."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from lumina_onnx import library_path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("models/*.md"), *ROOT.glob("tests/*/*.md")]
)
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
# The Chinese page has the same examples as the English one, word for word.
EXAMPLES = [ENGLISH, *sorted((ROOT / "docs" / "guides").glob("*.md")), ROOT / "docs" / "reference" / "profiles.md"]
FOLDERS = ("benchmarks", "docs", "examples", "export", "lumina_onnx", "models", "rust_op", "tests")


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    language: str
    code: str
    line: int
    """Line number of its first line of code."""
    follows: bool
    """Whether only empty lines separate it from the block before."""


def blocks(text: str) -> list[Block]:
    found: list[Block] = []
    end = 0
    for match in re.finditer(r"^```(\S*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        between = text[end : match.start()]
        line = text.count("\n", 0, match.start()) + 2
        found.append(Block(match[1], match[2], line, bool(found) and not between.strip()))
        end = match.end()
    return found


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def named(pages: list[Path]) -> list[Any]:
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


@pytest.mark.parametrize("page", named(EXAMPLES))
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks of a page run one after another; a text block right after one is what it prints."""
    monkeypatch.chdir(tmp_path)
    # The file that a reader has copied to a board.
    Path("liblumina_ort.so").symlink_to(library_path())
    Path("digits-4bit.onnx").symlink_to(ROOT / "models" / "digits-4bit.onnx")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language == "python":
            output = io.StringIO()
            # With the empty lines, line numbers in a traceback are those of the page.
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            with contextlib.redirect_stdout(output):
                exec(code, namespace)
            printed = output.getvalue()
        elif block.language == "text" and block.follows:
            assert printed == block.code, f"{page.name}, line {block.line}"


def test_a_wrong_output_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md, line 6"):
        test_examples_run(page, tmp_path, monkeypatch)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", named(PAGES))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if target.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", named(PAGES))
def test_paths_exist(page: Path) -> None:
    for span in re.findall(r"`([^`\n]+)`", prose(page.read_text(encoding="utf-8"))):
        if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./*-]*", span):
            assert list(ROOT.glob(span.rstrip("/"))), f"{page.name} names `{span}`"


@pytest.mark.parametrize("page", named(PAGES))
def test_names_exist(page: Path) -> None:
    # Three colons precede a path in the sources, which the build of the site checks.
    text = re.sub(r"^::: .*$", "", prose(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    for name in set(re.findall(r"\blumina_(?:kernel|onnx)(?:\.[A-Za-z_]\w*)+", text)):
        if name.endswith((".pyi", ".json", ".so")):
            continue
        value: Any = importlib.import_module(name.split(".")[0])
        path = value.__name__
        for part in name.split(".")[1:]:
            path = f"{path}.{part}"
            with contextlib.suppress(ImportError):
                importlib.import_module(path)
            assert hasattr(value, part), f"{page.name} names {name}"
            value = getattr(value, part)


def commands(page: Path) -> str:
    """The shell blocks and code spans of a page, one a line."""
    text = page.read_text(encoding="utf-8")
    shell = [block.code for block in blocks(text) if block.language in ("", "sh")]
    return "\n".join(shell + re.findall(r"`([^`\n]+)`", prose(text)))


@pytest.mark.parametrize("page", named(PAGES))
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    asked = set(re.findall(r"^(?:[A-Z_]+=\S+ )*make ([a-z][a-z-]*)", commands(page), re.MULTILINE))
    assert asked <= targets, f"{page.name} names make {asked - targets}"


@pytest.mark.parametrize("page", named(PAGES))
def test_commands_exist(page: Path) -> None:
    app = importlib.import_module("lumina_onnx.cli").app
    known: Any = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for line in re.findall(r"^lumina ([a-z].*)$", commands(page), re.MULTILINE):
        name, *rest = line.partition(" # ")[0].split()
        assert name in known, f"{page.name} names `lumina {name}`"
        options = {option for parameter in known[name].params for option in parameter.opts}
        options |= {"--help"}
        assert {word for word in rest if word.startswith("-")} <= options, f"{page.name}: `lumina {line}`"


def skeleton(page: Path) -> list[tuple[str, Any]]:
    """What both languages must share: levels of headings, code, sizes of tables, links, list entries."""
    text = page.read_text(encoding="utf-8").replace(ENGLISH.name, "THE OTHER").replace(CHINESE.name, "THE OTHER")
    shape: list[tuple[str, Any]] = []
    code = iter(blocks(text))
    inside = False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = not inside
            if inside:
                block = next(code)
                shape.append((f"```{block.language}", without_comments(block)))
        elif inside:
            continue
        elif heading := re.match(r"#+ ", line):
            shape.append(("heading", heading[0]))
        elif line.startswith("|"):
            shape.append(("row", line.count("|")))
        elif line.startswith("- "):
            shape.append(("entry", ""))
        shape.extend(("link", link) for link in re.findall(r"\]\(([^)]+)\)", line) if not inside)
    return shape


def without_comments(block: Block) -> str:
    """A block's code without its comments, which are in the page's own language."""
    if block.language == "text" and not block.follows:
        return ""
    lines = (re.sub(r"(^|\s+)# .*$", "", line) for line in block.code.splitlines())
    return "\n".join(lines)


def test_both_languages_correspond() -> None:
    english, chinese = skeleton(ENGLISH), skeleton(CHINESE)
    for index, (ours, theirs) in enumerate(zip(english, chinese, strict=False)):
        assert ours == theirs, f"element {index}"
    assert len(english) == len(chinese)
