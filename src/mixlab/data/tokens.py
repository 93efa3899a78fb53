"""Token files: arrays of token ids on disk, memory-mapped, in a cache that cannot serve the wrong text.

An entry is a folder named by a key that covers everything the tokens depend on:

    KEY/NAME.npy         one flat array a side: a reader maps it and knows of nothing else
        tokenizer.json
        counts.json      side -> what each source gave: tokens, bytes, documents, unknown characters
        files.json       name -> [size, sha256] of the files above

It is built in `.building-KEY` (see `mixlab.data.building`), renamed when it is whole and on the disk, and
read only if every file in it has the size and the sha256 that its list says.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixlab.data.tokenizer import FILE_NAME, Tokenizer, load_tokenizer
from mixlab.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LIST, _COUNTS = "files.json", "counts.json"
_BUILDING = ".building-"

# Bytes of a mapped file that may be held, and the most of it that comes with a byte that is read: Linux maps
# what it has around it too, up to a huge page.
_HELD_PAGES, _FAULT = 1 << 27, 1 << 21

# What a killed process left is removed when nobody has gone on with it for a week, a weekend included.
_ABANDONED_SECONDS = 7 * 24 * 3600


@dataclass
class Count:
    """What one source gave to one side; bytes: the documents' in UTF-8, and one for each document's end."""

    tokens: int = 0
    bytes: int = 0
    documents: int = 0
    unknown: int = 0


Counts = dict[str, list[Count]]
"""Side -> one count a source."""


class Entry(NamedTuple):
    """What the cache holds under one key, its arrays memory-mapped."""

    tokenizer: Tokenizer
    arrays: dict[str, np.ndarray]
    counts: Counts


@dataclass(frozen=True)
class Part:
    """What one source of a mixture gave to a stream: `tokens[start:stop]`, itself a stream that starts with
    0."""

    name: str
    start: int
    stop: int
    num_bytes: int
    num_documents: int

    def of(self, tokens: np.ndarray) -> np.ndarray:
        """The part of the stream that is this source's."""
        return tokens[self.start : self.stop]


@dataclass(frozen=True)
class TokenFile:
    """A stream of token ids that starts with 0; every later token is predicted once.

    `tokens` is 1-D, uint8, uint16 or uint32, usually memory-mapped and read-only. `num_bytes` is what those
    predictions cover: the documents' UTF-8 bytes and one for each document's end. `parts`: the sources of a
    mixture, in order; neighbours share the 0 between them.

    How it is to be evaluated: `scored` tokens of it (0: all), and whether documents are kept `apart`.
    """

    tokens: np.ndarray
    num_bytes: int
    num_documents: int = 1
    parts: tuple[Part, ...] = ()
    scored: int = 0
    apart: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    def each(self) -> tuple[Part, ...]:
        """The parts, or the whole as one without a name."""
        return self.parts or (Part("", 0, len(self.tokens), self.num_bytes, self.num_documents),)


class Pages:
    """Lets go of the pages of a memory-mapped array that were read, now and then.

    They are the system's to drop, but until it wants them they count as this process's memory, in the end
    the whole file's size.
    """

    def __init__(self, tokens: np.ndarray) -> None:
        large = tokens.nbytes > _HELD_PAGES and hasattr(mmap, "MADV_DONTNEED")
        self._map = getattr(tokens, "_mmap", None) if large else None
        self._itemsize, self._read = tokens.itemsize, 0

    def read(self, rows: int, length: int) -> None:
        """So many rows of so many tokens each are about to be read."""
        if self._map is not None:
            self._read += rows * (length * self._itemsize + _FAULT)
            if self._read > _HELD_PAGES:
                self._map.madvise(mmap.MADV_DONTNEED)
                self._read = 0


def check_length(what: str, tokens: int, context: int) -> None:
    """UserError for fewer than `context` + 1 tokens."""
    if tokens < context + 1:
        raise UserError(
            f"{what} is {tokens} tokens long, fewer than the context of {context} + 1: "
            f"give a longer text or a context of at most {tokens - 1}"
        )


def default_cache_dir() -> Path:
    """`$MIXLAB_CACHE`, else the platform's folder for caches; it need not exist and can be deleted at any
    time."""
    chosen = os.environ.get("MIXLAB_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32" and "LOCALAPPDATA" in os.environ:
        return Path(os.environ["LOCALAPPDATA"], "mixlab", "cache")
    if sys.platform == "darwin":
        return Path("~/Library/Caches/mixlab").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "mixlab")


