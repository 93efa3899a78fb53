"""Rows packed from documents, each of which stays by itself; nothing is padded.

A document that fits into a row is cut only where rows could not be filled otherwise, one that does not fit
into pieces of a row's length. Pieces shorter than a row are packed by best fit in decreasing order (Ding et
al. 2024, "Fewer Truncations Improve Language Modeling"); the emptiest rows are then taken apart to fill what
is left free in the others.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixlab.data.tokens import Pages

_SCAN = 1 << 24

BLOCK = 1 << 19
"""Pieces, about, that are packed together: few enough for little memory, and so many that no fit is lost."""


def document_ends(tokens: np.ndarray, pages: Pages | None = None) -> np.ndarray:
    """Where token 0 stands in a stream: before the first document and after each. pages: those of a mapped
    stream. In half the bytes of int64 if they fit."""
    found, dtype = [], _places(len(tokens))
    for start in range(0, len(tokens), _SCAN):
        if pages is not None:
            pages.read(1, _SCAN)
        found.append((np.flatnonzero(tokens[start : start + _SCAN] == 0) + start).astype(dtype))
    return np.concatenate(found)


def _places(number: int) -> type[np.integer[Any]]:
    """The type for so many places in a stream."""
    return np.uint32 if number < 2**32 else np.int64


@dataclass(frozen=True)
class Packs:
    """The rows of an epoch, `length` predictions each.

    Segment s of row r (`first[r] <= s < first[r + 1]`) reads `sizes[s]` tokens from `starts[s]` on and
    predicts the one after each; the sizes of a row add up to its length.

    documents: how many there are. fitting: those that would fit into a row. cut: of these, how many do not
    stand in one whole.
    """

    first: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    length: int
    documents: int
    fitting: int
    cut: int

    def __len__(self) -> int:
        return len(self.first) - 1

    def positions(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(where each input stands, number of its segment in the row) for some rows, both (N, T)."""
        begin, end = (self.first[edge].astype(np.int64) for edge in (rows, rows + 1))
        segments = _ranges(begin, end - begin)
        sizes = self.sizes[segments]
        places = _ranges(self.starts[segments], sizes)
        numbers = np.repeat(_ranges(np.zeros(len(rows), np.int64), end - begin), sizes)
        return places.reshape(-1, self.length), numbers.reshape(-1, self.length)


def pack(ends: np.ndarray, length: int, offset: int, draw: Callable[[int], np.ndarray]) -> Packs:
    """All documents in rows of `length` predictions, in blocks of about `BLOCK` pieces; fewer than `length`
    predictions of each are left out.

    ends: see `document_ends`. offset: below `length`; where the first piece of a longer document ends. draw:
    gives so many random numbers, which decide who shares a row with whom.
    """
    bounds = _blocks(ends, length)
    packs = [_pack(ends[begin : end + 1], length, offset, draw) for begin, end in itertools.pairwise(bounds)]
    before = np.cumsum([0, *(len(block.starts) for block in packs)])
    dtype = _places(int(before[-1]) + 1)
    firsts = [(block.first[1:] + n).astype(dtype) for block, n in zip(packs, before, strict=False)]
    return Packs(
        np.concatenate([np.zeros(1, dtype), *firsts]),
        np.concatenate([block.starts for block in packs]),
        np.concatenate([block.sizes for block in packs]),
        length,
        *(sum(getattr(block, name) for block in packs) for name in ("documents", "fitting", "cut")),
    )


def _blocks(ends: np.ndarray, length: int) -> list[int]:
    """The documents at which blocks begin, and where the last one ends."""

    def pieces(document: int) -> float:  # up to there, at most
        return document + float(ends[document]) / length

    documents = len(ends) - 1
    number = int(pieces(documents)) // BLOCK
    if number < 2:
        return [0, documents]
    wanted = np.linspace(0, pieces(documents), number + 1).tolist()
    return sorted({min(bisect_left(range(len(ends)), n, key=pieces), documents) for n in wanted})


