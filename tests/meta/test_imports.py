"""Which part may import which, and what importing costs."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lumina_onnx

PACKAGE = Path(lumina_onnx.__file__).parent
# A part imports from itself and from the parts before it.
ORDER = ["", "nn", "exporter", "sweeping", "cli"]
# What a part may import at module level, besides numpy, the kernel and the standard library.
ALLOWED = {
    "": set(),
    "nn": {"torch", "rich"},
    "exporter": {"torch", "onnx", "onnxscript", "onnx_ir", "rich"},
    "sweeping": {"torch", "onnx", "onnx_ir", "rich"},
    "cli": {"typer", "rich"},
}
HEAVY = {"torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "typer", "rich", "sklearn", "mlxtend"}
HEAVY |= {"joblib", "cloudpickle", "threadpoolctl", "pyarrow", "matplotlib", "ray", "dask", "distributed"}
# The package's page also names what parts above it offer, which it imports when they are asked for.
PAGE = PACKAGE / "__init__.py"


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The part of the package that a module belongs to: "" is the package's own level."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0] if parts[0] in ORDER else ""


def imported(path: Path, whole: bool) -> Iterator[str]:
    """The absolute names that a module imports: at module level, or with `whole` in functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    within = ["lumina_onnx", *path.relative_to(PACKAGE).with_suffix("").parts]
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = within[: len(within) - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        is_type_checking = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if whole or not (is_function or is_type_checking):
            pending.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own = ORDER.index(part(path))
    for name in imported(path, whole=path != PAGE):
        words = name.split(".")
        assert words[0] not in ("export", "benchmarks", "tests"), f"{name}: that folder is not installed"
        if words[0] == "lumina_onnx" and len(words) > 1 and words[1] in ORDER:
            assert ORDER.index(words[1]) <= own, f"{path} imports {name}, which stands above it"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_where_they_belong(path: Path) -> None:
    heads = {name.split(".")[0] for name in imported(path, whole=False)}
    assert heads & HEAVY <= ALLOWED[part(path)]


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_modules_import_each_other() -> None:
    known = {dotted(path) for path in modules()}
    graph: dict[str, set[str]] = {name: set() for name in known}
    for path in modules():
        for name in imported(path, whole=path != PAGE):
            module = name if name in known else name.rpartition(".")[0]
            graph[dotted(path)].update({module} & known)
    assert "lumina_onnx.nn._kernel" in graph["lumina_onnx.nn._dispatch"]
    graphlib.TopologicalSorter(graph).prepare()  # raises with the circle


def run(script: str) -> str:
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


HIDE = "import sys\nfor name in {names!r}: sys.modules[name] = None\n"
LOADED = "print(sorted({names!r} & set(sys.modules)))"


def test_importing_the_package_needs_numpy_alone() -> None:
    names = HEAVY
    script = HIDE.format(names=sorted(names)) + (
        "import lumina_onnx, lumina_onnx.reference, lumina_onnx.schema, lumina_kernel, numpy as np\n"
        "x = np.ones((2, 4), np.float32)\n"
        "assert lumina_kernel.optical_linear_forward(x, x, None, 0.1, 8).shape == (2, 2)\n"
        "print(lumina_onnx.library_path(), lumina_onnx.OpticalProfile().weight_bits)"
    )
    assert run(script).endswith(".so 8")


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert run("import sys, lumina_onnx\n" + LOADED.format(names=HEAVY)) == "[]"


def test_running_a_model_without_onnxruntime_says_so() -> None:
    script = HIDE.format(names=["onnxruntime"]) + (
        "import lumina_onnx\ntry:\n    lumina_onnx.load('model.onnx')\nexcept ImportError as error:\n    print(error)"
    )
    assert "onnxruntime" in run(script)


def test_public_names() -> None:
    assert set(lumina_onnx.__all__) <= set(dir(lumina_onnx))
