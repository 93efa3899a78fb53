"""Evaluation: the loss over a whole text, each token predicted once, in bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from mixlab.data import TokenFile
from mixlab.data.batches import eval_targets, placed_windows
from mixlab.data.packing import document_ends
from mixlab.data.tokens import Part
from mixlab.errors import RunFailed
from mixlab.model.scorer import Scorer
from mixlab.parts.shift import document_starts
from mixlab.train import shortage
from mixlab.train.precision import autocast, resolve
from mixlab.train.stopping import at_each_block
from mixlab.train.surroundings import evaluating, pinned

TOKENS = 8192
"""Scored at a time. From 1k to 16k the speed was the same, and `torch.inference_mode` gained nothing over
`no_grad` (LOG.md); a training step of this many has more in memory."""


class EvaluationStopped(Exception):
    """The evaluation was asked to stop before its end."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How well a scorer predicts a text.

    bits_per_byte: nats of the whole text / ln 2 / bytes, so that tokenizers compare.
    bytes: the UTF-8 bytes of the documents and one for each document's end, which is predicted like a byte.
    nats_per_token: the mean loss; perplexity: e to that. tokens: how many were predicted.
    loss_by_position: mean nats of the tokens that follow 1, 2, ... tokens of context; it is `context` long
    (less for a shorter text).
    sources: name -> bits per byte of each source of a mixture; empty otherwise.
    context, stride: tokens of a window, and from the start of one to that of the next.
    nats_by_document: the sum of each document, its end included, in order; None if that was not asked for.
    """

    bits_per_byte: float
    nats_per_token: float
    perplexity: float
    tokens: int
    bytes: int
    loss_by_position: list[float]
    sources: dict[str, float] = field(default_factory=dict)
    context: int
    stride: int
    nats_by_document: list[float] | None = None

    def line(self) -> dict[str, Any]:
        """What metrics.jsonl says of it; "tokens" there are those of training, these are "scored"."""
        left_out = {"tokens", "bytes", "context", "stride", "nats_by_document"}
        left_out |= set() if self.sources else {"sources"}
        said = {key: value for key, value in asdict(self).items() if key not in left_out}
        return {**said, "scored": self.tokens}

    def perplexity_per(self, units: int) -> float:
        """e to the nats of the whole text for each of so many units, such as its words."""
        return _exp(self.nats_per_token * self.tokens / units)


def evaluate(
    scorer: Scorer,
    text: TokenFile,
    *,
    context: int,
    stride: int | None = None,
    batch_size: int | None = None,
    dtype: str = "auto",
    by_document: bool = False,
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score every token of `text` after the first once, in windows of `context` tokens that start afresh.

    Of a text that says so, only `text.scored` tokens, evenly spread; bytes are then those of the text in
    proportion. With `text.apart` a model reads no document before the one it predicts. The sources of a
    mixture have windows of their own, and the total is of all they have, whatever their weights. With a
    `stride` below `context` windows overlap: each begins `stride` tokens after the one before, and a token
    counts in the first window that has it, where at least `context - stride` tokens are before it (fewer only
    in the first window).

    A model is put in eval mode for the time being. batch_size: windows at a time, by default those of TOKENS;
    where memory is short, all begins again with half of them. dtype: as in `TrainConfig`; log-probabilities
    are float32 and summed in float64 whatever it is. by_document: see `Evaluation`. stop: asked before each
    batch and at each block; EvaluationStopped once it says True. progress: called after each batch with how
    many tokens are scored, and how many will be in all. RunFailed if memory does not hold even one window.
    """

    def check() -> None:
        if stop is not None and stop():
            raise EvaluationStopped

    done, total = 0, scored_tokens(text, context)

    def tell(tokens: int) -> None:
        nonlocal done
        done += tokens
        if progress is not None:
            progress(done, total)

    policy = _Policy(context, context if stride is None else stride, by_document)
    rows = batch_size or max(1, TOKENS // context)
    module = scorer if isinstance(scorer, nn.Module) else None
    device = next(module.parameters()).device if module is not None else torch.device("cpu")
    with pinned(), evaluating(module):
        while True:
            done = 0
            try:
                with (
                    torch.no_grad(),
                    autocast(device, resolve(dtype, device)),
                    at_each_block(scorer, check),
                ):
                    sums = {
                        part: _score(scorer, part, text, policy, rows, device, check, tell)
                        for part in text.each()
                    }
                break
            except (RuntimeError, MemoryError) as error:
                if not shortage.ran_out(error):
                    raise
                if rows == 1:
                    raise RunFailed(
                        f"out of memory: not even one window of {context} tokens can be scored"
                    ) from None
            shortage.release(device)
            rows //= 2
    return _evaluation(sums, policy)


def scored_tokens(text: TokenFile, context: int) -> int:
    """How many tokens `evaluate` scores of a text."""
    parts = (_targets(part, text) for part in text.each())
    return sum(eval_targets(targets, context=context, most=most) for targets, most in parts)


def _targets(part: Part, text: TokenFile) -> tuple[int, int]:
    """How many tokens of a part could be scored, and at most how many are to be (0: all)."""
    targets = part.stop - part.start - 1
    return targets, math.ceil(text.scored * targets / (len(text) - 1)) if text.scored else 0


class _Policy(NamedTuple):
    """How a text is cut into windows, and whether each document's sum is wanted."""

    context: int
    stride: int
    by_document: bool


class _Sums(NamedTuple):
    """By position in the context: nats, and how many tokens; the bytes that these tokens stand for; and by
    document: nats."""

    nats: Tensor
    tokens: Tensor
    bytes: float
    documents: Tensor


def _score(
    scorer: Scorer,
    part: Part,
    text: TokenFile,
    policy: _Policy,
    rows: int,
    device: torch.device,
    check: Callable[[], None],
    tell: Callable[[int], None],
) -> _Sums:
    """The sums over one part of the text."""
    context, stream = policy.context, part.of(text.tokens)
    nats = torch.zeros(context, dtype=torch.float64)
    count = torch.zeros(context, dtype=torch.int64)
    ends = _ends(stream) if policy.by_document else torch.zeros(0)
    documents = torch.zeros(len(ends), dtype=torch.float64)
    targets, most = _targets(part, text)
    apart = text.apart and isinstance(scorer, nn.Module)
    windows = placed_windows(
        stream, context=context, batch_size=rows, most=most, apart=apart, stride=policy.stride
    )
    for starts, skip, (inputs, wanted, *segment) in windows:
        check()
        x, y = inputs.to(device), wanted.to(device)
        if segment:
            scores = cast(Any, scorer).score(x, y, segment=segment[0].to(device))[:, skip:]  # (B, T - skip)
            at = _places(segment[0])[:, skip:].flatten()
            nats.index_add_(0, at, -scores.double().cpu().flatten())
            count.index_add_(0, at, torch.ones_like(at))
        else:
            scores = scorer.score(x, y)[:, skip:]
            length = wanted.shape[1]
            nats[skip:length] -= scores.double().sum(0).cpu()
            count[skip:length] += scores.shape[0]
        if policy.by_document:
            places = torch.from_numpy(starts)[:, None] + torch.arange(skip, wanted.shape[1]) + 1
            owners = torch.searchsorted(ends, places.flatten())  # an end belongs to what it ends
            documents.index_add_(0, owners, -scores.double().cpu().flatten())
        tell(scores.numel())
    return _Sums(nats, count, part.num_bytes * (int(count.sum()) / targets), documents)


def _ends(stream: np.ndarray) -> Tensor:
    """Where each document of a stream ends, the last one also where its end is cut off."""
    last = [len(stream) - 1] if stream[-1] != 0 else []
    return torch.from_numpy(np.concatenate([document_ends(stream)[1:], last]).astype(np.int64))


def _places(segment: Tensor) -> Tensor:
    """Index of each token of packed rows (B, T) in its segment."""
    index = torch.arange(segment.shape[1]).expand_as(segment)
    return index - torch.where(document_starts(segment), index, 0).cummax(1).values


def _evaluation(sums: Mapping[Part, _Sums], policy: _Policy) -> Evaluation:
    nats = torch.stack([part.nats for part in sums.values()]).sum(0)
    count = torch.stack([part.tokens for part in sums.values()]).sum(0)
    size = sum(part.bytes for part in sums.values())
    total, tokens = float(nats.sum()), int(count.sum())
    mean = total / tokens
    reached = count > 0
    bits = {part.name: float(found.nats.sum()) / math.log(2) / found.bytes for part, found in sums.items()}
    return Evaluation(
        bits_per_byte=total / math.log(2) / size,
        nats_per_token=mean,
        perplexity=_exp(mean),
        tokens=tokens,
        bytes=round(size),
        loss_by_position=(nats[reached] / count[reached]).tolist(),
        sources=bits if len(sums) > 1 else {},
        context=policy.context,
        stride=policy.stride,
        nats_by_document=torch.cat([part.documents for part in sums.values()]).tolist()
        if policy.by_document
        else None,
    )


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf  # e**710 is past what a float holds