class TokenCache:
    """Entries of token arrays with their tokenizer, under `root`; safe for several processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root) / "tokens"

    def load(self, key: str) -> Entry | None:
        """The entry of `key`; None when there is none or it is damaged."""
        return read_entry(self.root / key)

    def obtain(self, key: str, build: Callable[[Path], None], waiting: Callable[[], None]) -> Entry:
        """The entry of `key`; if there is none, `build` is given the folder in which to make one.

        What an earlier build left, killed midway, is still in that folder. `waiting` is called if another
        process is building the entry; it is then waited for. Raises OSError when the cache cannot be
        written; the folder is then removed, for the disk may be full.
        """
        entry = self.load(key)
        while entry is None:
            self.root.mkdir(parents=True, exist_ok=True)
            self._sweep()
            with _claimed(self.root / f"{_BUILDING}{key}", waiting) as folder:
                entry = self.load(key)  # another process may just have finished it
                if entry is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    break
                try:
                    if read_entry(folder) is None:  # else a process was killed just before the renaming
                        build(folder)
                    entry = self._publish(folder, key)
                except OSError:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
        return entry

    def _publish(self, folder: Path, key: str) -> Entry:
        final = self.root / key
        whole = json.loads((folder / _LIST).read_bytes())
        for path in folder.iterdir():
            if path.name not in (_LIST, *whole):
                path.unlink()  # a builder's own
        try:
            folder.rename(final)
        except OSError:
            # A damaged entry is in the way, or, where there are no locks, that of a process that was first.
            if self.load(key) is None:
                damaged = Path(tempfile.mkdtemp(prefix=".damaged-", dir=self.root))
                final.rename(damaged / "entry")
                shutil.rmtree(damaged, ignore_errors=True)
                folder.rename(final)
            else:
                shutil.rmtree(folder, ignore_errors=True)
        fsync(self.root)
        entry = self.load(key)
        if entry is None:
            raise OSError(f"what was written to '{final}' reads back differently")
        return entry

    def _sweep(self) -> None:
        oldest = time.time() - _ABANDONED_SECONDS
        for folder in self.root.glob(".*-*"):
            with contextlib.suppress(OSError):  # another process sweeps it, or works in it
                if max(path.stat().st_mtime for path in (folder, *folder.iterdir())) < oldest:
                    with _lock(folder, wait=False):
                        shutil.rmtree(folder, ignore_errors=True)


def read_entry(folder: Path) -> Entry | None:
    """The entry in a folder; None when it is not whole or damaged."""
    try:
        files = json.loads((folder / _LIST).read_bytes())
        if not all(fingerprint(folder / name) == mark for name, mark in files.items()):
            return None
        names = [name for name in files if name.endswith(".npy")]
        arrays = {name.removesuffix(".npy"): np.load(folder / name, mmap_mode="r") for name in names}
        counts = json.loads((folder / _COUNTS).read_bytes())
        parts = {side: [Count(**count) for count in counts[side]] for side in arrays}
        return Entry(load_tokenizer(folder), arrays, parts)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, UserError):
        return None


def complete_entry(folder: Path, names: list[str], counts: Counts) -> None:
    """Make of the arrays `names` and the tokenizer in a folder, all on the disk, a whole entry."""
    parts = {side: [asdict(count) for count in counts[side]] for side in names}
    (folder / _COUNTS).write_text(json.dumps(parts))
    files = [FILE_NAME, _COUNTS, *(f"{name}.npy" for name in names)]
    fsync(folder / _COUNTS)
    (folder / _LIST).write_text(json.dumps({name: fingerprint(folder / name) for name in files}))
    fsync(folder / _LIST)
    fsync(folder)


@contextlib.contextmanager
def _claimed(folder: Path, waiting: Callable[[], None]) -> Iterator[Path]:
    """`folder`, made if it is not there, for this process alone; the system lets it go with the process.

    Where there are no locks (Windows, some network disks) it is a folder of this process's own, and what an
    earlier one left is not gone on with.
    """
    while True:
        with contextlib.suppress(FileExistsError):  # not exist_ok: it may be renamed while that looks
            folder.mkdir()
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(_lock(folder, wait=False))
            except FileNotFoundError:
                continue  # the other process has just renamed or removed it
            except BlockingIOError:
                waiting()
                with contextlib.suppress(FileNotFoundError), _lock(folder, wait=True):
                    pass
                continue
            except OSError:
                folder = folder.with_name(f"{folder.name}-{os.getpid()}")
                folder.mkdir(exist_ok=True)
            yield folder
            return


@contextlib.contextmanager
def _lock(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of a folder, which is that of the same folder under another name.

    BlockingIOError if another process holds it and that is not waited for, FileNotFoundError if the folder is
    no longer there once it is held, OSError where there are no locks.
    """
    if fcntl is None:
        raise OSError("this system has no file locks")
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if folder.stat().st_ino != os.fstat(handle).st_ino:
            raise FileNotFoundError
        yield
    finally:
        os.close(handle)


def fingerprint(path: Path) -> list[int | str]:
    """[size in bytes, sha256 in hex] of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return [file.tell(), digest.hexdigest()]


def fsync(path: Path) -> None:
    """Make what is in a file, or which names are in a folder, outlive a power cut."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder, and needs no such call
    handle = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
