from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import replace

import pytest
import torch

import mixlab
from mixlab.errors import RunFailed, UserError
from mixlab.train import checkpoint, diagnose, evaluations, loop
from mixlab.train.config import CheckpointConfig, OptimizerConfig
from mixlab.train.loop import train
from mixlab.train.metrics import read_metrics

from .helpers import record, with_train


def quiet(line):
    """Take every line and say nothing."""


def steps_of(path):
    return read_metrics(path / "metrics.jsonl", "step")


def test_the_loss_falls_and_the_record_is_whole(config, tmp_path):
    seen = []
    config = with_train(config, steps=40, eval_every=20, optimizer=OptimizerConfig(lr=2e-2))
    summary = train(config, tmp_path / "run", progress=seen.append)
    lines = read_metrics(tmp_path / "run/metrics.jsonl")
    scored = lines[-2]["scored"]
    evaluation = {"full": scored, "sample": scored, "marks": [], "every": 20, "share": None}
    start = {
        "kind": "start",
        "run": str(tmp_path / "run"),
        "length": {"steps": 40},
        "evaluation": evaluation,
    }
    assert [start, *lines] == [line for line in seen if line["kind"] not in ("note", "evaluating")]
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 41))
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [20, 40]
    assert lines[-1] == summary
    losses = [line["loss"] for line in lines if line["kind"] == "step"]
    assert losses[-1] < losses[0] - 0.5
    assert summary["status"] == "done"
    assert summary["bits_per_byte"] == lines[-2]["bits_per_byte"] < 4
    assert len(lines[-2]["loss_by_position"]) == 16


def test_the_folder_holds_what_it_should(config, tmp_path):
    train(config, tmp_path / "run", progress=quiet)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "config.toml",
        "environment.json",
        "tokenizer.json",
        "data.json",
        "metrics.jsonl",
        "checkpoints",
    }
    kept = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert {"step-0000006", "step-0000008"} <= kept
    files = {path.name for path in (tmp_path / "run/checkpoints/step-0000008").iterdir()}
    tensors, rest = {"model.safetensors", "training.safetensors"}, {"training.json", "metrics.jsonl"}
    assert files == {*tensors, *rest, "manifest.json"}
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert {"mixlab", "git", "python", "torch", "platform", "machine"} <= set(environment)


def test_tokens_and_flops_are_those_of_the_formula(config, tmp_path):
    train(config, tmp_path / "run", progress=quiet)
    model = mixlab.load(tmp_path / "run")
    for i, line in enumerate(steps_of(tmp_path / "run"), start=1):
        assert line["tokens"] == i * 4 * 16
        assert line["flops"] == i * 3 * 4 * model.flops(16)
        assert line["flops_per_second"] / line["tokens_per_second"] == pytest.approx(3 * model.flops(16) / 16)


