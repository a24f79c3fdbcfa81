"""Checks built files without loading them: [--machine NAME] [--glibc VERSION] FILE...

A file is a wheel or a library: `liblumina_ort.so`, for hosts without Python, or the Python extension. The machine is
this one by default. Without a limit, a library may need whichever glibc its wheel's tag names. Needs nm and readelf.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

NEEDED = {
    "lumina_kernel/__init__.pyi",
    "lumina_kernel/py.typed",
    "lumina_onnx/py.typed",
    "licenses/LICENSE",
    "licenses/THIRD-PARTY-NOTICES.txt",
}
#: As readelf names them.
MACHINES = {"x86_64": "Advanced Micro Devices X86-64", "aarch64": "AArch64"}
OPERATOR, MODULE = "RegisterCustomOps", "PyInit_lumina_kernel"

Version = tuple[int, ...]


class Failure(Exception):
    """What is wrong with a file."""


def version_of(text: str) -> Version:
    return tuple(map(int, text.split(".")))


def check(condition: bool, problem: str) -> None:
    if not condition:
        raise Failure(problem)


def tool(*command: object) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def check_library(path: Path, machine: str, glibc: Version | None, *, extension: bool) -> str:
    """Checks the Python extension or the library for other hosts; returns what it needs."""
    check(f"Machine:{MACHINES[machine]}" in re.sub(r": +", ":", tool("readelf", "-h", path)), f"is not for {machine}")
    exports = {line.split()[-1] for line in tool("nm", "-D", "--defined-only", path).splitlines()}
    allowed = {OPERATOR, MODULE} if extension else {OPERATOR}
    check(exports == allowed, f"exports {', '.join(sorted(exports))}: allowed is {', '.join(sorted(allowed))}")
    check("NODELETE" in tool("readelf", "-d", path), "is not marked NODELETE")
    debug = re.findall(r"\] (\.symtab|\.debug_\w+) ", tool("readelf", "-S", "-W", path))
    check(not debug, f"is not stripped: it has {', '.join(debug)}")

    undefined = [line.split()[-1] for line in tool("nm", "-D", "--undefined-only", path).splitlines()]
    python = [name for name in undefined if re.match(r"_?Py", name)]
    check(extension or not python, f"asks for {', '.join(python)} of Python")
    # On aarch64 they are instructions: as calls they would be right, but very slow.
    calls = [name for name in undefined if re.match(r"fmaf?(@|$)", name)]
    check(machine != "aarch64" or not calls, f"calls {', '.join(calls)} for multiply-adds")

    needed = max(map(version_of, re.findall(r"\bGLIBC_([\d.]+)", tool("readelf", "-V", "-W", path))), default=(0,))
    needs = f"glibc {'.'.join(map(str, needed))}"
    check(glibc is None or needed <= glibc, f"needs {needs}: allowed is up to {'.'.join(map(str, glibc or ()))}")
    return needs


def check_names(names: Iterable[str]) -> None:
    """Checks which files a wheel holds."""
    strange = [
        name for name in names if not re.match(r"lumina_kernel/|lumina_onnx/|lumina_onnx-[^/]*\.dist-info/", name)
    ]
    check(not strange, f"holds what is not of the package: {', '.join(strange)}")
    general = {re.sub(r"^[^/]*\.dist-info/", "", name) for name in names}
    missing = sorted(NEEDED - general)
    check(not missing, f"lacks {', '.join(missing)}")


def glibc_of_tag(name: str, machine: str) -> Version | None:
    """The glibc that a wheel's name promises to be enough; None if it was built for this machine alone."""
    tag = re.fullmatch(rf"lumina_onnx-[^-]+-cp310-abi3-(linux|manylinux_(\d+)_(\d+))_{machine}(\.\w+)?\.whl", name)
    check(tag is not None, f"its name is not lumina_onnx-VERSION-cp310-abi3-manylinux_MAJOR_MINOR_{machine}.whl")
    assert tag is not None
    return None if tag[1] == "linux" else (int(tag[2]), int(tag[3]))


def check_wheel(path: Path, machine: str, glibc: Version | None) -> str:
    """Checks a wheel and the extension in it; returns what that needs."""
    promised = glibc_of_tag(path.name, machine)
    if glibc is not None:
        check(promised is not None and promised <= glibc, "its name promises no such old glibc as is asked for")
    with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
        names = wheel.namelist()
        check_names(names)
        libraries = [name for name in names if re.search(r"\.so(\.|$)", name)]
        check(libraries == ["lumina_kernel/lumina_kernel.abi3.so"], f"has the libraries {', '.join(libraries)}")
        return check_library(Path(wheel.extract(libraries[0], folder)), machine, promised, extension=True)


def main() -> None:
    """Checks the files, and prints their sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--machine", choices=MACHINES, default=platform.machine())
    parser.add_argument("--glibc", type=version_of, help="the newest glibc that may be needed")
    arguments = parser.parse_args()
    for path in arguments.files:
        try:
            if path.suffix == ".whl":
                needs = check_wheel(path, arguments.machine, arguments.glibc)
            else:
                extension = path.name != "liblumina_ort.so"
                needs = check_library(path, arguments.machine, arguments.glibc, extension=extension)
        except Failure as failure:
            raise SystemExit(f"{path}: {failure}") from None
        print(f"{path}: {path.stat().st_size} bytes, stripped, needs {needs}")


if __name__ == "__main__":
    main()
