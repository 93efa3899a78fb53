"""Words and lines of a text, which word-level perplexity divides by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mixlab.data.formats import Piece


class TextCounts(NamedTuple):
    """words: what whitespace separates, as `str.split` does. lines: also a document's last one without an
    end."""

    words: int
    lines: int


def count_words(pieces: Iterable[Piece]) -> TextCounts:
    """Count the words and lines of documents that come in pieces."""
    words = lines = 0
    before = " "
    for text, _, last in pieces:
        # A word that two pieces share is counted in both.
        words += len(text.split()) - (not (before.isspace() or text[0].isspace()))
        lines += text.count("\n") + (last and not text.endswith("\n"))
        before = " " if last else text[-1]
    return TextCounts(words, lines)
