from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

import mixlab
from mixlab.errors import UserError
from mixlab.model.ngram import NGramConfig
from mixlab.train import evaluations
from mixlab.train.evaluate import evaluate
from mixlab.train.loop import train
from mixlab.train.metrics import read_metrics
from mixlab.train.run import load, open_run

from .helpers import flip, record


def quiet(line):
    """Take every line and say nothing."""


@pytest.fixture
def run(config, tmp_path):
    train(config, tmp_path / "run", progress=quiet)
    return tmp_path / "run"


@pytest.fixture
def ngram_run(config, tmp_path):
    train(replace(config, model=None, ngram=NGramConfig(order=3)), tmp_path / "ngram", progress=quiet)
    return tmp_path / "ngram"


def test_a_loaded_model_scores_as_the_record_says(config, run):
    model = mixlab.load(run)
    assert not model.training
    opened = open_run(run)
    assert opened.tokenizer.decode(opened.tokenizer.encode("the words")) == "the words"
    valid = mixlab.data.prepare(config.data).valid
    found = evaluate(model, valid, context=opened.context)
    best = min(line["bits_per_byte"] for line in record(run, "eval"))
    assert found.bits_per_byte == pytest.approx(best, rel=1e-6)


def test_a_run_means_its_best_checkpoint_and_a_checkpoint_itself(config, tmp_path, monkeypatch):
    numbers = iter([1.0, 2.0])
    real = evaluations.evaluate
    monkeypatch.setattr(
        evaluations, "evaluate", lambda *a, **k: replace(real(*a, **k), bits_per_byte=next(numbers))
    )
    train(config, tmp_path / "run", progress=quiet)
    assert open_run(tmp_path / "run").step == 4
    assert open_run(tmp_path / "run/checkpoints/step-0000008").step == 8
    early, late = (load(tmp_path / "run" / name) for name in (".", "checkpoints/step-0000008"))
    assert not torch.equal(early.head.weight, late.head.weight)


def test_without_a_record_the_latest_is_meant(run):
    (run / "metrics.jsonl").unlink()
    assert open_run(run).step == 8


def test_loading_moves_no_random_state(run):
    before = torch.get_rng_state()
    load(run)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_damaged_best_checkpoint_is_passed_over_with_a_warning(run):
    best = open_run(run).checkpoint
    flip(best / "model.safetensors")
    with pytest.warns(UserWarning, match=r"model\.safetensors is damaged.*in its place"):
        opened = open_run(run)
    assert opened.checkpoint != best
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load(best)


def test_a_run_without_a_whole_checkpoint_names_the_file(run):
    for path in (run / "checkpoints").iterdir():
        flip(path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged.*no other checkpoint is left"):
        load(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        load(run)


def test_what_is_no_run_is_one_sentence(tmp_path, text):
    for path, says in ((tmp_path / "no", "no such run"), (text, "is a file"), (tmp_path, "is not a run")):
        with pytest.raises(UserError, match=says):
            load(path)


def test_an_ngram_leaves_a_run_like_any_other(config, ngram_run):
    assert {path.name for path in ngram_run.iterdir()} == {
        "config.toml", "environment.json", "tokenizer.json", "data.json", "metrics.jsonl", "checkpoints",
    }  # fmt: skip
    lines = read_metrics(ngram_run / "metrics.jsonl")
    assert [line["kind"] for line in lines] == ["eval", "end"]
    assert {"step", "tokens", "seconds", "flops", "bits_per_byte", "loss_by_position"} <= set(lines[0])
    data = mixlab.data.prepare(config.data)
    counted = mixlab.NGram.train(data.train.tokens, order=3, vocab_size=data.tokenizer.vocab_size)
    assert lines[0]["bits_per_byte"] == evaluate(counted, data.valid, context=256).bits_per_byte
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(mixlab.load(ngram_run)(tokens).logits, counted(tokens).logits)


def test_an_ngram_refuses_anothers_folder_and_resumes_its_own(config, ngram_run):
    ngram = replace(config, model=None, ngram=NGramConfig(order=3))
    before = record(ngram_run)
    with pytest.raises(UserError, match="already holds a run"):
        train(ngram, ngram_run, progress=quiet)
    train(ngram, ngram_run, resume=True, progress=quiet)
    assert record(ngram_run) == before


def test_a_damaged_ngram_is_named(ngram_run):
    flip(ngram_run / "checkpoints/step-0000001/ngram.safetensors")
    with pytest.raises(UserError, match=r"ngram\.safetensors is damaged"):
        load(ngram_run)


def test_a_device_that_is_not_there_is_named(run):
    with pytest.raises(UserError, match="cannot be put on device 'gpu'"):
        load(run, device="gpu")
