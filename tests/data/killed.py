"""Preparations in a process of their own, to be killed: what the tests of test_building.py start."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from mixlab.data import building, corpus, stretches
from mixlab.data.building import Building
from mixlab.data.config import DataConfig
from mixlab.data.dataset import prepare


def small() -> None:
    """Many stretches, each of them noted, out of a text that is read again."""
    corpus.HELD_BYTES, stretches.STRETCH, building.SECONDS = 0, 400, 0.0


def life(config: DataConfig, cache: Path, log: Path, die_at: int, slow: float) -> None:
    """Prepare, and die at the `die_at`-th of what is done to the cache (0: do not).

    log: takes a line for the stretches found when a build goes on, and one for each that is encoded.
    """
    small()
    left = [die_at]

    def say(word: str) -> None:
        with log.open("a") as file:
            file.write(word + "\n")

    def counted(real):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    take_up, write = Building._take_up, Building.write

    def take_up_and_say(self):
        take_up(self)
        say(f"from {self.done}")

    def write_in_halves(self, side, ids):
        time.sleep(slow)
        if len(ids) > 1:
            say("encoded")
        half = len(ids) // 2
        for part in (ids[:half], ids[half:]):
            write(self, side, np.ascontiguousarray(part))
            for file in self._arrays:
                file.flush()

    Building._take_up, Building.write = take_up_and_say, write_in_halves  # type: ignore[method-assign]
    Building.append = counted(Building.append)  # type: ignore[method-assign]
    os.fsync, os.rename, os.unlink = counted(os.fsync), counted(os.rename), counted(os.unlink)
    prepare(config, cache_dir=cache)
