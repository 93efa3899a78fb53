"""Minutes become steps: what each part of a comparison takes, and what is left for training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixlab.compare.plan import Limits, Plan
from mixlab.compare.request import EVALUATIONS
from mixlab.errors import UserError

LEAST_STEPS = 50
"""A neural model's steps, below which a comparison says nothing: its warm-up alone is to take some."""

EVALUATION_SHARE = 0.1
"""Share of the minutes for all evaluations of all runs.
On a machine that is slower by two fifths then, they stay below 15%."""

COUNT_SHARE = 0.1
"""Share of the minutes for counting n-grams: more text gives diminishing returns."""

TRAINING_SHARE = 0.97
"""Share of the rest for training; checkpoints, the report and a slower start take the remainder."""

SETTLED = 4
"""Times the steps are computed from what was counted with the steps before: they no longer move by then."""

MEASURING, MEASURING_SHARE = 3.0, 0.06
"""Seconds of measured steps for one model, and the largest share of the minutes for those of all models."""

LEAST_SCORED = 4096
"""Tokens that the full measure scores at least, whatever that takes."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What one model takes here, in seconds, by a short measurement in a process of its own.

    start: until the first step: the process, the text, the model. train: per token trained on or counted.
    score: per token scored. finish: for what is measured after training.
    """

    start: float
    train: float
    score: float
    finish: float


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A plan that fits. seconds: what all runs will take, evaluation: of that for evaluations."""

    steps: int
    limits: Limits
    seconds: float
    evaluation: float


def fit(
    minutes: float, spent: float, plan: Plan, speeds: Mapping[str, Speed], *, train: int, valid: int
) -> Fit:
    """As many steps for each neural model as let the whole comparison end after `minutes`.

    plan: its entries count, its steps do not. spent: seconds that have passed already. speeds: by entry
    label; an entry without one is expected to fail at once. train, valid: tokens of the two sides of the
    text. UserError, with the smallest number of minutes that would do, for fewer than LEAST_STEPS steps.
    """
    found = _fit(minutes, spent, plan, speeds, train, valid)
    neural = {entry.name for entry in plan.entries if not entry.counted}
    if found.steps >= LEAST_STEPS or not neural:
        return found
    enough = minutes
    while _fit(enough, spent, plan, speeds, train, valid).steps < LEAST_STEPS:
        enough *= 1.02
    fewer = "name fewer models (--models), or choose" if len(neural) > 1 else "or choose"
    raise UserError(
        f"--minutes {minutes:g} is enough for {max(0, found.steps)} steps of each model on this machine, and "
        f"fewer than {LEAST_STEPS} say nothing: give --minutes {_rounded_up(enough):g}; {fewer} a smaller "
        "--budget or --context"
    )


def _fit(
    minutes: float, spent: float, plan: Plan, speeds: Mapping[str, Speed], train: int, valid: int
) -> Fit:
    seconds = 60 * minutes
    entries = [entry for entry in plan.entries if entry.label in speeds]
    of = {entry.label: speeds[entry.label] for entry in entries}
    neural = [of[entry.label] for entry in entries if not entry.counted]
    counted = [of[entry.label] for entry in entries if entry.counted]
    limits = _limits(seconds, plan, neural, counted, train, valid)
    whole = min(limits.valid_tokens or valid, plan.request.data.valid_tokens or valid, valid)
    evaluation = whole * sum(speed.score for speed in of.values())
    evaluation += limits.eval_tokens * (EVALUATIONS - 1) * sum(speed.score for speed in neural)
    fixed = sum(speed.start + speed.finish for speed in of.values()) + evaluation
    step = plan.request.step_tokens * sum(speed.train for speed in neural)
    steps, most = 1, min(train, limits.count_tokens or train)
    for _ in range(SETTLED):  # an n-gram of the others' text counts the more, the longer they train
        counting = 0.0
        for entry in entries:
            if entry.counted:
                same = entry.counted_on == "same"
                read = max(0, steps) * plan.request.step_tokens if same else most
                counting += min(most, read) * of[entry.label].train
        left = seconds - spent - fixed - counting
        steps = math.floor(TRAINING_SHARE * left / step) if step else 1
    return Fit(steps=steps, limits=limits, seconds=fixed + counting + steps * step, evaluation=evaluation)


def _limits(
    seconds: float, plan: Plan, neural: list[Speed], counted: list[Speed], train: int, valid: int
) -> Limits:
    """How much may be scored and counted in a comparison of so many seconds."""
    share = EVALUATION_SHARE * seconds
    usual = Limits()
    asked = plan.request.data.valid_tokens or valid
    sampled, whole = usual.eval_tokens, min(asked, valid)
    each = (EVALUATIONS - 1) * sum(speed.score for speed in neural)
    if each:  # at most a third of it for the evaluations on the way
        sampled = max(plan.request.context, min(sampled, int(share / 3 / each)))
    left = share - sampled * each
    scoring = sum(speed.score for speed in (*neural, *counted))
    if scoring:
        whole = min(whole, max(LEAST_SCORED, int(left / scoring)))
    counting = sum(speed.train for speed in counted)
    most = int(COUNT_SHARE * seconds / counting) if counting else train
    return Limits(
        valid_tokens=0 if whole >= valid else whole,
        eval_tokens=min(sampled, whole),
        count_tokens=0 if most >= train else max(LEAST_SCORED, most),
    )


def measuring(minutes: float, models: int) -> float:
    """Seconds in which the steps of one of so many models are measured."""
    return min(MEASURING, MEASURING_SHARE * 60 * minutes / models)


def overshoot(
    minutes: float, seconds: float, speeds: Mapping[str, Speed], results: Mapping[str, Mapping[str, Any]]
) -> str:
    """A sentence where a comparison that was planned for `minutes` took over a tenth more; else nothing.

    speeds, results: by entry label, as measured before and as they became.
    """
    if seconds <= 1.1 * 60 * minutes:
        return ""
    neural = [label for label in speeds if results.get(label, {}).get("curve")]
    planned = sum(speeds[label].train * results[label]["tokens"] for label in neural)
    slower = sum(results[label]["seconds"] for label in neural) / planned if planned else 1.0
    why = f"; its steps took {slower:.1f} times as long as when they were measured" if slower > 1.05 else ""
    over = f"{seconds / 60 / minutes - 1:.0%} over the {minutes:g} it was planned for"
    return f"the comparison took {seconds / 60:.1f} minutes, {over}{why}"


def _rounded_up(minutes: float) -> float:
    """Round up to what a person would type: halves below 10, whole minutes above."""
    return math.ceil(2 * minutes) / 2 if minutes < 10 else math.ceil(minutes)


def speed_of(line: Mapping[str, Any], seconds: float) -> Speed:
    """The Speed in the last line of a worker that measured one and took `seconds` in all."""
    return Speed(
        start=max(0.0, seconds - line["measuring"]),
        train=line["train"],
        score=line["score"],
        finish=line["finish"],
    )
