"""Writes THIRD-PARTY-NOTICES.txt, or with --check tells whether it is up to date.

The libraries contain code from other crates, whose licences require that copyright notices and terms accompany it: the
wheel carries the file, and whoever distributes `liblumina_ort.so` must include it. It is made from cargo's list of
linked crates and from the texts that the crates carry. cargo does not list Rust's own library; the notice for it is in
standard-library.txt.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NOTICES = ROOT / "THIRD-PARTY-NOTICES.txt"
STANDARD_LIBRARY = Path(__file__).with_name("standard-library.txt")
#: It links everything that `liblumina_ort.so` links, and more.
ROOT_CRATE = "lumina-python"
PLATFORMS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu")
TEXTS = ("COPYRIGHT*", "COPYING*", "LICENSE*", "LICENCE*", "NOTICE*", "UNLICENSE*")
RULE = "-" * 100 + "\n"
HEAD = """\
Third-party notices of LuminaKernel

The Python module lumina_kernel, and the part of it that is liblumina_ort.so, link the crates below and parts of Rust's
standard library. Their copyright notices and licences follow. Where a crate may be used under the MIT licence or
the Apache License 2.0, its MIT licence is given.

"""


def linked(platform: str) -> list[dict[str, Any]]:
    """The third-party packages that are linked on `platform`. Macros run in the compiler and are not linked."""
    command = ["cargo", "metadata", "--locked", "--format-version=1", f"--filter-platform={platform}"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    needed = {
        node["id"]: [dep["pkg"] for dep in node["deps"] if any(kind["kind"] is None for kind in dep["dep_kinds"])]
        for node in metadata["resolve"]["nodes"]
    }
    pending = [identity for identity, package in packages.items() if package["name"] == ROOT_CRATE]
    found: dict[str, dict[str, Any]] = {}
    while pending:
        package = packages[identity := pending.pop()]
        if identity in found or any("proc-macro" in target["kind"] for target in package["targets"]):
            continue
        found[identity] = package
        pending += needed[identity]
    return [package for package in found.values() if package["source"] is not None]


def texts(package: dict[str, Any]) -> list[str]:
    """The notices and licences that a package carries.

    Raises:
        FileNotFoundError: The package carries none.
    """
    folder = Path(package["manifest_path"]).parent
    files = sorted({path for pattern in TEXTS for path in folder.glob(pattern) if path.is_file()})
    if any("MIT" in path.name for path in files):
        files = [path for path in files if "APACHE" not in path.name]
    if not files:
        raise FileNotFoundError(f"{package['name']} {package['version']} carries no licence: {folder} has no {TEXTS}")
    return [path.read_text(encoding="utf-8").strip() + "\n" for path in files]


def rendered() -> str:
    """The correct content of the file."""
    packages = {(p["name"], p["version"]): p for platform in PLATFORMS for p in linked(platform)}
    lines: list[str] = []
    owners: dict[str, list[str]] = {}
    for (name, version), package in sorted(packages.items()):
        lines.append(f"{name} {version} ({package['license']}): {package['repository'] or package['homepage']}\n")
        for text in texts(package):
            owners.setdefault(text, []).append(f"{name} {version}")
    parts = [f"{', '.join(names)}:\n\n{text}" for text, names in owners.items()]
    return HEAD + "".join(lines) + "".join(f"\n{RULE}{part}" for part in [*parts, STANDARD_LIBRARY.read_text("utf-8")])


def main() -> int:
    """Writes the file, or checks it; returns 1 if a check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where something would change")
    check = parser.parse_args().check
    wanted = rendered()
    if NOTICES.exists() and NOTICES.read_text(encoding="utf-8") == wanted:
        return 0
    if check:
        print(f"{NOTICES.name} is not what the linked crates ask for: run `make notices`", file=sys.stderr)
        return 1
    NOTICES.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
