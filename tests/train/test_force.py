"""A resume with another config or text: refused with both values of each key, or forced and recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mixlab.config import to_toml
from mixlab.errors import UserError
from mixlab.model.ngram import NGramConfig
from mixlab.train import checkpoint
from mixlab.train.config import OptimizerConfig
from mixlab.train.files import write_text
from mixlab.train.folder import MAY_CHANGE, RunFolder
from mixlab.train.loop import train
from mixlab.train.metrics import read_metrics
from mixlab.train.resuming import fitting
from mixlab.train.run import open_run

from .helpers import record, stop_at, with_train


def quiet(line):
    """Take every line and say nothing."""


@pytest.fixture
def begun(config, tmp_path):
    """A run that was stopped after its third step."""
    train(config, tmp_path / "run", progress=stop_at(3))
    return tmp_path / "run"


def changes(run):
    return [(line["step"], line["changes"]) for line in read_metrics(run / "metrics.jsonl", "config")]


def contents(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_forced_resume_goes_on_with_the_new_values_and_the_record_says_so(config, begun):
    other = with_train(config, optimizer=OptimizerConfig(lr=0.01), seed=5)
    notes = []
    assert train(other, begun, resume=True, force=True, progress=notes.append)["status"] == "done"
    changed = {"train.optimizer.lr": [0.002, 0.01], "train.seed": [0, 5]}
    assert changes(begun) == [(3, changed)]
    said = [line["message"] for line in notes if line["kind"] == "note"]
    assert said == [
        "going on with another config: train.optimizer.lr (0.002, now 0.01), train.seed (0, now 5)"
    ]
    rates = [line["lr"] for line in record(begun, "step")]
    assert rates[3] > 3 * rates[2]
    assert RunFolder(begun).read_config().train.optimizer.lr == 0.01


def test_what_was_forced_once_need_not_be_forced_again(config, begun):
    other = with_train(config, optimizer=OptimizerConfig(lr=0.01))
    saves_nothing = replace(
        other, train=replace(other.train, checkpoint=replace(other.train.checkpoint, every=0))
    )

    def die(line):
        if line["kind"] == "step":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(saves_nothing, begun, resume=True, force=True, progress=die)  # before it saved anything
    train(other, begun, resume=True, progress=stop_at(5))
    train(other, begun, resume=True, progress=quiet)
    assert changes(begun) == [(3, {"train.optimizer.lr": [0.002, 0.01]})]
    with pytest.raises(UserError, match=r"train\.optimizer\.lr \(0\.01, now 0\.002\)"):
        train(config, begun, resume=True, progress=quiet)


def test_a_config_changed_by_hand_is_found_by_the_checkpoint(config, begun):
    write_text(
        begun / "config.toml",
        to_toml(
            replace(RunFolder(begun).read_config(), model=replace(config.model, vocab_size=19, dropout=0.5))
        ),
    )
    before = contents(begun)
    saved = RunFolder(begun).read_config()
    with pytest.raises(UserError, match=r"step-0000003 was made with .* model\.dropout \(0\.1, now 0\.5\)"):
        train(saved, begun, resume=True, progress=quiet)
    assert contents(begun) == before
    train(saved, begun, resume=True, force=True, progress=quiet)
    assert changes(begun) == [(3, {"model.dropout": [0.1, 0.5]})]


def test_length_evaluations_and_recomputing_may_change_freely(config, begun):
    other = with_train(config, steps=10, eval_every=5, recompute=True)
    train(other, begun, resume=True, progress=quiet)
    assert changes(begun) == []


@pytest.mark.parametrize("kinds", [("adamw", "muon"), ("muon", "sgd")])
def test_another_optimizer_begins_with_an_empty_memory(config, tmp_path, kinds):
    before, after = (with_train(config, optimizer=OptimizerConfig(kind=kind)) for kind in kinds)
    train(before, tmp_path / "run", progress=stop_at(3))
    notes = []
    summary = train(after, tmp_path / "run", resume=True, force=True, progress=notes.append)
    assert summary["status"] == "done"
    said = [line.get("message", "") for line in notes]
    assert any(message.endswith("; the optimizer's memory begins afresh") for message in said)


def test_another_text_begins_at_its_start(config, begun, text):
    text.write_text(text.read_text()[: len(text.read_text()) // 2])
    notes = []
    summary = train(config, begun, resume=True, force=True, progress=notes.append)
    assert summary["step"] == 8
    assert any("; the text begins afresh" in n.get("message", "") for n in notes)
    assert {"text.sha256", "text.train_tokens", "text.valid_tokens"} == set(changes(begun)[0][1])


def test_a_shape_that_does_not_fit_the_weights_cannot_be_forced(config, begun):
    before = contents(begun)
    shape, memory = r"model\.safetensors does not fit", r"the optimizer remembers head\.weight"
    for key, was, now, why in (
        ("dim", 16, 32, shape),
        ("depth", 2, 1, shape),
        ("tied", False, True, memory),
    ):
        other = replace(config, model=replace(config.model, **{key: now}))
        expected = rf"do not fit model\.{key} \({was}, now {now}\), even by force.*{why}"
        with pytest.raises(UserError, match=expected):
            train(other, begun, resume=True, force=True, progress=quiet)
        assert contents(begun) == before


def test_a_misfit_that_no_change_explains_is_left_as_it_is(tmp_path):
    with pytest.raises(UserError, match="^as it is$"), fitting(tmp_path, {"train.seed": (0, 1)}):
        raise UserError("as it is")


def test_force_changes_nothing_where_nothing_differs(config, tmp_path, begun):
    train(config, tmp_path / "straight", progress=quiet)
    train(config, begun, resume=True, force=True, progress=quiet)
    assert record(begun) == record(tmp_path / "straight")
    assert changes(begun) == []


@pytest.mark.parametrize("kind", ["neural", "counted"])
@pytest.mark.parametrize("force", [False, True])
def test_another_tokenizer_cannot_be_forced(config, tmp_path, kind, force):
    config = config if kind == "neural" else counted(config, 2)
    train(config, tmp_path / "run", progress=stop_at(1))
    before = contents(tmp_path / "run")
    other = replace(config, data=replace(config.data, tokenizer="byte"))
    with pytest.raises(
        UserError, match=r"run was made with .* data\.tokenizer \(char, now byte\); .*new run"
    ):
        train(other, tmp_path / "run", resume=True, force=force, progress=quiet)
    assert contents(tmp_path / "run") == before


def test_the_size_of_a_learned_vocabulary_cannot_be_forced_and_that_of_another_says_nothing(config, tmp_path):
    bpe, char = (replace(config, data=replace(config.data, tokenizer=name)) for name in ("bpe", "char"))
    sizes = [replace(bpe, data=replace(bpe.data, vocab_size=size)) for size in (260, 270)]
    train(sizes[0], tmp_path / "bpe", progress=stop_at(1))
    with pytest.raises(UserError, match=r"another tokenizer: data\.vocab_size \(260, now 270\); "):
        train(sizes[1], tmp_path / "bpe", resume=True, force=True, progress=quiet)
    train(char, tmp_path / "char", progress=stop_at(1))
    other = replace(char, data=replace(char.data, vocab_size=270))
    assert train(other, tmp_path / "char", resume=True, force=True, progress=quiet)["status"] == "done"


def test_another_tokenizer_in_a_config_changed_by_hand_cannot_be_forced(config, begun):
    saved = RunFolder(begun).read_config()
    edited = replace(saved, data=replace(saved.data, tokenizer="byte"))
    write_text(begun / "config.toml", to_toml(edited))
    before = contents(begun)
    with pytest.raises(UserError, match=r"step-0000003 was made with another tokenizer: data\.tokenizer"):
        train(edited, begun, resume=True, force=True, progress=quiet)
    assert contents(begun) == before


def test_a_refusal_and_the_docs_name_all_that_may_change(config, begun):
    with pytest.raises(UserError) as refused:
        train(with_train(config, seed=5), begun, resume=True, progress=quiet)
    said = str(refused.value).partition("(only the length, ")[2].partition(" may change without)")[0]
    lengths = {f"train.{name}" for name in ("steps", "tokens", "epochs", "minutes", "flops")}
    assert set(said.replace(" and ", ", ").split(", ")) == {*MAY_CHANGE} - lengths
    page = (Path(__file__).parents[2] / "docs/training.md").read_text()
    (sentence,) = [s for s in page.replace("\n", " ").split(". ") if s.endswith("may change on the way")]
    for key in {*MAY_CHANGE} - lengths - {"train.checkpoint"}:
        assert f"`{key.removeprefix('train.')}`" in sentence
    assert "`[train.checkpoint]`" in sentence


def test_an_average_begins_and_ends_where_it_is_asked_for(config, tmp_path, begun):
    averaging = with_train(config, ema=0.5)
    train(averaging, begun, resume=True, force=True, progress=stop_at(5))
    kept = load_file(begun / "checkpoints/step-0000005/training.safetensors")
    model = load_file(begun / "checkpoints/step-0000005/model.safetensors")
    assert any(not torch.equal(kept[f"trained.{name}"], tensor) for name, tensor in model.items())
    train(config, begun, resume=True, force=True, progress=quiet)
    kept = load_file(begun / "checkpoints/step-0000008/training.safetensors")
    assert not any(name.startswith("trained.") for name in kept)
    train(config, tmp_path / "straight", progress=quiet)
    assert record(begun, "step") == record(tmp_path / "straight", "step")  # an average moves nothing


def test_an_older_checkpoint_that_does_not_say_is_gone_on_with(config, begun):
    path = begun / "checkpoints/step-0000003"
    scalars = json.loads((path / "training.json").read_text())
    del scalars["config"], scalars["tokenizer"], scalars["counters"]["micro_batches"]
    write_text(path / "training.json", json.dumps(scalars))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["training.json"] = checkpoint._facts(path / "training.json")
    manifest["sha256"] = checkpoint._digest(manifest)
    write_text(path / "manifest.json", json.dumps(manifest))
    assert train(config, begun, resume=True, progress=quiet)["status"] == "done"


def counted(config, order):
    return replace(config, model=None, ngram=NGramConfig(order=order))


def test_an_ngram_counts_again_and_with_another_order_only_by_force(config, tmp_path):
    train(counted(config, 2), tmp_path / "run", progress=quiet)
    once = record(tmp_path / "run", "eval")
    train(counted(config, 2), tmp_path / "run", resume=True, progress=quiet)
    assert record(tmp_path / "run", "eval") == once
    with pytest.raises(UserError, match=r"ngram\.order \(2, now 3\)"):
        train(counted(config, 3), tmp_path / "run", resume=True, progress=quiet)
    train(counted(config, 3), tmp_path / "run", resume=True, force=True, progress=quiet)
    assert changes(tmp_path / "run") == [(0, {"ngram.order": [2, 3]})]
    assert record(tmp_path / "run", "eval") != once
    assert open_run(tmp_path / "run").load().order == 3


def test_a_model_and_an_ngram_are_not_the_same_run(config, begun):
    with pytest.raises(UserError, match=r"model\.|ngram"):
        train(counted(config, 2), begun, resume=True, progress=quiet)


@pytest.mark.parametrize("kind", ["neural", "counted"])
def test_a_tokenizer_of_another_run_is_named_by_all_that_read_it(config, tmp_path, kind):
    config = config if kind == "neural" else counted(config, 2)
    train(config, tmp_path / "run", progress=stop_at(3))
    other = replace(config, data=replace(config.data, tokenizer="byte"))
    train(other, tmp_path / "other", progress=stop_at(1))
    (tmp_path / "run/tokenizer.json").write_bytes((tmp_path / "other/tokenizer.json").read_bytes())
    before = contents(tmp_path / "run")
    for read in (
        lambda: train(config, tmp_path / "run", resume=True, force=True, progress=quiet),
        lambda: open_run(tmp_path / "run"),
    ):
        with pytest.raises(UserError, match=r"run/tokenizer\.json is not the tokenizer that .*run"):
            read()
    assert contents(tmp_path / "run") == before
    if kind == "counted":
        return
    (tmp_path / "run/data.json").write_bytes((tmp_path / "other/data.json").read_bytes())  # this too
    with pytest.raises(UserError, match=r"tokenizer\.json is not the tokenizer that .*step-0000003"):
        train(config, tmp_path / "run", resume=True, force=True, progress=quiet)
