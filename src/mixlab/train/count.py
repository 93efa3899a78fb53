"""An n-gram 'trains' by counting once; what it leaves behind is a run like any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from mixlab.config import to_mapping
from mixlab.data import Dataset
from mixlab.errors import UserError
from mixlab.model.config import ModelConfig
from mixlab.model.ngram import NGram
from mixlab.train import checkpoint, machine
from mixlab.train.config import RunConfig
from mixlab.train.counted import tokens_to_count
from mixlab.train.counters import Clock
from mixlab.train.evaluate import evaluate
from mixlab.train.files import disk_errors, write_text
from mixlab.train.folder import Changes, RunFolder
from mixlab.train.metrics import Line, MetricsLog, cut_back
from mixlab.train.progress import notes
from mixlab.train.resuming import identity
from mixlab.train.sinks import Sinks

# An n-gram needs no window, but a model has one: scored in the same windows, the numbers compare.
CONTEXT = ModelConfig().context


def begin(
    config: RunConfig, folder: RunFolder, dataset: Dataset, report: Sinks, *, resume: bool, force: bool
) -> Line:
    """Count into `folder`, as `mixlab.train.loop.train` says, after what is checked and written first."""
    changes = folder.check_same(config, dataset, force=force) if resume else {}
    facts = machine.environment(machine.measure())
    with folder.locked():
        if not resume:
            folder.check_free()
        folder.write_start(config, dataset, facts)
        report({"kind": "start", "run": str(folder.path), "length": {}})
        with report.open(folder.path, 0, to_mapping(config)):
            return count(config, folder, dataset, report, changes)


def count(
    config: RunConfig,
    folder: RunFolder,
    dataset: Dataset,
    report: Callable[[Line], None],
    changes: Changes | None = None,
) -> Line:
    """Count the training text, save, evaluate; returns the summary.

    The record has an "eval" and an "end" line, at step 1; there is no "step" line, for a count has no loss
    on the way. A resumed run counts again: it takes seconds and gives the same; changes: but for these.
    """
    assert config.ngram is not None
    clock = Clock()
    with disk_errors(f"to {folder.path}", failure=UserError):
        cut_back(folder.metrics, 0)
    streams = tokens_to_count(dataset, config.ngram, notes(report))
    model = NGram.train(streams, order=config.ngram.order, vocab_size=dataset.tokenizer.vocab_size)
    tokens, seconds = sum(map(len, streams)) - 1, clock.lap()
    totals = {"step": 1, "tokens": tokens, "seconds": seconds, "flops": 0}

    def write(path: Path) -> None:
        model.save(path)
        scalars = {"counters": totals, **identity(config, dataset)}
        write_text(path / checkpoint.SCALARS, json.dumps(scalars, indent=1) + "\n")

    with disk_errors(f"to {folder.path}"):
        saved = checkpoint.save(folder.checkpoints, 1, write)
        checkpoint.prune(folder.checkpoints, keep=1, best=None)
        log = MetricsLog(folder.metrics)
        if changes:
            begun = {"kind": "config", "step": 0, "tokens": 0, "seconds": 0.0, "flops": 0}
            log.write({**begun, "changes": changes})

        def progress(scored: int, total: int) -> None:
            report({"kind": "evaluating", **totals, "full": True, "scored": scored, "total": total})

        clock.lap()
        found = evaluate(model, dataset.valid, context=CONTEXT, dtype="float32", progress=progress)
        took = clock.lap()
        end = {
            "kind": "end",
            **totals,
            "status": "done",
            "message": "",
            "loss": None,
            "bits_per_byte": found.bits_per_byte,
            "best_bits_per_byte": found.bits_per_byte,
            "best_step": 1,
            "parameters": sum(model.parameters_by_component().values()),
            "dtype": "float32",
            "tokens_per_second": tokens / seconds,
            "peak_memory_bytes": machine.peak_memory_bytes(machine.CPU),
            "checkpoint": str(saved),
        }
        for line in ({"kind": "eval", **totals, **found.line(), "full": True, "took": took}, end):
            log.write(line)
            report(line)
        log.close()
    return end
