"""One run of a comparison in a process of its own: `python -m mixlab.compare.worker < job.json`.

A process of its own gives each model its own peak memory, and lets one that crashes or is killed for memory
take nothing else with it. The job comes as JSON on stdin; stdout carries JSON lines only: those of
metrics.jsonl, notes, and at last one of

    {"kind": "result"}                      RUN/result.json is written
    {"kind": "stopped"}                     saved and stopped, as a signal asked for
    {"kind": "failed", "reason": ...}       one sentence; a traceback, if there is one, is on stderr
    {"kind": "speed", ...}                  of a job that only measures one, see `mixlab.compare.probe.speed`
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mixlab.errors import RunFailed, UserError

if TYPE_CHECKING:
    from mixlab.data import Dataset
    from mixlab.train.config import RunConfig

RESULT = "result.json"


class Channel:
    """The way to the parent. If nobody listens any more, the run is asked to save and stop."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.broken = False

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Send one line."""
        from mixlab.train.metrics import strict

        if self.broken:
            return
        try:
            self.stream.write(json.dumps(strict(dict(line)), allow_nan=False) + "\n")
            self.stream.flush()
        except (BrokenPipeError, ValueError):
            self.broken = True
            os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Do the job on stdin; returns the exit status."""
    channel = Channel(_take_stdout())
    try:
        job = json.load(sys.stdin)
        last = work(job, channel)
    except (UserError, RunFailed) as error:
        last = {"kind": "failed", "reason": str(error)}
    except KeyboardInterrupt:
        last = {"kind": "stopped"}
    except MemoryError:
        traceback.print_exc()
        last = {"kind": "failed", "reason": "out of memory"}
    except Exception as error:  # the boundary of the process: whatever a part does, the others must go on
        traceback.print_exc()
        last = {"kind": "failed", "reason": describe(error)}
    channel(last)
    return int(last["kind"] == "failed")


def work(job: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Train and measure, or only probe, what the job says; returns the last line to send."""
    from mixlab.config import parse
    from mixlab.imports import import_parts
    from mixlab.train import threads
    from mixlab.train.config import RunConfig

    import_parts(job["imports"])
    config = parse(RunConfig, job["config"])
    with threads.using(config.train.threads):
        return _do(config, _dataset(config, job, channel), job, channel)


def _dataset(config: RunConfig, job: Mapping[str, Any], channel: Channel) -> Dataset:
    """The text: as the parent has prepared it, or prepared here where its tokens are in no file."""
    from mixlab.data import prepare
    from mixlab.data.handing import take
    from mixlab.train.progress import notes

    if job.get("text") is not None:
        return take(job["text"], config.data, notes=notes(channel))
    context = config.model.context if config.model else 0
    return prepare(config.data, context=context, notes=notes(channel), progress=channel)


def _do(config: RunConfig, dataset: Dataset, job: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    if job["kind"] == "probe":
        from mixlab.compare.probe import speed

        return {"kind": "speed", **speed(config, dataset, context=job["context"], seconds=job["seconds"])}
    return _run(config, dataset, Path(job["run"]), job, channel)


def _run(
    config: RunConfig, dataset: Dataset, run: Path, job: Mapping[str, Any], channel: Channel
) -> dict[str, Any]:
    import torch

    from mixlab.compare import measure, timing
    from mixlab.train import train
    from mixlab.train.files import disk_errors, write_text
    from mixlab.train.metrics import strict

    before, said = timing.product_flops(), False

    def progress(line: Mapping[str, Any]) -> None:
        nonlocal said
        if line["kind"] == "step" and not said:  # by then the folder is there and the threads are set
            said = True
            with disk_errors(f"to {run}"):
                timing.append(run, step=line["step"], threads=torch.get_num_threads(), before=before)
        channel(line)

    summary = train(config, run, resume=job["resume"], progress=progress, dataset=dataset)
    if summary["status"] == "stopped":
        return {"kind": "stopped"}
    result = measure.result(
        run,
        summary,
        valid=dataset.valid,
        context=job["context"],
        prompt=job["prompt"],
        decode_from=job["decode_from"],
        peak_memory=measure.peak_memory_bytes(),
        product_flops=timing.product_flops(),
        report=channel,
    )
    with disk_errors(f"to {run}"):
        write_text(run / RESULT, json.dumps(strict(result), allow_nan=False) + "\n")
    return {"kind": "result"}


def describe(error: Exception) -> str:
    """An unexpected error in one line: its type, its first line, and where it was raised."""
    message = str(error).strip().splitlines()
    if "allocate" in str(error) and isinstance(error, RuntimeError):
        return f"out of memory ({message[0]})"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {message[0] if message else 'no message'}{where}"


def _take_stdout() -> TextIO:
    """The real stdout for the protocol alone: what a part prints goes to stderr from here on."""
    sys.stdout.flush()
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with contextlib.suppress(AttributeError, io.UnsupportedOperation):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    return stream


if __name__ == "__main__":
    sys.exit(main())
