"""What a comparison concludes, for the page and the terminal alike: the ranking, and what to train next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixlab.compare.request import EVALUATIONS
from mixlab.report import grid
from mixlab.report.units import bits, count, duration
from mixlab.report.verdict import Ranking, counted, headline, rank
from mixlab.report.view import ModelView, clean, group, mapping, number


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """headline: the ranking, the baselines, what failed. warnings: that times are not fit to conclude from,
    that a grid's best lies at the edge. advice: what to train next, and why; command: how, '' if unknown."""

    headline: str
    warnings: list[str]
    advice: str = ""
    command: str = ""


def conclude(comparison: Mapping[str, Any]) -> Conclusion:
    """The conclusion of what comparison.json holds, or of several records that were joined."""
    data = clean(comparison)
    return conclusion(data, group(data))


def conclusion(data: Mapping[str, Any], models: list[ModelView]) -> Conclusion:
    """The conclusion of a cleaned comparison and its models."""
    apart, joined = str(data.get("apart") or ""), bool(data.get("joined"))
    among = "Of these runs" if joined else "At this budget"
    first = headline(models, among=among, apart=apart)
    ranking = rank(models)
    warnings = [*untimed(data), *grid.warnings(data, models)]
    asked = joined or data.get("folder")  # a single run's page was not asked what to train
    if apart or ranking.best is None or not (asked or ranking.rivals):
        return Conclusion(headline=first, warnings=warnings)
    chosen, why = choose(ranking, trusted=trusted(data))
    result = min(chosen.done, key=lambda result: str(result.get("seed")))
    length = _length(result, mapping(data.get("corpus")))
    advice = f"Train next: {chosen.name}{why}{_until(chosen, models)}"
    return Conclusion(
        headline=first,
        warnings=warnings,
        advice=f"{advice}{_words(length, chosen if trusted(data) else None)}",
        command=_command(data, result, length),
    )


def ranked(models: Sequence[ModelView], apart: str) -> bool:
    """Whether the neural models are in order of loss: several of one text are."""
    return not apart and len(rank(models).scored) > 1


def untimed(data: Mapping[str, Any]) -> list[str]:
    """The sentence on why nothing is concluded from times; empty where they are fit for it."""
    if trusted(data):
        return []
    why = str(mapping(data.get("timing")).get("why") or "they were not steady").rstrip(".")
    return [f"Nothing is concluded from times: {why}."]


def trusted(data: Mapping[str, Any]) -> bool:
    """Whether the timings are fit to conclude from."""
    return mapping(data.get("timing")).get("trusted") is not False


def choose(ranking: Ranking, *, trusted: bool) -> tuple[ModelView, str]:
    """The model to train next and why: the best, or the cheapest of those that reach the same loss or that
    the seeds cannot separate."""
    best = ranking.scored[0]
    measured = [model for model, gap in ranking.rivals if gap.half is not None and not gap.clear]
    close = [best, *(model for model in ranking.undecided if model in measured or model in ranking.ties)]
    those = "that the seeds cannot separate" if measured else "that reach the same loss"
    if len(close) == 1:
        if len(ranking.scored) > 1 and not ranking.settled:
            return best, ", the lowest so far; --seeds 3 tells whether that is chance."
        return best, "."
    key, what, show = ("seconds", "to train", duration) if trusted else ("", "", duration)
    if not trusted or any(model.mean(key) is None for model in close):
        key, what, show = "flops_per_token", "FLOPs per token", count
    costs = {model.name: model.mean(key) for model in close}
    if any(cost is None for cost in costs.values()):
        return best, f", {'the first' if ranking.ties else 'the lowest mean'} of those {those}."
    chosen = min(close, key=lambda model: costs[model.name] or 0.0)
    cost = show(costs[chosen.name])
    if [show(value) for value in costs.values()].count(cost) > 1:
        return chosen, f", the first of those {those} at the lowest cost ({cost} {what})."
    return chosen, f", the cheapest ({cost} {what}) of those {those}."


def _until(chosen: ModelView, models: Sequence[ModelView]) -> str:
    """That a baseline is still lower, where it is."""
    lower = [m for m in models if m.is_baseline and m.bits is not None and m.bits < (chosen.bits or 0.0)]
    if not lower:
        return ""
    last = min(lower, key=lambda model: model.counted_on != "same")
    level = bits(last.bits)
    return f" {last.base} {counted(last)} still has the lower loss ({level}): more training is needed."


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long to train: passes over the training text, its tokens in all, and those of the comparison."""

    epochs: int
    tokens: float | None = None
    before: float | None = None


def _length(result: Mapping[str, Any], corpus: Mapping[str, Any]) -> Length:
    """One pass over the whole text, or twice as long as before where that was most of a pass or more."""
    whole, before = number(corpus.get("train_tokens")), number(result.get("tokens"))
    if not whole or not before:
        return Length(epochs=1)
    epochs = 1 if 2 * before < 1.5 * whole else math.ceil(2 * before / whole)
    return Length(epochs=epochs, tokens=epochs * whole, before=before)


def _words(length: Length, timed: ModelView | None) -> str:
    if length.tokens is None or length.before is None:
        return ""
    passes = "One pass" if length.epochs == 1 else f"{length.epochs} passes"
    times = f"{length.tokens / length.before:.1f}".removesuffix(".0")
    words = f" {passes} over the whole training text: {count(length.tokens)} tokens, {times} times as many"
    speed = timed.mean("tokens_per_second") if timed else None
    return words + (f", about {duration(length.tokens / speed)} at the speed measured." if speed else ".")


def _command(data: Mapping[str, Any], result: Mapping[str, Any], length: Length) -> str:
    """The command that trains the result's model on the whole text; '' where its run is not known."""
    folder, run = data.get("folder"), result.get("run")
    config = mapping(result.get("config"))
    if not isinstance(run, str) or not config.get("model"):
        return ""
    path = Path(str(folder)) / run if folder else Path(run)
    sources = mapping(config.get("data")).get("sources")
    sources = [str(source) for source in sources] if isinstance(sources, list) else []
    words = ["mixlab", "train", *(f"./{s}" if s.startswith("-") else s for s in sources)]
    words += ["--preset", str(path / "config.toml"), "--epochs", str(length.epochs)]
    if not mapping(config.get("train")).get("evaluations"):  # every so many steps of a run that was short
        words += ["--set", f"train.evaluations={EVALUATIONS}"]
    for module in data.get("imports") or []:
        words += ["--import", str(module)]
    return shlex.join(words)
