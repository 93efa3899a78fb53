"""How much of a validation text stands in the training text, word for word."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixlab.data.corpus import Corpus
from mixlab.data.formats import Piece
from mixlab.records import checked, parse_json

WINDOW = 64
"""Bytes that must be equal in a row, about a dozen words: shorter runs are common phrases."""

MOST_WINDOWS = 1 << 17
"""Windows of the validation text that are looked for, evenly spread; their share is then known to 0.2%."""

WORTH_SAYING = 0.001
"""Share below which nothing is said: quotations and headings that two texts have in common."""

_FORMAT = 1
_BLOCK = 1 << 18
_TABLE_BITS = 21  # the table stays in a processor's cache, and one hash in 16 or fewer hits by chance
# Both odd: powers of the first have inverses modulo 2**64, and the second spreads what its high bits hold.
_BASE, _SPREAD = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93
# Line breaks and tabs as spaces, so that a text that was wrapped otherwise is the same.
_SPACES = bytes(32 if byte in b"\t\n\v\f\r" else byte for byte in range(256))


@dataclass(frozen=True)
class Overlap:
    """What a validation text shares with the training text.

    share: of its windows of WINDOW bytes those that stand there too; None if no document is so long. equal:
    its documents that are documents there too, of `documents`.
    """

    share: float | None
    equal: int
    documents: int

    def sentence(self) -> str:
        """What a person should know of it, or ""."""
        said = []
        if self.equal:
            are = "is a training document" if self.equal == 1 else "are training documents"
            said.append(f"{self.equal:,} of the {self.documents:,} validation documents {are} too")
        if self.share is not None and self.share >= WORTH_SAYING:
            said.append(
                f"{self.share:.1%} of the validation text, in runs of {WINDOW} bytes, stands in the training "
                "text word for word"
            )
        return f"{', and '.join(said)}: the loss on them is no measure of unseen text" if said else ""


def overlap(train: Corpus, valid: Corpus, cache: Path, behind: Callable[[int], None]) -> Overlap:
    """What `valid` shares with `train`; kept in `cache`, where that can be written. behind: told how many
    characters of the training text are done."""
    equal = int(np.isin(valid.digests, train.digests).sum())
    named = hashlib.sha256(f"{_FORMAT} {train.sha256} {valid.sha256}".encode()).hexdigest()
    path = cache / "overlap" / f"{named}.json"
    try:
        share = checked(parse_json(path.read_bytes()), dict[str, float | None])["share"]
    except (OSError, ValueError, KeyError):
        share = _share(train, valid, behind)
        _keep(path, share)
    return Overlap(share, equal, len(valid.lengths))


def _keep(path: Path, share: float | None) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({"share": share}))
        temporary.replace(path)
    except OSError:
        pass  # it is computed again


def _share(train: Corpus, valid: Corpus, behind: Callable[[int], None]) -> float | None:
    """The share of the validation text's windows that stand in the training text."""
    step = max(1, -(-valid.bytes // (WINDOW * MOST_WINDOWS)))  # every so many windows one is taken
    taken = []
    for hashes, data in _hashed(valid.pieces()):
        ends = np.cumsum(np.concatenate([[False], data == 0]))
        clean = ends[WINDOW:] == ends[:-WINDOW]  # of one document
        taken.append(hashes[:: WINDOW * step][clean[:: WINDOW * step]])
    wanted = np.concatenate([np.zeros(0, np.uint64), *taken])
    if not len(wanted):
        return None
    sought, often = np.unique(wanted, return_counts=True)
    table = np.zeros(1 << _TABLE_BITS, bool)
    table[_slot(sought)] = True
    found = np.zeros(len(sought), bool)
    for hashes, _ in _hashed(_told(train.pieces(), behind)):
        near = hashes[table[_slot(hashes)]]  # few are left, of which a search is worth it
        at = np.minimum(np.searchsorted(sought, near), len(sought) - 1)
        found[at[sought[at] == near]] = True
    return float(often[found].sum() / often.sum())


def _told(pieces: Iterable[Piece], behind: Callable[[int], None]) -> Iterator[Piece]:
    done = 0
    for piece in pieces:
        yield piece
        done += len(piece.text)
        behind(done)


def _slot(hashes: np.ndarray) -> np.ndarray:
    return (hashes * np.uint64(_SPREAD)) >> np.uint64(64 - _TABLE_BITS)


def _hashed(pieces: Iterable[Piece]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Block by block, a hash of each window of the stream of documents with NUL after each, and the bytes."""
    powers = np.full(_BLOCK + WINDOW, _BASE, np.uint64)
    powers[0] = 1
    powers = np.multiply.accumulate(powers)
    inverse = np.full(_BLOCK + WINDOW, pow(_BASE, -1, 1 << 64), np.uint64)
    inverse[0] = 1
    inverse = np.multiply.accumulate(inverse)
    for block in _blocks(pieces):
        data = np.frombuffer(block, np.uint8)
        number = len(data) - WINDOW + 1
        # Polynomials of the first bytes, modulo 2**64: the difference of two, shifted, is a window's.
        sums = np.zeros(len(data) + 1, np.uint64)
        np.cumsum(data * powers[: len(data)], out=sums[1:])
        yield (sums[WINDOW:] - sums[:-WINDOW]) * inverse[:number], data


def _blocks(pieces: Iterable[Piece]) -> Iterator[bytes]:
    """The stream in blocks of WINDOW bytes to about _BLOCK; each begins where the windows of the one before
    end."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece.utf8.translate(_SPACES)
        if piece.last:
            waiting += b"\0"
        while len(waiting) >= _BLOCK:
            yield bytes(waiting[:_BLOCK])
            del waiting[: _BLOCK - WINDOW + 1]
    if len(waiting) >= WINDOW:
        yield bytes(waiting)
