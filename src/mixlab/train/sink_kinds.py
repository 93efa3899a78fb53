"""The sinks there are: TensorBoard, Weights & Biases and trackio, each an extra of its name."""

from __future__ import annotations

import importlib
import os
import socket
import time
import uuid
from collections.abc import Mapping
from typing import Any, BinaryIO

from mixlab.train.files import write_text
from mixlab.train.sink_worker import Start

PROJECT = "mixlab"


def missing(package: str) -> str:
    """A phrase if the package is not installed; raises what importing it raises otherwise."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        return f"is not installed: pip install 'mixlab[{package}]'"
    return ""


class TensorBoard:
    """Event files in RUN/tensorboard, for `tensorboard --logdir RUN`.

    Records are written at once, not by the library's own thread, which would keep an error to itself.
    """

    def check(self) -> str:
        """The package."""
        return missing("tensorboard")

    def open(self, start: Start) -> None:
        """A new file; what earlier ones say of steps that will be made again is void."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = start.run / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file: BinaryIO = (folder / name).open("wb", buffering=0)  # to be seen as it comes
        self._writer: Any = RecordWriter(self._file)
        self._put(Event(wall_time=time.time(), file_version="brain.Event:2"))
        again = SessionLog(status=SessionLog.START)
        self._put(Event(wall_time=time.time(), step=start.step + 1, session_log=again))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One event with all numbers."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        found = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._put(Event(wall_time=time.time(), step=step, summary=Summary(value=found)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _put(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())


class WeightsAndBiases:
    """A run of W&B, its files in RUN/wandb; a resumed run goes on with it. Its own settings (WANDB_MODE,
    WANDB_PROJECT, ...) are respected."""

    def check(self) -> str:
        """The package, and a key unless W&B is told to stay offline: nobody can be asked for one later."""
        if said := missing("wandb"):
            return said
        import wandb

        settings = wandb.setup(wandb.Settings(silent=True)).settings
        if settings.mode == "online" and not wandb.login(prompt=False, verify=False):
            return "has no API key here: run `wandb login`, or set WANDB_MODE=offline"
        return ""

    def open(self, start: Start) -> None:
        """Begin or go on with the run whose id is in the run folder."""
        import wandb

        known = start.run / "wandb" / "id.txt"
        known.parent.mkdir(parents=True, exist_ok=True)
        if not known.exists():
            write_text(known, uuid.uuid4().hex[:8] + "\n")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=start.run.resolve().name,
            id=known.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=start.run,
            config=dict(start.config),
            settings=wandb.Settings(silent=True, console="off"),
        )
        # W&B's own step only ever grows; after a resume steps come again.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Mark the run as finished."""
        self._run.finish()


class Trackio:
    """A run of trackio, of the folder's name, in its local database; TRACKIO_PROJECT names the project."""

    def check(self) -> str:
        """The package."""
        return missing("trackio")

    def open(self, start: Start) -> None:
        """Begin, or go on with the run of this name."""
        import trackio

        trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=start.run.resolve().name,
            config=dict(start.config),
            resume="allow",
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row."""
        import trackio

        trackio.log(dict(values), step=step)

    def close(self) -> None:
        """Wait until all is stored."""
        import trackio

        trackio.finish()  # type: ignore[no-untyped-call]
