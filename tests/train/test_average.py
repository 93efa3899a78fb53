"""Averaged weights: the formula, what is evaluated and loaded, and what goes on being trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import mixlab
from mixlab.errors import UserError
from mixlab.train.config import CheckpointConfig, OptimizerConfig, ScheduleConfig
from mixlab.train.evaluate import evaluate
from mixlab.train.loop import train
from mixlab.train.run import load

from .helpers import record, stop_at, with_train

DECAY = 0.6  # reached after step 12 of the formula's own rise


def quiet(line):
    """Take every line and say nothing."""


@pytest.fixture
def every(config):
    """Sixteen steps, each of which is kept."""
    rates = OptimizerConfig(lr=0.05)
    return with_train(config, steps=16, optimizer=rates, checkpoint=CheckpointConfig(every=1, keep=99))


def weights(run, step, file="model.safetensors"):
    return load_file(run / f"checkpoints/step-{step:07d}" / file)


def test_the_model_that_is_kept_is_the_average_of_those_that_were_trained(every, tmp_path):
    train(every, tmp_path / "plain", progress=quiet)
    train(with_train(every, ema=DECAY), tmp_path / "run", progress=quiet)
    assert record(tmp_path / "run", "step") == record(tmp_path / "plain", "step")
    torch.manual_seed(every.train.seed)
    shape = replace(every.model, vocab_size=load(tmp_path / "run").vocab_size)
    expected = dict(mixlab.build_model(shape).named_parameters())
    for step in range(1, 17):
        decay = min(DECAY, (1 + step) / (10 + step))
        plain, ours = (weights(tmp_path / name, step) for name in ("plain", "run"))
        expected = {n: decay * expected[n] + (1 - decay) * plain[n] for n in expected}
        for name, average in expected.items():
            assert torch.allclose(ours[name], average, rtol=1e-5, atol=1e-7), (step, name)
        kept = weights(tmp_path / "run", step, "training.safetensors")
        trained = {n.removeprefix("trained."): t for n, t in kept.items() if n.startswith("trained.")}
        assert trained.keys() == expected.keys()
        assert all(torch.equal(trained[name], plain[name]) for name in trained)


def test_what_is_evaluated_and_loaded_is_the_average(every, tmp_path):
    config = with_train(every, ema=DECAY, eval_every=8, dtype="float32")
    train(config, tmp_path / "run", progress=quiet)
    train(replace(config, train=replace(config.train, ema=0.0)), tmp_path / "plain", progress=quiet)
    ours, theirs = (record(tmp_path / name, "eval") for name in ("run", "plain"))
    assert [a["bits_per_byte"] != b["bits_per_byte"] for a, b in zip(ours, theirs, strict=True)] == [True] * 2
    valid = mixlab.data.prepare(config.data).valid
    for step, line in zip((8, 16), ours, strict=True):
        scorer = load(tmp_path / f"run/checkpoints/step-{step:07d}")
        found = evaluate(scorer, valid, context=16, dtype="float32")
        assert found.bits_per_byte == pytest.approx(line["bits_per_byte"], rel=1e-6)


def test_parameters_that_come_and_go_stay_out_of_it_and_a_resume_continues(config, tmp_path):
    guided = replace(config, model=replace(config.model, feature={"kind": "low_rank", "guidance": 0.5}))
    guided = with_train(guided, ema=DECAY)
    train(guided, tmp_path / "straight", progress=quiet)
    for step in (1, 3, 4, 5, 7):  # the guides go after step 4
        train(guided, tmp_path / "stopped", resume=step > 1, progress=stop_at(step))
    train(guided, tmp_path / "stopped", resume=True, progress=quiet)
    assert record(tmp_path / "stopped") == record(tmp_path / "straight")
    for file in ("model.safetensors", "training.safetensors"):
        ours, theirs = (weights(tmp_path / name, 8, file) for name in ("stopped", "straight"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), file
        assert not any("guide" in name for name in ours)


def test_a_tied_head_is_averaged_once(config, tmp_path):
    tied = with_train(replace(config, model=replace(config.model, tied=True)), ema=DECAY)
    train(tied, tmp_path / "run", progress=stop_at(3))
    train(tied, tmp_path / "run", resume=True, progress=quiet)
    model = load(tmp_path / "run")
    assert model.head.weight is model.embedding.weight
    assert not any("head" in name for name in weights(tmp_path / "run", 8, "training.safetensors"))


def test_an_optimizer_that_averages_by_itself_takes_no_second_average(config):
    pytest.importorskip("pytorch_optimizer")
    optimizer = OptimizerConfig(kind="pytorch_optimizer:ScheduleFreeAdamW")
    constant = ScheduleConfig(kind="constant")
    with pytest.raises(UserError, match=r"train\.ema: .* averages the weights itself"):
        with_train(config, optimizer=optimizer, schedule=constant, ema=0.9).validate()
