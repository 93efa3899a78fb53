"""Windows of a token stream: seeded batches to train on, and every token once to evaluate on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from mixlab.data.tokens import TokenFile
from mixlab.errors import UserError

Pair = tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"]]


class Batches:
    """An endless sequence of (inputs, targets), each (B, T) int64, targets one token later than inputs.

    An epoch cuts the stream into windows of `context` + 1 tokens that share only their ends, from an offset
    below `context` that changes with the epoch, and visits each once in a random order. A batch that an epoch
    cannot fill goes on in the next. Epoch and position in it are the whole state: order and offset follow
    from (seed, epoch) through PCG64's raw output, whose stream numpy guarantees, so that a run continues
    alike under another numpy.
    """

    def __init__(self, tokens: np.ndarray | TokenFile, *, context: int, batch_size: int, seed: int) -> None:
        self.tokens = _array(tokens)
        if context < 1 or batch_size < 1:
            raise UserError(f"context is {context} and batch_size {batch_size}; both must be at least 1")
        if seed < 0:
            raise UserError(f"seed is {seed}; it must be at least 0")
        if len(self.tokens) < context + 1:
            raise UserError(
                f"the text is {len(self.tokens)} tokens long, fewer than the context of {context} + 1: "
                f"give a longer text or a context of at most {len(self.tokens) - 1}"
            )
        self.context, self.batch_size, self.seed = context, batch_size, seed
        self._span = np.arange(context + 1)
        self._epoch, self._cursor = 0, 0
        self._starts = self._order(0)

    def next(self) -> Pair:
        """The next batch; the state moves on by `batch_size` windows."""
        starts: list[np.ndarray] = []
        missing = self.batch_size
        while missing:
            if self._cursor == len(self._starts):
                self._epoch, self._cursor = self._epoch + 1, 0
                self._starts = self._order(self._epoch)
            starts.append(self._starts[self._cursor : self._cursor + missing])
            self._cursor += len(starts[-1])
            missing -= len(starts[-1])
        return _pair(self.tokens, np.concatenate(starts), self._span)

    __next__ = next

    def __iter__(self) -> Batches:
        return self

    def state_dict(self) -> dict[str, int]:
        """Where the sequence stands: the epoch and how many of its windows were given out."""
        return {"epoch": self._epoch, "cursor": self._cursor}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from `state`; `UserError` when this text has no such place."""
        epoch, cursor = int(state["epoch"]), int(state["cursor"])
        starts = self._order(epoch) if epoch >= 0 else np.zeros(0, np.int64)
        if epoch < 0 or not 0 <= cursor <= len(starts):
            raise UserError(
                f"the saved place in the data (window {cursor} of epoch {epoch}) is not in this text, "
                f"whose epoch has {len(starts)} windows: resume with the text and context the run began with"
            )
        self._epoch, self._cursor, self._starts = epoch, cursor, starts

    def _order(self, epoch: int) -> np.ndarray:
        """Where the windows of `epoch` start, in the order they are visited."""
        bits = np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
        # Offsets that leave room for at least one window; the bias of the remainder is below 2**-40.
        offset = int(bits.random_raw()) % min(self.context, len(self.tokens) - self.context)
        windows = (len(self.tokens) - 1 - offset) // self.context
        order = np.argsort(bits.random_raw(windows), kind="stable")
        return offset + order * self.context


def eval_windows(tokens: np.ndarray | TokenFile, *, context: int, batch_size: int) -> Iterator[Pair]:
    """(inputs, targets) in order, (B, T) int64: every token after the first is a target exactly once.

    Windows do not overlap; each starts afresh. The last one, when shorter than `context`, comes by itself as
    (1, rest).
    """
    stream = _array(tokens)
    if context < 1 or batch_size < 1:
        raise UserError(f"context is {context} and batch_size {batch_size}; both must be at least 1")
    full, rest = divmod(max(len(stream) - 1, 0), context)
    starts = np.arange(full) * context
    for first in range(0, full, batch_size):
        yield _pair(stream, starts[first : first + batch_size], np.arange(context + 1))
    if rest:
        yield _pair(stream, np.array([full * context]), np.arange(rest + 1))


def _array(tokens: np.ndarray | TokenFile) -> np.ndarray:
    return tokens.tokens if isinstance(tokens, TokenFile) else np.asarray(tokens)


def _pair(stream: np.ndarray, starts: np.ndarray, span: np.ndarray) -> Pair:
    windows = torch.from_numpy(stream[starts[:, None] + span].astype(np.int64))  # (B, T + 1)
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
