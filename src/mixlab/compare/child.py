"""A worker process seen from the parent: started, listened to, stopped, and explained when it dies."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Protocol

from mixlab.signals import HANGUP, on_ending, restore
from mixlab.train.metrics import Line

LAST = ("result", "stopped", "failed", "speed")
"""Kinds of the line that ends a worker's output."""


class Child(Protocol):
    """A worker process: what of `subprocess.Popen` is used of it."""

    stdin: IO[str] | None
    stdout: IO[str] | None
    returncode: int | None

    def terminate(self) -> None:
        """Ask it to save and stop."""

    def kill(self) -> None:
        """End it at once."""

    def poll(self) -> int | None:
        """Its exit status; None while it runs, as far as that is known without waiting."""

    def wait(self) -> int:
        """Its exit status once it has ended, negative for a signal's number."""


class Signals:
    """While entered, SIGINT, SIGTERM and SIGHUP stop the worker: the first asks it to save, the second kills
    it, unless that is a SIGHUP, of which a closed terminal sends several.

    The worker has a session of its own, so that what a terminal sends reaches it only from here.
    """

    def __init__(self) -> None:
        self.requested = False
        self.child: Child | None = None
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


def run_job(
    job: Mapping[str, Any],
    *,
    log: Path,
    signals: Signals,
    progress: Callable[[Line], None],
    workers: Callable[[IO[str]], Child],
) -> Line:
    """Give `job` to a new worker, pass its lines to `progress`, and return the line that ends it.

    log: takes its stderr; removed if it said nothing. workers: starts one, given the file for its stderr. A
    worker that ends without a word is "failed", or "stopped" if that was asked for.
    """
    with log.open("w", encoding="utf-8") as errors:
        child = workers(errors)
        signals.child = child
        try:
            last = _converse(child, job, signals, progress)
        finally:
            signals.child = None
            if child.poll() is None:  # an error of the parent's own: it must leave no process behind
                child.terminate()
                child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
    if log.stat().st_size == 0:
        log.unlink()
    return last or _without_a_word(child.returncode or 0, log, signals.requested)


def _converse(
    child: Child, job: Mapping[str, Any], signals: Signals, progress: Callable[[Line], None]
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
