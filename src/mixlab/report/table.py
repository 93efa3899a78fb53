"""The result table: one row per model, human units in the cells, plain numbers beside them for sorting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mixlab.report.statistics import half_width
from mixlab.report.units import MISSING, bits, count, duration, milliseconds, percent, size
from mixlab.report.verdict import counted, rank
from mixlab.report.view import ModelView, mapping, mean, number, rows


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: its key in a result, its head and unit, how to write a value, and which end is better."""

    key: str
    title: str
    unit: str
    show: Callable[[float | None], str]
    better: str = ""  # "low", "high" or "" where neither is better


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A value as text, its number for sorting (None sorts last), and whether it is the column's best."""

    text: str
    value: float | None
    best: bool = False
    spread: str = ""
    below: bool = False  # whether the spread has a line of its own


@dataclass(frozen=True, kw_only=True)
class Dots:
    """The strip under the loss: every seed's and the mean's place from the best (0) to the worst (100)."""

    seeds: list[float]
    mean: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model's row; `failed` is the reason that no numbers are there, `note` a remark beside the numbers."""

    model: ModelView
    cells: list[Cell]
    failed: str = ""
    note: str = ""
    dots: Dots | None = None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that are ranked among themselves, and what they are ('' where there are no others)."""

    title: str
    rows: list[Row]


TIMES = ("tokens_per_second", "seconds", "decode_ms_per_token")
"""Columns that a busy machine changes."""


def columns(context: float | None) -> list[Column]:
    """The table's columns; `context` (tokens) goes into the head of the state's size."""
    at = f"at {count(context)} tokens" if context else "at the context length"
    return [
        Column(key="bits_per_byte", title="Validation loss", unit="bits per byte", show=bits, better="low"),
        Column(key="parameters", title="Parameters", unit="", show=count),
        Column(key="tokens_per_second", title="Training", unit="tokens/s", show=count, better="high"),
        Column(key="seconds", title="Time", unit="to train", show=duration, better="low"),
        Column(key="flops_per_token", title="Forward", unit="FLOPs/token", show=count, better="low"),
        Column(key="decode_ms_per_token", title="Decode", unit="ms/token", show=milliseconds, better="low"),
        Column(key="state_bytes", title="State", unit=at, show=size, better="low"),
        Column(key="peak_memory_bytes", title="Memory", unit="peak", show=size, better="low"),
    ]


def table(
    models: list[ModelView], context: float | None, *, apart: bool = False, timed: bool = True
) -> tuple[list[Column], list[Group]]:
    """The columns that at least one model fills (the loss always), and the rows, neural models and baselines
    each in the given order.

    apart: no loss is the best, for each is of another text. timed: whether times are fit to conclude from.
    The best of a column is the best neural model; of the losses there is one only where the seeds settle it.
    """
    every = columns(context)
    unsettled = apart or not rank(models).settled
    vague = {"bits_per_byte"} if unsettled else set()
    vague |= set() if timed else set(TIMES)
    every = [replace(c, better="") if c.key in vague else c for c in every]
    used = [c for c in every if c.key == "bits_per_byte" or any(_values(model, c.key) for model in models)]
    best = {column.key: _best(column, models) for column in used}
    strip = None if apart else _strip(models)
    found = [_row(model, used, best, strip) for model in models]
    neural = [row for row in found if not row.model.is_baseline]
    baselines = [row for row in found if row.model.is_baseline]
    several = bool(neural and baselines)
    groups = [
        Group(title="Trained" if several else "", rows=neural),
        Group(title="Baselines: counted, not trained" if several else "", rows=baselines),
    ]
    return used, [group for group in groups if group.rows]


def _values(model: ModelView, key: str) -> list[float]:
    """A value for each seed; of the throughput the median step's where it was measured."""
    if key == "tokens_per_second":
        each = [throughput(result)[0] for result in model.done]
        return [value for value in each if value is not None]
    return model.values(key)


def throughput(result: dict[str, Any]) -> tuple[float | None, float | None, float | None]:
    """Tokens per second of the median step, of the slow ones and of the fast ones."""
    found = mapping(result.get("throughput"))
    middle = number(found.get("median"))
    whole = number(result.get("tokens_per_second"))
    return (whole if middle is None else middle), number(found.get("low")), number(found.get("high"))


def _best(column: Column, models: list[ModelView]) -> float | None:
    scored = [m for m in models if m.bits is not None and not m.is_baseline]  # what broke off is no fastest
    values = [value for model in scored if (value := mean(_values(model, column.key))) is not None]
    if not column.better or len(set(map(column.show, values))) < 2:  # as shown: else one of equals is best
        return None
    return min(values) if column.better == "low" else max(values)


def _strip(models: list[ModelView]) -> tuple[float, float] | None:
    values = [value for model in models for value in model.values("bits_per_byte")]
    return (min(values), max(values)) if len(values) > 1 and min(values) < max(values) else None


def _row(
    model: ModelView, used: list[Column], best: dict[str, float | None], strip: tuple[float, float] | None
) -> Row:
    if not model.done:
        return Row(model=model, cells=[], failed=model.reason or "no result")
    cells = []
    for column in used:
        value = mean(_values(model, column.key))
        top = value is not None and model.bits is not None and not model.is_baseline
        text, spread = column.show(value), _spread(model, column.key)
        top = top and best[column.key] is not None and text == column.show(best[column.key])
        below = column.key == "tokens_per_second"
        cells.append(Cell(text=text, value=value, best=top, spread=spread, below=below))
    dots = None
    if strip and model.bits is not None:
        place = [
            round(100 * (v - strip[0]) / (strip[1] - strip[0]), 1) for v in model.values("bits_per_byte")
        ]
        dots = Dots(seeds=place, mean=sum(place) / len(place))
    return Row(model=model, cells=cells, note=_note(model), dots=dots)


