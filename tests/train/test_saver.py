"""Checkpoints in the background: what is written, when training waits, and what becomes of errors."""

from __future__ import annotations

import errno
import json
import os
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mixlab.errors import RunFailed
from mixlab.train import checkpoint, evaluations, saver
from mixlab.train.config import CheckpointConfig
from mixlab.train.loop import train
from mixlab.train.metrics import read_metrics
from mixlab.train.record import Record
from mixlab.train.saver import Saver, copies

from .helpers import flip, record, stop_at, with_train


def quiet(line):
    """Take every line and say nothing."""


@pytest.fixture
def gate(monkeypatch):
    """Nothing is written until it is set; set at the end, so that no thread is left waiting."""
    opened, real = threading.Event(), checkpoint.save_tensors

    def wait(tensors, path):
        assert opened.wait(60)
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_tensors", wait)
    yield opened
    opened.set()


@pytest.fixture
def made(tmp_path):
    """A saver that keeps three, for a record of one line."""
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step", "step": 1}\n')
    taken = Record(tmp_path / "metrics.jsonl", quiet)
    with Saver(tmp_path / "checkpoints", CheckpointConfig(keep=3), taken) as one:
        yield one


def files(value):
    """Contents of a checkpoint with one tensor."""
    return {"model.safetensors": {"x": torch.full((3, 2), float(value))}}


def test_what_training_changes_after_the_snapshot_is_not_in_the_file(made, gate):
    tensors = files(1)
    made.save(1, tensors, {"a": 1})
    tensors["model.safetensors"]["x"].fill_(2.0)
    with made.record.path.open("a") as file:
        file.write('{"kind": "step", "step": 2}\n')
    gate.set()
    made.wait()
    assert torch.equal(load_file(made.saved / "model.safetensors")["x"], torch.ones(3, 2))
    assert (made.saved / "metrics.jsonl").read_text() == '{"kind": "step", "step": 1}\n'
    assert json.loads((made.saved / "training.json").read_text()) == {"a": 1}
    checkpoint.verify(made.saved)


def test_save_returns_before_the_files_are_written_and_the_next_waits_for_them(made, gate):
    made.save(1, files(1), {})
    assert (made.saved, made.step) == (None, 1)
    after = threading.Thread(target=made.save, args=(2, files(2), {}))
    after.start()
    assert made.step == 1  # still: the second has to wait, however long
    assert checkpoint.list_checkpoints(made.folder) == []
    gate.set()
    after.join()
    made.wait()
    for step in (1, 2):
        found = load_file(made.folder / checkpoint.name_of(step) / "model.safetensors")["x"]
        assert found.unique().tolist() == [step]


def test_buffers_are_used_again_and_let_go_with_their_tensors():
    first = copies({"a": torch.ones(3), "b": torch.ones(2)}, {})
    again = copies({"a": torch.zeros(3), "b": torch.ones(5)}, first)
    assert again["a"].data_ptr() == first["a"].data_ptr()
    assert again["a"].tolist() == [0.0] * 3
    assert again["b"].shape == (5,)
    assert copies({"b": torch.ones(5)}, again).keys() == {"b"}


def test_an_error_is_raised_once_by_whatever_comes_next(made, monkeypatch):
    def fail(tensors, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    for meet in (made.check, made.wait, made.prune, lambda: made.save(9, files(9), {})):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save_tensors", fail)
            made.save(1, files(1), {})
            made._thread.join()
        with pytest.raises(OSError, match="No space left"):
            meet()
        made.check()
        made.wait()
        assert made.saved is None


def test_a_failed_write_ends_the_run_at_the_next_step(config, tmp_path, monkeypatch):
    def fail(tensors, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    real = saver.Saver.check

    def check(self):  # the writer's failure is certain to have happened by the next step
        if self._thread is not None:
            self._thread.join()
        real(self)

    monkeypatch.setattr(checkpoint, "save_tensors", fail)
    monkeypatch.setattr(saver.Saver, "check", check)
    with pytest.raises(RunFailed, match=r"No space left on device; there is no checkpoint yet"):
        train(config, tmp_path / "run", progress=quiet)
    lines = [(line["kind"], line["step"]) for line in read_metrics(tmp_path / "run/metrics.jsonl")]
    assert lines == [("step", 1), ("watch", 1), ("step", 2), ("end", 2)]


def test_the_checkpoint_is_on_the_disk_before_its_evaluation_begins(config, tmp_path, monkeypatch):
    real, seen = evaluations.evaluate, []

    def evaluate(*args, **kwargs):
        seen.append(checkpoint.list_checkpoints(tmp_path / "run/checkpoints")[0].name)
        return real(*args, **kwargs)

    def slow(tensors, path, real=checkpoint.save_tensors):
        threading.Event().wait(0.05)
        real(tensors, path)

    monkeypatch.setattr(evaluations, "evaluate", evaluate)
    monkeypatch.setattr(checkpoint, "save_tensors", slow)
    train(config, tmp_path / "run", progress=quiet)
    assert seen == ["step-0000004", "step-0000008"]


def test_a_stop_waits_for_its_checkpoint(config, tmp_path, monkeypatch):
    def slow(tensors, path, real=checkpoint.save_tensors):
        threading.Event().wait(0.05)
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_tensors", slow)
    summary = train(config, tmp_path / "run", progress=stop_at(3))
    assert summary["checkpoint"] == str(tmp_path / "run/checkpoints/step-0000003")
    checkpoint.verify(tmp_path / "run/checkpoints/step-0000003")
    assert not [t for t in threading.enumerate() if t.name == "checkpoint"]


def test_minutes_say_when_to_save_and_change_no_loss(config, tmp_path, monkeypatch):
    config = with_train(config, eval_every=0, checkpoint=CheckpointConfig(every=0, minutes=1.0, keep=9))
    train(config, tmp_path / "plain", progress=quiet)
    now = [0.0]

    def progress(line):
        now[0] += 25.0 if line["kind"] == "step" else 0.0

    monkeypatch.setattr(saver, "monotonic", lambda: now[0])
    train(config, tmp_path / "timed", progress=progress)
    left = checkpoint.list_checkpoints(tmp_path / "timed/checkpoints")
    assert [checkpoint.step_of(path) for path in left] == [8, 6, 3]  # each the first a minute after the last
    assert record(tmp_path / "timed") == record(tmp_path / "plain")


def test_a_second_interrupt_gives_the_write_under_way_up(config, tmp_path, gate):
    def progress(line):
        if line["kind"] == "step" and line["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", progress=progress)  # while the writer is held at step 2
    writer = next(t for t in threading.enumerate() if t.name == "checkpoint")
    gate.set()
    writer.join()
    assert list((tmp_path / "run/checkpoints").iterdir()) == []


def test_what_is_damaged_does_not_take_the_place_of_a_whole_one(config, tmp_path):
    keep = replace(config.train.checkpoint, keep=1)
    train(with_train(config, checkpoint=replace(keep, keep=2)), tmp_path / "run", progress=stop_at(5))
    flip(tmp_path / "run/checkpoints/step-0000005/training.safetensors")
    config = with_train(config, checkpoint=keep, eval_every=0)
    train(config, tmp_path / "run", resume=True, progress=quiet)
    names = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert "damaged-step-0000005" in names  # for whoever wants to look into it
    checkpoint.verify(tmp_path / "run/checkpoints/step-0000008")
    assert "step-0000005" not in names
