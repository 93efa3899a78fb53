from __future__ import annotations

import json
from dataclasses import replace

import pytest

import mixlab
from mixlab.errors import UserError
from mixlab.model.ngram import NGramConfig
from mixlab.train.config import OptimizerConfig, ScheduleConfig
from mixlab.train.explain import explain
from mixlab.train.loop import train

from .helpers import record, with_train


def explained(config):
    return explain(config, mixlab.data.prepare(config.data))


@pytest.mark.parametrize("kind", ["muon", "pytorch_optimizer:SAM"])
def test_the_groups_are_the_models_parameters_each_once(config, kind):
    config = with_train(config, optimizer=OptimizerConfig(kind=kind, lr=0.5, lr_scale={"gain": 0.25}))
    config = replace(config, model=replace(config.model, temporal="rwkv7"))
    found = explained(config)
    model = mixlab.build_model(
        replace(config.model, vocab_size=mixlab.data.prepare(config.data).tokenizer.vocab_size)
    )
    named, roles, scales = dict(model.named_parameters()), model.parameter_roles(), model.lr_scales()
    names = [name for group in found["groups"] for name in group["names"]]
    assert sorted(names) == sorted(named)
    for group in found["groups"]:
        assert group["tensors"] == len(group["names"])
        assert group["parameters"] == sum(named[name].numel() for name in group["names"])
        for name in group["names"]:
            assert roles[name] == group["role"]
            factor = scales.get(name, 1.0) * (0.25 if group["role"] == "gain" else 1.0)
            assert (group["lr_scale"], group["lr"]) == (factor, 0.5 * factor)
            assert group["decay"] == (0.1 if group["role"] in ("matrix", "head") else 0.0)
    assert found["parameters"] == sum(model.parameters_by_component().values())
    assert json.loads(json.dumps(found)) == found


def test_what_else_changes_loss_or_weights_is_told(config):
    besides = explained(with_train(config, ema=0.9, z_loss=1e-4, recompute=True))["besides"]
    assert besides == {"dropout": 0.1, "ema": 0.9, "z_loss": 1e-4, "label_smoothing": 0.0, "recompute": True}


@pytest.mark.parametrize("kind", ["adamw", "pytorch_optimizer:SAM", "pytorch_optimizer:SophiaH"])
def test_the_length_is_that_of_the_run(config, tmp_path, kind):
    options = {"update_period": 2} if kind.endswith("H") else {}
    config = with_train(config, optimizer=OptimizerConfig(kind=kind, lr=1e-3, options=options))
    length = explained(config)["length"]
    train(config, tmp_path / "run", progress=lambda line: None)
    last = record(tmp_path / "run", "step")[-1]
    assert (length["steps"], length["tokens"]) == (last["step"], last["tokens"]) == (8, 512)
    assert length["flops"] == pytest.approx(last["flops"], abs=8)  # of thirds, rounded down at every step
    facts = mixlab.data.prepare(config.data).facts
    assert length["epochs"] == 512 / facts["train_tokens"]
    for horizon in ({"tokens": 500}, {"flops": 0.98 * length["flops"]}, {"epochs": length["epochs"] * 0.98}):
        assert explained(replace(config, train=config.train.with_horizon(**horizon)))["length"] == length
    minutes = replace(config, train=config.train.with_horizon(minutes=3.0))
    assert explained(minutes)["length"] == {"minutes": 3.0}


def test_the_schedule_says_where_its_phases_end(config):
    schedule = ScheduleConfig(kind="wsd", warmup=0.25, decay=0.5, final=0.1)
    found = explained(with_train(config, schedule=schedule))["schedule"]
    assert (found["warmup_steps"], found["decay"], found["final"]) == (2, 0.5, 0.1)
    assert (
        explained(with_train(config, schedule=ScheduleConfig(kind="onecycle")))["schedule"]["warmup"] == 0.3
    )


def test_an_ngram_has_nothing_to_explain(config):
    with pytest.raises(UserError, match="an n-gram counts once"):
        explained(replace(config, model=None, ngram=NGramConfig()))


def test_a_text_that_was_only_looked_at_is_explained_alike(config, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path / "cache"))
    found = explain(config, mixlab.data.prepare(config.data, look=True))
    assert not (tmp_path / "cache").exists()
    assert found == explained(config)


def test_an_estimated_text_is_explained_by_its_lengths(config, tmp_path, monkeypatch):
    exact = explained(config)["length"]["epochs"]
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path / "cache"))
    for module in ("preparation", "survey"):
        monkeypatch.setattr(f"mixlab.data.{module}.LOOKED", 1000)
    found = explain(with_train(config, eval_tokens=50), mixlab.data.prepare(config.data, look=True))
    assert found["length"]["epochs"] == pytest.approx(exact, rel=0.05)
    assert not (tmp_path / "cache").exists()
