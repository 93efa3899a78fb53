"""Synthetic tasks: token sequences whose right answers are known, to see what a part can learn.

A task draws rows of (inputs, targets), both (B, T) int64. The target at t is what should be known after
inputs 0..t, not the next input; where nothing is asked it is IGNORE. Each answer follows from those
inputs, so the best possible loss is 0 on every task. `blind` is the least loss of a predictor that sees
only the token at t and t itself: what remains without temporal mixing.

`LanguageModel.loss` counts every position, so score what is asked with `nats(model(inputs).logits, targets)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from mixlab.data.batches import Pair
from mixlab.errors import UserError

IGNORE = -100
"""The target where nothing is asked; what `F.cross_entropy` leaves out by default."""


@dataclass(frozen=True, kw_only=True)
class AssociativeRecall:
    """k1 v1 k2 v2 ... and then keys alone: at each of these the value that followed it is asked.

    Keys of a row are distinct, values and queries independent and uniform. Tokens 0..keys - 1 are keys, the
    next `values` are values. Multi-query associative recall of Arora et al. 2023, Zoology (arXiv 2312.04927),
    except that queries follow the pairs at once where the paper spreads them over a filled gap.
    """

    pairs: int = 8
    queries: int = 8
    keys: int = 16
    values: int = 16

    def __post_init__(self) -> None:
        _at_least("AssociativeRecall", 1, pairs=self.pairs, queries=self.queries, values=self.values)
        if self.keys < self.pairs:
            raise UserError(
                f"AssociativeRecall needs distinct keys in a row: keys is {self.keys}, "
                f"at least pairs ({self.pairs}) would be right"
            )

    @property
    def vocab_size(self) -> int:
        """Keys and values."""
        return self.keys + self.values

    @property
    def length(self) -> int:
        """T: two tokens a pair, one a query."""
        return 2 * self.pairs + self.queries

    @property
    def blind(self) -> float:
        """ln(values): a query's key alone says nothing of its value."""
        return math.log(self.values)

    def sample(self, batch_size: int, generator: torch.Generator) -> Pair:
        """`batch_size` rows; the same state of the generator gives the same rows."""
        keys = _distinct(batch_size, self.keys, self.pairs, generator)
        values = self.keys + torch.randint(self.values, (batch_size, self.pairs), generator=generator)
        asked = torch.randint(self.pairs, (batch_size, self.queries), generator=generator)
        shown = torch.stack((keys, values), -1).flatten(1)  # (B, pairs) twice -> (B, 2 pairs)
        inputs = torch.cat((shown, keys.gather(1, asked)), 1)
        return inputs, _ask_last(inputs, values.gather(1, asked))


@dataclass(frozen=True, kw_only=True)
class Induction:
    """Distinct random tokens and then a run of them again from a random place: what follows each is asked.

    With `repeat` = `shown` the whole sequence comes twice, the usual test for induction heads (Olsson et al.
    2022, In-context Learning and Induction Heads, arXiv 2209.11895), which a copy at a fixed distance solves
    as well. With fewer the distance varies, so that the token itself has to be found.
    """

    vocab_size: int = 32
    shown: int = 24
    repeat: int = 12

    def __post_init__(self) -> None:
        _at_least("Induction", 2, shown=self.shown, repeat=self.repeat)
        if not self.repeat <= self.shown <= self.vocab_size:
            raise UserError(
                "Induction needs repeat <= shown <= vocab_size, "
                f"got {self.repeat}, {self.shown} and {self.vocab_size}"
            )

    @property
    def length(self) -> int:
        """T: what is shown and the run again, but for its last token, which is only a target."""
        return self.shown + self.repeat - 1

    @property
    def blind(self) -> float:
        """ln(V - 1): any other token may follow."""
        return math.log(self.vocab_size - 1)

    def sample(self, batch_size: int, generator: torch.Generator) -> Pair:
        """`batch_size` rows; the same state of the generator gives the same rows."""
        shown = _distinct(batch_size, self.vocab_size, self.shown, generator)
        start = torch.randint(self.shown - self.repeat + 1, (batch_size, 1), generator=generator)
        run = shown.gather(1, start + torch.arange(self.repeat))
        inputs = torch.cat((shown, run[:, :-1]), 1)
        return inputs, _ask_last(inputs, run[:, 1:])


