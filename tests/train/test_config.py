from __future__ import annotations

from dataclasses import replace

import pytest

from mixlab.config import parse, read_toml, to_toml
from mixlab.errors import UserError
from mixlab.model.ngram import NGramConfig
from mixlab.train.config import CheckpointConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig


@pytest.mark.parametrize(
    "horizon", [{}, {"steps": 1, "tokens": 2}, {"steps": 1, "tokens": 2, "minutes": 1.0}]
)
def test_a_horizon_is_given_exactly_once(horizon):
    with pytest.raises(UserError, match="exactly one of steps, tokens, epochs, minutes and flops"):
        TrainConfig(**horizon).validate()


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("steps", {"steps": 0}),
        ("minutes", {"steps": None, "minutes": -1.0}),
        ("epochs", {"steps": None, "epochs": 0.0}),
        ("flops", {"steps": None, "flops": float("inf")}),
        ("steps", {"steps": 10**11}),
        ("tokens", {"steps": None, "tokens": 10**16}),
        ("epochs", {"steps": None, "epochs": 1e300}),
        ("minutes", {"steps": None, "minutes": 1e9}),
        ("flops", {"steps": None, "flops": 1e40}),
        ("batch_tokens", {"batch_tokens": 10**12}),
        ("threads", {"threads": -1}),
        ("threads", {"threads": 10**6}),
        ("device", {"device": "tpu"}),
        ("seed", {"seed": -1}),
        ("batch_tokens", {"batch_tokens": 0}),
        ("accumulate", {"accumulate": 0}),
        ("eval_every", {"eval_every": -1}),
        ("z_loss", {"z_loss": -1e-4}),
        ("label_smoothing", {"label_smoothing": 1.0}),
        ("ema", {"ema": 1.0}),
        ("dtype", {"dtype": "bfloat"}),
        ("optimizer.lr", {"optimizer": OptimizerConfig(lr=0.0)}),
        ("optimizer.lr", {"optimizer": OptimizerConfig(lr=float("inf"))}),
        ("optimizer.lr", {"optimizer": OptimizerConfig(lr=1e6)}),
        ("optimizer.kind", {"optimizer": OptimizerConfig(kind="adamW")}),
        ("optimizer.betas", {"optimizer": OptimizerConfig(betas=(0.9, 1.0))}),
        ("optimizer.clip", {"optimizer": OptimizerConfig(clip=-1.0)}),
        ("schedule.warmup", {"schedule": ScheduleConfig(warmup=1.0)}),
        ("schedule.decay", {"schedule": ScheduleConfig(kind="wsd", warmup=0.5, decay=0.6)}),
        ("checkpoint.keep", {"checkpoint": CheckpointConfig(keep=0)}),
        ("checkpoint.every", {"checkpoint": CheckpointConfig(every=-1)}),
        ("checkpoint.minutes", {"checkpoint": CheckpointConfig(minutes=-0.5)}),
        ("checkpoint.minutes", {"checkpoint": CheckpointConfig(minutes=float("inf"))}),
    ],
)
def test_a_value_that_cannot_work_is_named(key, changes):
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        replace(TrainConfig(steps=10), **changes).validate()


def test_epochs_of_a_text_are_no_more_than_its_tokens_may_be():
    assert TrainConfig(epochs=2.5).for_text(100).tokens == 250
    with pytest.raises(
        UserError, match=r"train\.epochs must be at most 1e\+04, 1e\+15 tokens of this text, got"
    ):
        TrainConfig(epochs=2e4).for_text(10**11)


def test_what_averages_takes_no_schedule_that_falls():
    free = OptimizerConfig(kind="pytorch_optimizer:ScheduleFreeSGD")
    with pytest.raises(UserError, match="needs 'constant' .*, got 'cosine'"):
        TrainConfig(steps=10, optimizer=free).validate()
    TrainConfig(steps=10, optimizer=free, schedule=ScheduleConfig(kind="constant")).validate()


def test_the_kinds_own_defaults_are_spelled_out():
    out = OptimizerConfig(kind="muon", eps=1e-6).spelled_out()
    assert (out.weight_decay, out.betas, out.eps, out.momentum) == (0.1, (0.9, 0.95), 1e-6, 0.95)
    assert OptimizerConfig(kind="sgd").spelled_out().betas is None
    assert out.spelled_out() == out == out.validate()


def test_a_misspelt_optimizer_gets_the_nearest():
    with pytest.raises(UserError, match="did you mean 'muon'"):
        OptimizerConfig(kind="moun").validate()


def test_a_run_is_a_model_or_an_ngram(config):
    for wrong in (replace(config, model=None), replace(config, ngram=NGramConfig())):
        with pytest.raises(UserError, match="exactly one of"):
            wrong.validate()


def test_a_config_survives_toml(config, tmp_path):
    (tmp_path / "config.toml").write_text(to_toml(config))
    again = parse(RunConfig, read_toml(tmp_path / "config.toml"))
    assert to_toml(again) == to_toml(config)
    assert again.train == config.train


def test_with_horizon_replaces_the_other_horizon():
    config = TrainConfig(steps=10).with_horizon(minutes=2.0)
    assert (config.steps, config.tokens, config.minutes) == (None, None, 2.0)
    assert config.progress(steps=5, tokens=5, seconds=30, flops=5) == 0.25
    assert config.with_horizon(flops=1e6).progress(steps=5, tokens=5, seconds=30, flops=4e5) == 0.4


def test_epochs_are_tokens_of_the_text():
    config = TrainConfig(epochs=1.5).for_text(1000)
    assert (config.tokens, config.epochs) == (1500, None)
    assert TrainConfig(steps=3).for_text(1000) == TrainConfig(steps=3)
    with pytest.raises(RuntimeError, match="without a text"):
        TrainConfig(epochs=1.5).progress(steps=1, tokens=1, seconds=1, flops=1)
