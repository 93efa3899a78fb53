"""A process that may take little memory, for test_shortage.py."""

from __future__ import annotations

import math
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mixlab.config import parse
from mixlab.train import machine
from mixlab.train.config import RunConfig
from mixlab.train.loop import train

from .conftest import FAKE

ROOM = 48 << 20
"""Bytes beyond what the process has; 256 rows of the model below take about four times that."""


def rows_that_fit(text: str, folder: str) -> tuple[int, list[float], list[float]]:
    """Rows at a time that a step came to within ROOM, its loss, and that of a run told to use so many."""
    torch.set_num_threads(1)
    machine.measure = lambda device=None, refresh=False: FAKE  # type: ignore[assignment]
    tables = {
        "model": {"dim": 64, "depth": 2, "context": 64, "dropout": 0.1, "temporal": "attention"},
        "data": {"sources": [text], "tokenizer": "char"},
        "train": {"steps": 1, "batch_tokens": 64, "eval_every": 0, "dtype": "float32"},
    }
    config = parse(RunConfig, tables)
    losses(config, folder, "first")  # what is loaded and kept on first use is there now
    config = replace(config, train=replace(config.train, batch_tokens=256 * 64))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    try:
        found, notes = losses(config, folder, "short")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    pieces = 2 ** len(notes)
    asked = replace(config, train=replace(config.train, accumulate=pieces))
    return math.ceil(256 / pieces), found, losses(asked, folder, "asked")[0]


def losses(config: RunConfig, folder: str, name: str) -> tuple[list[float], list[str]]:
    """The losses of a run's steps, and what it said of memory."""
    lines: list[dict[str, Any]] = []
    train(config, Path(folder, name), progress=lines.append)
    steps = [line["loss"] for line in lines if line["kind"] == "step"]
    notes = [line.get("message", "") for line in lines if line["kind"] == "note"]
    return steps, [message for message in notes if "out of memory" in message]
