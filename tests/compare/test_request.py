from __future__ import annotations

from dataclasses import replace

import pytest

from mixlab.compare.plan import EVAL_TOKENS, make_plan
from mixlab.compare.request import DEFAULT_MODELS, DEFAULT_TOKENS, EVALUATIONS, Request
from mixlab.config import preset_names
from mixlab.errors import UserError
from mixlab.model.ngram import Drawn, NGramConfig


def test_a_plain_request_is_the_six_models_for_fixed_tokens() -> None:
    request = Request().validate()
    assert request.models == DEFAULT_MODELS
    assert request.tokens == DEFAULT_TOKENS
    assert request.fixed_steps() == DEFAULT_TOKENS // (8 * 256)


def test_all_means_every_preset_once() -> None:
    models = Request(models=("all",)).validate().models
    assert sorted(models) == sorted(preset_names())
    assert models[: len(DEFAULT_MODELS)] == DEFAULT_MODELS


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"models": ()}, "names no model"),
        ({"models": ("gru", "all")}, "names gru twice"),
        ({"steps": 3, "minutes": 1.0}, "one of --steps and --minutes"),
        ({"minutes": float("nan")}, "--minutes must be more than 0"),
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"seeds": 10**6}, "--seeds must be at most 1,000, got 1,000,000"),
        ({"batch_size": 10**9}, "--batch-size must be at most"),
        ({"minutes": 1e300}, "--minutes must be at most"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"overrides": ("model.dim=64",)}, "the parameter budget chooses it"),
        ({"overrides": ("train.steps=64",)}, "use --steps"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Request(**wrong).validate()  # type: ignore[arg-type]


def plan_of(**request: object):
    return make_plan(
        Request(**{"params": 60_000, **request}).validate(),  # type: ignore[arg-type]
        vocab_size=256,
        steps=30,
    )


def test_what_the_budget_covers_is_the_same_for_every_neural_model() -> None:
    plan = plan_of(models=("window", "gru"), context=32, batch_size=4, seeds=2)
    assert [entry.label for entry in plan.entries] == [
        "window-seed0",
        "window-seed1",
        "gru-seed0",
        "gru-seed1",
    ]
    for entry in plan.entries:
        model, train = entry.config.model, entry.config.train
        assert model is not None
        assert (model.context, model.vocab_size) == (32, 256)
        assert (train.steps, train.tokens, train.minutes) == (30, None, None)
        assert (train.batch_tokens, train.evaluations, train.eval_tokens) == (
            4 * 32,
            EVALUATIONS,
            EVAL_TOKENS,
        )
        assert train.seed == entry.seed
    assert plan.tokens == 30 * 4 * 32


def test_an_ngram_beside_neural_models_is_counted_on_all_and_on_their_text_whatever_the_seeds() -> None:
    plan = plan_of(models=("ngram", "rnn"), seeds=2, context=32, batch_size=4)
    assert [(entry.label, entry.name, entry.counted_on) for entry in plan.entries] == [
        ("ngram-seed0", "ngram (all of the text)", "all"),
        ("ngram-same-text-seed0", "ngram (same text)", "same"),
        ("rnn-seed0", "rnn", ""),
        ("rnn-seed1", "rnn", ""),
    ]
    every, same = (entry.config.ngram for entry in plan.entries[:2])
    assert every == NGramConfig()
    assert same == NGramConfig(drawn=Drawn(windows=30 * 4, context=32, seed=0))


def test_an_ngram_alone_or_beside_models_that_read_the_whole_text_is_counted_once() -> None:
    assert [(e.label, e.name) for e in plan_of(models=("ngram",)).entries] == [("ngram-seed0", "ngram")]
    budget = {"models": ("ngram", "rnn"), "context": 32, "batch_size": 4}
    request = Request(**budget, params=60_000).validate()
    for text, names in (
        (30 * 4 * 32, ["ngram"]),
        (30 * 4 * 32 + 1, ["ngram (all of the text)", "ngram (same text)"]),
    ):
        plan = make_plan(request, vocab_size=256, steps=30, train_tokens=text)
        assert [entry.name for entry in plan.entries if entry.counted] == names
    cut = replace(request, overrides=("ngram.max_tokens=2000000",))
    plan = make_plan(cut, vocab_size=256, steps=30, train_tokens=3_000_000)
    assert plan.entries[0].name == "ngram (2M tokens)"


def test_an_override_reaches_the_models_it_concerns_and_no_other() -> None:
    plan = plan_of(
        models=("ngram", "rnn"), overrides=("model.depth=1", "ngram.order=3", "train.optimizer.lr=0.5")
    )
    counted, same, neural = (entry.config for entry in plan.entries)
    assert counted.ngram is not None and same.ngram is not None
    assert counted.ngram.order == same.ngram.order == 3
    assert neural.model is not None
    assert neural.model.depth == 1
    assert neural.train.optimizer.lr == 0.5


def test_an_override_that_concerns_no_model_is_refused() -> None:
    with pytest.raises(UserError, match=r"none of the models has a \[ngram\] section"):
        plan_of(models=("rnn",), overrides=("ngram.order=3",))


def test_two_presets_of_one_name_are_refused(tmp_path) -> None:
    (tmp_path / "gru.toml").write_text("[model]\ntemporal = 'gru'\n[train]\nsteps = 1\n", encoding="utf-8")
    with pytest.raises(UserError, match="two models are called 'gru'"):
        plan_of(models=("gru", str(tmp_path / "gru.toml")))


@pytest.mark.parametrize("setting", ["train.eval_every=7", "train.evaluations=3", "train.eval_tokens=64"])
def test_evaluations_that_the_user_sets_are_kept(setting: str) -> None:
    (entry,) = plan_of(models=("rnn",), overrides=(setting,)).entries
    key, value = setting.removeprefix("train.").split("=")
    assert getattr(entry.config.train, key) == int(value)
    assert entry.config.train.evaluations == (3 if key == "evaluations" else 0)


@pytest.mark.parametrize("train", ["", "[train]\nminutes = 5\n", "[train]\nsteps = 3\ntokens = 9\n"])
def test_a_preset_file_needs_no_length_of_its_own(tmp_path, train: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[model]\ntemporal = 'gru'\nposition = 'none'\n" + train, encoding="utf-8")
    (entry,) = plan_of(models=(str(file),)).entries
    assert (entry.config.train.steps, entry.config.train.horizon) == (30, "steps")


def test_what_is_wrong_in_a_preset_file_names_the_file(tmp_path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[model]\ntemporal = 'gru'\nposition = 'none'\n[train]\nseed = -1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.toml: train\.seed must be"):
        plan_of(models=(str(file),))


def test_what_changes_no_speed_is_measured_once() -> None:
    entries = plan_of(
        models=("ngram", "rnn", "gru"), seeds=2, grid=("train.optimizer.lr=0.1,0.2", "model.depth=1,2")
    ).entries
    assert len(entries) == 2 + 2 * 4 * 2
    assert len({entry.equally_fast() for entry in entries}) == 1 + 2 * 2
