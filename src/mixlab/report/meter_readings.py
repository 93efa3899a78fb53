"""One sentence for each figure of the meters, and the watch list's warnings, from the numbers drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mixlab.report.units import count, listed, percent, size
from mixlab.report.view import ModelView, mapping, number
from mixlab.train.bands import BANDS

Series = dict[str, Any]

WATCHED = {  # a number of the watch list -> its figure's title and its axis
    "attention_logit": ("Largest attention logit", "logit"),
    "attention_entropy": ("Attention entropy", "nats"),
    "effective_rank": ("Effective rank of the residual stream", "directions"),
    "dead_units": ("Dead units", "share of hidden units"),
}
MOST_NAMED = 6  # runs in one sentence


@dataclass(frozen=True, kw_only=True)
class RunMeters:
    """A run's `meters`, its name on the page, the model that has its colour, and its status."""

    name: str
    model: ModelView
    meters: dict[str, Any]
    status: str = "done"

    def step(self, key: str) -> Series | None:
        """The series of a number that each step has."""
        return mapping(self.meters.get("steps")).get(key)

    def watch(self, key: str) -> Series | None:
        """The series of a number of the watch list."""
        return mapping(self.meters.get("watch")).get(key)

    @property
    def updates(self) -> dict[str, Series]:
        """Role -> series of the update-to-weight ratio."""
        return mapping(self.meters.get("update_ratio"))

    @property
    def rates(self) -> dict[str, Series]:
        """Groups of parameters -> series of their learning rate."""
        return mapping(self.meters.get("learning_rates"))

    @property
    def clipped(self) -> float:
        """The share of all steps whose gradient was clipped."""
        return number(self.meters.get("clipped_fraction")) or 0.0


def value(number: float) -> str:
    """Three significant figures; an exponent only for what is very small or very large."""
    if number and not 1e-3 <= abs(number) < 1e6:
        return f"{number:.2e}".replace("e-0", "e-").replace("e+0", "e+")
    return count(round(number)) if abs(number) >= 1000 else f"{number:.3g}"


def at_step(step: float) -> str:
    """'step 1,200'."""
    return f"step {step:,.0f}"


def _each(found: Sequence[tuple[str, str]]) -> str:
    """'gru 0.21, lstm 0.3 and 4 more runs'."""
    shown = [f"{name} {what}" for name, what in found[:MOST_NAMED]]
    rest = len(found) - MOST_NAMED
    return listed(shown if rest <= 0 else [*shown, f"{rest} more run{'s'[: rest != 1]}"])


def gradient(runs: Sequence[RunMeters]) -> str:
    """How large the gradient was, and how many steps were clipped."""
    found = [(run, curve) for run in runs if (curve := run.step("grad_norm"))]
    if len(found) == 1:
        run, curve = found[0]
        words = (
            f"{run.name}'s gradient has a norm of {value(curve['median'])} in the median and of "
            f"{value(curve['most'])} at most, at {at_step(curve['most_at'])}"
        )
        after = run.step("grad_norm_clipped")
        if not run.clipped or after is None:
            return f"{words}; no step was clipped."
        limit, part = value(after["most"]), percent(run.clipped)
        return f"{words}; {part} of the steps were clipped to {limit} (dotted)."
    norms = _each([(run.name, value(curve["median"])) for run, curve in found])
    clipped = [(run.name, f"{percent(run.clipped)}") for run, _ in found if run.clipped]
    dotted = f". Share of clipped steps (dotted): {_each(clipped)}" if clipped else "; no step was clipped"
    return f"Median norm: {norms}{dotted}."


def updates(run: RunMeters) -> str:
    """Of one run: which parameters a step changes most, and when it was most."""
    usual = max(run.updates, key=lambda role: run.updates[role]["median"])
    most = max(run.updates, key=lambda role: run.updates[role]["most"])
    middle, top = run.updates[usual]["median"], run.updates[most]
    return (
        f"In the median a step changed the {usual} parameters most, by {share(middle)} of their norm; the "
        f"most of all was {share(top['most'])}, of the {most} parameters at {at_step(top['most_at'])}. "
        f"{_shaded('update_ratio')}"
    )


def updates_of(runs: Sequence[RunMeters], role: str) -> str:
    """Of several runs and one role: each one's most."""
    found = [(run.name, curve) for run in runs if (curve := run.updates.get(role))]
    most = _each([(name, f"{share(c['most'])} at {at_step(c['most_at'])}") for name, c in found])
    return f"The largest change in a step: {most}. {_shaded('update_ratio')}"


def share(fraction: float) -> str:
    """A fraction as a percentage, however small."""
    return percent(fraction) if fraction >= 0.001 else f"{100 * fraction:.2g}%"


