"""Sinks: what else hears of a run's numbers. metrics.jsonl stays the record; no sink can stop or slow a run.

Each sink is a process of its own (`mixlab.train.sink_worker`) behind a queue that the loop never waits for:
whatever a library does there, print, raise, wait for a network or for its own end, neither training nor the
end of the run feels it. One that fails is dropped with a note; what it missed is in metrics.jsonl.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from mixlab.errors import UserError, unknown
from mixlab.train.metrics import Line
from mixlab.train.progress import notes

KINDS = {
    "tensorboard": "mixlab.train.sink_kinds:TensorBoard",
    "wandb": "mixlab.train.sink_kinds:WeightsAndBiases",
    "trackio": "mixlab.train.sink_kinds:Trackio",
}
"""Name, which is also the package's and the extra's -> the class, see `mixlab.train.sink_worker.Sink`."""

WORKER = "mixlab.train.sink_worker"

QUEUE = 10_000
"""Lines that a sink may be behind: minutes of fast steps, some 10 MB."""

CHECK_PATIENCE = 60.0
"""Seconds in which a sink must have said at the start whether it can be used: a cold disk reads slowly."""

LAST_PATIENCE = 30.0
"""Seconds that all sinks together have to finish when a run is done."""

STOPPED_PATIENCE = 5.0
"""And when it was stopped, which is to be over within 10, or failed."""

PREFIXES = {"step": "train", "eval": "valid", "watch": "watch"}
"""Kind of a line -> what its numbers are filed under."""

UNPLOTTED = ("kind", "step", "warnings", "loss_by_position", "scored", "full", "took")


class Sinks:
    """Passes a run's lines on to `report`, and to the sinks that are open."""

    def __init__(self, names: Sequence[str], *, optional: bool, report: Callable[[Line], None]) -> None:
        """UserError for a sink that cannot be used here; if they are `optional`, a note instead."""
        self.report = report
        self.names: list[str] = []
        self.channels: list[Channel] = []
        self._status = "failed"
        for name in dict.fromkeys(names):
            try:
                check(name)
            except UserError as error:
                if not optional:
                    raise UserError(f"{error}; leave it out of train.sinks to train without it") from None
                self.note(f"{error}; going on without it")
            else:
                self.names.append(name)

    def __call__(self, line: Line) -> None:
        """Pass one line on, and say which sinks are newly out."""
        self.report(line)
        if line["kind"] == "end":
            self._status = line["status"]
        if self.channels and line["kind"] in PREFIXES:
            for channel in self.channels:
                channel.put(line)
            self._drop()

    @contextlib.contextmanager
    def open(self, run: Path, step: int, config: Mapping[str, Any]) -> Iterator[None]:
        """Inside, the sinks take the lines of `run`, which goes on from `step`; on leaving they have a moment
        to finish, but not after a KeyboardInterrupt."""
        start = {"run": str(run), "step": step, "config": config}
        self.channels = [Channel(name, start) for name in self.names]
        try:
            yield
        except BaseException as error:
            self._finish(wait=isinstance(error, Exception))
            raise
        else:
            self._finish()

    def note(self, message: str) -> None:
        """Tell a person."""
        notes(self.report)(message)

    def _finish(self, *, wait: bool = True) -> None:
        for channel in self.channels:
            channel.put(None)
        if wait:
            deadline = monotonic() + (LAST_PATIENCE if self._status == "done" else STOPPED_PATIENCE)
            for channel in self.channels:
                channel.finish(deadline)
            self._drop()
        self.channels = []

    def _drop(self) -> None:
        for channel in [channel for channel in self.channels if channel.failure is not None]:
            self.channels.remove(channel)
            self.note(f"the sink {channel.name} is out ({channel.failure}); metrics.jsonl has everything")


class Channel:
    """A sink's process, and the thread and the queue that feed it. failure: why it is out, once it is."""

    def __init__(self, name: str, start: Mapping[str, Any]) -> None:
        self.name = name
        self.failure: str | None = None
        self._queue: queue.Queue[Line | None] = queue.Queue(QUEUE)
        self._log = Path(start["run"]) / f"{name}.log"
        self._child: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, args=(start,), name=f"sink {name}", daemon=True)
        self._thread.start()

    def put(self, line: Line | None) -> None:
        """Hand over a line, or None for the end; does not wait and does not raise."""
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self._give_up(f"it is {QUEUE} lines behind")

    def finish(self, deadline: float) -> None:
        """Wait until it is done, until `deadline` at most."""
        self._thread.join(max(0.0, deadline - monotonic()))
        if self._thread.is_alive():
            self._give_up("it did not finish in time")

    def _give_up(self, why: str) -> None:
        self.failure = self.failure or why
        if self._child is not None:
            kill(self._child)

    def _run(self, start: Mapping[str, Any]) -> None:
        try:
            with self._log.open("w", encoding="utf-8") as log:
                self._child = spawn("run", self.name, stderr=log)
                with self._child as child:
                    if self.failure:  # given up before it began
                        kill(child)
                    said = self._talk(child, start)
            if said or child.returncode:
                self.failure = self.failure or said or f"its process ended with status {child.returncode}"
            if not self._log.stat().st_size:
                self._log.unlink()
        except OSError as error:
            self.failure = self.failure or f"{type(error).__name__}: {error}"

    def _talk(self, child: subprocess.Popen[str], start: Mapping[str, Any]) -> str:
        """Send all that comes; returns what the process says went wrong."""
        assert child.stdin is not None and child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone; what it said last tells why
            print(json.dumps(start), file=child.stdin, flush=True)
            while self.failure is None and (line := self._queue.get()) is not None:
                values = {"step": line["step"], "values": plotted(line)}
                print(json.dumps(values), file=child.stdin, flush=True)
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        return child.stdout.read().strip()


def spawn(what: str, name: str, **pipes: Any) -> subprocess.Popen[str]:
    """A sink's process, in a session of its own, so that a Ctrl-C is not for it."""
    return subprocess.Popen(
        [sys.executable, "-m", WORKER, what, KINDS[name]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)},
        **pipes,
    )


def kill(child: subprocess.Popen[str]) -> None:
    """End a process and those that it started."""
    if not hasattr(os, "killpg"):  # Windows
        child.kill()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def check(name: str) -> None:
    """UserError if there is no such sink, or if it says that it cannot be used here."""
    if name not in KINDS:
        raise unknown("sink", name, tuple(KINDS))
    with spawn("check", name, stderr=subprocess.DEVNULL) as child:
        try:
            said, _ = child.communicate(timeout=CHECK_PATIENCE)
        except subprocess.TimeoutExpired:
            kill(child)
            said = f"did not start within {CHECK_PATIENCE:g} s"
    if said.strip() or child.returncode:
        raise UserError(f"the sink {name} {said.strip() or 'cannot be started'}")


def plotted(line: Line) -> dict[str, float]:
    """The finite numbers of a line, "train/NAME", those of roles and groups as "train/NAME/ROLE", those of
    layers as "watch/NAME/layer 0"."""
    found: dict[str, float] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                add(f"{name}/{key}", inner)
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                add(f"{name}/layer {index}", inner)
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[name] = float(value)

    for key, value in line.items():
        if key not in UNPLOTTED:
            add(f"{PREFIXES[line['kind']]}/{key}", value)
    return found
