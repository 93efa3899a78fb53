"""When memory runs out: the same step in smaller pieces, remembered, and a sentence where nothing helps."""

from __future__ import annotations

import json
import multiprocessing
import sys
from dataclasses import replace

import pytest
import torch

from mixlab.errors import RunFailed, UserError
from mixlab.model.language_model import build_model
from mixlab.train import shortage
from mixlab.train.config import CheckpointConfig
from mixlab.train.loop import train
from mixlab.train.metrics import read_metrics
from mixlab.train.step import Stepper

from .helpers import record, stop_at, with_train

CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")
SHORT = [CPU, MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("std::bad_alloc")]


def quiet(line):
    """Take every line and say nothing."""


@pytest.fixture
def whole(config):
    """The config with its batches of four rows whole at the start."""
    return with_train(config, accumulate=1)


def limit(monkeypatch, rows, error=CPU, *, since=1):
    """Let micro-batches of more than so many rows fail, after their forward, from step `since` on."""
    real, seen = Stepper.loss, []

    def loss(self, inputs, targets):
        found = real(self, inputs, targets)
        if len(inputs) > rows and self.state.done.step + 1 >= since:
            raise error
        seen.append(len(inputs))
        return found

    monkeypatch.setattr(Stepper, "loss", loss)
    return seen


def saved_pieces(run, step):
    scalars = json.loads((run / f"checkpoints/step-{step:07d}/training.json").read_text())
    return scalars["counters"]["micro_batches"]


def test_a_step_that_does_not_fit_is_taken_in_halves_as_if_they_had_been_asked_for(
    whole, tmp_path, monkeypatch
):
    train(with_train(whole, accumulate=2), tmp_path / "asked", progress=quiet)
    seen, notes = limit(monkeypatch, 2), []
    train(whole, tmp_path / "run", progress=notes.append)
    assert record(tmp_path / "run") == record(tmp_path / "asked")
    assert set(seen) == {2}
    said = [line["message"] for line in notes if line["kind"] == "note"]
    assert said == [
        "out of memory at step 1 with micro-batches of 4 rows: going on with 2 rows at a time; "
        "a step is still 64 tokens"
    ]


def test_halving_goes_down_to_one_row_of_a_batch_of_any_size(whole, tmp_path, monkeypatch):
    seen = limit(monkeypatch, 1)
    train(with_train(whole, batch_tokens=7 * 16, steps=2), tmp_path / "run", progress=quiet)
    assert set(seen) == {1}
    assert len(seen) == 2 * 7  # tries in 1, 2 and 4 pieces failed at their first
    assert saved_pieces(tmp_path / "run", 2) == 7


def test_a_resume_repeats_the_size_that_was_found_to_the_last_byte(whole, tmp_path, monkeypatch, switched):
    rarely = with_train(whole, checkpoint=CheckpointConfig(every=0, keep=9))
    with monkeypatch.context() as short:
        limit(short, 2, since=3)
        train(rarely, tmp_path / "straight", progress=quiet)
        assert saved_pieces(tmp_path / "straight", 3) == 2  # saved at once, though no checkpoint was due
        for step in (2, 3):
            train(rarely, tmp_path / "run", resume=step > 2, progress=stop_at(step))
    # What was found is kept, not found again.
    train(rarely, tmp_path / "run", resume=True, progress=stop_at(6))
    train(rarely, tmp_path / "run", resume=True, progress=quiet)
    assert record(tmp_path / "run") == record(tmp_path / "straight")
    train(rarely, tmp_path / "free", progress=quiet)
    assert record(tmp_path / "free", "step")[:2] == record(tmp_path / "run", "step")[:2]
    assert record(tmp_path / "free", "step")[2]["loss"] != record(tmp_path / "run", "step")[2]["loss"]


def test_where_not_even_a_row_fits_the_run_fails_with_the_last_good_checkpoint(whole, tmp_path, monkeypatch):
    limit(monkeypatch, 0, since=4)
    with pytest.raises(RunFailed, match=r"out of memory at step 4: not even one row of 16 .*step-0000002"):
        train(whole, tmp_path / "run", progress=quiet)
    assert read_metrics(tmp_path / "run/metrics.jsonl")[-1]["status"] == "failed"


def test_an_update_that_does_not_fit_is_not_tried_again(whole, tmp_path, monkeypatch):
    def full(self, passes):
        raise CPU

    monkeypatch.setattr("mixlab.train.optimizers.Optimizers.step", full)
    with pytest.raises(RunFailed, match=r"out of memory in the optimizer's update at step 1"):
        train(whole, tmp_path / "run", progress=quiet)


def test_a_model_larger_than_the_free_memory_is_refused_before_it_is_built(whole, tmp_path, monkeypatch):
    parameters = sum(p.numel() for p in build_model(replace(whole.model, vocab_size=19)).parameters())
    monkeypatch.setattr(shortage, "free_memory", lambda: 8 * parameters - 1)
    with pytest.raises(UserError, match=rf"a model of {parameters:,} parameters takes .* choose a smaller"):
        train(whole, tmp_path / "run", progress=quiet)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(shortage, "free_memory", lambda: 8 * parameters)
    train(with_train(whole, steps=1, eval_every=0), tmp_path / "run", progress=quiet)


def test_other_errors_are_not_taken_for_it(whole, tmp_path, monkeypatch):
    limit(monkeypatch, 2, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        train(whole, tmp_path / "run", progress=quiet)
    assert all(map(shortage.ran_out, SHORT))
    assert not shortage.ran_out(ValueError("out of memory"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hold a process to RLIMIT_AS")
def test_a_process_that_truly_has_little_memory_trains_as_if_it_had_been_asked_to_use_little(tmp_path, text):
    """Under RLIMIT_AS: malloc fails in the middle of forward or backward."""
    from .outofmemory import rows_that_fit

    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        rows, losses, expected = pool.apply(rows_that_fit, (str(text), str(tmp_path)))
    assert 1 <= rows < 256
    assert losses == expected
