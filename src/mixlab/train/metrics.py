"""metrics.jsonl: the record of a run, one strict JSON object a line; all else is drawn from it.

Lines, in the order written; counts are totals since the run's first step:

    {"kind": "step", "step", "tokens", "seconds", "flops", "loss", "lr", "grad_norm", "clipped_fraction",
     "tokens_per_second", "flops_per_second"}
    {"kind": "eval", "step", "tokens", "seconds", "flops", "bits_per_byte", "nats_per_token", "perplexity",
     "loss_by_position"}
    {"kind": "end", "status": "done" | "stopped" | "failed", "step", ...}

seconds: of training, evaluations and checkpoints left out, everything else (reading batches, writing this
file) counted. loss: mean nats a token of the step's batch. flops: the model's, forward and backward, from
its formula.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mixlab.train.files import write_text

Line = dict[str, Any]

TIMES = ("seconds", "tokens_per_second", "flops_per_second")
"""The keys whose values come from a clock: all that differs between two runs of the same steps."""


def strict(value: Any) -> Any:
    """`value` with what JSON cannot say (NaN, infinities) as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return value


class MetricsLog:
    """An append-only metrics.jsonl, each line flushed as it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: Line) -> None:
        """Append one line."""
        self._file.write(json.dumps(strict(line), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; it may be called twice."""
        self._file.close()


def read_metrics(path: Path, kind: str | None = None) -> list[Line]:
    """The lines of a metrics.jsonl, or of one kind; none if it is absent.

    A line that is not whole (a crash, a run that is writing right now) is left out.
    """
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if kind is not None and f'"{kind}"' not in text:
            continue  # spares parsing the many step lines when the few evaluations are wanted
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if kind is None or line.get("kind") == kind:
            lines.append(line)
    return lines


def cut_back(path: Path, step: int, early: Path | None = None) -> None:
    """Drop what was written after `step`, and any end, so that a resumed run continues the record.

    early: the record as it was when the checkpoint of `step` was made, which holds even if the file at
    `path` is lost; of that one only the evaluation made just after the checkpoint is then taken.
    """
    lines = [line for line in read_metrics(path) if line["kind"] != "end" and line["step"] <= step]
    kept = lines if early is None else read_metrics(early)
    if early is not None:
        kept += [
            line for line in lines if (line["kind"], line["step"]) == ("eval", step) and line not in kept
        ]
    write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept))


def best_step(path: Path) -> int | None:
    """The step of the evaluation with the fewest bits per byte; None before the first."""
    evaluations = [line for line in read_metrics(path, "eval") if line["bits_per_byte"] is not None]
    return min(evaluations, key=lambda line: line["bits_per_byte"])["step"] if evaluations else None
