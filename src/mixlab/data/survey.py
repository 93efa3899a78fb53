"""The tokens of a long text estimated from its beginning, for who wants to know and not to prepare it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np

from mixlab.data.corpus import Corpus, Joined
from mixlab.data.stretches import sides
from mixlab.data.tokenizer import Tokenizer
from mixlab.data.tokens import Part, TokenFile

LOOKED = 1_000_000
"""Characters that are encoded to know of the others; a BPE tokenizer of them is learned in a few seconds."""

Learn = Callable[[Iterable[tuple[str, bool]], int], Tokenizer]
"""(texts of the training side and whether their documents end, how many characters) -> a tokenizer."""


def estimate(
    corpus: Corpus | Joined, cuts: np.ndarray, sources: Sequence[int], names: Sequence[str], learn: Learn
) -> tuple[Tokenizer, dict[str, TokenFile]]:
    """A tokenizer learned from the first LOOKED characters of the training side, and the two sides at the
    lengths that follow from its tokens of these. The files have the right number of tokens, all of them 1, in
    no memory. cuts, sources: as in `stretches`.
    """
    taken: list[tuple[str, bool]] = []
    characters = 0
    for _, side, text, ended in sides(corpus.pieces(), cuts):
        if side == 0:
            whole = len(text) <= LOOKED - characters
            taken.append((text[: LOOKED - characters], ended and whole))
            characters += len(taken[-1][0])
        if characters >= LOOKED:
            break
    tokenizer = learn(taken, characters)
    tokens = sum(len(tokenizer.encode(text)) for text, _ in taken)
    size = sum(len(text.encode("utf-8", "replace")) for text, _ in taken)
    bounds = np.cumsum([0, *sources]).tolist()
    files = {}
    for name, lengths in zip(names, (cuts, corpus.lengths - cuts), strict=True):
        parts, start = [], 0
        for first, last in pairwise(bounds):
            share = lengths[first:last]
            documents = int(np.count_nonzero(share))
            stop = start + documents + round(int(share.sum()) * tokens / characters)
            num_bytes = documents + round(int(share.sum()) * size / characters)
            parts.append(Part("", start, stop + 1, num_bytes, documents))
            start = stop
        every = np.broadcast_to(np.ones(1, np.uint32), (start + 1,))
        # As one document: whether those of a sample would be whole is not known.
        files[name] = TokenFile(every, sum(part.num_bytes for part in parts), 1, tuple(parts))
    return tokenizer, files
