"""One sentence per figure, computed from the numbers that the figure draws."""

from __future__ import annotations

from collections.abc import Callable

from mixlab.report.component_figures import component_sums
from mixlab.report.curves import (
    Curve,
    by_position,
    eval_curve,
    log_bins,
    reach,
    smoothing_window,
    training_curve,
)
from mixlab.report.units import bits, count, duration, listed, percent, work
from mixlab.report.view import ModelView, rows

Scored = list[tuple[ModelView, Curve]]

UNTIMED = "The timings of these runs are not fit to conclude from: see the sentences at the top."
WORTH = 0.05  # nats per token: a smaller gain over the context says nothing of where it is made
APART = "Each curve is of its model's own text: which lies lower says nothing of which model is better."


def _scored(models: list[ModelView], key: str) -> Scored:
    return [(model, curve) for model in models if (curve := eval_curve(model, key))]


def loss(models: list[ModelView], key: str, *, apart: bool = False, timed: bool = True) -> dict[str, str]:
    """The readings of a loss figure's views, "valid" and "train".

    apart: the models' texts differ. timed: whether seconds are fit to conclude from.
    """
    if apart:
        return {"valid": APART, "train": APART}
    if key == "seconds" and not timed:
        return {"valid": UNTIMED, "train": UNTIMED}
    unit = UNITS[key]
    valid = tokens(models) if key == "tokens" else against(models, key, unit)
    return {"valid": valid, "train": training(models, key, unit)}


def training(models: list[ModelView], key: str, unit: Callable[[float], str]) -> str:
    """Where the training loss ends."""
    found = [(model, curve) for model in models if (curve := training_curve(model, key))]
    if not found:
        return ""
    best, curve = min(found, key=lambda pair: pair[1].y[-1])
    steps = min(len(rows(result.get("curve"))) for result in best.done if result.get("curve"))
    window = smoothing_window(steps)
    over = f", the mean of its last {window:,} points" if window > 1 else ""
    lowest = "lowest, " if _alone([other.y[-1] for _, other in found], curve.y[-1]) else ""
    unscored = "" if _scored(models, key) else "No model was evaluated while it trained. "
    return (
        f"{unscored}{best.name} ends {lowest}at {bits(curve.y[-1])} nats per token of training loss{over}, "
        f"after {unit(curve.x[-1])}."
    )


def tokens(models: list[ModelView]) -> str:
    """From where the best model leads, when it passes the baseline, whether it still improved."""
    scored = _scored(models, "tokens")
    if not scored:
        return "No model was evaluated while it trained."
    best, curve = min(scored, key=lambda pair: pair[1].last[1])
    lowest = "lowest " if _alone([other.last[1] for _, other in scored], curve.last[1]) else ""
    words = f"{best.name} ends {lowest}at {bits(curve.last[1])} bits per byte"
    words += _leads(best, curve, scored)
    for reference in [model for model in models if model.is_baseline and model.bits is not None]:
        words += _passes(best, scored, reference)
    quarter = [y for x, y in zip(curve.x, curve.y, strict=True) if x >= 0.75 * curve.x[-1]]
    if len(quarter) > 1:
        fell = quarter[0] - quarter[-1]
        words += f"; over its last quarter it {'still fell by' if fell >= 0 else 'rose by'} {bits(abs(fell))}"
    words += "."
    if any(model_curve.end for _, model_curve in scored):
        words += " The lines are of a sample of the validation text, the diamonds of the last, full measure."
    return words


def _alone(losses: list[float], lowest: float) -> bool:
    """Whether there are other losses, and none of them is as low, as they are shown."""
    return len(losses) > 1 and [bits(loss) for loss in losses].count(bits(lowest)) == 1


