"""How fast a model trains, scores and decodes here, by a few steps: what turns minutes into equal steps."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixlab.compare.measure import DECODE_SECONDS, WARM_UP, sampled_tokens, timed_tokens
from mixlab.data import Dataset
from mixlab.decode import generate
from mixlab.model.language_model import LanguageModel
from mixlab.model.ngram import NGram
from mixlab.model.scorer import Scorer
from mixlab.train.config import RunConfig
from mixlab.train.count import CONTEXT
from mixlab.train.evaluate import TOKENS, evaluate
from mixlab.train.folder import RunFolder
from mixlab.train.loop import Trainer

WARM_UP_STEPS = 3
"""The first steps allocate, and choose kernels."""

LEAST_STEPS, MOST_STEPS = 3, 50

COUNTED = 500_000
"""Tokens that an n-gram is timed on: half a second's worth."""

GROWTH = 1.5
"""Time per token of a longer text over that: 0.23 us for half a million bytes, 0.34 for eight million."""

DECODED = 8
"""Tokens after the first, whose time each of what is decoded later will take."""


def speed(config: RunConfig, dataset: Dataset, *, context: int, seconds: float) -> dict[str, Any]:
    """Seconds: "train" per token trained on or counted, "score" per token scored, "finish" for what is
    measured after training at `context` tokens, "measuring" for this measurement itself.

    seconds: for the steps that are measured.
    """
    scorer: LanguageModel | NGram
    if config.model is None:
        started = time.perf_counter()
        train, scorer = _counting(config, dataset)
        # Its run scores at a context of its own, and is scored once more where the comparison has another.
        score = _scoring(scorer, dataset, CONTEXT, "float32") * (1 if context == CONTEXT else 2)
    else:
        with tempfile.TemporaryDirectory() as nowhere:
            trainer = Trainer(config, RunFolder(Path(nowhere)), dataset, lambda line: None)
        started = time.perf_counter()
        train, scorer = _stepping(trainer, seconds), trainer.model
        score = _scoring(scorer, dataset, context, "bfloat16" if trainer.bfloat16 else "float32")
        trainer.model.eval()
    finish = _decoding(scorer, [int(token) for token in dataset.valid.tokens[:context]], context)
    measuring = time.perf_counter() - started
    return {"train": train, "score": score, "finish": finish, "measuring": measuring}


def _stepping(trainer: Trainer, seconds: float) -> float:
    """The median step's seconds per token, after a warm-up."""
    trainer.model.train()
    for _ in range(WARM_UP_STEPS):
        trainer.step()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < LEAST_STEPS or (len(times) < MOST_STEPS and time.perf_counter() - began < seconds):
        started = time.perf_counter()
        trainer.step()
        times.append(time.perf_counter() - started)
    return statistics.median(times) / trainer.stepper.tokens


def _counting(config: RunConfig, dataset: Dataset) -> tuple[float, NGram]:
    """Seconds per token counted, and the n-gram."""
    assert config.ngram is not None
    tokens, started = dataset.train.tokens[:COUNTED], time.perf_counter()
    ngram = NGram.train(tokens, order=config.ngram.order, vocab_size=dataset.tokenizer.vocab_size)
    longer = GROWTH if len(dataset.train) > COUNTED else 1.0
    return longer * (time.perf_counter() - started) / len(tokens), ngram


def _scoring(scorer: Scorer, dataset: Dataset, context: int, dtype: str) -> float:
    """Seconds per token scored; the first batch warms up."""
    text = replace(dataset.valid, scored=min(TOKENS, len(dataset.valid) - 1))
    for _ in range(2):
        started = time.perf_counter()
        found = evaluate(scorer, text, context=context, dtype=dtype)
    return (time.perf_counter() - started) / found.tokens


def _decoding(scorer: Scorer, prompt: list[int], context: int) -> float:
    """Seconds that decoding takes in `measure.result`, from the first token's and a few others'."""
    times, started = [], time.perf_counter()
    for _ in generate(scorer, prompt, max_tokens=1 + DECODED, seed=0):
        times.append(time.perf_counter() - started)
        started = time.perf_counter()
    each = statistics.median(times[1:] or times)
    timed = min(timed_tokens(context), max(2 * WARM_UP, DECODE_SECONDS / each))
    return 2 * times[0] + (sampled_tokens(1000 * each) + timed) * each
