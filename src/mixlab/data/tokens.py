"""Token files: arrays of token ids on disk, memory-mapped, in a cache that cannot serve the wrong text.

An entry is a folder named by a key that covers everything the tokens depend on. It is written under a
temporary name, fsynced and renamed, and read only if every file in it has the size and the sha256 that its
list says.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixlab.data.tokenizer import FILE_NAME, Tokenizer, load_tokenizer
from mixlab.errors import UserError

_LIST = "files.json"

# Temporary folders of killed processes are removed once no living process can still be writing them.
_ABANDONED_SECONDS = 24 * 3600


@dataclass(frozen=True)
class TokenFile:
    """A stream of token ids that starts with 0; every later token is predicted once.

    `tokens` is 1-D, uint8, uint16 or uint32, usually memory-mapped and read-only. `num_bytes` is what those
    predictions cover: the documents' UTF-8 bytes and one for each document's end.
    """

    tokens: np.ndarray
    num_bytes: int

    def __len__(self) -> int:
        return len(self.tokens)


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

    def load(self, key: str) -> tuple[Tokenizer, dict[str, np.ndarray]] | None:
        """The entry of `key`, its arrays memory-mapped; None when there is none or it is damaged."""
        folder = self.root / key
        try:
            files = json.loads((folder / _LIST).read_bytes())
            if not all(_fingerprint(folder / name) == mark for name, mark in files.items()):
                return None
            names = [name for name in files if name.endswith(".npy")]
            arrays = {name.removesuffix(".npy"): np.load(folder / name, mmap_mode="r") for name in names}
            return load_tokenizer(folder), arrays
        except (OSError, ValueError, AttributeError, EOFError, UserError):
            return None

    def store(
        self, key: str, tokenizer: Tokenizer, arrays: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Write the entry and return its arrays memory-mapped; `OSError` when that cannot be done."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._sweep()
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.root))
        try:
            tokenizer.save(temporary)
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", array)
            names = [FILE_NAME, *(f"{name}.npy" for name in arrays)]
            marks = {name: _fingerprint(temporary / name) for name in names}
            (temporary / _LIST).write_text(json.dumps(marks))
            for name in [*names, _LIST]:
                _fsync(temporary / name)
            return self._publish(temporary, key)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _publish(self, temporary: Path, key: str) -> dict[str, np.ndarray]:
        final = self.root / key
        try:
            temporary.rename(final)
        except OSError:
            # Another process was first, or a damaged entry is in the way.
            if self.load(key) is None and final.exists():
                damaged = Path(tempfile.mkdtemp(prefix=".damaged-", dir=self.root))
                final.rename(damaged / "entry")
                shutil.rmtree(damaged, ignore_errors=True)
            if not final.exists():
                temporary.rename(final)
        _fsync(self.root)
        entry = self.load(key)
        if entry is None:
            raise OSError(f"what was written to '{final}' reads back differently")
        return entry[1]

    def _sweep(self) -> None:
        oldest = time.time() - _ABANDONED_SECONDS
        for folder in self.root.glob(".*-*"):
            try:
                if folder.stat().st_mtime < oldest:
                    shutil.rmtree(folder, ignore_errors=True)
            except FileNotFoundError:  # another process swept it
                continue


def _fingerprint(path: Path) -> list[int | str]:
    """[size in bytes, sha256 in hex] of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return [file.tell(), digest.hexdigest()]


def _fsync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder, and needs no such call
    handle = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
