"""The process of a run, stopped by its parent's signals."""

from __future__ import annotations

import signal

import pytest

from mixlab.compare.child import Signals


class Child:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def terminate(self) -> None:
        self.asked.append("terminate")

    def kill(self) -> None:
        self.asked.append("kill")


@pytest.mark.parametrize(
    ("sent", "asked"),
    [
        ([signal.SIGHUP], ["terminate"]),
        ([signal.SIGHUP, signal.SIGHUP], ["terminate", "terminate"]),
        ([signal.SIGINT, signal.SIGHUP], ["terminate", "terminate"]),
        ([signal.SIGHUP, signal.SIGTERM], ["terminate", "kill"]),
        ([signal.SIGINT, signal.SIGINT], ["terminate", "kill"]),
    ],
)
def test_the_second_signal_kills_unless_it_is_a_terminals_hangup(sent: list[int], asked: list[str]) -> None:
    with Signals() as signals:
        signals.child = child = Child()  # type: ignore[assignment]
        for number in sent:
            signal.raise_signal(number)
        assert signals.requested
    assert child.asked == asked
