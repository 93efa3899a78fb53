from __future__ import annotations

import json
import shutil
import signal
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mixlab.errors import UserError
from mixlab.train import evaluations
from mixlab.train.config import OptimizerConfig, ScheduleConfig
from mixlab.train.folder import RunFolder
from mixlab.train.loop import train
from mixlab.train.metrics import read_metrics

from .helpers import flip, record, stop_at, with_train


def quiet(line):
    """Take every line and say nothing."""


def test_a_checkpoint_of_a_run_on_another_text_is_refused(config, tmp_path, text):
    config = replace(config, data=replace(config.data, tokenizer="byte"))
    own = text.read_text()
    train(config, tmp_path / "run", progress=stop_at(4))
    text.write_text(own[::-1])
    train(config, tmp_path / "other", progress=stop_at(4))
    text.write_text(own)
    place = "checkpoints/step-0000004"
    shutil.rmtree(tmp_path / "run" / place)
    shutil.copytree(tmp_path / "other" / place, tmp_path / "run" / place)
    with pytest.raises(UserError, match=rf"{place} was made with another config or text: text\.sha256"):
        train(config, tmp_path / "run", resume=True, progress=quiet)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_resume_continues_bit_for_bit(config, tmp_path, kind, switched):
    optimizer = OptimizerConfig(kind=kind, lr=1e-2, clip=0.5)
    config = with_train(config, optimizer=optimizer)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train(config, straight, progress=quiet)
    for step in (3, 4, 7):
        summary = train(config, stopped, resume=step > 3, progress=stop_at(step))
        assert (summary["status"], summary["step"]) == ("stopped", step)
    assert train(config, stopped, resume=True, progress=quiet)["status"] == "done"
    assert record(stopped) == record(straight)
    for name in ("model.safetensors", "training.safetensors"):
        ours, theirs = (load_file(p / "checkpoints/step-0000008" / name) for p in (stopped, straight))
        assert all(torch.equal(ours[key], theirs[key]) for key in {**ours, **theirs}), name


def test_dropout_and_data_order_are_at_stake_in_that(config, tmp_path):
    """The comparison above is worth something only if other random draws give other losses."""
    train(config, tmp_path / "a", progress=quiet)
    train(with_train(config, seed=1), tmp_path / "b", progress=quiet)
    undropped = replace(config, model=replace(config.model, dropout=0.0))
    train(undropped, tmp_path / "c", progress=quiet)
    losses = {tuple(line["loss"] for line in record(tmp_path / name, "step")) for name in "abc"}
    assert len(losses) == 3


def test_the_callers_random_state_is_not_moved(config, tmp_path):
    before = torch.get_rng_state()
    train(config, tmp_path / "run", progress=quiet)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_says_how_to_go_on_and_is_handled_as_before_afterwards(config, tmp_path, number):
    before = signal.getsignal(number)
    summary = train(config, tmp_path / "run", progress=stop_at(3, number))
    assert signal.getsignal(number) is before
    assert summary["message"].endswith(f"mixlab train --resume {tmp_path / 'run'}")
    assert summary["checkpoint"] == str(tmp_path / "run/checkpoints/step-0000003")
    assert read_metrics(tmp_path / "run/metrics.jsonl")[-1]["status"] == "stopped"


def test_a_second_interrupt_ends_at_once(config, tmp_path):
    def progress(line):
        if line["kind"] == "step" and line["step"] == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", progress=progress)
    resumed = train(config, tmp_path / "run", resume=True, progress=quiet)  # from the one made at step 2
    assert resumed["status"] == "done"


def test_a_signal_during_an_evaluation_gives_it_up_and_resume_makes_it(
    config, tmp_path, monkeypatch, switched
):
    train(config, tmp_path / "straight", progress=quiet)
    real = evaluations.evaluate

    def evaluate_and_signal(*args, **kwargs):
        signal.raise_signal(signal.SIGTERM)
        return real(*args, **kwargs)

    monkeypatch.setattr(evaluations, "evaluate", evaluate_and_signal)
    summary = train(config, tmp_path / "run", progress=quiet)
    assert (summary["status"], summary["step"]) == ("stopped", 4)
    assert record(tmp_path / "run", "eval") == []
    monkeypatch.setattr(evaluations, "evaluate", real)
    train(config, tmp_path / "run", resume=True, progress=quiet)
    assert record(tmp_path / "run") == record(tmp_path / "straight")


def test_outside_the_main_thread_training_works_without_handlers(config, tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(train(config, tmp_path / "run", progress=quiet)))
    thread.start()
    thread.join()
    assert done[0]["status"] == "done"


def test_lines_after_the_checkpoint_are_dropped(config, tmp_path, switched):
    train(config, tmp_path / "straight", progress=quiet)
    train(config, tmp_path / "run", progress=quiet)
    for step in (
        6,
        8,
    ):  # as if it had been killed at step 8 before that was saved, and its last line half written
        shutil.rmtree(tmp_path / f"run/checkpoints/step-{step:07d}", ignore_errors=True)
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 9, "lo')
    train(config, tmp_path / "run", resume=True, progress=quiet)
    assert record(tmp_path / "run") == record(tmp_path / "straight")
    assert [line["kind"] for line in read_metrics(tmp_path / "run/metrics.jsonl")].count("end") == 1


