"""How fast a model trains here, from a few steps: what turns minutes into equal tokens."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from mixlab.compare.plan import EVALUATIONS, Plan
from mixlab.data import prepare
from mixlab.model.ngram import NGram
from mixlab.train.config import RunConfig
from mixlab.train.folder import RunFolder
from mixlab.train.loop import Trainer

WARM_UP_STEPS = 2
"""The first steps allocate, and choose kernels."""

PROBE_SECONDS = 2.0
MOST_STEPS = 20

COUNTED_SLICE = 200_000
"""Tokens that an n-gram is timed on; counting is close to linear in them."""

START_SECONDS = 6.0
"""What each run takes beside training and evaluating: starting Python, reading the text, measuring."""


def tokens_per_second(config: RunConfig) -> float:
    """Training speed of a model on its own text in its own settings; of an n-gram, counting's."""
    dataset = prepare(config.data, context=config.model.context if config.model else 0)
    if config.ngram is not None:
        tokens = dataset.train.tokens[:COUNTED_SLICE]
        started = time.perf_counter()
        NGram.train(tokens, order=config.ngram.order, vocab_size=dataset.tokenizer.vocab_size)
        return len(tokens) / (time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as nowhere:
        trainer = Trainer(config, RunFolder(Path(nowhere)), dataset, lambda line: None)
    trainer.model.train()
    for _ in range(WARM_UP_STEPS):
        trainer.step()
    started, steps = time.perf_counter(), 0
    while steps < MOST_STEPS and (not steps or time.perf_counter() - started < PROBE_SECONDS):
        trainer.step()
        steps += 1
    return steps * trainer.stepper.tokens / (time.perf_counter() - started)


def steps_for(minutes: float, plan: Plan, speeds: Mapping[str, float], *, train: int, valid: int) -> int:
    """Steps for each neural model so that the whole comparison takes about `minutes`; at least 1.

    speeds: training tokens/s by entry label. train, valid: tokens of the two sides of the text. A forward
    takes a third of a step, and an n-gram scores about as fast as it counts.
    """
    fixed, each = 0.0, 0.0
    for entry in plan.entries:
        speed = speeds.get(entry.label)
        if speed is None:
            continue
        fixed += START_SECONDS + (
            (train + valid) / speed if entry.counted else EVALUATIONS * valid / (3 * speed)
        )
        each += 0.0 if entry.counted else plan.request.step_tokens / speed
    return max(1, math.floor((60 * minutes - fixed) / each)) if each else 1
