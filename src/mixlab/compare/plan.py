"""From a request to runs: each model's resolved config, equal in all that the budget covers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from mixlab.compare.fairness import compact
from mixlab.compare.request import EVALUATIONS, Request
from mixlab.compare.sweep import Axis, check_size, points
from mixlab.compare.terms import Terms
from mixlab.compare.width import solve
from mixlab.config import apply_overrides, load_run_config, read_preset, to_mapping
from mixlab.errors import UserError
from mixlab.model.config import ModelConfig
from mixlab.model.ngram import Drawn
from mixlab.train.auto import fill
from mixlab.train.config import HORIZONS, RunConfig, ScheduleConfig

if TYPE_CHECKING:
    from mixlab.data import Dataset

EVAL_TOKENS = 32_768
"""Scored by those before the last: nine of them cost as much as the default text's whole validation side, and
the standard error of the difference between two models, on the same tokens, is about 0.01 nats."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of the text is scored and counted, the same for all runs.

    valid_tokens: by the full measure, 0 is all that `data.valid_tokens` says. eval_tokens: by evaluations
    before the last. count_tokens: by an n-gram, 0 is all that `ngram.max_tokens` says.
    """

    valid_tokens: int = 0
    eval_tokens: int = EVAL_TOKENS
    count_tokens: int = 0


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

    def equally_fast(self) -> str:
        """The same for entries that take the same time: their seed, learning rate and schedule may differ,
        and how much an n-gram counts."""
        config = replace(self.config, name="any")
        if config.ngram is not None:
            config = replace(config, ngram=replace(config.ngram, drawn=None))
        train = config.train
        optimizer = replace(train.optimizer, lr=1.0)
        config = replace(config, train=replace(train, seed=0, optimizer=optimizer, schedule=ScheduleConfig()))
        return json.dumps(to_mapping(config), sort_keys=True)

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
    limits: Limits = Limits()

    @property
    def tokens(self) -> int:
        """Tokens that each neural model is trained on."""
        return self.steps * self.request.step_tokens

    def budget(self) -> dict[str, Any]:
        """The budget as comparison.json holds it; `minutes` and the limits only where minutes were given."""
        request = self.request
        facts = {
            "params": request.params,
            "steps": self.steps,
            "tokens": self.tokens,
            "context": request.context,
            "batch_size": request.batch_size,
        }
        if request.minutes is None:
            return facts
        return facts | {"minutes": request.minutes, **asdict(self.limits)}

    def work(self, dataset: Dataset) -> dict[str, Any]:
        """What each run has to do, for whoever tells how far it is: "steps", "step_tokens", and of the
        validation text "scored" tokens: in all, and by a run that has no steps."""
        from mixlab.data.sampling import sample
        from mixlab.train.evaluate import scored_tokens

        valid = sample(dataset.valid, self.limits.valid_tokens, dataset.tokenizer)
        full = scored_tokens(valid, self.request.context)
        on_the_way = (EVALUATIONS - 1) * min(full, self.limits.eval_tokens)
        return {
            "steps": self.steps,
            "step_tokens": self.request.step_tokens,
            "scored": full + on_the_way,
            "full": full,
        }

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
    limits: Limits = Limits(),
) -> Plan:
    """Every model at the budget's parameters, for `steps` steps; raises UserError for what cannot be met.

    `request` is validated. A part that fails to build with an error of its own becomes an entry's problem:
    the other models can still be compared. Beside neural models an n-gram runs twice, see `baselines`.
    train_tokens: of the training text, where that is known. terms: what device, threads and precision are
    where a model leaves them open. limits: of what is scored and counted.
    """
    entries: list[Entry] = []
    used: set[str] = set()
    every = request.axes()
    widths: dict[str, tuple[ModelConfig, str]] = {}
    wanted = [(model, point) for model in request.models for point in points(every, _is_counted(model))]
    check_size(len(wanted) * request.seeds)
    for model, point in wanted:
        config = limited(base_config(request, model, used, point.overrides), limits)
        problem = ""
        if config.model is not None:
            config = equal_terms(config, request, vocab_size, steps, limits)
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
    return Plan(request=request, steps=steps, entries=tuple(entries), terms=terms, limits=limits)


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
            cut = train_tokens is not None and 0 < ngram.max_tokens < train_tokens
            counted = f"{compact(ngram.max_tokens)} tokens" if cut else "all of the text"
            found.append(replace(every, name=f"{entry.name} ({counted})"))
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
    tables = apply_overrides(tables, [*overrides, *more])
    if "ngram" not in tables and isinstance(train := tables.setdefault("train", {}), dict):
        for horizon in HORIZONS:  # the comparison's length is the same for all
            train.pop(horizon, None)
        train["steps"] = 1
    try:
        return load_run_config(tables)
    except UserError as error:
        if not model.endswith(".toml") or model in str(error):
            raise
        raise UserError(f"{model}: {error}") from None


def limited(config: RunConfig, limits: Limits) -> RunConfig:
    """The config with no more scored and counted than the limits say."""
    data, ngram = config.data, config.ngram
    if limits.valid_tokens:
        data = replace(data, valid_tokens=min(data.valid_tokens or limits.valid_tokens, limits.valid_tokens))
    if ngram is not None and limits.count_tokens:
        most = min(ngram.max_tokens or limits.count_tokens, limits.count_tokens)
        ngram = replace(ngram, max_tokens=most)
    return replace(config, data=data, ngram=ngram)


def equal_terms(
    config: RunConfig, request: Request, vocab_size: int, steps: int, limits: Limits = Limits()
) -> RunConfig:
    """A neural run's config, spelled out, with the budget's context, batch, vocabulary, steps and
    evaluations, unless `--set` says when these are made."""
    assert config.model is not None
    train = config.train.with_horizon(steps=steps)
    if not any(override.strip().startswith("train.eval") for override in request.overrides):
        train = replace(train, evaluations=EVALUATIONS, eval_tokens=limits.eval_tokens)
    train = replace(
        train,
        batch_tokens=request.step_tokens,
        accumulate=min(train.accumulate, request.batch_size),
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
