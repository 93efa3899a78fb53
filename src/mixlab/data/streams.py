"""Texts that can be read only once: standard input and pipes. They are kept, to be read again."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import copyfileobj
from typing import BinaryIO, cast

from mixlab.data.formats import BLOCK
from mixlab.data.sources import DESCRIPTORS, as_path
from mixlab.errors import RunFailed, UserError

STDIN = "-"

HELD_BYTES = 1 << 25
"""A text of at most so much (32 MiB) stays in memory; a larger one is read again when it is needed, and of a
stream kept in a file."""


def is_stream(source: str) -> bool:
    """Whether `source` is standard input, a pipe, or a descriptor that this process alone has."""
    if source == STDIN:
        return True
    try:
        path = as_path(source)
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or (stat.S_ISREG(mode) and str(path).startswith(DESCRIPTORS))


@contextlib.contextmanager
def opened(source: str) -> Iterator[BinaryIO]:
    """The stream, to be read once. UserError for a standard input that is closed or a device."""
    if source != STDIN:
        with as_path(source).open("rb") as stream:
            yield stream
        return
    if sys.stdin is None or sys.stdin.closed:
        raise UserError(
            "standard input is closed: pipe a text into the command, or name a file in place of '-'"
        )
    with contextlib.suppress(OSError):  # not one of the system's
        number = sys.stdin.fileno()
        if stat.S_ISCHR(os.fstat(number).st_mode) and not os.isatty(number):
            raise UserError("standard input is a device, not a text: pipe a text or a file into the command")
    yield sys.stdin.buffer


def keep(source: str, folder: Path | None) -> BinaryIO:
    """The whole stream, to be read more than once: in memory, beyond HELD_BYTES in a file without a name.

    `RunFailed` where it cannot be kept.
    """
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = None  # the system's own folder for such files
    kept = tempfile.SpooledTemporaryFile(max_size=HELD_BYTES, dir=str(folder) if folder else None)  # noqa: SIM115
    try:
        with opened(source) as stream:
            copyfileobj(stream, kept, BLOCK)
    except OSError as error:
        kept.close()
        what, where = shown(source), folder or tempfile.gettempdir()
        raise RunFailed(f"{what} cannot be kept in '{where}': {error.strerror or error}") from None
    except UserError:
        kept.close()
        raise
    return cast(BinaryIO, kept)


def shown(source: str) -> str:
    """A stream in a sentence."""
    return "standard input" if source == STDIN else f"'{source}'"


def to_give_again(sources: Sequence[str]) -> str:
    """What a command that reads these sources once more must be given, as a clause; "" for files."""
    streams = [shown(source) for source in sources if is_stream(source)]
    return f" with the same text on {' and '.join(streams)}" if streams else ""