def _leads(best: ModelView, curve: Curve, scored: Scored) -> str:
    """', in the lead from 0.4M tokens on' where the models were evaluated at the same places."""
    others = [dict(zip(other.x, other.y, strict=True)) for model, other in scored if model is not best]
    if not others:
        return ""
    start, places = None, 0
    for x, y in zip(reversed(curve.x), reversed(curve.y), strict=True):
        rivals = [other[x] for other in others if x in other]
        if len(rivals) < len(others) or min(rivals) <= y:
            break
        start, places = x, places + 1
    if start is None or len(curve.x) < 2:
        return ""
    if places == len(curve.x):
        return ", and led at every evaluation"
    if places == 1:
        return ", and took the lead only at the last evaluation"
    return f", and led from {count(start)} tokens on"


def _passes(best: ModelView, scored: Scored, reference: ModelView) -> str:
    """How many models end below a baseline, and which was first."""
    level = reference.bits or 0.0
    below = [(model, curve) for model, curve in scored if curve.last[1] < level]
    if not below:
        return f"; no neural model ends below {reference.name} ({bits(level)})"
    if any(curve.end for _, curve in scored):  # the line is of another text than the baseline's score
        names = listed([model.name for model, _ in below])
        return f"; {names} {'end' if len(below) > 1 else 'ends'} below {reference.name} ({bits(level)})"
    crossings = [(x, model.name) for model, curve in below if (x := reach(curve, level)) is not None]
    x, first = min(crossings)
    passed = f", the first of {len(crossings)} to do so" if len(crossings) > 1 else ""
    passed = ", alone" if len(crossings) == 1 < len(scored) else passed
    first = "it" if first == best.name else first
    return f"; {first} passes {reference.name} ({bits(level)}) after {count(x)} tokens{passed}"


def against(models: list[ModelView], key: str, unit: Callable[[float], str]) -> str:
    """Which model reaches the level that all reach for the least, and which needs the most, of `key`."""
    scored = _scored(models, key)
    if not scored:
        return "No model was evaluated while it trained."
    if len(scored) == 1:
        model, curve = scored[0]
        half = reach(curve, (curve.y[0] + curve.y[-1]) / 2)
        end, final = curve.last
        if half is None or curve.y[0] <= curve.y[-1]:
            return f"{model.name} ends at {bits(final)} bits per byte after {unit(end)}."
        return (
            f"{model.name} makes half of its gain in the first {unit(half)} "
            f"and ends at {bits(final)} bits per byte after {unit(end)}."
        )
    level = max(min(curve.y) for _, curve in scored)
    needs = [(x, model.name) for model, curve in scored if (x := reach(curve, level)) is not None and x > 0]
    sample = " on the sample scored while training" if any(curve.end for _, curve in scored) else ""
    if len(needs) < 2:
        return f"All reach {bits(level)} bits per byte{sample}."
    (least, first), (most, last) = min(needs), max(needs)
    return (
        f"To reach {bits(level)} bits per byte{sample}, which every neural model does, {first} needs the "
        f"least, {unit(least)}, and {last} the most, {unit(most)} ({most / least:.1f} times as much)."
    )


UNITS: dict[str, Callable[[float], str]] = {
    "tokens": lambda value: f"{count(value)} tokens",
    "seconds": duration,
    "flops": work,
}


def component_flops(models: list[ModelView]) -> str:
    """The range of forward FLOPs per token and the largest component of the dearest model."""
    sums = component_sums(models, "flops")
    if not sums:
        return ""
    top, values = max(sums, key=lambda pair: sum(pair[1].values()))
    low, low_values = min(sums, key=lambda pair: sum(pair[1].values()))
    total, part = sum(values.values()), max(values, key=values.__getitem__)
    share = f"{percent(values[part] / total)} of them in its {part} {_mixing(part)}".rstrip()
    free = [model.name for model in models if model.is_baseline and model.mean("flops_per_token") == 0]
    looks = "only looks" if len(free) == 1 else "only look"
    counted = f"; {listed(free)} {looks} up counts, without a bar" if free else ""
    if top is low:
        return f"{top.name} does {count(total)} FLOPs per token forward, {share}{counted}."
    least = sum(low_values.values())
    times = f" ({total / least:.1f} times less)" if total / least >= 1.05 else ""
    return (
        f"{top.name} does the most work per token, {count(total)} FLOPs, {share}; "
        f"{low.name} does the least, {count(least)}{times}{counted}."
    )


