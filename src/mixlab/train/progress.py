"""Reports to a person or a program while work is running."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from mixlab.train.metrics import Line

Progress = Callable[[Line], None]

FORWARD = 1 / 3
"""Time of scoring over that of training, per token, until it is measured: a backward costs two forwards."""


def notes(progress: Progress) -> Callable[[str], None]:
    """A function of one sentence that reports it to `progress` as a line of kind "note"."""
    return lambda message: progress({"kind": "note", "message": message})


class Told:
    """A `progress` that may go away: after its first OSError (a broken pipe, a full disk) it is not called
    again, with a Python warning, and the work continues: its failure must not pass for the work's own."""

    def __init__(self, progress: Progress) -> None:
        self.progress: Progress | None = progress

    def __call__(self, line: Line) -> None:
        """Pass a line on."""
        if self.progress is None:
            return
        try:
            self.progress(line)
        except OSError as error:
            self.progress = None
            warnings.warn(f"no more progress is shown: {error}", stacklevel=2)
