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

    The pieces joined are what `tokenizer.decode` gives for all ids. Byte tokens pass through an incremental
    UTF-8 decoder. Of other tokenizers a token's text is what it adds to that of the piece before, as at the
    start of a text some leave out a space. A piece is held back while it ends in the replacement character.
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
    window: list[int] = []  # the tokens of the last piece, whose text is `known`, and those after it
    known, told = "", 0
    for token in ids:
        window.append(token)
        text = tokenizer.decode(window)
        unfinished = text.endswith("\ufffd") and len(window) - told < HELD
        if unfinished or len(text) <= len(known):
            continue
        yield text[len(known) :]
        window = window[told:]
        known, told = tokenizer.decode(window), len(window)
    if window[told:]:
        yield tokenizer.decode(window)[len(known) :]