def _pack(ends: np.ndarray, length: int, offset: int, draw: Callable[[int], np.ndarray]) -> Packs:
    """`pack` of one block."""
    starts, sizes, fits = _pieces(ends.astype(np.int64), length, offset)
    whole, part = np.flatnonzero(sizes == length), np.flatnonzero(sizes < length)
    # The largest first, in random order among equals.
    part = part[np.argsort(draw(len(part)), kind="stable")]
    part = part[np.argsort(-sizes[part], kind="stable")]
    row, free = _best_fit(sizes[part], length)
    kept = np.argsort(free, kind="stable")[: int(sizes[part].sum()) // length]  # the fullest
    number = np.full(len(free), -1)
    number[kept] = np.arange(len(kept))
    row = number[row]
    tape, part, row = part[row < 0], part[row >= 0], row[row >= 0]
    piece, hole, begin, size = _cut_into(sizes[tape], free[kept])
    filling = tape[piece]
    rows = np.concatenate([row, hole, len(kept) + np.arange(len(whole))])
    order = np.argsort(rows, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(kept) + len(whole)))])
    uncut = np.count_nonzero(fits[filling] & (size == sizes[filling]))
    return Packs(
        first,
        np.concatenate([starts[part], starts[filling] + begin, starts[whole]])[order].astype(ends.dtype),
        np.concatenate([sizes[part], size, sizes[whole]])[order].astype(np.int32),
        length,
        len(ends) - 1,
        int(np.count_nonzero(fits)),
        int(np.count_nonzero(fits[tape]) - uncut),
    )


def _pieces(ends: np.ndarray, length: int, offset: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(start, size, whether it is a whole document) of every piece; no piece is longer than `length`."""
    sizes, first = np.diff(ends), offset or length
    fits = sizes <= length
    counts = np.where(fits, 1, 1 - (first - sizes) // length)  # one, and as many as the rest needs
    owner, number = np.repeat(np.arange(len(sizes)), counts), _ranges(np.zeros_like(counts), counts)
    begin = np.where(number > 0, first + (number - 1) * length, 0)
    end = np.where(fits[owner], sizes[owner], np.minimum(first + number * length, sizes[owner]))
    return ends[owner] + begin, end - begin, fits[owner]


def _best_fit(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(row of each piece, free places of each row); `sizes` decrease, and equal ones are placed together."""
    rows, opened = np.empty(len(sizes), np.int64), 0
    groups: list[list[np.ndarray]] = [[] for _ in range(length + 1)]  # free places -> rows
    there = np.zeros(length + 1, bool)

    def put(free: int, which: np.ndarray) -> None:
        groups[free].append(which)
        there[free] = True

    bounds = [0, *(np.flatnonzero(np.diff(sizes)) + 1).tolist(), len(sizes)]
    for begin, end in itertools.pairwise(bounds):
        size = int(sizes[begin]) if begin < end else 0
        while begin < end:
            free = size + int(there[size:].argmax())
            if there[free]:  # the fullest rows with room for it
                which = groups[free].pop()
                there[free] = bool(groups[free])
                placed, rest = which[: end - begin], which[end - begin :]
                rows[begin : begin + len(placed)] = placed
                if len(rest):
                    put(free, rest)
                put(free - size, placed)
                begin += len(placed)
            else:
                each = min(length // size, end - begin)
                new = np.arange(opened, opened + (end - begin) // each)
                rows[begin : begin + each * len(new)] = np.repeat(new, each)
                put(length - each * size, new)
                opened += len(new)
                begin += each * len(new)
    free_places = np.empty(opened, np.int64)
    for free, group in enumerate(groups):
        for which in group:
            free_places[which] = free
    return rows, free_places


def _cut_into(pieces: np.ndarray, holes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The pieces, end to end, cut to fill the holes in order: (piece, hole, place in the piece, size)."""
    along, along_holes = (np.concatenate([[0], np.cumsum(sizes)]) for sizes in (pieces, holes))
    cuts = np.unique(np.concatenate([along[along < along_holes[-1]], along_holes]))
    begin, size = cuts[:-1], np.diff(cuts)
    piece = np.searchsorted(along, begin, "right") - 1
    return piece, np.searchsorted(along_holes, begin, "right") - 1, begin - along[piece], size


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, ... `counts[0]` of them, then as many from starts[1] on, and so forth."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))
