"""Checkpoints made beside the training: copied on its thread, written and pruned in one of their own."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from mixlab.train import checkpoint
from mixlab.train.config import CheckpointConfig
from mixlab.train.files import write_text
from mixlab.train.record import Record

PATIENCE = 5.0
"""Seconds that a second Ctrl-C waits for the file under way; a gigabyte takes about one."""


class Abandoned(Exception):
    """The process is to end at once: the checkpoint under way is given up."""


class Saver:
    """Makes a run's checkpoints, at most one at a time, and keeps the newest and the best.

    saved: the newest checkpoint that is whole on the disk. step: the newest that was begun. Leaving the
    context waits for the one under way, but not after a KeyboardInterrupt: then it is given up, which leaves
    nothing that looks like a checkpoint.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, record: Record) -> None:
        self.folder, self.config, self.record = folder, config, record
        self.saved: Path | None = None
        self.step: int | None = None
        self._began = monotonic()
        self._buffers: dict[str, dict[str, Tensor]] = {}
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._abandoned = False

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not KeyboardInterrupt:
            self.settle()
            return
        self._abandoned = True
        if self._thread is not None:
            # It stops at the next file: what is left must not be renamed under the feet of the next run.
            self._thread.join(PATIENCE)

    def continue_from(self, path: Path) -> None:
        """Take an existing checkpoint for the newest."""
        self.saved, self.step = path, checkpoint.step_of(path)

    def is_due(self, step: int) -> bool:
        """Whether N steps or M minutes ask for a checkpoint now."""
        every, minutes = self.config.every, self.config.minutes
        return bool(every and step % every == 0) or bool(
            minutes and monotonic() - self._began >= 60 * minutes
        )

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], scalars: dict[str, Any]) -> None:
        """Begin the checkpoint of `step`; on return, training may change the tensors again.

        Waits for the checkpoint before it, whose OSError it raises.
        """
        self.wait()
        self._buffers = {file: copies(t, self._buffers.get(file, {})) for file, t in tensors.items()}
        text, length, best = json.dumps(scalars) + "\n", self.record.size(), self.record.best_step

        def write(path: Path) -> None:
            for file, snapshot in self._buffers.items():
                if self._abandoned:
                    raise Abandoned
                checkpoint.save_tensors(snapshot, path / file)
            with self.record.path.open("rb") as record:
                (path / checkpoint.RECORD).write_bytes(record.read(length))
            write_text(path / checkpoint.SCALARS, text)
            if self._abandoned:
                raise Abandoned

        def job() -> None:
            self.saved = checkpoint.save(self.folder, step, write)
            checkpoint.prune(self.folder, keep=self.config.keep, best=best)

        self.step, self._began = step, monotonic()
        self._thread = threading.Thread(target=self._run, args=(job,), name="checkpoint", daemon=True)
        self._thread.start()

    def prune(self) -> None:
        """Keep the newest checkpoints and what is now the best; waits for the one under way."""
        self.wait()
        checkpoint.prune(self.folder, keep=self.config.keep, best=self.record.best_step)

    def check(self) -> None:
        """Raise the error of a checkpoint that failed; does not wait for one under way."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Return once no checkpoint is under way; raises the error of one that failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def settle(self) -> None:
        """Return once no checkpoint is under way, whether it succeeded or not."""
        with contextlib.suppress(Exception):
            self.wait()

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:  # whatever it is, the thread that trains must hear of it
            self._error = error


def copies(tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor copied to the CPU, into the buffer of its name where that has its shape and type."""
    made = {}
    for name, tensor in tensors.items():
        buffer = buffers.get(name)
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            # Memory that stays in place lets a GPU copy all tensors in one go.
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        made[name] = buffer.copy_(tensor.detach(), non_blocking=True)
    if any(tensor.is_cuda for tensor in tensors.values()):
        torch.cuda.synchronize()
    return made
