"""Runs the example of docs/guides/boards.md as on a board, in the Python that runs this: LIBRARY TIER...

It must print what the page says it prints (which the tests run on this project's own machines too) with each tier.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "guides" / "boards.md"


def main(library: str, *tiers: str) -> None:
    """Fails if the processor lacks a tier, or if the output is another."""
    text = PAGE.read_text(encoding="utf-8")
    example = re.search(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert example is not None, f"{PAGE} has no Python block with its output right after it"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("liblumina_ort.so").symlink_to(Path(ROOT, library))
        Path("digits-4bit.onnx").symlink_to(ROOT / "models" / "digits-4bit.onnx")
        for tier in tiers:
            os.environ["LUMINA_ISA"] = tier
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(example[1], {"__name__": "__main__"})
            printed = output.getvalue()
            assert printed == example[2], f"{tier}: the example prints {printed!r}, the page says {example[2]!r}"
            sys.stdout.write(f"{tier}: {printed}")


if __name__ == "__main__":
    main(*sys.argv[1:])
