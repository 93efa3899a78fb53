"""Standard output and error that outlive their reader: what nobody can read any more is dropped."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO)
"""How a write fails whose reader ended (`| head`), or whose terminal was closed."""


class Outliving(io.RawIOBase):
    """A file to write to that drops all that follows a write that failed, the failed one included.

    every: drop after any failure. Otherwise one that is not in GONE (a full disk) is raised, once.
    """

    def __init__(self, raw: io.RawIOBase, *, every: bool) -> None:
        self.raw, self.every, self.gone = raw, every, False

    def write(self, data: Any) -> int | None:
        """Write, or drop; returns how many bytes were taken."""
        if self.gone:
            return len(data)
        try:
            return self.raw.write(data)
        except OSError as error:
            self.gone = True
            if not (self.every or error.errno in GONE):
                raise
            return len(data)

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The file's own."""
        return self.raw.fileno()

    def isatty(self) -> bool:
        """Whether it is a terminal, and still there."""
        return not self.gone and self.raw.isatty()


def outlive_readers() -> None:
    """Make standard output and error outlive their readers; nothing said on stderr can fail from here on.

    A closed standard error becomes one that drops everything: its number would go to the next file opened,
    and what is said with it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    sys.stderr = outliving(sys.stderr, every=True)
    if sys.stdout is not None:
        sys.stdout = outliving(sys.stdout, every=False)


def outliving(stream: TextIO, *, every: bool) -> TextIO:
    """`stream` as one that outlives its reader; itself where it is no plain file (Windows' console)."""
    if os.name != "posix":
        return stream
    with contextlib.suppress(OSError):  # no file at all
        raw = io.FileIO(stream.fileno(), "w", closefd=False)
        return io.TextIOWrapper(
            io.BufferedWriter(Outliving(raw, every=every)),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=getattr(stream, "line_buffering", True),
            write_through=getattr(stream, "write_through", False),
        )
    return stream


def is_gone(stream: TextIO | None) -> bool:
    """Whether the reader of a stream made by `outliving` went away."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return isinstance(raw, Outliving) and raw.gone