@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_accumulation_changes_neither_loss_nor_gradient(config, tmp_path, accumulate):
    config = replace(config, model=replace(config.model, dropout=0.0))
    train(with_train(config, accumulate=1), tmp_path / "one", progress=quiet)
    train(with_train(config, accumulate=accumulate), tmp_path / "many", progress=quiet)
    for a, b in zip(steps_of(tmp_path / "one"), steps_of(tmp_path / "many"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


def test_the_horizon_may_be_tokens(config, tmp_path):
    train(config, tmp_path / "steps", progress=quiet)
    train(with_train(config, steps=None, tokens=8 * 64), tmp_path / "tokens", progress=quiet)
    assert record(tmp_path / "steps") == record(tmp_path / "tokens")
    summary = train(with_train(config, steps=None, tokens=65), tmp_path / "more", progress=quiet)
    assert summary["step"] == 2


def test_the_horizon_may_be_minutes(config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Clock, "lap", lambda self: 6.0)
    summary = train(with_train(config, steps=None, minutes=0.5), tmp_path / "run", progress=quiet)
    assert (summary["step"], summary["seconds"]) == (5, 30.0)


def test_the_horizon_may_be_epochs(config, tmp_path):
    lines = []
    summary = train(with_train(config, steps=None, epochs=0.1), tmp_path / "run", progress=lines.append)
    tokens = round(0.1 * mixlab.data.prepare(config.data).facts["train_tokens"])
    assert lines[0]["length"] == {"tokens": tokens}
    assert summary["tokens"] - 64 < tokens <= summary["tokens"]
    assert (tmp_path / "run/config.toml").read_text().count(f"tokens = {tokens}\n") == 1
    assert (
        train(with_train(config, steps=None, epochs=0.12), tmp_path / "run", resume=True, progress=quiet)[
            "tokens"
        ]
        > summary["tokens"]
    )


def test_the_horizon_may_be_flops(config, tmp_path):
    train(config, tmp_path / "steps", progress=quiet)
    flops = record(tmp_path / "steps", "step")[-1]["flops"]
    train(with_train(config, steps=None, flops=float(flops)), tmp_path / "flops", progress=quiet)
    assert record(tmp_path / "steps") == record(tmp_path / "flops")
    one_more = with_train(config, steps=None, flops=flops + 1.0)
    assert train(one_more, tmp_path / "flops", resume=True, progress=quiet)["step"] == 9


def test_the_learning_rate_reaches_neither_zero_nor_beyond_the_peak(config, tmp_path):
    train(config, tmp_path / "run", progress=quiet)
    rates = [line["lr"] for line in steps_of(tmp_path / "run")]
    peak = config.train.optimizer.lr
    assert all(0 < rate <= peak for rate in rates)
    assert rates[0] == pytest.approx(peak * 0.5 * (1 + math.cos(math.pi * (0.5 / 8 - 0.05) / 0.95)))


def test_the_clipped_fraction_counts_the_steps_that_were_clipped(config, tmp_path):
    norms = []
    train(config, tmp_path / "free", progress=lambda line: norms.append(line.get("grad_norm")))
    limit = sorted(n for n in norms if n is not None)[3]
    train(with_train(config, optimizer=OptimizerConfig(clip=limit)), tmp_path / "run", progress=quiet)
    clipped = 0
    for i, line in enumerate(steps_of(tmp_path / "run"), start=1):
        clipped += line["grad_norm"] > limit
        assert line["clipped_fraction"] == clipped / i
    train(with_train(config, optimizer=OptimizerConfig(clip=0.0)), tmp_path / "off", progress=quiet)
    assert steps_of(tmp_path / "off")[-1]["clipped_fraction"] == 0


@pytest.mark.parametrize(
    ("scores", "best", "kept"), [([3.0, 1.0, 2.0, 4.0], 4, [8, 4]), ([3.0, 1.0, 2.0, 0.5], 8, [8])]
)
def test_the_newest_and_the_best_checkpoints_are_what_is_left(
    config, tmp_path, monkeypatch, scores, best, kept
):
    numbers = iter(scores)
    real = evaluations.evaluate

    def scripted(*args, **kwargs):
        return replace(real(*args, **kwargs), bits_per_byte=next(numbers))

    monkeypatch.setattr(evaluations, "evaluate", scripted)
    keep = CheckpointConfig(every=0, keep=1)
    summary = train(with_train(config, eval_every=2, checkpoint=keep), tmp_path / "run", progress=quiet)
    assert (summary["best_step"], summary["best_bits_per_byte"]) == (best, min(scores))
    assert summary["bits_per_byte"] == scores[-1]
    left = checkpoint.list_checkpoints(tmp_path / "run/checkpoints")
    assert [checkpoint.step_of(path) for path in left] == kept


def test_saving_comes_before_evaluating(config, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(evaluations, "evaluate", fail)
    with pytest.raises(MemoryError):
        train(config, tmp_path / "run", progress=quiet)
    checkpoint.verify(tmp_path / "run/checkpoints/step-0000004")


A_RUN, ITS_BEGINNING = "already holds a run \\({}", r"holds {} but no config\.toml: .*remove it, or choose"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("config.toml", A_RUN),
        ("metrics.jsonl", A_RUN),
        ("checkpoints", A_RUN),
        ("tokenizer.json", ITS_BEGINNING),
        ("data.json", ITS_BEGINNING),
    ],
)
def test_a_folder_with_another_run_is_refused_and_untouched(config, tmp_path, name, says):
    (tmp_path / name).write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match=says.format(name)):
        train(config, tmp_path, progress=quiet)
    assert (tmp_path / name).read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_path_that_cannot_be_a_folder_is_one_sentence(config, tmp_path, text):
    with pytest.raises(UserError, match=r"text\.txt is a file"):
        train(config, text, progress=quiet)
    with pytest.raises(UserError, match="cannot write to"):
        train(config, text / "run", progress=quiet)


