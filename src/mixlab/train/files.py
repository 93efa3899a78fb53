"""Writing files so that a crash leaves the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from mixlab.errors import RunFailed, UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def disk_errors(what: str, *, failure: type[UserError] | type[RunFailed] = RunFailed) -> Iterator[None]:
    """Turn an OSError inside into `failure` with one sentence: what could not be written, where and why."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise failure(f"cannot write {what}{where}: {error.strerror or error}") from error


LONGEST_NAME = 255
"""Bytes of a file's name on nearly every file system."""


def check_name(path: Path) -> None:
    """UserError for a path that no file can have, here: a name too long, a NUL in it, links in a circle."""
    shown = str(path) if len(str(path)) <= 80 else f"{str(path)[:77]}..."
    try:
        if max((len(os.fsencode(part)) for part in path.parts), default=0) > LONGEST_NAME:
            raise OSError(
                errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG)
            )  # before folders are made for it
        path.stat()
    except ValueError:
        raise UserError(f"{shown!r} cannot be the name of a file: it holds a NUL or is not text") from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise UserError(f"{shown}: {(error.strerror or str(error)).lower()}") from None


def fsync(path: Path) -> None:
    """Make what is in the file, or which names are in the folder, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace the file by `text` at once; an OSError names the file, not what it is first written as."""
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.tmp")  # as long a name may be too long
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        fsync(temporary)
        temporary.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        with contextlib.suppress(OSError):  # gone, or never made: on a read-only disk even that is refused
            temporary.unlink()
    fsync(path.parent)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


LOCKS = fcntl is not None
"""Whether the system has locks that it releases with the process, however it ends."""


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Take the lock of an open folder, for as long as it is open; False if another process holds it."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def hold(folder: Path, what: str) -> Iterator[None]:
    """Hold the folder, made if it is not there, for this process; UserError if another one has it.

    what: what the other process would be writing, for the message. A folder that was made here goes again if
    a UserError comes out of the body and nothing was put into it. The system releases the lock with the
    process, however it ends; where there are none (Windows, some network disks), two processes are not told
    apart.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    with disk_errors(f"to {folder}", failure=UserError):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY) if LOCKS else None
    try:
        free = True
        if handle is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                free = try_lock(handle)
        if not free:
            raise UserError(
                f"{folder} is in use: another process is writing this {what}; wait for it or stop it"
            )
        yield
    except UserError:
        with contextlib.suppress(OSError):  # one that is not empty stays
            for place in made:
                place.rmdir()
        raise
    finally:
        if handle is not None:
            os.close(handle)


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of the folder; True where that cannot be known."""
    if not LOCKS:
        return True
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return not try_lock(descriptor, shared=True)
    except OSError:  # a file system without locks
        return True
    finally:
        os.close(descriptor)
