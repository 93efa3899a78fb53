"""Tiny runs: a text and a model of a few thousand numbers, a machine that needs no measuring."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mixlab.config import parse
from mixlab.train import machine
from mixlab.train.config import RunConfig

WORDS = ["the", "a", "model", "reads", "text", "and", "learns", "what", "comes", "next", "from", "all"]
REAL_MEASURE = machine.measure

FAKE = machine.Machine(
    device="cpu",
    name="test",
    cores=1,
    threads=1,
    torch="0",
    float32_flops=1e9,
    bfloat16_flops=1e9,
    memory_bandwidth=1e9,
    use_bfloat16=False,
    reason="a test",
)


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    """Peaks are not needed, and caches stay in the test's own folder."""
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(machine, "measure", lambda device=None, refresh=False: FAKE)


@pytest.fixture(params=["float32", "bfloat16"])
def switched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What "auto" comes to, one after the other: the test runs under both precisions on any processor."""
    monkeypatch.setenv("MIXLAB_AUTO_DTYPE", request.param)
    return request.param


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Six kilobytes of words in a file."""
    draw = random.Random(0)
    path = tmp_path / "text.txt"
    path.write_text("\n".join(" ".join(draw.choices(WORDS, k=12)) for _ in range(100)))
    return path


@pytest.fixture
def config(text: Path) -> RunConfig:
    """Eight steps with dropout, accumulation and one evaluation on the way."""
    tables = {
        "model": {"dim": 16, "depth": 2, "context": 16, "dropout": 0.1, "temporal": "gru"},
        "data": {"sources": [str(text)], "tokenizer": "char"},
        "train": {
            "steps": 8,
            "batch_tokens": 64,
            "accumulate": 2,
            "eval_every": 4,
            "checkpoint": {"every": 2},
        },
    }
    return parse(RunConfig, tables)
