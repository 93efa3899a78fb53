"""How a comparison is shown in the terminal: its progress on stderr, its table on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from mixlab.cli.console import Progress, clock, short
from mixlab.cli.console import table as aligned
from mixlab.report import grid
from mixlab.report.recommend import conclude
from mixlab.report.statistics import half_width
from mixlab.report.table import throughput
from mixlab.report.units import duration, size
from mixlab.report.view import ModelView, clean, group
from mixlab.train.progress import FORWARD

if TYPE_CHECKING:
    from mixlab.compare.bands import Verdict

COUNTED_SHARE = 0.3
"""What an n-gram takes of a neural run's time, about; it only weighs the progress bar."""


class ComparisonProgress(Progress):
    """One bar for the whole comparison: each run is a share of it, its steps move it.

    A context manager, and the callable that `mixlab.compare.compare` takes as `progress`.
    """

    def __init__(self, *, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__("comparing", self.overall, stream=stream, now=now)
        self.weights: dict[int, float] = {}
        self.behind = 0.0
        self.began: tuple[float, float] | None = None
        self.work: Mapping[str, Any] = {"steps": 1, "step_tokens": 1, "scored": 0, "full": 1}
        self.step = self.scored = 0
        self.counted = False

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Take a note, the start or end of a run, or a line of its record."""
        kind = line.get("kind")
        if kind == "plan":
            self.weights = dict(enumerate((COUNTED_SHARE if c else 1.0 for c in line["counted"]), 1))
            self.work = {key: line.get(key, usual) for key, usual in self.work.items()}
        elif kind == "note":
            self.say(f"note: {line['message']}")
        elif kind == "run":
            self.run(line)
        else:
            super().__call__(line)
            if kind == "eval":
                self.scored += line.get("scored", 0)
            if kind in ("step", "eval", "evaluating") and self.began is None:
                self.began = (self.now(), self.done)

    def run(self, line: Mapping[str, Any]) -> None:
        """A run begins or is over."""
        name = f"{line['model']}" + (f" seed {line['seed']}" if line["seed"] else "")
        self.label = f"{line['index']}/{line['runs']} {name}"
        status = line["status"]
        self.fresh = False  # what the run before this line reached is over
        self.step = self.scored = 0
        self.counted = line.get("counted", False)
        if status in ("begun", "resumed"):
            self.shown.clear()
            self.last_shown = self.now()
            self.say(f"{self.label}: {'goes on' if status == 'resumed' else 'starts'}")
        else:
            self.behind = sum(weight for index, weight in self.weights.items() if index <= line["index"])
            reason = f": {line['reason']}" if line.get("reason") else ""
            self.say(f"{self.label}: {'finished before' if status == 'kept' else status}{reason}")
            if status == "kept":
                self.began = None  # what an earlier command did says nothing of the pace of this one
        if self.live is not None:
            self.live.clear(self.label, self.overall({}))

    def overall(self, line: Mapping[str, Any]) -> float:
        """How much of the whole is done, by a line of the current run."""
        total = sum(self.weights.values()) or 1.0
        return min(1.0, (self.behind + self.current(line)) / total)

    def current(self, line: Mapping[str, Any]) -> float:
        """The share of the current run that is done, by the forwards that training and scoring take."""
        scored = self.scored + (line.get("scored", 0) if line.get("kind") in ("eval", "evaluating") else 0)
        if self.counted:  # half of it is counting, which reports no progress
            return COUNTED_SHARE * (0.5 + 0.5 * min(1.0, scored / self.work["full"])) if scored else 0.0
        self.step = max(self.step, int(line.get("step", 0)))
        done = self.step * self.work["step_tokens"] / FORWARD + scored
        whole = self.work["steps"] * self.work["step_tokens"] / FORWARD + self.work["scored"]
        return min(1.0, float(done / whole))

    def say(self, sentence: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self.live is not None:
            self.live.say(sentence)
        else:
            print(sentence, file=self.stream, flush=True)

    def _left(self) -> str:
        """The whole comparison's, by its pace since this command's first line."""
        if self.began is None or not self.began[1] < self.done < 1.0:
            return ""
        pace = (self.now() - self.began[0]) / (self.done - self.began[1])
        return f"{clock(pace * (1.0 - self.done))} left for all"


COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("parameters", "params", short),
    ("bits_per_byte", "bits/byte", lambda value: f"{value:.3f}"),
    ("tokens_per_second", "tokens/s", short),
    ("seconds", "time", duration),
    ("flops_per_token", "FLOPs/token", short),
    ("decode_ms_per_token", "ms/token", lambda value: f"{value:.2f}"),
    ("state_bytes", "state", size),
    ("peak_memory_bytes", "memory", size),
)
"""A result's key, the column's head, and how a value is written."""


def rows(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row of cells for each model: means over its seeds, "failed" for one that has none.

    The neural models come first, the best of them at the top; below them the baselines, likewise.
    """
    return [_cells(model) for model in group({"results": clean(results)})]


def _cells(model: ModelView) -> list[str]:
    cells = [model.name]
    for key, _, show in COLUMNS:
        values = model.values(key)
        if key == "tokens_per_second":
            values = [value for result in model.done if (value := throughput(result)[0]) is not None]
        cell = show(sum(values) / len(values)) if values else "-"
        half = half_width(values) if key == "bits_per_byte" else None
        cells.append(cell if half is None else f"{cell} ±{half:.3f}")
    if not model.done:
        cells[2] = "failed"
    return cells


def print_comparison(comparison: Mapping[str, Any]) -> None:
    """The table and what it comes to, to stdout; then why models failed and what the table needs said."""
    results = comparison["results"]
    head = ["model", *(title for _, title, _ in COLUMNS)]
    body = rows(results)
    trained = sum(not model.is_baseline for model in group({"results": clean(results)}))
    if sys.stdout.isatty():
        _rich(head, body, trained)
    else:
        lines = aligned(head, body).splitlines()
        if 0 < trained < len(body):
            lines.insert(trained + 1, "")
        print("\n".join(lines))
    print()
    print_sweeps(comparison)
    conclusion = conclude(comparison)
    for paragraph in (conclusion.headline, *conclusion.warnings, conclusion.advice):
        if paragraph:
            print(paragraph)
    if conclusion.command:
        print(f"\n    {conclusion.command}")
    print()
    for result in results:
        if result["status"] == "failed":
            print(f"failed: {result['model']} (seed {result['seed']}): {result['reason']}")
    for sentence in footnotes(comparison):
        print(sentence)


def print_sweeps(comparison: Mapping[str, Any]) -> None:
    """Print a table of the loss at each value for each swept model and key, the best marked."""
    data = clean(comparison)
    keys = grid.keys_of(data)
    for sweep in grid.swept(data, group(data)):
        for key in keys:
            profile = sweep.profile(key)
            if not profile:
                continue
            best, *ties = grid.lowest(profile)
            best_of = " (best over the other keys)" if len(sweep.best.values) > 1 else ""
            body = [
                [*_swept_cells(point, key), "best" if point is best and not ties else ""] for point in profile
            ]
            print(f"{sweep.name}{best_of}:")
            print(
                "\n".join(
                    f"    {line}".rstrip() for line in aligned([key, "bits/byte", ""], body).splitlines()
                )
            )
            print()


def _swept_cells(point: grid.Point, key: str) -> list[str]:
    half = half_width(point.model.values("bits_per_byte"))
    return [
        grid.show(point.values[key]),
        f"{point.loss:.3f}" + ("" if half is None else f" ±{half:.3f}"),
    ]


def footnotes(comparison: Mapping[str, Any]) -> list[str]:
    """What the table needs said beside it."""
    budget = comparison["budget"]
    by_model: dict[str, int] = {}
    for result in comparison["results"]:
        by_model[result["model"]] = by_model.get(result["model"], 0) + (result["status"] == "done")
    seeds = max(by_model.values(), default=0)
    interval = f"; ± is half of the 95% interval of the mean over {seeds} seeds" if seeds > 1 else ""
    return [
        f"bits/byte on {scored_on(comparison)}, lower is better{interval}; state after {budget['context']} "
        "tokens; FLOPs of a forward; memory is the whole process's peak, Python and PyTorch included.",
        *budget["unequal"],
    ]


def scored_on(comparison: Mapping[str, Any]) -> str:
    """The text that the losses were measured on, by the results."""
    evaluation = comparison.get("evaluation") or {}
    scored, whole = evaluation.get("tokens_scored"), evaluation.get("valid_tokens")
    if scored is None or whole is None:
        return "the validation text"
    if scored == whole:
        return "the whole validation text"
    several = sum(result["status"] == "done" for result in comparison["results"]) > 1
    same = ", the same for all" if several else ""
    return f"{short(scored)} of {short(whole)} validation tokens{same}"


def print_bands(verdicts: Sequence[Verdict]) -> None:
    """Each model's loss beside its band, to stdout."""
    body = []
    for one in verdicts:
        band = ("-", "-") if one.band is None else (f"{one.band.expected:.3f}", str(one.band))
        body.append([one.model, "-" if one.measured is None else f"{one.measured:.4f}", *band, one.verdict])
    print()
    print(aligned(["model", "bits/byte", "expected", "band", "verdict"], body))


def _rich(head: Sequence[str], body: Sequence[Sequence[str]], trained: int) -> None:
    """The table for a terminal: heads broken at their units, so that it fits into 80 columns; a space after
    the first `trained` rows."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title in head:
        broken = title.replace("/", "\n/") if len(title) > 6 else title
        table.add_column(Text(broken), justify="left" if title == "model" else "right", no_wrap=True)
    for index, cells in enumerate(body, 1):
        table.add_row(*map(Text, cells), end_section=index == trained < len(body))
    # Wider than the terminal: broken lines are better than cut numbers.
    console = Console()
    needed = console.measure(table, options=console.options.update(width=1_000)).maximum
    Console(width=max(console.width, needed)).print(table, crop=False)
