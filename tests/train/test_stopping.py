"""Signals as requests: which count, how often, and what is restored."""

from __future__ import annotations

import signal

import pytest

from mixlab.signals import on_ending, restore
from mixlab.train.stopping import StopRequest


@pytest.fixture(autouse=True)
def _same_handlers_afterwards():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    restore(before)


def test_a_closed_terminal_may_hang_up_several_times():
    with StopRequest() as stop:
        assert not stop()
        for _ in range(3):
            signal.raise_signal(signal.SIGHUP)
        assert stop()
        with pytest.raises(KeyboardInterrupt):  # but a person who asks again is heard
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_restored_after_a_hangup_as_after_none():
    before = signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)
    for times in (0, 1, 2):
        with StopRequest():
            for _ in range(times):
                signal.raise_signal(signal.SIGHUP)
        assert (signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)) == before


def test_a_hangup_that_was_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_ending_is_asked_for_by_three_signals():
    heard: list[int] = []
    before = on_ending(lambda number, frame: heard.append(number))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.raise_signal(number)
    restore(before)
    assert heard == [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
