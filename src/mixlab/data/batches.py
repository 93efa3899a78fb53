"""Rows of token streams: seeded batches to train on, and every token once to evaluate on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from mixlab.data.config import PACKINGS
from mixlab.data.packing import Packs, document_ends, pack
from mixlab.data.quota import Quota
from mixlab.data.tokens import Pages, Part, TokenFile, check_length
from mixlab.errors import UserError, unknown

Pair = tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"]]
Batch = tuple[Int64[Tensor, "B T"], ...]
"""inputs, targets and, where documents are kept apart, segment numbers."""


MARKED = 1024
"""Packed sequences whose positions are held in memory at a time."""


class Rows(Protocol):
    """One source's rows in the order of one epoch."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> tuple[np.ndarray, ...]:
        """Rows `start` to `stop` of the epoch: the arrays of a batch, (N, T) each."""
        ...

    def mark(self, read: np.ndarray, stop: int) -> None:
        """Set `read`, a boolean per token of the stream, where the first `stop` sequences read or predict."""
        ...


class Stream:
    """Windows of a stream that share only their ends, from an offset below their length, in random order."""

    def __init__(self, tokens: np.ndarray, context: int, bits: np.random.PCG64) -> None:
        # Offsets that leave room for at least one window; the bias of the remainder is below 2**-40.
        self.tokens, self.context = tokens, context
        self.offset = int(bits.random_raw()) % min(context, len(tokens) - context)
        self.order = _shuffled((len(tokens) - 1 - self.offset) // context, bits)
        self.span = np.arange(context + 1)

    def __len__(self) -> int:
        return len(self.order)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, ...]:
        """inputs and targets."""
        starts = self.offset + self.order[start:stop].astype(np.int64) * self.context
        windows = self.tokens[starts[:, None] + self.span]
        return windows[:, :-1], windows[:, 1:]

    def mark(self, read: np.ndarray, stop: int) -> None:
        """See `Rows`."""
        for start in (self.offset + self.order[:stop].astype(np.int64) * self.context).tolist():
            read[start : start + self.context + 1] = True


class Documents:
    """Rows packed from whole documents, see `mixlab.data.packing`, in random order."""

    def __init__(self, tokens: np.ndarray, ends: np.ndarray, context: int, bits: np.random.PCG64) -> None:
        self.tokens = tokens
        self.packs: Packs = pack(ends, context, int(bits.random_raw()) % context, bits.random_raw)
        self.order = _shuffled(len(self.packs), bits)

    def __len__(self) -> int:
        return len(self.order)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, ...]:
        """inputs, targets and segment numbers."""
        places, segment = self.packs.positions(self.order[start:stop])
        return self.tokens[places], self.tokens[places + 1], segment

    def mark(self, read: np.ndarray, stop: int) -> None:
        """See `Rows`."""
        for start in range(0, stop, MARKED):
            places, _ = self.packs.positions(self.order[start : min(start + MARKED, stop)])
            read[places] = read[places + 1] = True


