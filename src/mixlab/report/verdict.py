"""Which neural model is ahead, by how much, whether the seeds settle it, and where the baselines lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixlab.report.statistics import Difference, difference, half_width
from mixlab.report.units import bits, count, duration, listed, percent
from mixlab.report.view import ModelView, mapping, number


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The scored neural models, best first, and those that the seeds cannot separate from the best.

    gaps: each rival's difference to the best, in their order; their intervals hold together.
    """

    scored: list[ModelView]
    gaps: list[Difference]

    @property
    def best(self) -> ModelView | None:
        """The one with the lowest mean."""
        return self.scored[0] if self.scored else None

    @property
    def rivals(self) -> list[tuple[ModelView, Difference]]:
        """Every model but the best, with its difference to it."""
        return list(zip(self.scored[1:], self.gaps, strict=True))

    @property
    def undecided(self) -> list[ModelView]:
        """The rivals that the seeds cannot separate from the best."""
        return [rival for rival, gap in self.rivals if not gap.clear]

    @property
    def ties(self) -> list[ModelView]:
        """The rivals whose loss is the best one's, as it is shown, and of which no seeds say otherwise."""
        best = self.scored[0].bits if self.scored else None
        return [rival for rival in self.undecided if bits(rival.bits) == bits(best)]

    @property
    def settled(self) -> bool:
        """Whether the best has rivals and is separated from all of them."""
        return len(self.scored) > 1 and not self.undecided


def rank(models: Sequence[ModelView]) -> Ranking:
    """The neural models ranked among themselves; baselines are no rivals."""
    scored = sorted(
        (model for model in models if not model.is_baseline and model.bits is not None),
        key=lambda model: model.bits or 0.0,
    )
    gaps = [difference(scored[0], rival, comparisons=len(scored) - 1) for rival in scored[1:]]
    return Ranking(scored=scored, gaps=[gap for gap in gaps if gap is not None])


def headline(models: list[ModelView], *, among: str = "At this budget", apart: str = "") -> str:
    """The first sentences: the ranking and whether it is settled, the baselines, what failed.

    among: where the models were compared. apart: a sentence on why the losses do not compare; they are then
    not ranked.
    """
    scored = [model for model in models if model.bits is not None]
    ranking = rank(models)
    if apart and len(scored) > 1:
        parts = [_apart(scored, apart)]
    elif ranking.best is None:
        parts = [_alone(baseline) for baseline in scored] or [_nothing(models)]
    else:
        parts = [_ranking(ranking, among), against_baselines(ranking.best, models)]
    failed = [model.name for model in models if model.failed and not model.done]
    failed += [model.name for model in models if scored and _broke_off(model)]
    if failed:
        parts.append(f"Failed, and shown with the reason: {listed(failed)}.")
    return " ".join(part for part in parts if part)


def _broke_off(model: ModelView) -> bool:
    """Whether all that the model has are curves of runs that failed before they were scored."""
    statuses = [str(result.get("status")) for result in model.done]
    return model.bits is None and bool(statuses) and all(s.startswith("failed") for s in statuses)


def _apart(scored: list[ModelView], why: str) -> str:
    """What each reached, by name: in order of loss, the first would seem the best."""
    reached = [f"{model.name} {bits(model.bits)}" for model in sorted(scored, key=lambda m: m.name)]
    return f"{why} Of its own validation text, each reaches, in bits per byte: {listed(reached)}."


def _nothing(models: Sequence[ModelView]) -> str:
    done = [(model.name, str(result.get("status"))) for model in models for result in model.done]
    ended = [f"{name} {status}" for name, status in done if status.startswith("failed")]
    if ended:
        return f"No model has a score: {listed(ended)}."
    return "No model has a score yet." if done else "No model finished."