def _spread(model: ModelView, key: str) -> str:
    """Beside the loss its interval, beside the throughput from the slow steps to the fast ones."""
    if key == "bits_per_byte" and not model.is_baseline:
        half = half_width(model.values(key))
        return "" if half is None else f"± {bits(half)}"
    if key == "tokens_per_second":
        each = [throughput(result) for result in model.done]
        lows = [low for _, low, _ in each if low is not None]
        highs = [high for *_, high in each if high is not None]
        return f"{count(min(lows))} to {count(max(highs))}" if lows and highs else ""
    return ""


def _note(model: ModelView) -> str:
    notes = []
    if model.is_baseline and model.done:
        tokens = model.mean("tokens")
        words = counted(model)
        notes.append(words + (f", {count(tokens)} tokens" if tokens and " tokens of " not in words else ""))
    if model.failed:
        total = len(model.done) + len(model.failed)
        notes.append(f"{len(model.failed)} of {total} seeds failed: {model.reason}")
    for result in model.done:
        if step := number(mapping(result.get("measured")).get("step")):
            notes.append(f"its loss is that of step {count(step)}")
        status = result.get("status", "done")
        if status != "done":
            notes.append("still running" if status == "running" else str(status))
    return "; ".join(notes)


def ended(models: list[ModelView]) -> list[str]:
    """A sentence for each run with numbers that ended before its time, and why."""
    found = []
    for model in models:
        for result in model.done:
            status, reason = result.get("status", "done"), result.get("reason")
            if status not in ("done", "running") and reason:
                found.append(f"{model.name} {status}: {reason}.")
    return found


def sources(models: list[ModelView]) -> list[dict[str, Any]]:
    """A row for each source of a mixture that a run was evaluated on, as text: what it was drawn, and its
    bits per byte at the run's best and last evaluation."""
    return [
        {
            "model": model,
            "source": str(found.get("source")),
            "share": MISSING if (share := number(found.get("share"))) is None else percent(share),
            "best": bits(number(found.get("best"))),
            "last": bits(number(found.get("last"))),
            "same": found.get("best_step") == found.get("last_step"),
        }
        for model in models
        for result in model.done
        for found in rows(result.get("sources"))
    ]


@dataclass(frozen=True, kw_only=True)
class SeedRow:
    """One run of several of a model."""

    model: ModelView
    seed: str
    loss: str
    time: str
    speed: str
    status: str


def by_seed(models: list[ModelView]) -> list[SeedRow]:
    """Each run's loss, time and throughput; empty where no model has several."""
    if all(len(model.done) + len(model.failed) < 2 for model in models):
        return []
    return [
        SeedRow(
            model=model,
            seed=str(result.get("seed", MISSING)),
            loss=bits(number(result.get("bits_per_byte"))),
            time=duration(number(result.get("seconds"))),
            speed=count(throughput(result)[0]),
            status=str(result.get("status", "done")),
        )
        for model in models
        for result in sorted((*model.done, *model.failed), key=lambda r: number(r.get("seed")) or 0.0)
    ]


def footnotes(models: list[ModelView], evaluation: dict[str, Any] | None = None) -> list[str]:
    """What the reader must know to read the table right."""
    seeds = sorted({model.seeds for model in models if model.seeds and not model.is_baseline})
    notes = []
    scored, valid = (number(mapping(evaluation).get(key)) for key in ("tokens_scored", "valid_tokens"))
    if scored and valid and any(model.bits is not None for model in models):
        part = "all" if scored >= valid else percent(scored / valid)
        notes.append(f"The validation loss is over {count(scored)} tokens, {part} of the validation text.")
    if seeds and seeds[-1] > 1:
        several = f"{seeds[-1]} seeds" if len(seeds) == 1 else f"up to {seeds[-1]} seeds"
        notes.append(
            f"Means over {several}; ± is half of the 95% interval of the mean (Student's t), "
            "and the dots under the loss are the single seeds."
        )
    if any(throughput(result)[1] is not None for model in models for result in model.done):
        notes.append("Throughput is of the median step; beside it, from the slow steps to the fast ones.")
    if any(model.mean("peak_memory_bytes") for model in models):
        notes.append("KiB, MiB and GiB are powers of 1024.")
    return notes


def budget_words(budget: dict[str, Any], models: list[ModelView]) -> list[tuple[str, str]]:
    """The budget as (name, value) pairs in reading order; what is absent or unknown is left out, and of
    n-grams alone, which none of it bounds, all but the context that they are scored with."""
    known = {
        "params": ("parameters", count),
        "steps": ("steps", count),
        "tokens": ("training tokens", count),
        "minutes": ("minutes", count),
        "context": ("context", count),
        "batch_size": ("batch", count),
    }
    words = []
    if models and all(model.is_baseline for model in models):
        known = {"context": known["context"]}
    for key, (name, show) in known.items():
        value = budget.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            words.append((name, show(value)))
        elif isinstance(value, str):
            words.append((name, value))
    return words