def rate(runs: Sequence[RunMeters]) -> str:
    """Where the rate peaked and where it is now."""
    found = [(run, curve) for run in runs if (curve := run.step("lr"))]
    if len(found) != 1:
        peaks = [(run.name, f"{curve['most']:.3g} at {at_step(curve['most_at'])}") for run, curve in found]
        return f"The highest rate: {_each(peaks)}." if peaks else ""
    run, curve = found[0]
    verb = "is" if run.status == "running" else "was"
    words = f"The rate was highest at {at_step(curve['most_at'])}, {curve['most']:.3g}, and {verb} "
    words += f"{curve['last']:.3g} at {at_step(curve['last_at'])}"
    groups = len(run.rates)
    return words + (f"; groups of parameters had {groups} different ones, drawn." if groups > 1 else ".")


def throughput(runs: Sequence[RunMeters], key: str) -> str:
    """The median of a number that says how fast it went, and the slowest step."""
    of_peak = key == "peak_fraction"
    write: Callable[[float], str] = percent if of_peak else (lambda x: f"{count(round(x))} tokens/s")
    found = [(run.name, curve) for run in runs if (curve := run.step(key))]
    if len(found) == 1:
        curve = found[0][1]
        return (
            f"{write(curve['median'])} in the median; {write(curve['least'])} in the slowest step, "
            f"{curve['least_at']:,.0f}, and {write(curve['most'])} in the fastest, {curve['most_at']:,.0f}."
        )
    return f"In the median: {_each([(name, write(curve['median'])) for name, curve in found])}."


def memory(runs: Sequence[RunMeters]) -> str:
    """What was in use in the median and at most."""
    found = [(run.name, c) for run in runs if (c := run.step("memory_bytes")) and c["most"]]
    words = [(name, f"{size(c['median'])} in the median, {size(c['most'])} at most") for name, c in found]
    if len(runs) == 1 and words:
        return f"{words[0][1]}, at {at_step(found[0][1]['most_at'])}."
    return f"In use: {'; '.join(f'{name} {what}' for name, what in words[:MOST_NAMED])}."


def watched(runs: Sequence[RunMeters], key: str) -> str:
    """The last reading, the one nearest to leaving the band, and the band."""
    found = [(run.name, curve) for run in runs if (curve := run.watch(key))]
    high = BANDS[key].high < math.inf
    extreme, at = ("most", "most_at") if high else ("least", "least_at")
    shaded = _shaded(key)
    write = share if key == "dead_units" else value
    if key == "dead_units" and not any(curve["most"] for _, curve in found):
        return f"No unit was dead at any look. {shaded}"
    if len(runs) == len(found) == 1:
        curve = found[0][1]
        return (
            f"{write(curve['last'])} in layer {curve['last_layer']} at {at_step(curve['last_at'])}; "
            f"{'highest' if high else 'lowest'} in layer {curve['worst_layer']} at {at_step(curve[at])}, "
            f"{write(curve[extreme])}. {shaded}"
        )
    each = _each([(name, f"{write(c[extreme])} at {at_step(c[at])}") for name, c in found])
    return f"The {'highest' if high else 'lowest'}: {each}. {shaded}"


def _shaded(key: str) -> str:
    return f"Shaded is what is healthy, {BANDS[key].limit}."


def warnings(runs: Sequence[RunMeters]) -> list[str]:
    """The watch list's warnings, each once for a run, with the looks in which it held."""
    found = []
    for run in runs:
        looks = run.meters.get("looks")
        for told in run.meters.get("warnings") or []:
            first, last = number(told.get("first")) or 0.0, number(told.get("last")) or 0.0
            when = f"step {first:,.0f}" if first == last else f"steps {first:,.0f} to {last:,.0f}"
            whose = f"{run.name}, {when}" if len(runs) > 1 else when[:1].upper() + when[1:]
            at_first = "" if first == last else ", at first"
            found.append(f"{whose} ({told['looks']} of {looks} looks){at_first}: {told['words']}.")
    return found


def quiet(runs: Sequence[RunMeters]) -> str:
    """A sentence for looks that found nothing; '' where there was a warning or no look."""
    looks = sum(int(number(run.meters.get("looks")) or 0) for run in runs)
    if not looks or warnings(runs):
        return ""
    return f"In {looks:,} look{'s'[: looks != 1]} nothing left its healthy band."


def is_drawn(runs: Sequence[RunMeters], key: str) -> bool:
    """Whether any run has a number that this band is for, drawn or in a warning."""
    drawn = any(run.updates if key == "update_ratio" else run.watch(key) for run in runs)
    return drawn or any(told["name"] == key for run in runs for told in run.meters.get("warnings") or [])


def bands(keys: Sequence[str]) -> list[str]:
    """Whose limit each of these bands is."""
    found = []
    for band in (BANDS[key] for key in keys):
        found.append(f"{band.what[:1].upper()}{band.what[1:]}, {band.limit}. Source: {band.source}.")
    return found


def changes(runs: Sequence[RunMeters]) -> list[str]:
    """A sentence for each place where a run went on with another config."""
    return [
        f"{run.name} went on at {at_step(change['step'])} with {change['words']}."
        for run in runs
        for change in run.meters.get("changes") or []
    ]