def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(config, tmp_path, monkeypatch):
    real = checkpoint.save

    def full(folder, step, write):
        def limited(path):
            write(path)
            if step > 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path / "model.safetensors"))

        return real(folder, step, limited)

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(
        RunFailed, match=r"No space left on device; the last good checkpoint is .*step-0000002"
    ):
        train(config, tmp_path / "run", progress=quiet)
    checkpoint.verify(tmp_path / "run/checkpoints/step-0000002")
    assert read_metrics(tmp_path / "run/metrics.jsonl")[-1]["status"] == "failed"


def break_at(monkeypatch, step, breakage):
    """Damage the model just before the given step is taken."""
    real = loop.Trainer.step

    def broken(self):
        if self.done.step + 1 == step:
            breakage(self.model)
        return real(self)

    monkeypatch.setattr(loop.Trainer, "step", broken)


def test_a_loss_that_is_not_finite_stops_with_step_layer_and_checkpoint(config, tmp_path, monkeypatch):
    def breakage(model):
        module = model.blocks[1].feature
        module.register_forward_hook(lambda m, i, out: (out[0] * math.inf, out[1]))

    break_at(monkeypatch, 5, breakage)
    with pytest.raises(RunFailed) as failure:
        train(config, tmp_path / "run", progress=quiet)
    message = str(failure.value)
    assert "the loss is nan at step 5" in message
    assert "the first layer whose output is not finite is blocks.1.feature" in message
    assert "all parameters are finite" in message
    assert f"the last good checkpoint is {tmp_path / 'run/checkpoints/step-0000004'}" in message
    end = read_metrics(tmp_path / "run/metrics.jsonl")[-1]
    assert (end["kind"], end["status"], end["message"]) == ("end", "failed", message)
    checkpoint.verify(tmp_path / "run/checkpoints/step-0000004")


def test_a_parameter_that_is_not_finite_is_named(config, tmp_path, monkeypatch):
    def breakage(model):
        with torch.no_grad():
            model.head.weight[0, 0] = math.nan

    break_at(monkeypatch, 1, breakage)
    with pytest.raises(
        RunFailed, match=r"output is not finite is head; parameter head\.weight was not finite"
    ):
        train(config, tmp_path / "run", progress=quiet)


def test_a_gradient_that_is_not_finite_is_named(config, tmp_path, monkeypatch):
    def breakage(model):
        model.blocks[0].feature.register_full_backward_hook(
            lambda m, grad_in, grad_out: tuple(g if g is None else g * math.nan for g in grad_in)
        )

    break_at(monkeypatch, 2, breakage)
    with pytest.raises(
        RunFailed, match=r"the gradient norm is nan .* at step 2: .* the gradient of \S+ is the first"
    ):
        train(config, tmp_path / "run", progress=quiet)


def test_parameters_that_are_not_finite_are_never_saved(config, tmp_path, monkeypatch):
    real = loop.Optimizers.step

    def diverge(self, passes):
        real(self, passes)
        for parameter in self.parameters.values():
            parameter.data.mul_(math.inf)

    monkeypatch.setattr(loop.Optimizers, "step", diverge)
    config = with_train(config, checkpoint=CheckpointConfig(every=1))
    with pytest.raises(RunFailed, match=r"is not finite after step 1.*there is no checkpoint yet"):
        train(config, tmp_path / "run", progress=quiet)
    assert checkpoint.list_checkpoints(tmp_path / "run/checkpoints") == []


def test_the_first_bad_layer_is_the_first_in_order_of_execution():
    model = mixlab.build_model({"vocab_size": 11, "dim": 16, "depth": 2, "context": 8})
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    assert diagnose.bad_layer(model, lambda: model(tokens)) is None
    with torch.no_grad():
        model.blocks[1].temporal_norm.gain.fill_(math.nan)
    assert diagnose.bad_layer(model, lambda: model(tokens)) == "blocks.1.temporal_norm"
    assert diagnose.bad_parameter(model) == "blocks.1.temporal_norm.gain"
    assert not any(module._forward_hooks for module in model.modules())


def test_a_progress_that_breaks_is_told_nothing_more_and_is_not_taken_for_the_disk(config, tmp_path):
    told = []

    def progress(line):
        told.append(line)
        if line["kind"] == "step":
            raise BrokenPipeError(32, "Broken pipe")

    with pytest.warns(UserWarning, match="no more progress is shown"):
        summary = train(config, tmp_path / "run", progress=progress)
    assert summary["status"] == "done"
    assert [line["step"] for line in told if line["kind"] == "step"] == [1]
