"""What a run would do, without doing it: who updates what at which rate, and how long it is."""

from __future__ import annotations

import math
from typing import Any

from mixlab.data import Dataset
from mixlab.errors import UserError
from mixlab.model.language_model import build_model
from mixlab.train import kinds, randomness
from mixlab.train.config import ROLES, RunConfig, TrainConfig
from mixlab.train.evaluations import Evaluations
from mixlab.train.folder import resolve
from mixlab.train.optimizers import Optimizers


def explain(config: RunConfig, dataset: Dataset) -> dict[str, Any]:
    """The groups of a run's optimizers, its batch, length and schedule, as JSON holds them.

    Each group: role, optimizer, tensors, parameters (numbers in all), lr (peak), lr_scale, decay, names.
    length: steps, tokens, epochs, flops and tokens_per_parameter, or minutes, from which none follows.
    evaluations: see `Evaluations.plan`; "of" how many validation tokens.
    besides: what else changes the loss or the weights, 0 or false where it is off.
    dataset: may be one that was only looked at (`prepare(..., look=True)`). Writes nothing. UserError for an
    n-gram.
    """
    if config.model is None:
        raise UserError("an n-gram counts once: it has no optimizer and no length to explain")
    config = resolve(config, dataset)
    assert config.model is not None
    train = config.train
    with randomness.kept():
        randomness.seed(train.seed)
        model = build_model(config.model)
        model.set_progress(0.0)
        optimizers = Optimizers(model, train.optimizer)
    names = {id(p): name for name, p in optimizers.parameters.items()}
    groups = [
        {
            "role": group.role,
            "optimizer": group.rule,
            "tensors": len(table["params"]),
            "parameters": sum(p.numel() for p in table["params"]),
            "lr": train.optimizer.lr * group.lr_scale,
            "lr_scale": group.lr_scale,
            "decay": group.decay,
            "names": [names[id(p)] for p in table["params"]],
        }
        for group, table in sorted(optimizers.tables, key=lambda pair: ROLES.index(pair[0].role))
    ]
    parameters = sum(group["parameters"] for group in groups)
    kind = kinds.find(train.optimizer.kind)
    context, rows = config.model.context, train.rows(config.model.context)
    batch = {"rows": rows, "context": context, "tokens": rows * context, "pieces": train.accumulate}
    work = kind.work(train.optimizer.options) * 3 * model.flops(context) * rows
    length = _length(train, batch["tokens"], work, len(dataset.train) - 1, parameters)
    steps = length.get("steps")
    return {
        "name": config.name,
        "parameters": parameters,
        "groups": groups,
        "batch": batch,
        "length": length,
        "schedule": {
            "kind": train.schedule.kind,
            "peak": train.optimizer.lr,
            "warmup": train.schedule.rise,
            "warmup_steps": None if steps is None else round(train.schedule.rise * steps),
            "decay": train.schedule.decay if train.schedule.kind == "wsd" else None,
            "final": 1.0 if train.schedule.kind == "constant" else train.schedule.final,
        },
        "clip": train.optimizer.clip,
        "dtype": train.dtype,
        "besides": {
            "dropout": config.model.dropout,
            **{key: getattr(train, key) for key in ("ema", "z_loss", "label_smoothing", "recompute")},
        },
        "eval_every": train.eval_every,
        "evaluations": _evaluations(train, dataset, context),
        "checkpoint": {"every": train.checkpoint.every, "minutes": train.checkpoint.minutes},
        "asks": kind.asks,
    }


def _evaluations(train: TrainConfig, dataset: Dataset, context: int) -> dict[str, Any]:
    """When the validation text is scored, and how many tokens of how many."""
    return {**Evaluations(train, dataset, context).plan(), "of": dataset.facts["valid_tokens"]}


def _length(train: TrainConfig, step_tokens: int, work: float, epoch: int, parameters: int) -> dict[str, Any]:
    """The horizon in every unit that follows from it; work: FLOPs a step, epoch: tokens of the text."""
    if train.horizon == "minutes":
        return {"minutes": train.minutes}
    of_a_step = {"steps": 1, "tokens": step_tokens, "flops": work}[train.horizon]
    steps = math.ceil(getattr(train, train.horizon) / of_a_step)
    tokens = steps * step_tokens
    return {
        "steps": steps,
        "tokens": tokens,
        "epochs": tokens / epoch,
        "flops": round(steps * work),
        "tokens_per_parameter": tokens / parameters,
    }
