"""Evaluation: the loss over a whole text, each token predicted once, in bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mixlab.data import TokenFile, eval_windows
from mixlab.data.batches import eval_targets
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
    loss_by_position: mean nats of the tokens that follow 1, 2, ... tokens of context; windows do not
    overlap, so it is `context` long (less for a shorter text).
    sources: name -> bits per byte of each source of a mixture; empty otherwise.
    """

    bits_per_byte: float
    nats_per_token: float
    perplexity: float
    tokens: int
    bytes: int
    loss_by_position: list[float]
    sources: dict[str, float] = field(default_factory=dict)

    def line(self) -> dict[str, Any]:
        """What metrics.jsonl says of it; "tokens" there are those of training, these are "scored"."""
        left_out = ("tokens", "bytes") if self.sources else ("tokens", "bytes", "sources")
        said = {key: value for key, value in asdict(self).items() if key not in left_out}
        return {**said, "scored": self.tokens}


def evaluate(
    scorer: Scorer,
    text: TokenFile,
    *,
    context: int,
    batch_size: int | None = None,
    dtype: str = "auto",
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score every token of `text` after the first once, in windows of `context` tokens that start afresh.

    Of a text that says so, only `text.scored` tokens, evenly spread; bytes are then those of the text in
    proportion. With `text.apart` a model reads no document before the one it predicts. The sources of a
    mixture have windows of their own, and the total is of all they have, whatever their weights.

    A model is put in eval mode for the time being. batch_size: windows at a time, by default those of TOKENS;
    where memory is short, all begins again with half of them. dtype: as in `TrainConfig`; log-probabilities
    are float32 and summed in float64 whatever it is. stop: asked before each batch and at each block;
    EvaluationStopped once it says True. progress: called after each batch with how many tokens are scored,
    and how many will be in all. RunFailed if memory does not hold even one window.
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
                        part: _score(scorer, part, text, context, rows, device, check, tell)
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
    return _evaluation(sums)


def scored_tokens(text: TokenFile, context: int) -> int:
    """How many tokens `evaluate` scores of a text."""
    parts = (_targets(part, text) for part in text.each())
    return sum(eval_targets(targets, context=context, most=most) for targets, most in parts)


def _targets(part: Part, text: TokenFile) -> tuple[int, int]:
    """How many tokens of a part could be scored, and at most how many are to be (0: all)."""
    targets = part.stop - part.start - 1
    return targets, math.ceil(text.scored * targets / (len(text) - 1)) if text.scored else 0


class _Sums(NamedTuple):
    """By position in the context: nats, and how many tokens; and the bytes that these tokens stand for."""

    nats: Tensor
    tokens: Tensor
    bytes: float


def _score(
    scorer: Scorer,
    part: Part,
    text: TokenFile,
    context: int,
    rows: int,
    device: torch.device,
    check: Callable[[], None],
    tell: Callable[[int], None],
) -> _Sums:
    """The sums over one part of the text."""
    nats = torch.zeros(context, dtype=torch.float64)
    count = torch.zeros(context, dtype=torch.int64)
    targets, most = _targets(part, text)
    apart = text.apart and isinstance(scorer, nn.Module)
    windows = eval_windows(part.of(text.tokens), context=context, batch_size=rows, most=most, apart=apart)
    for inputs, wanted, *segment in windows:
        check()
        x, y = inputs.to(device), wanted.to(device)
        if segment:
            scores = cast(Any, scorer).score(x, y, segment=segment[0].to(device))  # (B, T)
            at = _places(segment[0]).flatten()
            nats.index_add_(0, at, -scores.double().cpu().flatten())
            count.index_add_(0, at, torch.ones_like(at))
        else:
            scores = scorer.score(x, y)
            length = scores.shape[1]
            nats[:length] -= scores.double().sum(0).cpu()
            count[:length] += scores.shape[0]
        tell(wanted.numel())
    return _Sums(nats, count, part.num_bytes * (int(count.sum()) / targets))


def _places(segment: Tensor) -> Tensor:
    """Index of each token of packed rows (B, T) in its segment."""
    index = torch.arange(segment.shape[1]).expand_as(segment)
    return index - torch.where(document_starts(segment), index, 0).cummax(1).values


def _evaluation(sums: Mapping[Part, _Sums]) -> Evaluation:
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
        perplexity=math.exp(mean) if mean < 700 else math.inf,  # e**710 is past what a float holds
        tokens=tokens,
        bytes=round(size),
        loss_by_position=(nats[reached] / count[reached]).tolist(),
        sources=bits if len(sums) > 1 else {},
    )