def _ranking(ranking: Ranking, among: str) -> str:
    """The best neural model, its margin over the next, and whether the seeds settle it."""
    best = ranking.scored[0]
    if not ranking.rivals:
        return _alone(best)
    second, gap = ranking.rivals[0]
    of = f" of {len(ranking.scored)} neural models" if len(ranking.scored) > 2 else ""
    if ranking.ties:
        equal = listed([model.name for model in (best, *ranking.ties)])
        same = f"{equal} reach the same loss, {bits(best.bits)} bits per byte"
        return f"Not settled: {_noise(ranking)}. {among} {same}."
    relative = f" ({percent(gap.value / second.bits)})" if second.bits else ""
    margin = f"{bits(best.bits)} bits per byte, {bits(gap.value)}{relative} below {second.name}"
    if gap.half is not None:
        together = f", allowing for {len(ranking.gaps)} comparisons" if len(ranking.gaps) > 1 else ""
        interval = f"95% interval {bits(gap.value - gap.half)} to {bits(gap.value + gap.half)}"
        margin += f" ({interval} over {gap.seeds} seeds{together})"
    if ranking.settled:
        wins = f"wins{' among' + of[3:] if of else ''} with"
        return f"{among} {best.name} {wins} {margin}."
    lowest = "mean" if best.seeds > 1 else "loss"
    return f"Not settled: {_noise(ranking)}. {among} {best.name} has the lowest {lowest}{of}, {margin}."


def _noise(ranking: Ranking) -> str:
    """Why the seeds do not settle it."""
    best, undecided = ranking.scored[0], ranking.undecided
    single = [model.name for model in (best, *undecided) if model.seeds < 2]
    if len(single) == len(undecided) + 1:
        return "with one seed each the noise between runs is unknown"
    measured = [model.name for model, gap in ranking.rivals if not gap.clear and gap.half is not None]
    if measured:
        return f"the seeds cannot separate {listed([best.name, *measured])}"
    return f"{listed(single)} ran with one seed only"


def counted(baseline: ModelView) -> str:
    """What a baseline counted, in words."""
    if baseline.counted_on == "same":
        return "counted on the text that the others were trained on"
    config = mapping(baseline.done[0].get("config")) if baseline.done else {}
    tokens = baseline.mean("tokens")
    if not tokens and config and "data" not in config:
        return "counted on a text that is not recorded"
    most = number(mapping(config.get("ngram")).get("max_tokens"))
    if tokens and ((most and tokens > 0.9 * most) or mapping(config.get("data")).get("weights")):
        return f"counted on {count(tokens)} tokens of the training text"
    return "counted on the whole training text"


def against_baselines(best: ModelView, models: Sequence[ModelView]) -> str:
    """How far the best neural model is below or above each baseline; '' without one."""
    baselines = [model for model in models if model.is_baseline and model.bits is not None]
    baselines.sort(key=lambda model: model.counted_on != "same")
    found = []
    for baseline in baselines:
        gap = difference(best, baseline)
        if gap is None:
            continue
        side = "below" if gap.value >= 0 else "above"
        spread = f" ± {bits(gap.half)}" if gap.half is not None else ""
        noise = ", within the noise" if gap.half is not None and not gap.clear else ""
        level = f"{baseline.base} {counted(baseline)} ({bits(baseline.bits)}{noise})"
        found.append(f"{bits(abs(gap.value))}{spread} {side} {level}")
    if not found:
        return ""
    return f"{best.name} is {listed(found)}."


def _alone(best: ModelView) -> str:
    half = half_width(best.values("bits_per_byte"))
    name = best.name if best.name == best.base else f"{best.base} {counted(best)}"
    words = f"{name} reaches {bits(best.bits)} bits per byte"
    words += f" (± {bits(half)} over {best.seeds} seeds)" if half is not None else ""
    measured = mapping(best.done[0].get("measured")) if best.seeds == 1 else {}
    tokens, seconds = best.mean("tokens"), number(measured.get("seconds")) or best.mean("seconds")
    step = number(measured.get("step"))
    words += f" at step {count(step)}{',' if tokens else ''}" if step else ""
    words += f" after {count(tokens)} tokens" if tokens else ""
    words += f" in {duration(seconds)}" if seconds else ""
    running = any(result.get("status") == "running" for result in best.done)
    return words + (", and is still training." if running else ".")
