"""Tokens and weights that are not what they were: found, named, and no step is taken from them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixlab.errors import RunFailed, UserError
from mixlab.train import checkpoint, loop
from mixlab.train.files import write_text
from mixlab.train.loop import train
from mixlab.train.metrics import read_metrics
from mixlab.train.run import load

from .helpers import record, stop_at


def quiet(line):
    """Take every line and say nothing."""


def damage_when(step, side, cache):
    """A progress callback that writes ids outside the vocabulary over a token file at a step."""

    def progress(line):
        if line["kind"] == "step" and line["step"] == step:
            (file,) = cache.rglob(f"{side}.npy")
            data = bytearray(file.read_bytes())
            data[-len(data) // 2 :] = b"\xff" * len(data[-len(data) // 2 :])
            with file.open("r+b") as open_file:  # in place: the run has it mapped
                open_file.write(data)

    return progress


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(("side", "where"), [("train", r"step \d"), ("valid", "an evaluation")])
def test_a_token_file_damaged_on_the_way_ends_the_run_and_a_resume_mends_it(
    config, tmp_path, cache, side, where
):
    train(config, tmp_path / "straight", progress=quiet)
    expected = rf"id 255 is outside the vocabulary .* at {where}: the tokens in .*{side}\.npy were damaged"
    with pytest.raises(RunFailed, match=expected):
        train(config, tmp_path / "run", progress=damage_when(2, side, cache))
    end = read_metrics(tmp_path / "run/metrics.jsonl")[-1]
    assert end["status"] == "failed" and "the last good checkpoint is" in end["message"]
    train(config, tmp_path / "run", resume=True, progress=quiet)
    assert record(tmp_path / "run") == record(tmp_path / "straight")


def test_an_embedding_that_becomes_nan_is_named_and_not_saved(config, tmp_path, monkeypatch):
    real = loop.Trainer.step

    def broken(self):
        if self.done.step == 4:
            with torch.no_grad():
                self.model.embedding.weight[3:] = math.nan
        return real(self)

    monkeypatch.setattr(loop.Trainer, "step", broken)
    with pytest.raises(RunFailed) as failure:
        train(config, tmp_path / "run", progress=quiet)
    message = str(failure.value)
    assert "the loss is nan at step 5" in message
    assert "the first layer whose output is not finite is embedding" in message
    assert "parameter embedding.weight was not finite before this step" in message
    assert message.endswith("step-0000004")
    kept = load_file(tmp_path / "run/checkpoints/step-0000004/model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in kept.values())


def rewrite(path: Path, change):
    """Change the weights of a checkpoint and its manifest with them, as someone might who edits one."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["model.safetensors"] = checkpoint._facts(path / "model.safetensors")
    manifest["sha256"] = checkpoint._digest(manifest)
    write_text(path / "manifest.json", json.dumps(manifest))


def test_a_checkpoint_with_a_nan_is_neither_resumed_nor_loaded(config, tmp_path):
    train(config, tmp_path / "run", progress=stop_at(3))
    path = tmp_path / "run/checkpoints/step-0000003"

    def spoil(tensors):
        tensors["embedding.weight"][2, 1] = math.nan

    rewrite(path, spoil)
    for read in (lambda: train(config, tmp_path / "run", resume=True, progress=quiet), lambda: load(path)):
        with pytest.raises(UserError, match=r"step-0000003 holds a NaN or an infinity in embedding\.weight"):
            read()