@dataclass(frozen=True, kw_only=True)
class Copy:
    """Independent uniform tokens; at t the one `lag` steps ago is asked, from t = lag on.

    The source's entropy is ln V a token, and the `lag` tokens after the one asked say nothing of it: a
    predictor that sees no more than these has an expected loss of at least ln V, whatever its size (Gibbs'
    inequality). A steady form of the copying memory task (Hochreiter & Schmidhuber 1997; Arjovsky et al.
    2016, arXiv 1511.06464).
    """

    vocab_size: int = 8
    lag: int = 8
    length: int = 24

    def __post_init__(self) -> None:
        _at_least("Copy", 1, vocab_size=self.vocab_size)
        if not 0 <= self.lag < self.length:
            raise UserError(f"Copy needs 0 <= lag < length, got lag={self.lag} and length={self.length}")

    @property
    def entropy(self) -> float:
        """ln V: nats a token of the source."""
        return math.log(self.vocab_size)

    @property
    def blind(self) -> float:
        """ln V, but 0 without a lag."""
        return self.entropy if self.lag else 0.0

    def sample(self, batch_size: int, generator: torch.Generator) -> Pair:
        """`batch_size` rows; the same state of the generator gives the same rows."""
        inputs = torch.randint(self.vocab_size, (batch_size, self.length), generator=generator)
        return inputs, _ask_last(inputs, inputs[:, : self.length - self.lag])


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Independent fair bits; at t the parity of bits 0..t is asked, from t = `start` on.

    One bit of state solves it at any length. Whoever misses one of the bits up to t is left with a fair
    coin, ln 2; so is self-attention of a fixed size as the length grows (Hahn 2020, arXiv 1906.06755).
    Asked from the end of the trained length on, an automaton differs from a fit.
    """

    length: int = 16
    start: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.length:
            raise UserError(
                f"Parity needs 0 <= start < length, got start={self.start} and length={self.length}"
            )

    @property
    def vocab_size(self) -> int:
        """The two bits."""
        return 2

    @property
    def blind(self) -> float:
        """ln 2, but 0 at t = 0, where the bit is its own parity."""
        hidden = self.length - max(self.start, 1)
        return hidden / (self.length - self.start) * math.log(2)

    def sample(self, batch_size: int, generator: torch.Generator) -> Pair:
        """`batch_size` rows; the same state of the generator gives the same rows."""
        inputs = torch.randint(2, (batch_size, self.length), generator=generator)
        return inputs, _ask_last(inputs, inputs.cumsum(1)[:, self.start :] % 2)


Task = AssociativeRecall | Induction | Copy | Parity


def nats(logits: Float[Tensor, "B T V"], targets: Int64[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the targets that are asked, at least in float32; nan if none is."""
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)


def accuracy(logits: Float[Tensor, "B T V"], targets: Int64[Tensor, "B T"]) -> float:
    """Share of the targets that are asked which have the largest logit; nan if none is asked."""
    asked = targets != IGNORE
    return (logits.argmax(-1)[asked] == targets[asked]).double().mean().item()


def interleave(
    inputs: Int64[Tensor, "B T"], targets: Int64[Tensor, "B T"], vocab_size: int
) -> Int64[Tensor, "B 2T"]:
    """x_0 y_0 x_1 y_1 ...: a task as a text, for scorers that predict nothing but the next token.

    Inputs keep their ids; a target y becomes vocab_size + y, and 2 vocab_size stands where nothing is asked,
    so that the text has 2 vocab_size + 1 tokens and a token tells whether it is an input or an answer.
    """
    answers = torch.where(targets == IGNORE, 2 * vocab_size, vocab_size + targets)
    return torch.stack((inputs, answers), -1).flatten(1)


def _at_least(task: str, least: int, **values: int) -> None:
    """UserError for the first of `values` below `least`."""
    for name, value in values.items():
        if value < least:
            raise UserError(f"{task} needs {name} of at least {least}, got {value}")


def _distinct(rows: int, of: int, count: int, generator: torch.Generator) -> Int64[Tensor, "B N"]:
    """`count` different numbers below `of` in each row, in random order."""
    # float64: among float32's 2^24 values ties, which a sort leaves in order, are common enough to measure.
    return torch.rand(rows, of, generator=generator, dtype=torch.float64).argsort(1)[:, :count]


def _ask_last(inputs: Int64[Tensor, "B T"], answers: Int64[Tensor, "B Q"]) -> Int64[Tensor, "B T"]:
    """The answers as targets of the last positions, IGNORE before."""
    return F.pad(answers, (inputs.shape[1] - answers.shape[1], 0), value=IGNORE)
