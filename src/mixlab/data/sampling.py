"""A fixed sample of a validation text: whole documents where they are short, else evenly spread windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from mixlab.data.tokenizer import Tokenizer
from mixlab.data.tokens import Part, TokenFile

SHORT = 16
"""A sample that holds 16 times the longest document is made of whole documents: none weighs more than 6%."""

_BLOCK = 1 << 24
"""Tokens searched at a time for the ends of documents."""


def sample(file: TokenFile, most: int, tokenizer: Tokenizer) -> TokenFile:
    """At most `most` tokens of `file`, the same ones on every call; the file itself where it scores no more.

    Whole documents, evenly spread, copied into memory with the bytes that they have; where the longest is
    more than a sixteenth of the sample, the file with `scored` set, of which `evaluate` takes windows. Each
    source of a mixture gives its share. most: 0 is all.
    """
    targets = file.scored or len(file) - 1
    if not 0 < most < targets:
        return file
    chosen = None if file.scored else _documents(file, most)
    if chosen is None:
        return replace(file, scored=most)
    tokens = np.concatenate([np.zeros(1, file.tokens.dtype), *(np.concatenate(docs) for docs in chosen)])
    parts, start = [], 0
    for part, documents in zip(file.each(), chosen, strict=True):
        stop = start + sum(map(len, documents))
        size = tokenizer.count_bytes(tokens[start + 1 : stop + 1])
        parts.append(Part(part.name, start, stop + 1, size, len(documents)))
        start = stop
    return replace(
        file,
        tokens=tokens,
        num_bytes=sum(part.num_bytes for part in parts),
        num_documents=sum(part.num_documents for part in parts),
        parts=tuple(parts) if file.parts else (),
    )


def _documents(file: TokenFile, most: int) -> list[list[np.ndarray]] | None:
    """The documents of each part that make up its share of `most`; None if one is too long for that."""
    found = []
    for part in file.each():
        stream = part.of(file.tokens)
        share = most * (len(stream) - 1) // (len(file) - 1)
        if SHORT * (len(stream) - 1) > share * part.num_documents:  # their mean length alone says it
            return None
        ends = np.concatenate(list(_zeros(stream)))  # the first is the 0 before the first document
        lengths = np.diff(ends)
        if SHORT * lengths.max(initial=0) > share:
            return None
        count = int(len(lengths) * share / lengths.sum())
        spread = np.arange(count) * len(lengths) // count
        while (total := lengths[spread].sum()) > share:  # it drew longer ones than the mean
            count = min(count - 1, int(count * share / total))
            spread = np.arange(count) * len(lengths) // count
        found.append([stream[ends[i] + 1 : ends[i + 1] + 1] for i in spread])
    return found


def _zeros(stream: np.ndarray) -> Iterator[np.ndarray]:
    """Positions of token 0, the end of a document, in ascending order."""
    for start in range(0, len(stream), _BLOCK):
        yield start + np.flatnonzero(np.asarray(stream[start : start + _BLOCK]) == 0)
