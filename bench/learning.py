"""What models learn of the synthetic tasks, over seeds: a line of JSON a model, learning rate and seed.

An experiment trains each of its models on the same rows with the same settings, then scores them on rows
that were not trained on. tests/learning/ asserts on these experiments at one seed; here they are repeated, at
other learning rates if asked, to see that an outcome is not luck.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

import mixlab
from mixlab.data.synthetic import (
    IGNORE,
    AssociativeRecall,
    Copy,
    Induction,
    Parity,
    Task,
    accuracy,
    interleave,
    nats,
)

HELD_OUT_SEED = 1 << 20
"""Of the rows that are scored; training seeds are small numbers."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Models of one width and depth that are trained alike.

    stages: tasks to train on one after the other, each with its steps. asked: what to score in the end beside
    them. models: name -> the keys of the model that differ.
    """

    stages: tuple[tuple[Task, int], ...]
    asked: tuple[Task, ...] = ()
    models: Mapping[str, Mapping[str, Any]]
    dim: int = 64
    depth: int = 2
    batch_size: int = 32
    lr: float = 3e-3


class Score(NamedTuple):
    """Mean nats and share of right answers over the `count` targets that were asked."""

    nats: float
    accuracy: float
    count: int


MIXERS = {name: {"temporal": name} for name in ("attention", "rwkv7", "rnn")}
RUNS = Induction(vocab_size=32, shown=16, repeat=8)
PAIRS = AssociativeRecall(pairs=8, queries=8, keys=16, values=16)
ECHO = Copy(vocab_size=4, lag=8, length=24)
# Of x_0 y_0 x_1 y_1 ... a 6-gram sees x_t, x_t-1, x_t-2 and two earlier answers before y_t. In rows of
# 2 lag - 2 none of these inputs is asked, so that, taken in order, no answer was seen before.
UNSEEN, SEEN = replace(ECHO, length=2 * ECHO.lag - 2), replace(ECHO, lag=2)

EXPERIMENTS = {
    # Runs first: on recall alone attention stays long where it names any of the row's values.
    "recall": Experiment(stages=((RUNS, 300), (PAIRS, 100)), models=MIXERS),
    "recall-alone": Experiment(stages=((PAIRS, 400),), models=MIXERS),
    # Two layers of 4 tokens each see 7, so that the 8 steps to the token asked are just too many.
    "copy": Experiment(
        stages=((ECHO, 400),),
        models={"window": {"temporal": {"kind": "window", "size": 4}}, "lstm": {"temporal": "lstm"}},
        batch_size=64,
        lr=1e-2,
    ),
    # One layer would do for the recurrent network; attention gets two, to fail for no want of layers.
    "parity": Experiment(
        stages=((Parity(length=8), 400), (Parity(length=16), 300)),
        asked=(Parity(length=64, start=16), Parity(length=128, start=16)),
        models={
            "rnn": {"temporal": "rnn", "depth": 1},
            "attention-rope": {"temporal": "attention", "position": "rope"},
            "attention-none": {"temporal": "attention", "position": "none"},
        },
        batch_size=64,
    ),
}


def fit(
    experiment: Experiment, model: str, *, seed: int, lr: float | None = None
) -> tuple[mixlab.LanguageModel, list[Score]]:
    """The named model of an experiment after training, and its score on each stage's task after that stage.

    AdamW with a warm-up over a twentieth of the steps and a cosine decay to a tenth; gradients clipped to
    norm 1.
    """
    tasks = [task for task, _ in experiment.stages]
    total = sum(steps for _, steps in experiment.stages)
    torch.manual_seed(seed)
    shape = {
        "vocab_size": tasks[0].vocab_size,
        "context": max(task.length for task in (*tasks, *experiment.asked)),
        "dim": experiment.dim,
        "depth": experiment.depth,
    }
    net = mixlab.build_model(shape | experiment.models[model])
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr or experiment.lr, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(20 * (step + 1) / total, 0.55 + 0.45 * math.cos(math.pi * step / total)),
    )
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for task, steps in experiment.stages:
        for _ in range(steps):
            inputs, targets = task.sample(experiment.batch_size, generator)
            nats(net(inputs).logits, targets).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        scores.append(score(net, task))
    return net, scores


@torch.no_grad()
def score(model: mixlab.LanguageModel, task: Task, rows: int = 512) -> Score:
    """The model on `rows` fresh rows of the task."""
    inputs, targets = task.sample(rows, torch.Generator().manual_seed(HELD_OUT_SEED))
    logits = model(inputs).logits
    return Score(nats(logits, targets).item(), accuracy(logits, targets), int((targets != IGNORE).sum()))


def score_ngram(task: Task, *, order: int, rows: int = 20_000, seed: int = 0, held_out: int = 512) -> Score:
    """An n-gram counted on the task as a text of `rows` documents, on the answers of `held_out` fresh ones.

    Its distribution is taken over the answers alone: where they begin in a row is no part of the task.
    """

    def text(rows: int, seed: int) -> torch.Tensor:
        pair = task.sample(rows, torch.Generator().manual_seed(seed))
        return interleave(*pair, task.vocab_size)

    V = task.vocab_size
    model = mixlab.NGram.train(text(rows, seed), order=order, vocab_size=2 * V + 1)
    fresh = text(held_out, HELD_OUT_SEED)
    right = fresh[:, 1:] - V
    targets = torch.where((right >= 0) & (right < V), right, IGNORE)
    logits = model(fresh[:, :-1]).logits[..., V : 2 * V]
    return Score(nats(logits, targets).item(), accuracy(logits, targets), int((targets != IGNORE).sum()))


def show(row, found):
    for task, s in found.items():
        row[repr(task)] = {"nats": round(s.nats, 4), "accuracy": round(s.accuracy, 4)}
    print(json.dumps(row), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--experiments", nargs="+", choices=list(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument("--models", nargs="+", help="only these of an experiment's models")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--lrs", nargs="+", type=float, help="instead of the experiment's own")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    for name in a.experiments:
        experiment = EXPERIMENTS[name]
        lrs = a.lrs or [experiment.lr]
        for model, lr, seed in itertools.product(a.models or experiment.models, lrs, a.seeds):
            start = time.process_time()
            net, scores = fit(experiment, model, seed=seed, lr=lr)
            row = {"experiment": name, "model": model, "lr": lr, "seed": seed}
            row["processor_s"] = round(time.process_time() - start, 1)
            found = dict(zip((task for task, _ in experiment.stages), scores, strict=True))
            show(row, found | {task: score(net, task) for task in experiment.asked})
        if name == "copy" and not a.models:
            for task, seed in itertools.product((SEEN, UNSEEN), a.seeds):
                found = score_ngram(task, order=6, seed=seed)
                show({"experiment": name, "model": "ngram-6", "seed": seed}, {task: found})


if __name__ == "__main__":
    main()
