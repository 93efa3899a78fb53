"""From a request to runs: each model's resolved config, equal in all that the budget covers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mixlab.compare.request import Request
from mixlab.compare.sweep import Axis, check_size, points
from mixlab.compare.terms import Terms
from mixlab.compare.width import solve
from mixlab.config import apply_overrides, load_run_config, read_preset, to_mapping
from mixlab.errors import UserError
from mixlab.model.config import ModelConfig
from mixlab.model.ngram import Drawn
from mixlab.train.auto import fill
from mixlab.train.config import RunConfig

EVALUATIONS = 2
"""On the whole validation text, half-way and at the end: each costs a third of the same tokens' training."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run of one model.

    name: what the model is called. problem: why it cannot be made, where its own part is broken.
    counted_on: of an n-gram, "all" of the training text or the "same" text that the neural models train on.
    base, grid: of a sweep, the model that is swept, and the values of this run by key.
    """

    name: str
    seed: int
    config: RunConfig
    problem: str = ""
    counted_on: Literal["", "same", "all"] = ""
    base: str = ""
    grid: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The run's folder name."""
        same = "-same-text" if self.counted_on == "same" else ""
        return f"{self.config.name}{same}-seed{self.seed}"

    @property
    def counted(self) -> bool:
        """Whether it is an n-gram: no steps, no seeds."""
        return self.config.model is None

    def facts(self) -> dict[str, Any]:
        """What a result says of its run, whenever that was made."""
        swept = {"base": self.base, "grid": dict(self.grid)} if self.grid else {}
        if self.counted:
            return {"model": self.name, "kind": "baseline", "counted_on": self.counted_on, **swept}
        return {"model": self.name, "kind": "neural", **swept}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is to be run, in order, and what all of it shares."""

    request: Request
    steps: int
    entries: tuple[Entry, ...]
    terms: Terms | None = None

    @property
    def tokens(self) -> int:
        """Tokens that each neural model is trained on."""
        return self.steps * self.request.step_tokens

    def budget(self) -> dict[str, Any]:
        """The budget as comparison.json holds it; `minutes` only where it was asked for."""
        request = self.request
        facts = {
            "params": request.params,
            "steps": self.steps,
            "tokens": self.tokens,
            "context": request.context,
            "batch_size": request.batch_size,
        }
        return facts if request.minutes is None else facts | {"minutes": request.minutes}

    def to_dict(self) -> dict[str, Any]:
        """What makes two comparisons the same, JSON-able: the budget, the text, each run's config."""
        return {
            "budget": self.budget(),
            "data": to_mapping(self.request.data),
            **({} if self.terms is None else {"machine": self.terms.to_dict()}),
            "runs": {entry.label: to_mapping(entry.config) for entry in self.entries},
        }


def make_plan(
    request: Request,
    *,
    vocab_size: int,
    steps: int,
    train_tokens: int | None = None,
    terms: Terms | None = None,
) -> Plan:
    """Every model at the budget's parameters, for `steps` steps; raises UserError for what cannot be met.

    `request` is validated. A part that fails to build with an error of its own becomes an entry's problem:
    the other models can still be compared. Beside neural models an n-gram runs twice, see `baselines`.
    train_tokens: of the training text, where that is known. terms: what device, threads and precision are
    where a model leaves them open.
    """
    entries: list[Entry] = []
    used: set[str] = set()
    every = request.axes()
    widths: dict[str, tuple[ModelConfig, str]] = {}
    wanted = [(model, point) for model in request.models for point in points(every, _is_counted(model))]
    check_size(len(wanted) * request.seeds)
    for model, point in wanted:
        config = base_config(request, model, used, point.overrides)
        problem = ""
        if config.model is not None:
            config = equal_terms(config, request, vocab_size, steps)
            if terms is not None:
                config = replace(config, train=fill(config.train, terms.here))
            assert config.model is not None
            # What changes no width is solved once.
            same = json.dumps(to_mapping(config.model), sort_keys=True)
            if same not in widths:
                widths[same] = _at_budget(config.model, request.params, f"{config.name}{point.shown}")
            solved, problem = widths[same]
            config = replace(config, model=solved)
        base, config = config.name, replace(config, name=f"{config.name}{point.folder}")
        for seed in range(request.seeds if config.model is not None else 1):
            entry = Entry(
                name=f"{base}{point.shown}",
                seed=seed,
                config=replace(config, train=replace(config.train, seed=seed)),
                problem=problem,
                base=base,
                grid=point.values,
            )
            entries.append(entry)
    entries = baselines(entries, request, steps, train_tokens)
    _check_names(entries)
    _check_overrides(request.overrides, used)
    _check_swept(every, entries)
    return Plan(request=request, steps=steps, entries=tuple(entries), terms=terms)


