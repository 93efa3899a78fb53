"""Processes that are killed, stopped or refused: what they leave, and that a resume ends where none was."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import select
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from mixlab.config import to_toml
from mixlab.train import checkpoint
from mixlab.train.config import CheckpointConfig, RunConfig
from mixlab.train.files import sha256
from mixlab.train.loop import train
from mixlab.train.metrics import read_metrics

from . import killed
from .helpers import record, stop_at, with_train

KILLS = 30
EVERY, SLOW = 4, 0.04
"""A checkpoint sleeps for SLOW at seven of its stages: for most of the time, one is being written."""


def quiet(line):
    """Take every line and say nothing."""


@pytest.fixture(scope="module")
def processes():
    """Processes forked from a server that has imported what they need."""
    context = multiprocessing.get_context("forkserver")
    # torch's optimizers import torch._dynamo when the first is made, which takes a second.
    context.set_forkserver_preload(["torch._dynamo", "mixlab.train.loop", "mixlab.cli", killed.__name__])
    return context


@pytest.fixture
def tiny(config, tmp_path) -> RunConfig:
    """Dropout and accumulation in steps of a few milliseconds; also in run.toml."""
    keep = CheckpointConfig(every=EVERY, keep=2)
    tiny = with_train(config, steps=400, eval_every=80, dtype="float32", checkpoint=keep)
    (tmp_path / "run.toml").write_text(to_toml(tiny))
    return tiny


def weights(run: Path, step: int) -> str:
    return sha256(run / "checkpoints" / checkpoint.name_of(step) / checkpoint.MODEL)


def await_steps(run: Path, number: int, process: BaseProcess) -> None:
    """Until it has taken so many steps more; by the clock alone a busy machine would have taken none."""
    record = run / "metrics.jsonl"
    begun = len(read_metrics(record, "step"))
    while len(read_metrics(record, "step")) < begun + number:
        assert process.is_alive()
        time.sleep(0.005)


def test_a_run_killed_thirty_times_ends_in_the_weights_of_one_that_was_not(tiny, processes, tmp_path):
    run, draw, newest, while_writing = tmp_path / "run", random.Random(0), -1, 0
    for number in range(KILLS):
        ours, theirs = processes.Pipe()
        process = processes.Process(target=killed.life, args=(tmp_path / "run.toml", run, SLOW, theirs))
        process.start()
        if number % 5:  # else at a moment of its start
            assert ours.poll(60)
            await_steps(run, draw.randrange(3 * EVERY), process)
        time.sleep(draw.uniform(0.0, 0.1 if number % 5 else 0.7))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        folder = run / "checkpoints"
        while_writing += any(folder.glob(".step-*.tmp"))
        found = checkpoint.list_checkpoints(folder)
        for path in found:
            checkpoint.verify(path)
        step = checkpoint.step_of(found[0]) if found else -1
        assert step >= newest
        newest = step
        lines = read_metrics(run / "metrics.jsonl", "step")
        # The steps since the last checkpoint, and those made while the next one was being written.
        assert not lines or lines[-1]["step"] - max(step, 0) <= 2 * EVERY
        if not (run / "config.toml").exists():
            shutil.rmtree(run, ignore_errors=True)  # killed before there was a run
    assert while_writing
    assert newest > EVERY
    train(tiny, run, resume=True, progress=quiet)
    train(tiny, tmp_path / "straight", progress=quiet)
    assert weights(run, 400) == weights(tmp_path / "straight", 400)
    assert record(run) == record(tmp_path / "straight")


def test_a_kill_at_any_touch_of_a_file_leaves_whole_checkpoints_only(tiny, processes, tmp_path):
    """Every open, rename and delete below checkpoints/ of a resume that saves three times and prunes."""
    tiny = with_train(tiny, steps=16, eval_every=8, checkpoint=CheckpointConfig(every=4, keep=1))
    (tmp_path / "run.toml").write_text(to_toml(tiny))
    train(tiny, tmp_path / "straight", progress=quiet)
    train(tiny, tmp_path / "begun", progress=stop_at(5))
    run, ends = tmp_path / "run", set()
    for count in itertools.count(1, 3):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(tmp_path / "begun", run)
        process = processes.Process(target=killed.life_until, args=(tmp_path / "run.toml", run, count))
        process.start()
        process.join()
        found = checkpoint.list_checkpoints(run / "checkpoints")
        for path in found:
            checkpoint.verify(path)
        newest = checkpoint.step_of(found[0])
        assert newest >= 5
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        if newest not in ends:  # one resume from each is enough
            ends.add(newest)
            train(tiny, run, resume=True, progress=quiet)
            assert weights(run, 16) == weights(tmp_path / "straight", 16)
            assert record(run) == record(tmp_path / "straight")
    assert {5, 8, 12, 16} <= ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_exits_with_0_and_how_to_resume(tiny, processes, tmp_path, number):
    run, out = tmp_path / "run", tmp_path / "out"
    arguments = ["train", "--preset", str(tmp_path / "run.toml"), "--out", str(run)]
    process = processes.Process(target=killed.command, args=(arguments, SLOW, out))
    process.start()
    while not read_metrics(run / "metrics.jsonl", "step"):
        assert process.is_alive(), out.read_text()
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(10)  # the seconds that are promised
    assert process.exitcode == 0
    step = read_metrics(run / "metrics.jsonl", "step")[-1]["step"]
    assert f"note: saved at step {step}; go on with: mixlab train --resume {run}\n" in out.read_text()
    checkpoint.verify(run / "checkpoints" / checkpoint.name_of(step))


def await_first_step(run: Path, process: BaseProcess) -> None:
    while not read_metrics(run / "metrics.jsonl", "step"):
        assert process.is_alive()
        time.sleep(0.01)


def test_a_closed_terminal_saves_and_ends_the_run(tiny, processes, tmp_path):
    """The live view is drawn there, and fails when it is gone."""
    run, out = tmp_path / "run", tmp_path / "out"
    master, slave = os.openpty()
    arguments = ["train", "--preset", str(tmp_path / "run.toml"), "--out", str(run)]
    process = processes.Process(target=killed.at_terminal, args=(arguments, os.ttyname(slave), out))
    process.start()
    await_first_step(run, process)
    os.close(slave)
    drawn = os.read(master, 1 << 16)
    os.close(master)
    process.join(30)
    assert out.read_text() == "0"
    assert b"loss" in drawn or b"\x1b[" in drawn
    lines = read_metrics(run / "metrics.jsonl")
    assert (lines[-1]["kind"], lines[-1]["status"]) == ("end", "stopped")
    checkpoint.verify(run / "checkpoints" / checkpoint.name_of(lines[-1]["step"]))


def test_a_run_goes_on_when_nobody_reads_its_progress_any_more(tiny, processes, tmp_path):
    tiny = with_train(tiny, steps=30)
    (tmp_path / "run.toml").write_text(to_toml(tiny))
    run, out, pipe = tmp_path / "run", tmp_path / "out", tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    arguments = ["train", "--preset", str(tmp_path / "run.toml"), "--out", str(run)]
    process = processes.Process(target=killed.into_pipe, args=(arguments, pipe, out))
    process.start()
    assert select.select([reader], [], [], 60)[0]
    assert os.read(reader, 1)  # the first letter of the first note, and no more
    os.close(reader)
    process.join(60)
    assert out.read_text() == "0"
    end = read_metrics(run / "metrics.jsonl", "end")[-1]
    assert (end["status"], end["step"], end["message"]) == ("done", 30, "")


def test_a_run_that_is_being_written_is_refused_to_others(tiny, processes, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    ours, theirs = processes.Pipe()
    process = processes.Process(target=killed.life, args=(tmp_path / "run.toml", run, SLOW, theirs))
    process.start()
    assert ours.poll(60)
    second = processes.Process(target=killed.command, args=(["train", "--resume", str(run)], 0.0, out))
    second.start()
    second.join()
    assert second.exitcode == 2
    assert "in use: another process is writing this run" in out.read_text()
    assert process.is_alive()
    process.kill()
    process.join()
