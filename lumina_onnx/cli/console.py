"""What the commands share: consoles, options, errors, and the import of optional packages."""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lumina_onnx._text import text, visible

_Function = TypeVar("_Function", bound=Callable[..., None])

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A .onnx file.", exists=True, dir_okay=False, readable=True)
]
Input = Annotated[
    Path | None,
    typer.Option(
        "--input",
        "-i",
        exists=True,
        dir_okay=False,
        help="A .npz with an array for each input, or a .npy for a single one. Random numbers by default.",
    ),
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Size of the model's symbolic dimensions in random inputs.")]

# Width of output that does not go to a terminal and has no width set: wide enough for whole columns.
_FILE_WIDTH = 160


class Failure(Exception):
    """An error that the user can act on; its message is one line."""


def command(function: _Function) -> _Function:
    """Turns an exception of a command into exit code 1 and one line on stderr; --debug puts the traceback before it."""

    @functools.wraps(function)
    def wrapper(*args: Any, **arguments: Any) -> None:
        try:
            function(*args, **arguments)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except typer.BadParameter as error:
            error.message = visible(error.message)
            raise
        except Exception as error:
            if arguments.get("debug"):
                fail(_one_line(error), traceback.format_exc().splitlines())
            fail(_one_line(error))

    return wrapper  # type: ignore[return-value]


def fail(message: str, before: Iterable[str] = ()) -> None:
    """Ends the command with exit code 1 and one line on stderr, after the lines `before`."""
    errors().print(*map(text, before), text("error: ", style="bold red") + text(message), sep="\n", soft_wrap=True)
    raise typer.Exit(1)


def _one_line(error: Exception) -> str:
    message = " ".join(str(error).split())
    if message and isinstance(error, (Failure, ValueError, OSError)):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def output() -> Console:
    """The console for results."""
    return _console(stderr=False)


def errors() -> Console:
    """The console for progress and errors, which keeps them out of stdout."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _FILE_WIDTH
    return console


def show(renderable: RenderableType, facts: Mapping[str, Any], as_json: bool) -> None:
    """Prints a result for people, or `facts` as JSON."""
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2, allow_nan=False) + "\n")
    else:
        output().print(renderable)


def need(extra: str, *packages: str) -> None:
    """Imports packages that the base installation lacks.

    Raises:
        Failure: One is missing; the message names it and the extra that installs it.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise Failure(
                f"this command needs the Python package {package}, which cannot be imported ({error}): "
                f'pip install "lumina-onnx[{extra}]"'
            ) from error


@contextmanager
def progress() -> Iterator[Progress]:
    """A progress bar on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors()) as bar:
        yield bar


def size_text(count: int) -> str:
    """A number of bytes in a readable unit."""
    if count < 1024:
        return f"{count} B"
    return f"{count / 1024:.1f} KiB" if count < 2**20 else f"{count / 2**20:.1f} MiB"


def time_text(seconds: float) -> str:
    """A latency in a readable unit."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"
