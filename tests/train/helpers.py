"""What several tests of the trainer do to a run."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixlab.train.config import RunConfig
from mixlab.train.metrics import TIMES, read_metrics


def with_train(config: RunConfig, **changes: Any) -> RunConfig:
    """The config with other [train] values."""
    return replace(config, train=replace(config.train, **changes))


def record(path: Path, *kinds: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, of some kinds, without what a clock says."""
    lines = read_metrics(path / "metrics.jsonl")
    kept = [line for line in lines if line["kind"] in (kinds or ("step", "eval", "watch"))]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in kept]


def stop_at(step: int, number: int = signal.SIGTERM) -> Callable[[dict[str, Any]], None]:
    """A progress callback that sends this process a signal when a step is recorded."""

    def progress(line: dict[str, Any]) -> None:
        if line["kind"] == "step" and line["step"] == step:
            signal.raise_signal(number)

    return progress


def flip(file: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
