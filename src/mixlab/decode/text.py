"""Token ids to text as they come, without cutting a character in two."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import Protocol


class Decodes(Protocol):
    """The part of a tokenizer that this module needs."""

    kind: str

    def decode(self, ids: list[int]) -> str:
        """Text of the ids; bytes that are not UTF-8 become the replacement character."""
        ...


HELD = 8
"""Tokens held back at most while a character is incomplete: UTF-8 takes 4 bytes a character, and byte-level
tokens hold at least one byte each, so more than that means bytes that never become a character."""


def stream_text(tokenizer: Decodes, ids: Iterable[int]) -> Iterator[str]:
    """The text of `ids` in pieces, each yielded as soon as its last character is whole.

    The pieces joined are what `tokenizer.decode` gives for all ids, but for tokens whose text depends on what
    stands before them. Byte tokens pass through an incremental UTF-8 decoder; other tokenizers hold a piece
    back while it ends in the replacement character.
    """
    return _from_bytes(ids) if tokenizer.kind == "byte" else _from_pieces(tokenizer, ids)


def _from_bytes(ids: Iterable[int]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in ids:
        if piece := decoder.decode(bytes([token])):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def _from_pieces(tokenizer: Decodes, ids: Iterable[int]) -> Iterator[str]:
    held: list[int] = []
    for token in ids:
        held.append(token)
        piece = tokenizer.decode(held)
        if piece.endswith("\ufffd") and len(held) < HELD:
            continue
        yield piece
        held = []
    if held:
        yield tokenizer.decode(held)