def component_parameters(models: list[ModelView]) -> str:
    """How well the budget matched the models and where the parameters went."""
    sums = component_sums(models, "parameters")
    if not sums:
        return ""
    if all(model.is_baseline for model, _ in sums):
        stored = [f"{count(sum(values.values()))} of {model.name}" for model, values in sums]
        return f"Stored counts are no weights: {listed(stored)}."
    totals = [model.mean("parameters") or sum(values.values()) for model, values in sums]
    temporal = [(values.get("temporal", 0.0) / sum(values.values()), model.name) for model, values in sums]
    (most, name), (least, other) = max(temporal), min(temporal)
    if len(sums) == 1:
        values = sums[0][1]
        part = max(values, key=values.__getitem__)
        share = percent(values[part] / totals[0])
        return (
            f"Of {sums[0][0].name}'s {count(totals[0])} parameters the {part} {_mixing(part)} holds {share}."
        )
    return (
        f"The models with weights are within {percent(max(totals) / min(totals) - 1)} of each other "
        f"({count(min(totals))} to {count(max(totals))} parameters); {name} spends {percent(most)} "
        f"of its own on mixing positions, {other} {percent(least)}{_counts(models)}."
    )


def _counts(models: list[ModelView]) -> str:
    """'; the 6.41M stored counts of ngram are not drawn'."""
    found = [(model.name, model.mean("parameters")) for model in models if model.is_baseline]
    words = [
        f"the {count(amount)} stored numbers of {name} are not drawn" for name, amount in found if amount
    ]
    return f"; {listed(words)}" if words else ""


def _mixing(part: str) -> str:
    return "mixing" if part in ("temporal", "feature") else ""


def position(models: list[ModelView], *, alike: bool = True) -> str:
    """How far back each model profits: where 95% of its gain over the context is made.

    alike: whether all read the same tokens; a nat per token is not the same of others.
    """
    spans = []
    neural = [model for model in models if not model.is_baseline and by_position(model)]
    for model in neural or models:
        values = by_position(model)
        if len(values) > 1:
            smooth = log_bins(values)
            gain = smooth.y[0] - min(smooth.y)
            where = reach(smooth, smooth.y[0] - 0.95 * gain) if gain > 0 else smooth.x[0]
            spans.append((where or smooth.x[-1], gain, model.name, smooth.y[-1], len(values)))
    if not spans:
        return ""
    if all(gain < WORTH for _, gain, *_ in spans):
        return f"No loss falls by {WORTH:g} nats per token or more over the positions."
    if len(spans) == 1:
        where, gain, name, _, length = spans[0]
        return (
            f"{name} gains {gain:.2f} nats per token over {count(length)} positions, "
            f"95% of it within the first {count(round(where))}."
        )
    using = [span for span in spans if span[1] >= WORTH]
    longest, shortest = max(using), min(using)
    lowest = min(spans, key=lambda span: span[3])
    end = f"{lowest[2]} is lowest at the end of the context ({lowest[3]:.2f} nats per token)"
    words = f"{end}; " if alike else "Tokens or texts differ, so the height of the curves does not compare; "
    latest, earliest = count(round(longest[0])), count(round(shortest[0]))
    if latest == earliest:
        every = "both" if len(spans) == 2 else "all"
        if len(using) < len(spans):
            every = listed([name for _, _, name, *_ in using])
        has = "have made 95% of their" if len(using) > 1 else "has made 95% of its"
        return f"{words}{every} {has} gain by position {latest}."
    return (
        f"{words}{longest[2]} uses the most of it, making 95% of its gain only by position {latest}, "
        f"while {shortest[2]} has made it by position {earliest}."
    )
