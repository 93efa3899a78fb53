"""The result table: one row per model, human units in the cells, plain numbers beside them for sorting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mixlab.report.units import MISSING, bits, count, duration, milliseconds, percent, size
from mixlab.report.verdict import half_width
from mixlab.report.view import ModelView, number, rows


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


def columns(context: float | None) -> list[Column]:
    """The table's columns; `context` (tokens) goes into the head of the state's size."""
    at = f"at {count(context)} tokens" if context else "at the context length"
    return [
        Column(key="bits_per_byte", title="Valid loss", unit="bits per byte", show=bits, better="low"),
        Column(key="parameters", title="Parameters", unit="", show=count),
        Column(key="tokens_per_second", title="Training", unit="tokens/s", show=count, better="high"),
        Column(key="seconds", title="Time", unit="to train", show=duration, better="low"),
        Column(key="flops_per_token", title="Forward", unit="FLOPs/token", show=count, better="low"),
        Column(key="decode_ms_per_token", title="Decode", unit="ms/token", show=milliseconds, better="low"),
        Column(key="state_bytes", title="State", unit=at, show=size, better="low"),
        Column(key="peak_memory_bytes", title="Peak memory", unit="", show=size, better="low"),
    ]


def table(
    models: list[ModelView], context: float | None, *, apart: bool = False
) -> tuple[list[Column], list[Row]]:
    """The columns that at least one model fills (the loss always), and a row per model in the given order.

    apart: no loss is the best, for each is of another text.
    """
    every = columns(context)
    if apart:
        every = [replace(c, better="") if c.key == "bits_per_byte" else c for c in every]
    used = [c for c in every if c.key == "bits_per_byte" or any(model.values(c.key) for model in models)]
    best = {column.key: _best(column, models) for column in used}
    strip = None if apart else _strip(models)
    return used, [_row(model, used, best, strip) for model in models]


def _best(column: Column, models: list[ModelView]) -> float | None:
    scored = [model for model in models if model.bits is not None]  # what broke off early is no fastest
    values = [value for model in scored if (value := model.mean(column.key)) is not None]
    if not column.better or len(values) < 2:
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
        value = model.mean(column.key)
        half = half_width(model.values(column.key)) if column.key == "bits_per_byte" else None
        spread = f"± {bits(half)}" if half is not None and not model.is_reference else ""
        top = value is not None and model.bits is not None and value == best[column.key]
        cells.append(Cell(text=column.show(value), value=value, best=top, spread=spread))
    dots = None
    if strip and model.bits is not None:
        place = [
            round(100 * (v - strip[0]) / (strip[1] - strip[0]), 1) for v in model.values("bits_per_byte")
        ]
        dots = Dots(seeds=place, mean=sum(place) / len(place))
    return Row(model=model, cells=cells, note=_note(model), dots=dots)


def _note(model: ModelView) -> str:
    notes = []
    if model.failed:
        total = len(model.done) + len(model.failed)
        notes.append(f"{len(model.failed)} of {total} seeds failed: {model.reason}")
    for result in model.done:
        status = result.get("status", "done")
        if status != "done":
            notes.append("still running" if status == "running" else status)
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


def footnotes(models: list[ModelView]) -> list[str]:
    """What the reader must know to read the table right."""
    seeds = max((len(model.by_seed("bits_per_byte")) for model in models), default=0)
    notes = []
    if seeds > 1:
        notes.append(
            f"Means over {seeds} seeds; ± is half of the 95% interval of the mean (Student's t), "
            "and the dots under the loss are the single seeds."
        )
    if any(model.mean("peak_memory_bytes") for model in models):
        notes.append("KiB, MiB and GiB are powers of 1024.")
    return notes


def budget_words(budget: dict[str, Any]) -> list[tuple[str, str]]:
    """The budget as (name, value) pairs in reading order; what is absent or unknown is left out."""
    known = {
        "params": ("parameters", count),
        "steps": ("steps", count),
        "tokens": ("training tokens", count),
        "minutes": ("minutes", count),
        "context": ("context", count),
        "batch_size": ("batch", count),
    }
    words = []
    for key, (name, show) in known.items():
        value = budget.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            words.append((name, show(value)))
        elif isinstance(value, str):
            words.append((name, value))
    return words
