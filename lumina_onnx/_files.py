"""Files that are written whole or not at all, and what is no file."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A file to write in place of `target`, which is moved there when the block ends.

    Until then, and where the block raises whatever it may, `target` is what it was, and nothing else is left in its
    folder. The file to write has the target's name, in a folder that is its own. One that is replaced leaves its
    permissions to the new one; where there was none the umask decides. Of a symbolic link the file that it points to is
    replaced. What is no regular file (a pipe, a device) cannot be: the block gets it itself.

    Raises:
        OSError: the file cannot be written, as on a full disk; the message names it and says why.
    """
    try:
        mode = _mode(target)
        if mode is not None and not stat.S_ISREG(mode):
            yield Path(target)
            return
        file = Path(os.path.realpath(target))
        if mode is not None and not os.access(file, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with tempfile.TemporaryDirectory(prefix=".lumina-", dir=file.parent) as folder:
            temporary = Path(folder) / file.name
            yield temporary
            if mode is not None:
                temporary.chmod(stat.S_IMODE(mode))
            os.replace(temporary, file)
    except OSError as error:
        named = type(error)(f"path = {os.fspath(target)!r}: cannot be written ({error.strerror or error})")
        named.errno = error.errno
        raise named from error


def kind(mode: int) -> str:
    """What is no regular file, by its `st_mode`."""
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


def check_no_stream(path: str | os.PathLike[str], name: str) -> None:
    """Refuses what may be read without an end, or before anyone writes it; what is not there is for others to say.

    Raises:
        ValueError: a FIFO, a socket or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{name} = {os.fspath(path)!r} is a {kind(mode)}; allowed is a file")


def _mode(target: str | os.PathLike[str]) -> int | None:
    """The kind and the permissions of what is there; None where nothing is."""
    try:
        return os.stat(target).st_mode
    except FileNotFoundError:
        return None