class Source:
    """One stream's rows, epoch after epoch; `epoch` and `cursor`, the rows given out of it, are its state.

    Order and offset follow from (seed, epoch) through PCG64's raw output, whose stream numpy guarantees, so
    that a run continues alike under another numpy. number: tells the sources of a mixture apart; None is the
    only one.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        pages: Pages,
        *,
        context: int,
        seed: int,
        packing: str,
        number: int | None = None,
    ) -> None:
        self.tokens, self.context, self.seed, self.number = tokens, context, seed, number
        self.ends = document_ends(tokens, pages) if packing == "documents" else None
        self.epoch = self.cursor = 0
        self.rows = self.plan(0)

    def plan(self, epoch: int) -> Rows:
        """The rows of an epoch."""
        words = [self.seed, epoch] if self.number is None else [self.seed, epoch, self.number]
        bits = np.random.PCG64(np.random.SeedSequence(words))
        if self.ends is None:
            return Stream(self.tokens, self.context, bits)
        return Documents(self.tokens, self.ends, self.context, bits)

    def take(self, count: int) -> list[tuple[np.ndarray, ...]]:
        """The next `count` rows, a block for each epoch they come from."""
        blocks = []
        while count:
            if self.cursor == len(self.rows):
                self.move(self.epoch + 1, 0, self.plan(self.epoch + 1))
            stop = min(self.cursor + count, len(self.rows))
            blocks.append(self.rows.read(self.cursor, stop))
            count -= stop - self.cursor
            self.cursor = stop
        return blocks

    def distinct(self, count: int) -> list[np.ndarray]:
        """See `Batches.distinct`."""
        framed, epoch = np.zeros(len(self.tokens) + 2, bool), 0  # False on both sides, where chunks end
        read = framed[1:-1]
        while count > 0:
            rows = self.plan(epoch)
            rows.mark(read, min(count, len(rows)))
            count, epoch = (0 if read.all() else count - len(rows)), epoch + 1
        edges = np.flatnonzero(framed[1:] != framed[:-1])
        return [self.tokens[start:stop] for start, stop in edges.reshape(-1, 2).tolist()]

    def go_to(self, epoch: int, cursor: int) -> None:
        """Continue from there; `UserError` when this text has no such place."""
        rows = self.rows if epoch == self.epoch else self.plan(epoch) if epoch >= 0 else None
        if rows is None or not 0 <= cursor <= len(rows):
            has = 0 if rows is None else len(rows)
            raise UserError(
                f"the saved place in the data (window {cursor} of epoch {epoch}) is not in this text, "
                f"whose epoch has {has} windows: resume with the text and context the run began with"
            )
        self.move(epoch, cursor, rows)

    def move(self, epoch: int, cursor: int, rows: Rows) -> None:
        """Stand at `cursor` of the epoch whose rows are given."""
        self.epoch, self.cursor, self.rows = epoch, cursor, rows


class Batches:
    """An endless sequence of (inputs, targets) or (inputs, targets, segment), each (B, T) int64; targets are
    one token later than inputs.

    packing "stream": an epoch cuts the stream into windows of `context` + 1 tokens that share only their
    ends, from an offset below `context` that changes with the epoch, and visits each once in a random order.
    "documents": an epoch packs whole documents into rows, and `segment` numbers them in each row. A batch
    that an epoch cannot fill goes on in the next.

    weights: one for each part of `tokens`; each part is then a source with epochs of its own, and of any
    number n of rows it gets n times its share, to the row (see `Quota`).
    """

    def __init__(
        self,
        tokens: np.ndarray | TokenFile,
        *,
        context: int,
        batch_size: int,
        seed: int,
        packing: str = "stream",
        weights: Sequence[float] = (),
    ) -> None:
        file = tokens if isinstance(tokens, TokenFile) else TokenFile(np.asanyarray(tokens), 0)
        if context < 1 or batch_size < 1:
            raise UserError(f"context is {context} and batch_size {batch_size}; both must be at least 1")
        if seed < 0:
            raise UserError(f"seed is {seed}; it must be at least 0")
        if packing not in PACKINGS:
            raise unknown("packing", packing, PACKINGS)
        self.tokens, self.context, self.batch_size = file.tokens, context, batch_size
        self.parts: Sequence[Part | None] = file.parts if weights else (None,)
        stream = np.asarray(file.tokens)  # a memmap's own indexing is slower
        streams = [stream if part is None else part.of(stream) for part in self.parts]
        for part, own in zip(self.parts, streams, strict=True):
            check_length("the text" if part is None else f"'{part.name}'", len(own), context)
        self._pages = Pages(self.tokens)
        numbers = range(len(streams)) if weights else (None,)
        self.sources = [
            Source(own, self._pages, context=context, seed=seed, packing=packing, number=number)
            for own, number in zip(streams, numbers, strict=True)
        ]
        self.weights = weights
        self.quota = Quota(weights) if weights else None

    def next(self) -> Batch:
        """The next batch; the state moves on by `batch_size` rows."""
        self._pages.read(self.batch_size, self.context)
        if self.quota is None:
            return _tensors(self._taken(self.sources[0], self.batch_size))
        turns = np.array([self.quota.next() for _ in range(self.batch_size)])
        counts = np.bincount(turns, minlength=len(self.sources))
        drawn = [self._taken(s, n) for s, n in zip(self.sources, counts.tolist(), strict=True) if n]
        rows = [np.concatenate(arrays) for arrays in zip(*drawn, strict=True)]  # source after source
        place = np.empty(self.batch_size, np.int64)
        place[np.argsort(turns, kind="stable")] = np.arange(self.batch_size)
        return _tensors([array[place] for array in rows])

    __next__ = next

    def __iter__(self) -> Batches:
        return self

    def _taken(self, source: Source, count: int) -> list[np.ndarray]:
        blocks = source.take(count)
        return [
            np.concatenate(arrays) if len(arrays) > 1 else arrays[0] for arrays in zip(*blocks, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Where the sequence stands: the epoch and how many of its rows were given out; of a mixture, these
        for each source, and the turns it has had."""
        places = [{"epoch": source.epoch, "cursor": source.cursor} for source in self.sources]
        if self.quota is None:
            return places[0]
        return {"sources": [p | {"turns": n} for p, n in zip(places, self.quota.turns, strict=True)]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; `UserError` when this text has no such place."""
        places = [state] if self.quota is None else state.get("sources", ())
        if len(places) != len(self.sources) or "epoch" not in places[0]:
            raise UserError(
                "the saved place in the data is that of another mixture: resume with the sources and weights "
                "the run began with"
            )
        for source, place in zip(self.sources, places, strict=True):
            source.go_to(int(place["epoch"]), int(place["cursor"]))
        if self.quota is not None:
            self.quota.turns = [int(place["turns"]) for place in places]

    def distinct(self, rows: int) -> list[np.ndarray]:
        """The tokens that the first `rows` sequences from the beginning read, each once, as the longest
        chunks of the text that were read without a gap; independent of the state."""
        shares = [rows]
        if self.quota is not None:
            quota = Quota(self.weights)
            shares = np.bincount([quota.next() for _ in range(rows)], minlength=len(self.sources)).tolist()
        return [chunk for s, n in zip(self.sources, shares, strict=True) for chunk in s.distinct(n)]

    def notes(self) -> Iterator[str]:
        """What a person should know of the packing: how many documents are cut, by this epoch's rows."""
        for part, source in zip(self.parts, self.sources, strict=True):
            if not isinstance(source.rows, Documents):
                continue
            packs = source.rows.packs
            whose = "" if part is None else f" of '{part.name}'"
            documents = f"{packs.documents:,} document{'s'[: packs.documents != 1]}{whose}"
            longer = packs.documents - packs.fitting
            yield (
                f"rows of {self.context} tokens are packed from {documents}, without padding: "
                f"{longer:,} longer than a row {'is' if longer == 1 else 'are'} cut, "
                f"and so are {packs.cut:,} ({packs.cut / max(1, packs.fitting):.2%}) of the others"
            )


def eval_windows(
    tokens: np.ndarray | TokenFile,
    *,
    context: int,
    batch_size: int,
    most: int = 0,
    apart: bool = False,
) -> Iterator[Batch]:
    """(inputs, targets) in order, (B, T) int64: every token after the first is a target exactly once.

    Windows do not overlap; each starts afresh. The last one, when shorter than `context`, comes by itself as
    (1, rest). Of a stream with more than `most` targets, if that is not 0, as many whole windows come as do
    not exceed it (but one at least), evenly spread. apart: segment numbers come third, by which documents
    know nothing of each other.
    """
    windows = placed_windows(tokens, context=context, batch_size=batch_size, most=most, apart=apart)
    return (placed.batch for placed in windows)


class Placed(NamedTuple):
    """Windows of a stream, those of one batch: where each begins, and how many of its first targets another
    window has."""

    starts: np.ndarray
    skip: int
    batch: Batch


def placed_windows(
    tokens: np.ndarray | TokenFile,
    *,
    context: int,
    batch_size: int,
    most: int = 0,
    apart: bool = False,
    stride: int | None = None,
) -> Iterator[Placed]:
    """The windows of `eval_windows`; with a `stride` below `context` each begins so many tokens after the one
    before, so that every target but those of the first has `context - stride` tokens or more before it."""
    mapped = tokens.tokens if isinstance(tokens, TokenFile) else np.asanyarray(tokens)
    stream, pages = np.asarray(mapped), Pages(mapped)
    if context < 1 or batch_size < 1:
        raise UserError(f"context is {context} and batch_size {batch_size}; both must be at least 1")
    targets, stride = max(len(stream) - 1, 0), context if stride is None else stride
    if not 1 <= stride <= context:
        raise UserError(f"the stride is {stride}; it must be from 1 to the context, {context}")
    if stride < context and 0 < most < targets:
        raise UserError("a stride is for a text that is scored whole")
    skip, full = context - stride, max(0, (targets - context) // stride + 1)
    if stride < context:
        starts, rest = np.arange(full) * stride, targets - full * stride
        rest = rest if rest > skip or not full else 0  # else the last window has them all
    else:
        chosen, tail = divmod(eval_targets(targets, context=context, most=most), context)
        starts = (np.arange(chosen) * full // max(1, chosen)) * context
        rest = targets % context if tail else 0
    alone = 1 if skip else 0  # the first window has all its targets
    for begin, end, skipped in ((0, min(alone, len(starts)), 0), (alone, len(starts), skip)):
        for at in range(begin, end, batch_size):
            now = starts[at : min(at + batch_size, end)]
            pages.read(batch_size, context)
            yield Placed(now, skipped, _windows(stream, now, context, apart))
    if rest:
        last = np.array([full * stride])
        yield Placed(last, skip if full else 0, _windows(stream, last, rest, apart))


def eval_targets(targets: int, *, context: int, most: int = 0) -> int:
    """How many of a stream's targets `eval_windows` gives."""
    sampled = 0 < most < targets and targets >= context
    return max(1, most // context) * context if sampled else max(targets, 0)


def _windows(stream: np.ndarray, starts: np.ndarray, length: int, apart: bool) -> Batch:
    windows = stream[starts[:, None] + np.arange(length + 1)]  # (B, T + 1)
    inputs, targets = windows[:, :-1], windows[:, 1:]
    # A document begins after the token 0 that ends the one before, and reads that 0 first.
    return _tensors([inputs, targets, *([(inputs == 0).cumsum(1)] if apart else [])])


def _shuffled(n: int, bits: np.random.PCG64) -> np.ndarray:
    """The numbers below n in a random order, in half the bytes if they fit."""
    order = np.argsort(bits.random_raw(n), kind="stable")
    return order.astype(np.uint32) if n < 2**32 else order


def _tensors(arrays: Sequence[np.ndarray]) -> Batch:
    return tuple(torch.from_numpy(np.ascontiguousarray(array, np.int64)) for array in arrays)