def test_a_run_killed_before_its_first_checkpoint_starts_anew(config, tmp_path):
    train(config, tmp_path / "straight", progress=quiet)
    train(config, tmp_path / "run", progress=stop_at(1))
    shutil.rmtree(tmp_path / "run/checkpoints")
    notes = []
    train(config, tmp_path / "run", resume=True, progress=notes.append)
    assert "no checkpoint yet" in notes[0]["message"]
    assert record(tmp_path / "run") == record(tmp_path / "straight")


def test_a_damaged_checkpoint_is_passed_over_with_a_note(config, tmp_path, switched):
    train(config, tmp_path / "straight", progress=quiet)
    train(config, tmp_path / "run", progress=stop_at(5))
    flip(tmp_path / "run/checkpoints/step-0000005/training.safetensors")
    notes = []
    train(config, tmp_path / "run", resume=True, progress=notes.append)
    assert notes[0]["kind"] == "note"
    assert "training.safetensors is damaged" in notes[0]["message"]
    assert record(tmp_path / "run") == record(tmp_path / "straight")


def test_resume_without_a_whole_checkpoint_names_the_file(config, tmp_path):
    train(config, tmp_path / "run", progress=stop_at(1))
    flip(tmp_path / "run/checkpoints/step-0000001/model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        train(config, tmp_path / "run", resume=True, progress=quiet)


def test_a_finished_run_can_go_on_for_longer_and_is_left_alone_otherwise(config, tmp_path):
    constant = with_train(config, schedule=ScheduleConfig(kind="constant", warmup=0.0))
    train(with_train(constant, steps=12), tmp_path / "straight", progress=quiet)
    train(constant, tmp_path / "run", progress=quiet)
    before = record(tmp_path / "run")
    assert train(constant, tmp_path / "run", resume=True, progress=quiet)["step"] == 8
    assert record(tmp_path / "run") == before
    train(with_train(constant, steps=12), tmp_path / "run", resume=True, progress=quiet)
    assert record(tmp_path / "run", "step") == record(tmp_path / "straight", "step")


def test_a_resume_with_another_config_names_the_keys(config, tmp_path):
    train(config, tmp_path / "run", progress=stop_at(1))
    other = with_train(config, batch_tokens=128, optimizer=OptimizerConfig(lr=1.0))
    expected = (
        r"train\.batch_tokens \(64, now 128\), train\.optimizer\.lr \(0\.002, now 1\.0\); .*--force-config"
    )
    with pytest.raises(UserError, match=expected):
        train(other, tmp_path / "run", resume=True, progress=quiet)


def test_a_resume_on_another_text_is_refused(config, tmp_path, text):
    train(config, tmp_path / "run", progress=stop_at(1))
    text.write_text(text.read_text()[:-1] + "z")
    with pytest.raises(UserError, match=r"another config or text: text\.sha256 \("):
        train(config, tmp_path / "run", resume=True, progress=quiet)


def test_resuming_what_is_no_run_is_one_sentence(config, tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        train(config, tmp_path / "nothing", resume=True, progress=quiet)
    assert not (tmp_path / "nothing").exists()


def test_seconds_go_on_from_the_checkpoint(config, tmp_path):
    minutes = with_train(config, steps=None, minutes=1000.0, eval_every=0)
    train(minutes, tmp_path / "run", progress=stop_at(2))
    path = tmp_path / "run/checkpoints/step-0000002"
    scalars = json.loads((path / "training.json").read_text())
    assert 0 < scalars["counters"]["seconds"] < 1000
    train(minutes, tmp_path / "run", resume=True, progress=stop_at(3))
    seconds = [line["seconds"] for line in read_metrics(tmp_path / "run/metrics.jsonl", "step")]
    assert seconds[1] == scalars["counters"]["seconds"] < seconds[2]


def test_a_folder_that_another_process_writes_is_refused(config, tmp_path):
    straight = tmp_path / "run"
    with RunFolder(straight).locked(), pytest.raises(UserError, match="in use: another process"):
        train(config, straight, progress=quiet)
    assert not (straight / "config.toml").exists()
    train(config, straight, progress=quiet)
    with RunFolder(straight).locked(), pytest.raises(UserError, match="in use: another process"):
        train(config, straight, resume=True, progress=quiet)


def test_a_length_already_passed_is_refused_and_changes_nothing(config, tmp_path):
    train(config, tmp_path / "run", progress=quiet)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    shorter = replace(config, train=config.train.with_horizon(steps=3))
    with pytest.raises(UserError, match="at step 8 .* past the steps asked for"):
        train(shorter, tmp_path / "run", resume=True, progress=quiet)
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
