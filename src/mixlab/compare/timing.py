"""Whether a comparison's times can be believed: throughput by step, and what the machine did meanwhile.

Each process that works on a run says, in RUN/processes.jsonl, from which step on, on how many threads, and
how fast a matrix product that is the same for all ran before; the last adds how fast it ran afterwards.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixlab.compare.fairness import compact
from mixlab.records import checked, parse_json
from mixlab.train.metrics import Line

FILE = "processes.jsonl"

MOVED = 2.0
"""A ratio that repeated timings on a machine left alone stay far below."""

PARTS = 4
"""Parts that the steps of a process are divided into, to compare them."""

FEWEST = 5
"""Steps in such a part: the median of fewer says little."""

WARM_UP = 2
"""The first steps of a process, which allocate, are left out where enough others are there."""

PRODUCT, SECONDS = 512, 0.1
"""The size of the product, and for how long it is repeated: many of the system's time slices."""


def product_flops() -> float:
    """FLOP/s of one thread in a float32 product, over a tenth of a second, whoever else wants the cores."""
    import torch

    from mixlab.train import threads

    with threads.using(1):
        a = torch.full((PRODUCT, PRODUCT), 0.5)
        out = a @ a
        started, products = time.perf_counter(), 0
        while (seconds := time.perf_counter() - started) < SECONDS:
            torch.mm(a, a, out=out)
            products += 1
        return 2 * PRODUCT**3 * products / seconds


def append(run: Path, **facts: float) -> None:
    """Add a line of what a process says."""
    with (run / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\n")


def read(run: Path) -> list[dict[str, Any]]:
    """What each process said that worked on the run and whose steps are still in its record; a process that
    resumes from before where another began makes that one's void. Lines that are damaged are left out."""
    found: list[dict[str, Any]] = []
    try:
        lines = (run / FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return found
    for text in lines:
        try:
            line = checked(parse_json(text), dict[str, Any])
            first = checked(line.get("step"), int)
        except ValueError:
            continue
        found = [earlier for earlier in found if earlier["step"] < first] + [line]
    return found


def throughput(steps: Sequence[Line], processes: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Tokens/s of the median step, of the slow (10th percentile) and fast (90th) ones; None without steps.

    parts: for each process, the medians of its quarters, in order. Evaluations and checkpoints are no steps.
    """
    firsts = [int(process["step"]) for process in processes[1:]]
    ends = [*firsts, float("inf")]
    starts = [float("-inf"), *firsts]
    rates: list[float] = []
    parts: list[list[float]] = []
    for start, end in zip(starts, ends, strict=True):
        own = [
            float(rate)
            for line in steps
            if start <= line["step"] < end and (rate := line.get("tokens_per_second"))
        ]
        own = own[WARM_UP:] if len(own) > 2 * WARM_UP else own
        rates += own
        pieces = np.array_split(own, PARTS) if len(own) >= PARTS * FEWEST else [own] if own else []
        parts.append([round(float(np.median(piece)), 1) for piece in pieces])
    if not rates:
        return None
    low, high = np.percentile(rates, [10, 90]).tolist()
    return {
        "median": statistics.median(rates),
        "low": low,
        "high": high,
        "steps": len(rates),
        "parts": [part for part in parts if part],
    }


def judge(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether conclusions about time can be drawn from the results, and the sentence that says why not."""
    done = [r for r in results if r.get("status") == "done" and isinstance(r.get("throughput"), Mapping)]
    why = [*_within(done), *_threads(done), *_machine(done)]
    return {"trusted": not why, "why": f"{'; '.join(why)}." if why else ""}


def _within(done: Sequence[Mapping[str, Any]]) -> list[str]:
    """Models whose throughput moved within a run, between a run's processes, or between seeds."""
    found = []
    for model in dict.fromkeys(result["model"] for result in done):
        runs = [result["throughput"].get("parts", []) for result in done if result["model"] == model]
        every = [rate for run in runs for part in run for rate in part]
        if not _moved(every):
            continue
        span = f"{compact(min(every))} to {compact(max(every))} tokens/s"
        if any(_moved(part) for run in runs for part in run):
            found.append(f"{model} trained at {span} within one run")
        elif any(_moved([rate for part in run for rate in part]) for run in runs):
            found.append(f"{model} was resumed and trained at {span} before and after")
        else:
            found.append(f"{model} trained at {span} with one seed and another")
    return found


def _threads(done: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether the runs had different numbers of threads."""
    by_number: dict[int, list[str]] = {}
    for result in done:
        for number in result.get("threads") or ():
            models = by_number.setdefault(int(number), [])
            models += [] if result["model"] in models else [result["model"]]
    if len(by_number) < 2:
        return []
    return [
        "the runs had different numbers of threads ("
        + "; ".join(f"{number}: {', '.join(models)}" for number, models in sorted(by_number.items()))
        + ")"
    ]


def _machine(done: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether the product that is the same for all ran at different speeds beside the runs."""
    speeds = [(float(speed), str(r["model"])) for r in done for speed in r.get("product_flops") or ()]
    if not speeds or not _moved([speed for speed, _ in speeds]):
        return []
    (low, slow), (high, fast) = min(speeds), max(speeds)
    return [
        f"the machine changed: one and the same matrix product ran at {low / 1e9:.0f} GFLOP/s beside {slow} "
        f"and at {high / 1e9:.0f} beside {fast}"
    ]


def _moved(values: Sequence[float]) -> bool:
    return len(values) > 1 and max(values) > MOVED * min(values)
