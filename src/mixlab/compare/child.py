"""A worker process seen from the parent: started, listened to, stopped, and explained when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from mixlab.signals import HANGUP, on_ending, restore
from mixlab.train.metrics import Line

COMMAND = ("-m", "mixlab.compare.worker")
SPIN = {"GOMP_SPINCOUNT": "10000"}
"""How long PyTorch's idle threads spin before they sleep, where the user's environment does not say. The
default, 30 times that, gains nothing on idle cores (23k tokens/s either way, measured on two); once another
program wants a core, threads that spin keep those from running that they wait for (4k against 11k)."""

LAST = ("result", "stopped", "failed", "speed")
"""Kinds of the line that ends a worker's output."""


class Signals:
    """While entered, SIGINT, SIGTERM and SIGHUP stop the worker: the first asks it to save, the second kills
    it, unless that is a SIGHUP, of which a closed terminal sends several.

    The worker has a session of its own, so that what a terminal sends reaches it only from here.
    """

    def __init__(self) -> None:
        self.requested = False
        self.child: subprocess.Popen[str] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        with contextlib.suppress(ValueError):  # not the main thread: whoever runs it there stops it otherwise
            self._before = on_ending(self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        restore(self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.requested = self.requested and number != HANGUP, True
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                self.child.kill() if again else self.child.terminate()


def run_job(job: Mapping[str, Any], *, log: Path, signals: Signals, progress: Callable[[Line], None]) -> Line:
    """Give `job` to a new worker, pass its lines to `progress`, and return the line that ends it.

    log: takes its stderr; removed if it said nothing. A worker that ends without a word is "failed", or
    "stopped" if that was asked for.
    """
    with log.open("w", encoding="utf-8") as errors:
        child = subprocess.Popen(
            [sys.executable, *COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            start_new_session=True,
            env=SPIN | os.environ,
        )
        with child:
            signals.child = child
            try:
                last = _converse(child, job, signals, progress)
            finally:
                signals.child = None
                if child.poll() is None:  # an error of the parent's own: it must leave no process behind
                    child.terminate()
    if log.stat().st_size == 0:
        log.unlink()
    return last or _without_a_word(child.returncode, log, signals.requested)


def _converse(
    child: subprocess.Popen[str], job: Mapping[str, Any], signals: Signals, progress: Callable[[Line], None]
) -> Line | None:
    """Send the job, pass on what comes back, wait for the end; the last line, if there was one."""
    assert child.stdin is not None and child.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it died at once: what it left says why
        child.stdin.write(json.dumps(job))
        child.stdin.close()
    if signals.requested:  # between the start and the moment the handler knew of it
        child.terminate()
    last = None
    for text in child.stdout:
        line = _line(text)
        if line.get("kind") in LAST:
            last = line
        elif line:
            progress(line)
    child.wait()
    return last


def _line(text: str) -> Line:
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return line if isinstance(line, dict) else {}


def _without_a_word(status: int, log: Path, stopped: bool) -> Line:
    """The end of a worker that could not report it."""
    if stopped:
        return {"kind": "stopped"}
    said = f"; its last words are in {log}" if log.exists() else ""
    if status == -signal.SIGKILL:
        return {"kind": "failed", "reason": f"its process was killed, most likely for want of memory{said}"}
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return {"kind": "failed", "reason": f"its process {how}{said}"}
