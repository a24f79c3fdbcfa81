"""Writing files whole or not at all, and refusing paths that are pipes, sockets or devices."""

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
    """A temporary file to write; it replaces `target` when the block ends.

    Until then, and if the block raises anything, `target` stays as it was and nothing else is left in its folder. The
    temporary file has the target's name, in a temporary folder of its own beside the target. It takes over the
    permissions of the file it replaces; those of a new file follow the umask. If `target` is a symbolic link, the file
    it points to is replaced. Something other than a regular file (a pipe, a device) cannot be replaced: the block then
    gets `target` itself.

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
    """The word for something that is not a regular file, by its `st_mode`."""
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


def check_no_stream(path: str | os.PathLike[str], name: str) -> None:
    """Refuses a path whose reading may block or never end. A missing file is not an error here.

    Raises:
        ValueError: the path is a FIFO, a socket or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{name} = {os.fspath(path)!r} is a {kind(mode)}; allowed is a file")


def _mode(target: str | os.PathLike[str]) -> int | None:
    """The `st_mode` of `target`, its kind and permissions; None if it does not exist."""
    try:
        return os.stat(target).st_mode
    except FileNotFoundError:
        return None
