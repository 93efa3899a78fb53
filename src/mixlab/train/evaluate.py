"""Evaluation: the loss over a whole text, each token predicted once, in bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixlab.data import TokenFile, eval_windows
from mixlab.errors import RunFailed
from mixlab.model.scorer import Scorer
from mixlab.train import shortage
from mixlab.train.precision import autocast, resolve

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
    """

    bits_per_byte: float
    nats_per_token: float
    perplexity: float
    tokens: int
    bytes: int
    loss_by_position: list[float]

    def line(self) -> dict[str, Any]:
        """What metrics.jsonl says of it; its own "tokens" are those of training."""
        return {key: value for key, value in asdict(self).items() if key not in ("tokens", "bytes")}


def evaluate(
    scorer: Scorer,
    text: TokenFile,
    *,
    context: int,
    batch_size: int | None = None,
    dtype: str = "auto",
    stop: Callable[[], bool] | None = None,
) -> Evaluation:
    """Score every token of `text` after the first once, in windows of `context` tokens that start afresh.

    A model is put in eval mode for the time being. batch_size: windows at a time, by default those of TOKENS;
    where memory is short, all begins again with half of them. dtype: as in `TrainConfig`; log-probabilities
    are float32 and summed in float64 whatever it is. stop: asked before each batch; EvaluationStopped once it
    says True. RunFailed if memory does not hold even one window.
    """
    rows = batch_size or max(1, TOKENS // context)
    module = scorer if isinstance(scorer, nn.Module) else None
    device = next(module.parameters()).device if module is not None else torch.device("cpu")
    training = module is not None and module.training
    if module is not None:
        module.eval()
    try:
        while True:
            try:
                with torch.no_grad(), autocast(device, resolve(dtype, device)):
                    nats, count = _score(scorer, text, context, rows, device, stop)
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
    finally:
        if module is not None:
            module.train(training)
    total, tokens = float(nats.sum()), int(count.sum())
    mean = total / tokens
    reached = count > 0
    return Evaluation(
        bits_per_byte=total / math.log(2) / text.num_bytes,
        nats_per_token=mean,
        perplexity=math.exp(mean) if mean < 700 else math.inf,  # e**710 is past what a float holds
        tokens=tokens,
        bytes=text.num_bytes,
        loss_by_position=(nats[reached] / count[reached]).tolist(),
    )


def _score(
    scorer: Scorer,
    text: TokenFile,
    context: int,
    rows: int,
    device: torch.device,
    stop: Callable[[], bool] | None,
) -> tuple[Tensor, Tensor]:
    """Nats of the whole text, and how many tokens they are of, by position in the window."""
    nats = torch.zeros(context, dtype=torch.float64)
    count = torch.zeros(context, dtype=torch.int64)
    for inputs, targets in eval_windows(text.tokens, context=context, batch_size=rows):
        if stop is not None and stop():
            raise EvaluationStopped
        scores = scorer.score(inputs.to(device), targets.to(device))  # (B, T)
        length = scores.shape[1]
        nats[:length] -= scores.double().sum(0).cpu()
        count[:length] += scores.shape[0]
    return nats, count
