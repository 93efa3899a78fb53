"""A run folder as a comparison of one: what `render` needs, read from what the trainer wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixlab.config import read_toml
from mixlab.errors import UserError
from mixlab.records import read_json
from mixlab.report.meters import gather
from mixlab.report.view import mapping, number, rows
from mixlab.train.metrics import is_full, read_metrics

STEP_KEYS = ("step", "tokens", "seconds", "flops", "loss")
EVAL_KEYS = ("step", "tokens", "seconds", "flops", "bits_per_byte", "scored", "full")
LARGEST = 2 << 30
"""Bytes of weights that are loaded for a sample: seconds of reading, and memory that a report may take."""


def from_run(run_dir: Path, *, sample_seconds: float = 0.0) -> dict[str, Any]:
    """The comparison.json structure, with one result, of the run folder `run_dir`.

    Works on a run that is still being written: a torn last line is left out and the result's status is
    "running", or "killed" if no process holds the folder any more. Its score is that of its best evaluation,
    because a run means its best checkpoint. sample_seconds: for how long that may write a sample for the
    page; 0 for none. Raises UserError if `run_dir` is no run folder or its config.toml cannot be read.
    """
    from mixlab.compare import timing
    from mixlab.train.files import is_locked

    run_dir = Path(run_dir)
    if not (run_dir / "config.toml").is_file():
        raise UserError(f"{run_dir} is not a run folder: it has no config.toml")
    corpus = _json(run_dir / "data.json")
    config = read_toml(run_dir / "config.toml")
    if corpus.get("sources") == []:  # saved from Python: of the config only the model says what was done
        config = {key: value for key, value in config.items() if key not in ("data", "train")}
    lines = read_metrics(run_dir / "metrics.jsonl")
    model, train = mapping(config.get("model")), mapping(config.get("train"))
    result = _result(config, lines) | _counts(model) | {"sources": _sources(lines, corpus)}
    if result["status"] == "running" and not is_locked(run_dir):
        result |= {
            "status": "killed",
            "reason": "its process ended without a word, and the run can be resumed",
        }
    result |= {"run": str(run_dir), "throughput": _throughput(run_dir, lines)}
    if (speed := mapping(mapping(result["meters"].get("steps")).get("tokens_per_second"))) and result[
        "throughput"
    ]:
        speed["median"] = result["throughput"]["median"]  # without the steps that warm up, as in the table
    if sample_seconds > 0 and (found := _sample(run_dir, sample_seconds)):
        result["sample"] = found
    last = result["curve"][-1] if result["curve"] else {}
    budget = {
        "params": result.get("parameters"),
        "steps": last.get("step") or train.get("steps"),
        "tokens": last.get("tokens") or train.get("tokens"),
        "context": model.get("context"),
        "batch_size": _rows(model, train),
    }
    return {
        "title": str(config.get("name") or run_dir.name),
        "created": "",
        "command": "",
        "corpus": corpus,
        "environment": _json(run_dir / "environment.json"),
        "budget": {key: value for key, value in budget.items() if value is not None} | {"unequal": []},
        "timing": timing.judge([result]),
        "results": [result],
    }


def _result(config: dict[str, Any], lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The one result: curves, score and state of the run, from its metrics."""
    steps = [line for line in lines if line.get("kind") == "step"]
    evals, scored = _evaluations(lines)
    end = next((line for line in reversed(lines) if line.get("kind") == "end"), None)
    best = min(scored, key=_bits) if scored else {}
    last = steps[-1] if steps else {}
    tokens, seconds = number(last.get("tokens")), number(last.get("seconds"))
    status, reason = _status(end, last)
    return {
        "model": str(config.get("name") or "run"),
        "kind": "baseline" if config.get("ngram") else "neural",
        "seed": mapping(config.get("train")).get("seed", 0),
        "status": status,
        "reason": reason,
        "bits_per_byte": best.get("bits_per_byte"),
        "measured": {key: best.get(key) for key in ("step", "seconds")} if _earlier(best, last) else None,
        "tokens": best.get("tokens"),
        "tokens_per_second": tokens / seconds if tokens and seconds else (end or {}).get("tokens_per_second"),
        "seconds": seconds if seconds is not None else (end or {}).get("seconds"),
        "parameters": (end or {}).get("parameters"),
        "peak_memory_bytes": (end or {}).get("peak_memory_bytes"),
        "curve": [{key: line.get(key) for key in STEP_KEYS} for line in steps],
        "evals": [{key: line.get(key) for key in EVAL_KEYS} for line in evals],
        "loss_by_position": best.get("loss_by_position") or [],
        "meters": gather(lines),
        "config": config,
    }


