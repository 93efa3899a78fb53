"""The learning-rate range test: how far may the rate rise before the loss does (Smith 2017)?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mixlab.data import Dataset
from mixlab.errors import RunFailed, UserError
from mixlab.train import auto, randomness, surroundings
from mixlab.train.advice import NotFinite
from mixlab.train.config import RunConfig, ScheduleConfig
from mixlab.train.folder import RunFolder, resolve
from mixlab.train.loop import Trainer
from mixlab.train.metrics import Line
from mixlab.train.step import StepStopped

LOW, HIGH = 1e-5, 10.0
"""From where no optimizer learns in a hundred steps to where none does any more."""
STEPS = 120
"""Twenty a decade: each step multiplies the rate by 1.12."""
WINDOW = 7
"""Steps that the loss is averaged over, a third of a decade: single batches differ by more than a step."""
WORSE = 1.2
"""Times the loss at the start: above that the rate has undone all there was to learn."""


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """What a range test found.

    rates, losses: each rate and the training loss, nats a token, of the batch after the step taken with it.
    smooth: the mean of WINDOW losses around each. start: the loss before any step. stopped: why it ended.
    suggestion: a peak rate by `suggest`, None if the loss never fell.
    """

    rates: list[float]
    losses: list[float]
    smooth: list[float]
    start: float
    stopped: str
    suggestion: float | None


FALLEN = 0.9
RULE = "the lowest rate by which the averaged loss had made nine tenths of its fall"
"""The curve is flat for a decade around its lowest, and a whole run bears less than a single step does."""


def find_lr(
    config: RunConfig,
    dataset: Dataset,
    *,
    steps: int = STEPS,
    progress: Callable[[Line], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> RangeTest:
    """Train from the config's fresh init at rates that rise exponentially from LOW to HIGH.

    One batch a step, as the run itself would draw them; it ends early once the loss is WORSE times what it
    began with, or not finite. Nothing is written. progress: called with {"step", "rate", "loss"} after every
    step. note: told what was measured to choose threads.

    UserError for an n-gram and if this process is training already; RunFailed after SIGTERM, SIGINT or
    SIGHUP, where memory is short, and if the loss or a gradient is not finite before there are two losses.
    """
    if config.model is None:
        raise UserError("an n-gram counts once: it has no learning rate to find")
    level = ScheduleConfig(kind="constant", warmup=0.0)
    config = resolve(replace(config, train=replace(config.train, schedule=level)), dataset)
    assert config.model is not None
    train = auto.settle(config.train, width=config.model.dim, note=note or (lambda message: None))
    config = replace(config, train=train)
    with surroundings.alone(), surroundings.pinned(train.threads), randomness.kept():
        return _find(config, dataset, steps, progress)


def _find(
    config: RunConfig, dataset: Dataset, steps: int, progress: Callable[[Line], None] | None
) -> RangeTest:
    rates = [LOW * (HIGH / LOW) ** (step / (steps - 1)) for step in range(steps)]
    seen: list[float] = []
    stopped = f"the rate reached {HIGH:g}"
    trainer = Trainer(config, RunFolder(Path("nowhere")), dataset, lambda line: None)
    with trainer.stop:
        trainer.stepper.rate = lambda fraction: rates[len(seen)]
        for step, rate in enumerate(rates, start=1):
            try:
                loss = trainer.stepper.take(0.0).loss
            except StepStopped:
                raise RunFailed(
                    f"stopped at rate {step} of {steps}, too early to suggest one; nothing is kept of it"
                ) from None
            except NotFinite:
                if len(seen) < 2:
                    raise
                stopped = (
                    f"the loss or a gradient was not finite after a step at {rates[max(0, step - 2)]:.2g}"
                )
                break
            seen.append(loss)
            if progress is not None:
                progress({"kind": "rate", "step": step, "rate": rate, "loss": loss})
            if len(seen) > WINDOW and sum(seen[-WINDOW:]) / WINDOW > WORSE * seen[0]:
                stopped = f"the loss rose past {WORSE:g} times what it began with"
                break
    # The loss of a batch is taken before its own step: it tells of the step before.
    losses = seen[1:]
    smooth = smoothed(losses)
    tried = rates[: len(losses)]
    return RangeTest(
        rates=tried,
        losses=losses,
        smooth=smooth,
        start=seen[0],
        stopped=stopped,
        suggestion=suggest(tried, smooth, seen[0]),
    )


def suggest(rates: Sequence[float], smooth: Sequence[float], start: float) -> float | None:
    """The rate by RULE, to two digits; None if the loss never fell below `start`."""
    lowest = min(smooth, default=start)
    if lowest >= start:
        return None
    level = start - FALLEN * (start - lowest)
    return float(f"{next(r for r, loss in zip(rates, smooth, strict=True) if loss <= level):.1e}")


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean of WINDOW values around each place, of those there are at the ends."""
    half = WINDOW // 2
    around = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [math.fsum(near) / len(near) for near in around]
