"""What is measured on a trained run, neural or counted: one result of comparison.json."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mixlab.compare import timing
from mixlab.config import to_mapping
from mixlab.data import TokenFile
from mixlab.decode import generate
from mixlab.decode.samples import MOST_TOKENS, sample
from mixlab.model.scorer import Scorer
from mixlab.train import machine
from mixlab.train.evaluate import evaluate
from mixlab.train.metrics import Line, is_full, read_metrics
from mixlab.train.run import Run, open_run

CURVE_POINTS = 500
"""Most points of a loss curve: more than a screen has pixels for."""

DECODED = 64
"""Tokens whose decoding is timed: the last before the context is full, where a state is at its largest."""

WARM_UP = 8
"""Of those, the first ones, which allocate and fill caches, are not counted."""

DECODE_SECONDS = 1.0
"""What the timed decoding and the sample may each take, about: of a large model fewer tokens are drawn."""

FEWEST_SAMPLED = 100


def result(
    run: Path,
    summary: Line,
    *,
    valid: TokenFile,
    context: int,
    prompt: str,
    decode_from: Sequence[int],
    peak_memory: int,
    product_flops: float,
    report: Callable[[Line], None] = lambda line: None,
) -> dict[str, Any]:
    """The result of a finished run: scores from its record, the rest measured on its best checkpoint.

    summary: the record's last line. valid: what its evaluations score. prompt: the sample's beginning.
    decode_from: tokens of real text, about `context` of them, to decode after. peak_memory: bytes, of the
    training process. product_flops: see `timing`, after training. report: told of a further evaluation's
    progress as the record's were, see `mixlab.train.evaluations`.
    """
    opened = open_run(run)
    scorer = opened.load()
    best = _best_evaluation(opened, scorer, valid, context, report)
    evaluations = _evaluations(opened)
    all_of_them = evaluations if best in evaluations else [*evaluations, best]
    milliseconds = decode_milliseconds(scorer, decode_from, context)
    length = sampled_tokens(milliseconds)
    steps, processes = read_metrics(opened.path / "metrics.jsonl", "step"), timing.read(opened.path)
    rates = timing.throughput(steps, processes)
    return {
        "model": opened.config.name,
        "seed": opened.config.train.seed,
        "status": "done",
        "reason": "",
        "parameters": sum(scorer.parameters_by_component().values()),
        "bits_per_byte": best["bits_per_byte"],
        "scored": best.get("scored"),
        "tokens": summary["tokens"],
        "tokens_per_second": rates["median"] if rates else summary["tokens_per_second"],
        "throughput": rates,
        "threads": sorted({process["threads"] for process in processes if "threads" in process}),
        "product_flops": [*(p["before"] for p in processes if "before" in p), product_flops],
        "seconds": summary["seconds"],
        "dtype": summary["dtype"],
        "flops_per_token": scorer.flops(context) // context,
        "decode_ms_per_token": milliseconds,
        "state_bytes": scorer.state_bytes(context, torch.float32),
        "state_bytes_per_token": state_growth(scorer, context),
        "peak_memory_bytes": peak_memory,
        "components": components(scorer, context),
        "curve": curve(steps),
        "evals": [
            _only({"scored": None, **line, "full": is_full(line)}, "bits_per_byte", "scored", "full")
            for line in evaluations
        ],
        "evaluation_seconds": sum(line.get("took") or 0.0 for line in all_of_them),
        "loss_by_position": best["loss_by_position"],
        "sample": sample(scorer, opened.tokenizer, prompt, most=length, seed=opened.config.train.seed),
        "config": to_mapping(opened.config),
    }


def _evaluations(run: Run) -> list[Line]:
    return read_metrics(run.path / "metrics.jsonl", "eval")


def _best_evaluation(
    run: Run, scorer: Scorer, valid: TokenFile, context: int, report: Callable[[Line], None]
) -> Line:
    """The evaluation of the checkpoint that was opened; made anew where it had windows of another length."""
    if run.context != context:

        def progress(scored: int, total: int) -> None:
            report({"kind": "evaluating", "step": run.step, "scored": scored, "total": total, "full": True})

        started = time.perf_counter()
        found = evaluate(scorer, valid, context=context, dtype="float32", progress=progress)
        return {**found.line(), "took": time.perf_counter() - started}
    lines = [line for line in _evaluations(run) if is_full(line)]
    return next((line for line in lines if line["step"] == run.step), lines[-1])


def _only(line: Mapping[str, Any], *keys: str) -> Line:
    return {name: line[name] for name in ("step", "tokens", "seconds", "flops", *keys)}


def curve(steps: Sequence[Line]) -> list[Line]:
    """The training loss over the steps; of a long run, means over stretches of equal length."""
    size = -(-len(steps) // CURVE_POINTS) or 1
    points = []
    for start in range(0, len(steps), size):
        stretch = steps[start : start + size]
        losses = [line["loss"] for line in stretch if line["loss"] is not None]
        loss = sum(losses) / len(losses) if losses else None
        points.append(_only(stretch[-1] | {"loss": loss}, "loss"))
    return points


def components(scorer: Scorer, context: int) -> dict[str, dict[str, int]]:
    """Parameters, and forward FLOPs a token at `context` tokens, by component."""
    flops = scorer.flops_by_component(context)
    parameters = scorer.parameters_by_component()
    return {name: {"parameters": parameters[name], "flops": flops[name] // context} for name in parameters}


def state_growth(scorer: Scorer, context: int) -> float:
    """Bytes that each token beyond `context` adds to the decoding state."""
    sizes = [scorer.state_bytes(T, torch.float32) for T in (context, 2 * context)]
    return (sizes[1] - sizes[0]) / context


def sampled_tokens(milliseconds: float) -> int:
    """Tokens of the sample, where decoding takes so many milliseconds per token."""
    return min(MOST_TOKENS, max(FEWEST_SAMPLED, int(1000 * DECODE_SECONDS / milliseconds)))


def timed_tokens(context: int) -> int:
    """How many tokens `decode_milliseconds` decodes."""
    return min(DECODED, max(1, context // 2))


def decode_milliseconds(scorer: Scorer, tokens: Sequence[int], context: int) -> float:
    """Median time of one generated token at batch 1, ms, with the context nearly full: model and sampling."""
    timed = timed_tokens(context)
    prompt = list(tokens[: max(1, context - timed)])
    times = []
    started = time.perf_counter()
    for _ in generate(scorer, prompt, max_tokens=timed, seed=0):
        now = time.perf_counter()
        times.append(now - started)
        started = now
        if len(times) > 2 * WARM_UP and sum(times) > DECODE_SECONDS:
            break
    kept = times[WARM_UP:] or times
    return 1000 * statistics.median(kept)


def peak_memory_bytes() -> int:
    """The most memory this process has held since it began: interpreter, PyTorch, model and batches.

    On Linux from the process's own high-water mark: getrusage's is inherited from the parent over an exec.
    """
    if not torch.cuda.is_available():
        try:
            for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
                if line.startswith("VmHWM:"):
                    return 1024 * int(line.split()[1])
        except OSError:
            pass
    return machine.peak_memory_bytes(machine.default_device())
