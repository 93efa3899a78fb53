"""Estimation of an interpolated modified Kneser-Ney n-gram in numpy, with no Python loop over tokens.

One lexicographic sort of every window of `order` tokens gives all orders at once: the windows that share
their first k tokens are neighbours, so the k-grams of every k are runs of the one sorted list. Where the
suffix of a k-gram stands in that list (the back-off, and the n-gram whose continuation count it raises) is
the sorted row of the window one position to its right. Everything else is a running sum, a gather or a
bincount.

Source: Chen & Goodman 1998, "An Empirical Study of Smoothing Techniques for Language Modeling"
(modified Kneser-Ney, interpolated); Kneser & Ney 1995 for the continuation counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mixlab.errors import UserError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# KenLM's `--discount_fallback` values, so that both fall back alike: (D1, D2, D3+).
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


class Level(NamedTuple):
    """The k-grams of one k; row g describes one k-gram, rows in lexicographic order of the token ids.

    keys: (U,) int64, increasing: row of the first k - 1 tokens in the level below, times vocab_size + 1, plus
        the last token. Empty at k = 1, where the row is the token id. The id `vocab_size` stands for <s>.
    log_prob: (U,) float64, natural log P(last token | the tokens before it), interpolated; (V,) at k = 1.
    back_off: (U + 1,) float64, natural log of the weight that the k-gram as a context gives to the order
        below, 0 where it was never continued; (V + 2,) at k = 1. The last entry is 0, so that row -1 (an
        unseen context) weighs 1. Empty at the top order.
    """

    keys: Ints
    log_prob: Floats
    back_off: Floats


class _Grams(NamedTuple):
    """Counts of the k-grams of one k >= 2, rows as in `Level`: (U,) each but the last.

    prefix and suffix are rows in the level below (of the k-gram without its last and without its first
    token); raw is the count in the text; from row `first_start` on, the k-grams begin with <s>.
    """

    keys: Ints
    prefix: Ints
    suffix: Ints
    raw: Ints
    first_start: int


def as_ids(tokens: Any, what: str = "tokens") -> Ints:
    """An integer array, list or CPU tensor as an int64 array of the same shape; UserError if not integers."""
    try:
        array = np.asarray(tokens)
    except (ValueError, TypeError) as error:  # ragged lists, tensors on another device
        raise UserError(f"{what} must be an array of integers: {error}") from None
    if array.size == 0:
        return array.astype(np.int64)
    if not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{what} must be integers, not {array.dtype}")
    return array.astype(np.int64, copy=False)


def check_ids(ids: Ints, vocab_size: int) -> None:
    """UserError that names the first id outside 0..vocab_size - 1."""
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= vocab_size):
        flat = ids.reshape(-1)
        where = int(np.flatnonzero((flat < 0) | (flat >= vocab_size))[0])
        raise UserError(
            f"token {int(flat[where])} at position {where} is outside the vocabulary: "
            f"ids run from 0 to {vocab_size - 1} (vocab_size {vocab_size})"
        )


def as_documents(tokens: Any) -> list[Ints]:
    """One document from a 1-D array or list of integers; several from a 2-D array or a sequence of arrays."""
    listed = isinstance(tokens, Sequence) and not isinstance(tokens, (str, bytes))
    if not listed:
        array = as_ids(tokens)
        listed = array.ndim == 2
        tokens = array
    elif len(tokens) == 0 or np.ndim(tokens[0]) == 0:
        tokens, listed = as_ids(tokens), False
    documents = (
        [as_ids(document, f"document {i}") for i, document in enumerate(tokens)] if listed else [tokens]
    )
    for i, document in enumerate(documents):
        if document.ndim != 1:
            raise UserError(
                f"document {i} has {document.ndim} dimensions: a document is a 1-D array of token ids"
            )
    return documents


def estimate(documents: Sequence[Ints], *, order: int, vocab_size: int) -> list[Level]:
    """The levels 1..order of the model; `documents` are checked 1-D int64 arrays, not all empty."""
    stream = _stream(documents, vocab_size)
    grams = _count(stream, order, vocab_size)
    counts = np.bincount(grams[0].suffix if grams else stream, minlength=vocab_size + 1)[:vocab_size]
    amount = discounts(counts)[np.minimum(counts, 3)]
    prob = (counts - amount + amount.sum() / vocab_size) / counts.sum()
    levels = [Level(np.empty(0, np.int64), np.log(prob), np.empty(0))]
    rows = vocab_size + 1
    for level, above in zip_longest(grams, grams[1:]):
        counts = level.raw if above is None else _continuations(level, above)
        prob, back_off = _interpolate(counts, level, prob, rows)
        levels[-1] = levels[-1]._replace(back_off=back_off)
        levels.append(Level(level.keys, np.log(prob), np.empty(0)))
        rows = len(level.keys)
    return levels


def discounts(counts: Ints) -> Floats:
    """(4,) float64: what is taken from an n-gram of adjusted count 0, 1, 2 and 3 or more; the first is 0.

    D_i = i - (i + 1) Y n_{i+1} / n_i with Y = n1 / (n1 + 2 n2), n_i the number of n-grams of count i (Chen &
    Goodman, eq. 26). D_i is never above i; where it is not above 0, or one of n1..n4 is 0 (small corpora, and
    the few unigrams of a byte vocabulary), the formula says nothing and `FALLBACK_DISCOUNTS` stand in for all
    three. D_i = 0 is refused because a context with only such n-grams would give unseen tokens probability 0.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(np.float64)
    fallback = np.array([0.0, *FALLBACK_DISCOUNTS])
    if not n.all():
        return fallback
    i = np.arange(1, 4)
    found = i - (i + 1) * (n[0] / (n[0] + 2 * n[1])) * n[1:] / n[:-1]
    return np.array([0.0, *found]) if np.all(found > 0) else fallback


