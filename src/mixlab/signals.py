"""The signals that ask a process to end: Ctrl-C, SIGTERM, and SIGHUP where the terminal is closed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]

INTERRUPTED = 130
"""The exit status of a program that SIGINT ended."""

HANGUP: int | None = getattr(signal, "SIGHUP", None)  # Windows has none


def on_ending(handler: Handler) -> dict[int, Any]:
    """Install `handler` for the signals that ask to end; returns the handlers before, for `restore`.

    A SIGHUP that is ignored (`nohup`) stays so. ValueError outside the main thread, as `signal.signal`.
    """
    numbers = [int(signal.SIGINT), int(signal.SIGTERM)]
    if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN:
        numbers.append(HANGUP)
    return {number: signal.signal(number, handler) for number in numbers}


def restore(before: Mapping[int, Any]) -> None:
    """Restore the handlers that `on_ending` returned; one that Python did not set becomes the default."""
    for number, handler in before.items():
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def ignore_ending() -> None:
    """Ignore the signals that ask to end from now on."""
    on_ending(lambda number, frame: None)
