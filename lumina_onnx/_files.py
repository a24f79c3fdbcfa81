"""Files that are written whole or not at all."""

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


def _mode(target: str | os.PathLike[str]) -> int | None:
    """The kind and the permissions of what is there; None where nothing is."""
    try:
        return os.stat(target).st_mode
    except FileNotFoundError:
        return None