def _stream(documents: Sequence[Ints], vocab_size: int) -> Ints:
    """<s> doc <s> doc ... <s>: one 1-D array; the <s> at the end closes the last document's windows."""
    sizes = [document.size for document in documents]
    text = np.concatenate([document.reshape(-1) for document in documents])
    return np.insert(text, np.cumsum([0, *sizes]), vocab_size)


def _continuations(level: _Grams, above: _Grams) -> Ints:
    """(U,) distinct tokens (<s> too) seen before each k-gram; the raw count where it begins with <s>."""
    counts = np.bincount(above.suffix, minlength=len(level.keys))
    counts[level.first_start :] = level.raw[level.first_start :]
    return counts


def _interpolate(counts: Ints, level: _Grams, lower: Floats, rows: int) -> tuple[Floats, Floats]:
    """(U,) P(w|h) = (c(hw) - D(c)) / c(h.) + gamma(h) P(w|h'), and the (rows + 1,) natural log of gamma."""
    amount = discounts(counts)[np.minimum(counts, 3)]
    total = np.bincount(level.prefix, weights=counts, minlength=rows + 1)
    taken = np.bincount(level.prefix, weights=amount, minlength=rows + 1)
    gamma = np.divide(taken, total, out=np.ones(rows + 1), where=total > 0)
    prob = (counts - amount) / total[level.prefix] + gamma[level.prefix] * lower[level.suffix]
    return prob, np.log(gamma)


def _count(stream: Ints, order: int, vocab_size: int) -> list[_Grams]:
    """The k-grams of k = 2..order, those that cross a <s> left out."""
    if order == 1:
        return []
    window_of, at = _sort_windows(stream, order, vocab_size)  # row of each position, a position of each row
    raw = np.bincount(window_of)
    right = window_of[np.minimum(at + 1, len(stream) - 1)]  # row of the window one position to the right
    padded = np.concatenate([stream, np.full(order, vocab_size)])
    token = padded[at]
    first_start = np.searchsorted(token, vocab_size)  # windows that begin with <s> are the last rows
    new, valid = _differs(token), np.ones(len(at), bool)
    row = token  # row of each window's first k tokens among the k-grams; of no meaning where not valid
    grams = []
    for k in range(2, order + 1):
        token = padded[at + k - 1]
        new |= _differs(token)
        valid &= token != vocab_size
        begins = new & valid
        start = np.flatnonzero(begins)
        prefix, suffix = row[start], row[right[start]]
        keys = prefix.astype(np.int64) * (vocab_size + 1) + token[start]
        count = np.add.reduceat(raw * valid, start) if len(start) else np.empty(0, np.int64)
        grams.append(_Grams(keys, prefix, suffix, count, int(np.searchsorted(start, first_start))))
        row = np.cumsum(begins) - 1
    return grams


def _differs(values: Ints) -> NDArray[np.bool_]:
    """True where an entry differs from the one before it, and at the first."""
    return np.concatenate([[True], values[1:] != values[:-1]])


def _sort_windows(stream: Ints, order: int, vocab_size: int) -> tuple[Ints, Ints]:
    """The row of each position's window in the sorted list of distinct windows, and one position of each row.

    As many tokens as fit are packed into 63 bits and ranked; where `order` of them do not fit (a large
    vocabulary), the ranks of the shorter windows are packed and ranked in turn, so any order and vocabulary
    takes a few sorts.
    """
    used = np.bincount(stream, minlength=vocab_size + 1) > 0
    rank = (np.cumsum(used) - 1)[
        stream
    ]  # only the ids that occur; their order, with <s> the highest, is kept
    size, width = int(used.sum()), 1
    while True:
        pieces = math.ceil(order / width)
        fit = max(2, int(63 / math.log2(size)))
        covered = min(order, width * min(pieces, fit))
        # The last piece may overlap the one before: the order of the windows is the same, and none is longer.
        offsets = [*range(0, covered - width, width), covered - width]
        padded = np.concatenate(
            [rank, np.full(covered, size - 1)]
        )  # past the end all is <s>, the highest rank
        key = np.zeros(len(rank), np.int64)
        for offset in offsets:
            key = key * size + padded[offset : offset + len(rank)]
        by_key = np.argsort(key)
        new = _differs(key[by_key])
        rank = np.empty(len(key), np.int64)
        rank[by_key] = np.cumsum(new) - 1
        width, size = covered, int(rank.max()) + 1
        if width == order:
            return rank, by_key[new]