def baselines(
    entries: Sequence[Entry], request: Request, steps: int, train_tokens: int | None
) -> list[Entry]:
    """The entries with each n-gram counted on all of the training text and, beside neural models that read
    less than that, on what those of seed 0 read."""
    alone = all(entry.counted for entry in entries)
    part = Drawn(windows=steps * request.batch_size, context=request.context)
    # A mixture's sources are read unequally often: that one was read whole says nothing of the others.
    whole = train_tokens is not None and steps * request.step_tokens >= train_tokens
    twice = not alone and not (whole and not request.data.weights)
    found: list[Entry] = []
    for entry in entries:
        ngram = entry.config.ngram
        if ngram is None:
            found.append(entry)
            continue
        every = replace(entry, counted_on="all")
        if twice:
            same = replace(entry.config, ngram=replace(ngram, drawn=part))
            found.append(replace(every, name=f"{entry.name} (all of the text)"))
            found.append(replace(every, name=f"{entry.name} (same text)", config=same, counted_on="same"))
        else:
            found.append(every)
    return found


def _is_counted(model: str) -> bool:
    """Whether a preset is an n-gram."""
    return "ngram" in read_preset(model)


def base_config(
    request: Request, model: str, used: set[str] | None = None, more: Sequence[str] = ()
) -> RunConfig:
    """The preset with the overrides that concern it, and `more`, on the request's text.

    An n-gram has no [model], a neural model no [ngram]; overrides of the other's section are not for it.
    Those that are applied are added to `used`.
    """
    tables = dict(read_preset(model))
    foreign = "model." if "ngram" in tables else "ngram."
    overrides = [override for override in request.overrides if not override.strip().startswith(foreign)]
    if used is not None:
        used.update(overrides)
    tables["name"] = re.sub(r"[^\w.+-]+", "-", str(tables["name"])).strip("-.") or "model"
    tables["data"] = to_mapping(request.data)
    return load_run_config(apply_overrides(tables, [*overrides, *more]))


def equal_terms(config: RunConfig, request: Request, vocab_size: int, steps: int) -> RunConfig:
    """A neural run's config, spelled out, with the budget's context, batch, vocabulary and steps."""
    assert config.model is not None
    every = config.train.eval_every
    if not any(override.startswith("train.eval_every") for override in request.overrides):
        every = math.ceil(steps / EVALUATIONS)
    train = replace(
        config.train.with_horizon(steps=steps),
        batch_tokens=request.step_tokens,
        accumulate=min(config.train.accumulate, request.batch_size),
        eval_every=every,
    ).spelled_out()  # as the finished run will say it
    model = replace(config.model, context=request.context, vocab_size=vocab_size)
    return replace(config, model=model, train=train).validate()


def _at_budget(config: ModelConfig, params: int, name: str) -> tuple[ModelConfig, str]:
    try:
        return solve(config, params, name=name), ""
    except UserError:
        raise
    except Exception as error:  # a part's own mistake; whatever it is, it concerns this model only
        return config, f"it cannot be built: {type(error).__name__}: {error}"


def _check_names(entries: Sequence[Entry]) -> None:
    labels = [entry.label for entry in entries]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(
                f"two models are called '{label.rpartition('-')[0]}': rename one of the .toml files"
            )


def _check_swept(every: Sequence[Axis], entries: Sequence[Entry]) -> None:
    for axis in every:
        if not any(axis.key in entry.grid for entry in entries):
            section = axis.key.partition(".")[0]
            section = "ngram" if section == "ngram" else "model"
            raise UserError(f"--grid {axis.key}: none of the models has a [{section}] section")


def _check_overrides(overrides: Sequence[str], used: set[str]) -> None:
    for override in overrides:
        if override not in used:
            section = override.partition(".")[0].strip()
            raise UserError(f"--set {override}: none of the models has a [{section}] section")
