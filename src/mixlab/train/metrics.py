"""metrics.jsonl: the record of a run, one strict JSON object a line; all else is drawn from it.

Every line has `kind` and the totals since the run's first step:

    step
    tokens               predicted in training
    seconds              of training: all but evaluations and checkpoints (reading batches, looking at the
                         watch list and writing this file are counted)
    flops                of the model's matrix products, forward and backward, from its formula

kind "step", one a step:

    loss                 mean nats a token over the whole batch: all micro-batches, all processes
    z_loss, label_smoothing   what each adds to the loss that is minimised, where it is on
    lr                   the schedule's learning rate
    learning_rates       "RULE/ROLE" -> what these parameters were updated with; "RULE/ROLE x0.5": those of
                         the role that learn at half of its rate
    grad_norm            global L2 norm of the gradient, before clipping
    grad_norm_clipped    and after it
    clipped_fraction     of all steps so far, those whose gradient was clipped
    update_ratio         role -> |W after - W before| / |W before| of this step, all parameters of the role as
                         one vector; null where they are all 0. At the steps that have a "watch" line
    tokens_per_second    of this step, by all the time since the line before
    flops_per_second     likewise
    peak_fraction        flops_per_second over this machine's measured FLOP/s of square matrix products in the
                         dtype of the run (environment.json: machine, float32_flops or bfloat16_flops), which
                         are measured once more when a step surpasses them
    memory_bytes         in use now: resident in the process, on a GPU by its tensors; 0 if it is not known
    peak_memory_bytes    and at most since the process began

kind "watch", after the first step and every `train.watch_every`, a list with one value a layer, null where a
layer has nothing to see; on a fixed batch, in evaluation mode (see `mixlab.train.watch`), and of the record:

    attention_logit      the largest that a softmax takes, after scale, cap and bias
    attention_entropy    nats, mean over heads and queries that see more than one key
    effective_rank       of the residual stream after the layer
    dead_units           the share of hidden units that pass on nothing for any token of the batch
    loss_rise            nats: mean loss of the last 20 steps less its lowest so far; null before there are 20
    gradient_jump        largest grad_norm of the last 20 steps over the median of up to 100 before them; null
                         before there are 10 of these
    warnings             name of a number out of its healthy band (these six, update_ratio) -> a sentence

kind "eval":

    bits_per_byte        nats of the scored text / ln 2 / its bytes
    nats_per_token, perplexity
    scored               tokens of the validation text that were scored
    full                 false for the sample of `train.eval_tokens`, which is compared with no full measure
    took                 seconds of this evaluation
    loss_by_position     mean nats of the tokens after 1, 2, ... tokens of context

kind "config", where a run was resumed with another config by force, on another device or with other threads:

    changes              dotted key -> [what it was, what it is from here on]

kind "end", the last: status "done", "stopped" or "failed", message, parameters, dtype, device, threads,
checkpoint; loss: the last; bits_per_byte: of the last full evaluation; best_bits_per_byte, best_step;
tokens_per_second over the whole; peak_memory_bytes.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Required

from annotated_types import Ge, Len, Lt
from typing_extensions import TypedDict

from mixlab.records import checked, parse_json
from mixlab.train.files import write_text

Line = dict[str, Any]

Values = dict[str, float | None]
PerLayer = list[float | None]


class Known(TypedDict, total=False):
    """The types of a line's values, of those that more is made of than a picture."""

    kind: Required[str]
    step: Annotated[int, Ge(0), Lt(2**63)]
    tokens: float
    seconds: float
    flops: float
    loss: float | None
    lr: float | None
    learning_rates: Values
    grad_norm: float | None
    update_ratio: Values
    tokens_per_second: float | None
    bits_per_byte: float | None
    nats_per_token: float | None
    loss_by_position: PerLayer
    sources: Values
    full: bool
    attention_logit: PerLayer
    attention_entropy: PerLayer
    effective_rank: PerLayer
    dead_units: PerLayer
    loss_rise: float | None
    gradient_jump: float | None
    warnings: dict[str, str]
    changes: dict[str, Annotated[list[Any], Len(2, 2)]]
    status: str
    message: str


class _Placed(Known):
    """A line of the run's course, not its end."""

    step: Required[Annotated[int, Ge(0), Lt(2**63)]]  # type: ignore[misc]


class _Eval(_Placed):
    bits_per_byte: Required[float | None]  # type: ignore[misc]


class _Watch(_Placed):
    warnings: Required[dict[str, str]]  # type: ignore[misc]


class _Config(_Placed):
    changes: Required[dict[str, Annotated[list[Any], Len(2, 2)]]]  # type: ignore[misc]


_SHAPES: dict[Any, type] = {"eval": _Eval, "watch": _Watch, "config": _Config, "end": Known}


TIMES = (
    "seconds", "tokens_per_second", "flops_per_second", "peak_fraction", "memory_bytes", "peak_memory_bytes",
    "took",
)  # fmt: skip
"""The keys whose values come from a clock or the process: all that differs between two runs of the same
steps."""


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
        """Close the file; it may be called twice. What could not be written has failed in `write` already."""
        with contextlib.suppress(OSError):
            self._file.close()


def read_metrics(path: Path, kind: str | None = None) -> list[Line]:
    """The lines of a metrics.jsonl, or of one kind; none if it is absent.

    A line that is not whole (a crash, a run that is writing right now) or not of the types above is left out.
    """
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if kind is not None and f'"{kind}"' not in text:
            continue  # spares parsing the many step lines when the few evaluations are wanted
        try:
            line = checked(parse_json(text), dict[str, Any])
            checked(line, _SHAPES.get(str(line.get("kind")), _Placed))
        except ValueError:
            continue
        if kind is None or line["kind"] == kind:
            lines.append(line)
    return lines


def cut_back(path: Path, step: int, early: Path | None = None) -> None:
    """Drop what was written after `step`, and any end, so that a resumed run continues the record.

    early: the record as it was when the checkpoint of `step` was made, which holds even if the file at
    `path` is lost; of that one only what was written just after the checkpoint is then taken:
    its evaluation, and a change of the config.
    """
    lines = [line for line in read_metrics(path) if line["kind"] != "end" and line["step"] <= step]
    kept = lines if early is None else read_metrics(early)
    if early is not None:
        later = [line for line in lines if line["kind"] in ("eval", "config") and line["step"] == step]
        kept += [line for line in later if line not in kept]
    write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept))


def is_full(line: Mapping[str, Any]) -> bool:
    """Whether an "eval" line is the full measure; those of older records all are."""
    return bool(line.get("full", True))


def best_step(path: Path) -> int | None:
    """The step of the full evaluation with the fewest bits per byte; None before the first."""
    lines = filter(is_full, read_metrics(path, "eval"))
    evaluations = [line for line in lines if line["bits_per_byte"] is not None]
    return min(evaluations, key=lambda line: line["bits_per_byte"])["step"] if evaluations else None
