"""Writes the generated parts of docs/, or with --check says whether they are as they should be.

The operator's table of parameters comes from the kernel itself.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lumina_onnx.schema import PARAMETERS, Parameter

PAGE = Path(__file__).with_name("operator.md")
BEGIN = "<!-- begin: parameters, written by docs/generate.py -->"
END = "<!-- end: parameters -->"


def row(parameter: Parameter) -> str:
    """One row of the table."""
    default = "" if parameter.default is None else str(parameter.default)
    cells = (f"`{parameter.name}`", parameter.type, parameter.place, parameter.allowed, default, parameter.meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table() -> str:
    """The table of parameters in Markdown."""
    head = ["| name | type | place | allowed | default | meaning |", "|---|---|---|---|---|---|"]
    return "\n".join(head + [row(parameter) for parameter in PARAMETERS])


def rendered(page: str) -> str:
    """`page` with the generated part as it should be.

    Raises:
        ValueError: The page lacks the marks of that part.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE.name} lacks the marks {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> int:
    """Writes, or checks; 1 where a check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where something would change")
    check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    wanted = rendered(page)
    if page == wanted:
        return 0
    if check:
        print(f"{PAGE.name}: the table of parameters is not the kernel's: run `make docs`", file=sys.stderr)
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
