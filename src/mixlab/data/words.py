"""How byte-level BPE divides a text into the pieces inside which it merges, and their ids by table.

The tokenizers library spends most of its time on dividing (Oniguruma and its own bookkeeping of offsets, 2
MB/s). A text repeats its words: here Python's `re` divides it by the same rule, and each distinct piece goes
through the library once.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from mixlab.data.tokenizer import _code_points

# Words with their leading space, numbers in threes, punctuation, white space: GPT-2's division, except that a
# piece is at most 40 characters (numbers 3). Text without spaces (DNA, base64) would otherwise be one huge
# "word", and both training and encoding slow down with a word's length.
PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}{1,40}| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]{1,40}|\s{1,40}(?!\S)|\s"

# Nothing farther away than this decides where a piece ends: a space, 40 characters and the one after them.
_REACH = 42

# Documents are divided in slices of at least this many characters. No piece goes on from a visible character
# into white space, so that a cut between the two changes no token.
SLICE = 1 << 16
_SAFE_CUT = re.compile(r"\S(?=[ \t\r\n])")

# A stretch without such a place is cut between two pieces once it is so long.
_LONGEST = 16

# Distinct pieces whose ids are kept in each of two tables, 150 bytes each; most words of prose of any length
# are among these.
_KEPT = 60_000

_BLOCK_BITS = 12

Piece = tuple[str, bool]
"""Text, and whether its document ends with it."""


def whole(documents: Iterable[str]) -> Iterator[Piece]:
    """Documents that come whole, as pieces."""
    return ((document, True) for document in documents)


def slices(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The documents in slices, cut only where no token can cross."""
    text = ""
    for piece, last in pieces:
        text, start = text + piece, 0
        while len(text) - start > SLICE:
            found = _SAFE_CUT.search(text, start + SLICE, start + _LONGEST * SLICE)
            if found is not None:
                cut = found.end()
            elif len(text) - start <= _LONGEST * SLICE:
                break
            else:
                cut = start + _between_pieces(text[start : start + _LONGEST * SLICE])
            yield text[start:cut], False
            start = cut
        if last:
            yield text[start:], True
        text = "" if last else text[start:]


def last_cut(text: str) -> int:
    """The last place where a text that began at a cut, and goes on, may be cut without changing a token."""
    for tail in (SLICE // 16, SLICE, len(text)):
        found = deque(_SAFE_CUT.finditer(text, max(0, len(text) - tail)), maxlen=1)
        if found:
            return found[0].end()
    return _between_pieces(text)


def _between_pieces(text: str) -> int:
    """The last end of a piece that nothing after the text can move; 0 where the text is too short."""
    end = len(text)
    for piece in reversed(divider()(text)):
        if end <= len(text) - _REACH:
            return end
        end -= len(piece)
    return 0


class Divider:
    """Text to its pieces, as `PIECES` divides it.

    `re` has no classes for letters and numbers, and its white space is another one. Which characters the
    library takes for which is asked of the library itself, 4096 code points at a time, once a text has one of
    them.
    """

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._classes = {"L": "", "N": "", "S": ""}
        self._learn([0])

    def __call__(self, text: str) -> list[str]:
        """The pieces of a text without lone surrogates; together they are the text."""
        if not text.isascii():
            blocks = np.flatnonzero(np.bincount(_code_points(text) >> _BLOCK_BITS)).tolist()
            if not self._known.issuperset(blocks):
                self._learn([block for block in blocks if block not in self._known])
        return self._pattern.findall(text)

    def _learn(self, blocks: Sequence[int]) -> None:
        from tokenizers import Regex
        from tokenizers.pre_tokenizers import Split

        for block in blocks:
            points = range(block << _BLOCK_BITS, (block + 1) << _BLOCK_BITS)
            characters = "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
            for name, pattern in (("L", r"\p{L}+"), ("N", r"\p{N}+"), ("S", r"\s+")):
                others = Split(Regex(pattern), "removed").pre_tokenize_str(characters)
                ends = [0, *(place for _, span in others for place in span), len(characters)]
                for start, stop in zip(ends[::2], ends[1::2], strict=True):
                    if start < stop:
                        first, last = characters[start], characters[stop - 1]
                        self._classes[name] += f"\\U{ord(first):08x}-\\U{ord(last):08x}"
        self._known.update(blocks)
        L, N, S = self._classes.values()
        self._pattern = re.compile(
            rf"'(?:[sdmt]|ll|ve|re)| ?[{L}]{{1,40}}| ?[{N}]{{1,3}}| ?[^{S}{L}{N}]{{1,40}}"
            rf"|[{S}]{{1,40}}(?![^{S}])|[{S}]"
        )


@cache
def divider() -> Divider:
    """The one of this process: what it has learnt of characters serves every tokenizer."""
    return Divider()


class Words:
    """Ids of text, as bytes, with each distinct piece given to the library's engine once.

    dtype: that of the ids. end: token 0, as bytes.
    """

    def __init__(self, engine: Any, dtype: np.dtype) -> None:
        self.dtype, self.end = dtype, bytes(dtype.itemsize)
        self._engine = engine
        self._ids: dict[str, bytes] = {}
        self._older: dict[str, bytes] = {}

    def __call__(self, text: str) -> bytes:
        """The ids of a text without lone surrogates, whose start and end no token crosses."""
        if len(text) < SLICE // 16:  # done before the tables are ready
            return self._array(self._engine.encode(text))
        pieces = divider()(text)
        new = set(pieces).difference(self._ids)
        if new:
            if len(self._ids) + len(new) > _KEPT:  # what is in use comes back out of the older table
                self._older, self._ids = self._ids, {}
                new = set(pieces)
            self._ids |= {piece: self._older[piece] for piece in new if piece in self._older}
            unknown = [piece for piece in new if piece not in self._older]
            for piece, encoding in zip(unknown, self._engine.encode_batch_fast(unknown), strict=True):
                self._ids[piece] = self._array(encoding)
        return b"".join(map(self._ids.__getitem__, pieces))

    def _array(self, encoding: Any) -> bytes:
        return np.array(encoding.ids, dtype=self.dtype).tobytes()