def _evaluations(lines: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All evaluations, and those that are the full measure with a finite loss."""
    evals = [line for line in lines if line.get("kind") == "eval"]
    full = filter(is_full, evals)
    return evals, [line for line in full if number(line.get("bits_per_byte")) is not None]


def _earlier(line: dict[str, Any], last: dict[str, Any]) -> bool:
    """Whether a line of the record is of an earlier step than the last one."""
    step, end = number(line.get("step")), number(last.get("step"))
    return step is not None and end is not None and step < end


def _bits(line: dict[str, Any]) -> float:
    return float(line["bits_per_byte"])


def _throughput(run_dir: Path, lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The median step's, with its spread, as a comparison has it."""
    from mixlab.compare import timing

    return timing.throughput([line for line in lines if line.get("kind") == "step"], timing.read(run_dir))


def _sample(run_dir: Path, seconds: float) -> dict[str, Any] | None:
    """What the best checkpoint writes after a line break; None where it cannot be opened, or is too large."""
    from mixlab.decode.samples import sample
    from mixlab.train.run import open_run

    try:
        run = open_run(run_dir, notes=lambda message: None)
        if sum(file.stat().st_size for file in run.checkpoint.glob("model*")) > LARGEST:
            return None
        return sample(run.load(), run.tokenizer, "", seed=run.config.train.seed, seconds=seconds)
    except (UserError, OSError, RuntimeError, MemoryError):
        return None  # a page without a sample is a page


def _sources(lines: list[dict[str, Any]], corpus: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each source of a mixture: its share of training, its bits per byte at the best evaluation and at the
    last, and how many steps these took; empty for a text that is none."""
    _, scored = _evaluations(lines)
    if not scored:
        return []
    best, last = min(scored, key=_bits), scored[-1]
    shares = {str(part.get("source")): part.get("share") for part in rows(corpus.get("mixture"))}
    names = dict.fromkeys([*mapping(best.get("sources")), *mapping(last.get("sources"))])
    return [
        {
            "source": name,
            "share": shares.get(name),
            "best": mapping(best.get("sources")).get(name),
            "best_step": best.get("step"),
            "last": mapping(last.get("sources")).get(name),
            "last_step": last.get("step"),
        }
        for name in names
    ]


def _rows(model: dict[str, Any], train: dict[str, Any]) -> int | None:
    """Rows a step; older runs say them, newer ones the tokens."""
    tokens, context = number(train.get("batch_tokens")), number(model.get("context"))
    return round(tokens / context) if tokens and context else train.get("batch_size") if model else None


def _status(end: dict[str, Any] | None, last: dict[str, Any]) -> tuple[str, str]:
    """The run's state and why; one that failed after a step still has curves to show."""
    if end is None:
        return "running", ""
    status = str(end.get("status") or "done")
    reason = str(end.get("reason") or end.get("error") or end.get("message") or "")
    if status == "failed" and last:
        status = f"failed after step {last.get('step', 0)}"
    return status, reason


def _counts(model: dict[str, Any]) -> dict[str, Any]:
    """Parameters, FLOPs and state by the model's own formulas; nothing if this version cannot build it."""
    if not model:
        return {}
    import torch

    from mixlab.model.language_model import build_model

    try:
        with torch.device("meta"):  # shapes are enough: nothing is allocated
            built = build_model(model)
    except (UserError, NotImplementedError, RuntimeError):
        return {}
    context = built.config.context
    parameters, flops = built.parameters_by_component(), built.flops_by_component(context)
    names = [name for name in parameters if name in flops]
    return {
        "parameters": sum(parameters.values()),
        "flops_per_token": built.flops(context) // context,
        "state_bytes": built.state_bytes(context),
        "components": {
            name: {"parameters": parameters[name], "flops": flops[name] // context} for name in names
        },
    }


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file that a run may lack or be writing; empty if it cannot be read."""
    try:
        return read_json(path, dict[str, Any])
    except UserError:
        return {}
