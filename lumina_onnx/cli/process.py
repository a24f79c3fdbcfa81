"""The command as a process: the signals that end it, and what libraries write to its terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from lumina_onnx._text import visible

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class _Ended(BaseException):
    """Raised where a signal asks the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP end the block with an exception, so that no file is left half written, then the process.

    A signal that the process ignores, as under nohup, stays ignored.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    try:
        yield
    except _Ended as ended:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        # End by the signal itself, as if it had not been caught: a parent looks at how its child ended.
        os.kill(os.getpid(), ended.number)


def _end(number: int, frame: FrameType | None) -> None:
    # A second signal ends the process at once.
    for each in _SIGNALS:
        if signal.getsignal(each) is _end:
            signal.signal(each, signal.SIG_DFL)
    raise _Ended(number)


def guard_terminal() -> None:
    """Sends log records and warnings of libraries to stderr, made :func:`visible`, and escapes what is unencodable."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(_Visible())
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)


class _Visible(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), keep="\n\t")
