"""Sinks that do as the environment's TROUBLE says: "CALL:KIND", where KIND is an exception's name or hang."""

from __future__ import annotations

import builtins
import json
import os
import signal
import sys
import types
from pathlib import Path


class Told:
    """Writes down in RUN/told.jsonl what it is told, and fails as it should."""

    def check(self):
        return self.trouble("check") or ""

    def open(self, start):
        print("a library's chatter")
        self.file = (start.run / "told.jsonl").open("a")
        self.note(["open", start.step, start.config["train"]["steps"]])
        self.trouble("open")

    def write(self, step, values):
        self.note(["write", step, values])
        if step >= 3:
            self.trouble("write")

    def close(self):
        self.trouble("close")
        self.note(["close"])

    def note(self, call):
        print(json.dumps(call), file=self.file, flush=True)

    def trouble(self, call):
        where, _, what = os.environ.get("TROUBLE", "").partition(":")
        if where != call:
            return None
        if what == "hang":
            signal.pause()
        if what == "die":
            os._exit(3)
        if what == "refuse":
            return "is out of order"
        raise getattr(builtins, what)("no\nluck")


class Talking(types.ModuleType):
    """A stand-in for the package trackio, which keeps its calls in a file and prints."""

    def init(self, project, name=None, *, config=None, resume="never"):
        self.put("init", project, name, config["train"]["steps"], resume)

    def log(self, metrics, step=None):
        self.put("log", metrics, step)

    def finish(self):
        self.put("finish")

    def put(self, *call):
        print("* trackio says something")
        with Path(os.environ["TALKING"]).open("a") as file:
            print(json.dumps(call), file=file)


def stand_in():
    """mixlab's own sink for trackio, over the stand-in."""
    from mixlab.train.sink_kinds import Trackio

    sys.modules["trackio"] = Talking("trackio")
    return Trackio()


def full_disk():
    """mixlab's own sink for TensorBoard, on a disk that is full."""
    from mixlab.train.sink_kinds import TensorBoard

    real = Path.open

    def full(self, *rest, **more):
        return real(Path("/dev/full") if self.name.startswith("events.out") else self, *rest, **more)

    Path.open = full
    return TensorBoard()


class Absent:
    """Of a package that is nowhere."""

    def check(self):
        from mixlab.train.sink_kinds import missing

        return missing("no_such_package_at_all")
