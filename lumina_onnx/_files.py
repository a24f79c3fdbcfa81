"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A file to write in place of `target`, which takes its name when the block ends.

    Until then, and where the block raises whatever it may, `target` is what it was, and nothing else is left in its
    folder. A file that is replaced leaves its permissions to the new one; where there was none the umask decides. Of a
    symbolic link the file that it points to is replaced. What is no regular file (a pipe, a device) cannot be: the
    block gets it itself.

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
        # Its ending may say what is to be written into it. With more of the name it could be too long.
        temporary = file.with_name(f".lumina-{secrets.token_hex(8)}{file.suffix}")
        try:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if mode is None else 0o600))
            yield temporary
            if mode is not None:
                temporary.chmod(stat.S_IMODE(mode))
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
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
