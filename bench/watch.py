"""What a look at the watch list costs, in training steps, and what drawing the live view costs.

    OMP_NUM_THREADS=1 python bench/watch.py --presets transformer gru hawk gmlp

Processor time, the least of several turns: other work on the machine makes a turn longer, never shorter.
"""

from __future__ import annotations

import argparse
import io
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mixlab.cli.live import View
from mixlab.config import load_run_config
from mixlab.data import prepare
from mixlab.train.folder import RunFolder, resolve
from mixlab.train.loop import Trainer


def least(work: Callable[[], object], turns: int) -> float:
    """Processor seconds of the cheapest of so many calls."""
    found = []
    for _ in range(turns):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def look(preset: str, turns: int) -> tuple[float, float, float]:
    """Seconds of a plain step, of one whose update is measured, and of a look."""
    config = load_run_config(preset, ["train.steps=1000", "train.dtype=float32"])
    assert config.model is not None
    dataset = prepare(config.data, context=config.model.context)
    config = resolve(config, dataset)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, RunFolder(Path(folder)), dataset, lambda line: None)
        trainer.model.train()
        plain = least(lambda: trainer.stepper.take(0.1), turns)
        measured = least(lambda: trainer.stepper.take(0.1, measured=True), turns)
        seen = least(lambda: trainer.watch.look({"matrix": 0.01}), turns)
    return plain, measured, seen


def draw(width: int, turns: int) -> float:
    """Seconds to draw the live view of a long run once, on a terminal of so many columns."""
    view = View(io.StringIO(), "transformer")
    view.console.width, view.console._force_terminal = width, True
    line = {"kind": "step", "tokens_per_second": 1e4, "peak_fraction": 0.5, "memory_bytes": 2**29, "lr": 1e-3}
    for step in range(1, 5001):
        at = {"step": step, "tokens": 4096 * step, "seconds": 0.4 * step, "loss": 2 + math.exp(-step / 500)}
        view.take({**line, **at}, step / 10_000, "33:20 left")
    return least(lambda: view.console.print(view), turns)


def main() -> None:
    """Print a line for each preset and for each width."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=["transformer"])
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for preset in given.presets:
        plain, measured, seen = look(preset, given.turns)
        extra = (max(0.0, measured - plain) + seen) / plain
        print(f"{preset}: step {plain:.3f} s, measured {measured:.3f} s, look {seen:.3f} s: {extra:.0%} more")
    for width in (100, 30):
        print(f"the live view at {width} columns: {1e3 * draw(width, 20 * given.turns):.2f} ms")


if __name__ == "__main__":
    main()
