"""What a comparison was asked to do: the models, the budget, the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mixlab.compare.sweep import Axis, axes
from mixlab.data.config import DataConfig
from mixlab.errors import UserError

DEFAULT_MODELS = ("ngram", "window", "rnn", "gru", "lstm", "transformer")
"""Counting first, then the order in which the field found them."""

DEFAULT_BATCH = 8
"""Sequences per step: at this budget twice the steps of half the size reach a lower loss in the same time."""

DEFAULT_TOKENS = 160 * DEFAULT_BATCH * 256
"""Fixed, not minutes, so that anyone's default run gives the same losses; 160 steps of each model, with all
that is measured, take about two minutes on two recent cores."""

EVALUATIONS = 10
"""Evaluations per neural run, on a logarithmic schedule; the last one is the full measure."""

MOST = {"params": 10**12, "context": 1 << 24, "batch_size": 1 << 20, "seeds": 1000}
"""What is taken for a slip beyond."""

OWNED = {
    "model.dim": "the parameter budget chooses it (--budget)",
    "model.context": "use --context",
    "model.vocab_size": "the tokenizer chooses it",
    "train.batch_tokens": "use --batch-size",
    "train.batch_size": "use --batch-size",
    "train.seed": "use --seeds",
    "train.steps": "use --steps",
    "train.tokens": "use --tokens",
    "train.minutes": "use --minutes",
}
"""Keys that are the budget's, and must be the same for all: not for `--set`."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A comparison as a person asks for it.

    models: names of presets, paths of `.toml` presets, or "all". params: parameters of each neural model.
    steps, tokens, minutes: at most one; how long each model trains, or how long they all take together.
    batch_size: rows of `context` tokens a step. seeds: runs of each neural model, seeds 0, 1, ...
    overrides: `key=value`, for every model. grid: `key=value,value`, each model at each point of the product
    of these. imports: modules or files that register parts.
    """

    models: tuple[str, ...] = DEFAULT_MODELS
    params: int = 1_000_000
    steps: int | None = None
    tokens: int | None = None
    minutes: float | None = None
    context: int = 256
    batch_size: int = DEFAULT_BATCH
    seeds: int = 1
    data: DataConfig = field(default_factory=DataConfig)
    overrides: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()

    def validate(self) -> Request:
        """Return self with its models spelled out and a horizon; UserError for what cannot be done."""
        from mixlab.train.config import LONGEST

        for key in ("params", "context", "batch_size", "seeds"):
            if getattr(self, key) < 1:
                raise UserError(f"--{key.replace('_', '-')} must be at least 1, got {getattr(self, key)}")
            if getattr(self, key) > MOST[key]:
                raise UserError(
                    f"--{key.replace('_', '-')} must be at most {MOST[key]:,}, got {getattr(self, key):,}"
                )
        given = [key for key in ("steps", "tokens", "minutes") if getattr(self, key) is not None]
        if len(given) > 1:
            raise UserError(f"give one of {' and '.join(f'--{key}' for key in given)}, not both")
        for key in given:
            value = getattr(self, key)
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"--{key} must be more than 0, got {value}")
            if value > LONGEST[key]:
                raise UserError(f"--{key} must be at most {LONGEST[key]:g}, got {value:g}")
        for override in self.overrides:
            key = override.partition("=")[0].strip()
            if key in OWNED:
                raise UserError(f"--set {key}: it is the same for all models; {OWNED[key]}")
        self.axes()
        request = replace(self, models=expand(self.models))
        return request if given else replace(request, tokens=DEFAULT_TOKENS)

    def axes(self) -> list[Axis]:
        """What is swept; UserError for what cannot be."""
        owned = {key: f"it is the same for all models; {why}" for key, why in OWNED.items()}
        return axes(self.grid, owned, self.overrides)

    @property
    def step_tokens(self) -> int:
        """Tokens of one step."""
        return self.batch_size * self.context

    def fixed_steps(self) -> int | None:
        """The steps that `steps` or `tokens` (rounded up to a whole step) come to; None for minutes."""
        if self.tokens is not None:
            return math.ceil(self.tokens / self.step_tokens)
        return self.steps


def expand(models: Sequence[str]) -> tuple[str, ...]:
    """The models by name, "all" spelled out; UserError for none or one that is named twice."""
    from mixlab.config import preset_names

    names: list[str] = []
    for model in models:
        known = preset_names() if model == "all" else ()
        names += sorted(known, key=_place) if known else [model]
    if not names:
        raise UserError("--models names no model: give some, such as ngram,gru,transformer, or all")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--models names {name} twice")
    return tuple(names)


def _place(name: str) -> tuple[int, str]:
    """The default order, then the alphabet."""
    known = name in DEFAULT_MODELS
    return (DEFAULT_MODELS.index(name) if known else len(DEFAULT_MODELS), name)
