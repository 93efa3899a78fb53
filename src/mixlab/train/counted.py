"""What of a training text an n-gram counts: all of it, or as much as was asked for and memory holds.

Counting holds, for each token, the token, ranks and orders of the windows that begin at it, and for each
distinct n-gram its key, its counts and its probability while they are computed: `TOKEN_BYTES` and
`GRAM_BYTES`, measured on random tokens (LOG.md), which have the most distinct n-grams.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mixlab.data import Dataset
from mixlab.errors import UserError
from mixlab.model.ngram import Drawn, NGram, NGramConfig

TOKEN_BYTES, GRAM_BYTES = 80, 48

STRETCH = 1 << 16
"""Tokens in a row, where a text is not counted whole; n-grams across two stretches are lost."""

TRIED = 500_000
"""Tokens whose distinct n-grams are counted to know how many a text has; a longer text has fewer for each."""


def tokens_to_count(dataset: Dataset, config: NGramConfig, note: Callable[[str], None]) -> list[np.ndarray]:
    """The training text as 1-D arrays to count, whole unless it is longer than `config.max_tokens`, its
    sources have weights, or only what training draws is asked for; `note` is told of what is left out.

    Raises UserError if counting it would take more memory than is free.
    """
    if config.drawn is not None:
        chosen = drawn(dataset, config, config.drawn, note)
        check_memory(chosen, config.order, dataset.tokenizer.vocab_size)
        return chosen
    file, weights = dataset.train, dataset.weights
    streams = [part.of(file.tokens) for part in file.each()]
    most = config.max_tokens or len(file)
    shares = [weight / sum(weights) for weight in weights] or [1.0]
    # As many as let every source have its share without being counted twice.
    whole = min(len(s) / share for s, share in zip(streams, shares, strict=True)) if weights else len(file)
    total = min(most, whole)
    chosen = [a for s, share in zip(streams, shares, strict=True) for a in spread(s, round(total * share))]
    counted = sum(map(len, chosen))
    if counted < len(file):
        why = "ngram.max_tokens" if most < whole else "in the proportions of data.weights"
        note(f"the n-gram counts {counted:,} of {len(file):,} tokens, evenly spread ({why})")
    check_memory(chosen, config.order, dataset.tokenizer.vocab_size)
    return chosen


def drawn(
    dataset: Dataset, config: NGramConfig, part: Drawn, note: Callable[[str], None]
) -> list[np.ndarray]:
    """The distinct text of the windows that training draws, in its order and at most `config.max_tokens`."""
    batches = dataset.batches(context=part.context, batch_size=1, seed=part.seed)
    chunks: list[np.ndarray] = batches.distinct(part.windows)
    total = sum(map(len, chunks))
    share = min(1.0, (config.max_tokens or total) / total)
    if share < 1:
        chunks = [piece for chunk in chunks for piece in spread(chunk, math.ceil(len(chunk) * share))]
    cut = f", {sum(map(len, chunks)):,} of them counted (ngram.max_tokens)" if share < 1 else ""
    note(
        f"one n-gram counts only what the training of seed {part.seed} reads: {total:,} of "
        f"{len(dataset.train):,} tokens{cut}"
    )
    return chunks


def spread(tokens: np.ndarray, most: int) -> list[np.ndarray]:
    """The stream whole if it is no longer than `most`, else stretches of it, evenly spread."""
    if len(tokens) <= most:
        return [tokens]
    size = max(1, min(STRETCH, most))
    number = max(1, most // size)
    starts = np.arange(number) * (len(tokens) - size) // max(1, number - 1)
    return [tokens[start : start + size] for start in starts]


def check_memory(streams: list[np.ndarray], order: int, vocab_size: int) -> None:
    """UserError if counting the streams needs more memory than is free, where the system says how much is."""
    free, tokens = free_memory(), sum(map(len, streams))
    if free is None or tokens * (TOKEN_BYTES + GRAM_BYTES * (order - 1)) <= free:
        return  # even if no n-gram occurs twice
    tried = [stream[: max(1, TRIED * len(stream) // tokens)] for stream in streams]
    grams = sum(NGram.train(tried, order=order, vocab_size=vocab_size).grams[1:])
    each = TOKEN_BYTES + GRAM_BYTES * grams / sum(map(len, tried))
    if tokens * each > free:
        raise UserError(
            f"counting {tokens:,} tokens at order {order} takes about {tokens * each / 1e9:.1f} GB of "
            f"memory, and {free / 1e9:.1f} GB are free: set ngram.max_tokens to {int(free / each):,} or less"
        )


def free_memory() -> int | None:
    """Bytes that this process may still take, by the system and its control group; None if neither says."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text(encoding="utf-8").strip()
        if limit != "max":
            found.append(int(limit) - int((group / "memory.current").read_text(encoding="utf-8")))
    except (OSError, ValueError, IndexError):
        pass
    return max(0, min(found)) if found else None
