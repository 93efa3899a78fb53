"""A validation text of its own: nothing is split off, the tokenizer has not seen it, and overlap is named."""

import json
import random

import numpy as np
import pytest

from mixlab.cli import run
from mixlab.data import DataConfig, corpus, overlap, prepare
from mixlab.data.corpus import Corpus
from mixlab.data.dataset import prepare_single
from mixlab.errors import UserError
from mixlab.report import joined
from mixlab.train import machine

from ..train.conftest import FAKE

WORDS = [f"{a}{b}" for a in "bcdfglmnprst" for b in ("a", "endo", "i", "olu", "umera")]


def prose(seed, sentences=60):
    draw = random.Random(seed)
    return "".join(" ".join(draw.choices(WORDS, k=12)) + ".\n" for _ in range(sentences))


TRAIN, VALID = prose(1), prose(2)


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "train.txt").write_text(TRAIN)
    (tmp_path / "valid.txt").write_text(VALID)
    return tmp_path


def config(folder, **options):
    options = {"sources": ("train.txt",), "valid": ("valid.txt",)} | options
    for key in ("sources", "valid"):
        options[key] = tuple(str(folder / name) for name in options[key])
    return DataConfig(**options)


@pytest.mark.parametrize("packing", ["stream", "documents"])
@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_each_side_is_its_own_text_whole(texts, kind, packing):
    (texts / "valid.txt").write_text(VALID + "Ünseen")
    options = {"tokenizer": kind, "vocab_size": 300, "packing": packing}
    data = prepare(config(texts, **options), cache_dir=texts / "cache")
    expected = VALID + ("\ufffdnseen" if kind == "char" else "Ünseen")  # unseen where it learns
    assert data.tokenizer.decode(data.train.tokens) == f"\0{TRAIN}\0"
    assert data.tokenizer.decode(data.valid.tokens) == f"\0{expected}\0"
    assert data.train.num_bytes == len(TRAIN) + 1
    assert data.valid.num_bytes == len((VALID + "Ünseen").encode()) + 1
    assert data.valid.apart == (packing == "documents")
    alone = prepare(DataConfig(sources=(str(texts / "train.txt"),), **options), cache_dir=texts / "cache")
    assert kind != "byte" or alone.tokenizer.hash == data.tokenizer.hash


def test_the_facts_say_whence_validation_came(texts):
    facts = prepare(config(texts), cache_dir=texts / "cache").facts
    assert facts["valid_sources"] == [str(texts / "valid.txt")]
    assert facts["split"].startswith("none") and "valid_fraction" not in facts
    assert (facts["train_bytes"], facts["valid_bytes"]) == (len(TRAIN) + 1, len(VALID) + 1)
    assert facts["valid_overlap"] == 0 and facts["notes"] == []
    assert json.loads(json.dumps(facts)) == facts


def test_another_validation_text_never_meets_the_old_tokens(texts):
    before = prepare(config(texts), cache_dir=texts / "cache")
    (texts / "valid.txt").write_text(VALID.upper())
    after = prepare(config(texts), cache_dir=texts / "cache")
    assert after.tokenizer.decode(after.valid.tokens) == f"\0{VALID.upper()}\0"
    assert before.facts["sha256"] == after.facts["sha256"]
    assert before.facts["valid_sha256"] != after.facts["valid_sha256"]


def test_mixtures_and_several_validation_texts(texts):
    (texts / "more.txt").write_text(prose(3))
    made = config(
        texts, sources=("train.txt", "more.txt"), weights=(3.0, 1.0), valid=("valid.txt", "more.txt")
    )
    data = prepare(made, context=16, cache_dir=texts / "cache")
    assert [part.name for part in data.train.parts] == ["train.txt", "more.txt"] and not data.valid.parts
    assert data.tokenizer.decode(data.valid.tokens) == f"\0{VALID}\0{prose(3)}\0"
    for part, text in zip(data.train.parts, (TRAIN, prose(3)), strict=True):
        assert data.tokenizer.decode(part.of(data.train.tokens)) == f"\0{text}\0"
    assert [set(part) for part in data.facts["mixture"]] == [
        {"source", "share", "train_documents", "train_bytes", "train_tokens"}
    ] * 2
    assert data.batches(context=16, batch_size=4, seed=0).next()[0].shape == (4, 16)
    assert "1 of the 2 validation documents is a training document too" in data.facts["notes"][0]


def test_it_scores_as_the_same_text_alone_does(texts):
    data = prepare(config(texts), cache_dir=texts / "cache")
    alone, _ = prepare_single([str(texts / "valid.txt")], data.tokenizer, cache_dir=texts / "cache")
    assert np.array_equal(alone.tokens, data.valid.tokens) and alone.num_bytes == data.valid.num_bytes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"valid_fraction": 0.2}, "give one of them"),
        ({"sources": ("-",), "valid": ("-",)}, "standard input can be one of them"),
    ],
)
def test_what_contradicts_it_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        DataConfig(**{"valid": ("valid.txt",), **options})


def naive(train, valid, window):
    """The share of the validation text's windows, one after the other, that are in the training text."""
    spaces = str.maketrans("\t\n\r", "   ")
    train, valid = ([text.translate(spaces) for text in side] for side in (train, valid))
    stream = "\0".join([*valid, ""])
    windows = [stream[at : at + window] for at in range(0, len(stream) - window + 1, window)]
    windows = [text for text in windows if "\0" not in text]
    return sum(any(text in document for document in train) for text in windows) / len(windows)


@pytest.mark.parametrize("held", [1 << 25, 0])
def test_the_share_is_that_of_a_search(tmp_path, monkeypatch, held):
    monkeypatch.setattr(corpus, "HELD_BYTES", held)
    train = [prose(seed, 20) for seed in range(5)]
    valid = [prose(90), train[1][300:900], "short", prose(91)[:700] + train[3][500:1100].replace(" ", "\n")]
    for n, text in enumerate(train):
        (tmp_path / f"train{n}.txt").write_text(text)
    for n, text in enumerate(valid):
        (tmp_path / f"valid{n}.txt").write_text(text)
    sides = [Corpus.read([str(tmp_path / f"{side}*.txt")]) for side in ("train", "valid")]
    found = overlap.overlap(*sides, tmp_path / "cache", lambda done: None)
    assert found.share == pytest.approx(naive(train, valid, 64))
    assert 0.2 < found.share < 0.8 and found.equal == 0
    assert f"{found.share:.1%} of the validation text" in found.sentence()


def test_blocks_share_the_windows_across_their_ends(tmp_path, monkeypatch):
    text = prose(4, 400)
    (tmp_path / "train.txt").write_text(prose(5) + text)
    (tmp_path / "valid.txt").write_text(text)
    sides = [Corpus.read([str(tmp_path / f"{side}.txt")]) for side in ("train", "valid")]
    monkeypatch.setattr(overlap, "_BLOCK", 1000)
    assert overlap.overlap(*sides, tmp_path / "none", lambda done: None).share == 1.0
    monkeypatch.setattr(overlap, "MOST_WINDOWS", 50)
    assert overlap.overlap(*sides, tmp_path / "other", lambda done: None).share == 1.0


def test_equal_documents_are_counted_and_short_texts_have_no_share(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "valid.jsonl").write_text('{"text": "two"}\n{"text": "three"}\n')
    sides = [Corpus.read([str(tmp_path / f"{side}.jsonl")]) for side in ("train", "valid")]
    found = overlap.overlap(*sides, tmp_path / "cache", lambda done: None)
    assert found == overlap.Overlap(None, 1, 2)
    assert "1 of the 2 validation documents is a training document too" in found.sentence()


def test_the_share_is_computed_once_for_all_processes(texts, monkeypatch):
    first = prepare(config(texts), cache_dir=texts / "cache").facts
    monkeypatch.setattr(overlap, "_share", None)
    assert prepare(config(texts), cache_dir=texts / "cache").facts == first


def test_reports_compare_by_the_validation_text():
    def told(**corpus):
        return {"corpus": {"sha256": "a", **corpus}}

    assert joined.texts([told(valid_sha256="v"), told(valid_sha256="v", sha256="b")]) == ""
    assert "different texts" in joined.texts([told(valid_sha256="v"), told(valid_sha256="w")])
    assert "different texts" in joined.texts([told(valid_sha256="v"), told()])


def test_the_verbs_take_it_and_a_resume_keeps_it(texts, monkeypatch, capsys):
    monkeypatch.setattr(machine, "measure", lambda device=None, refresh=False: FAKE)
    monkeypatch.setenv("MIXLAB_CACHE", str(texts / "cache"))
    monkeypatch.chdir(texts)
    small = ["model.dim=16", "model.depth=1", "model.context=16", "train.batch_tokens=64"]
    small = [word for key in small for word in ("--set", key)]
    train = ["train", "train.txt", "--valid", "valid.txt", "--preset", "gru", "--steps", "2", "--out", "r"]
    assert run([*train, *small]) == 0
    assert json.loads((texts / "r/data.json").read_text())["valid_bytes"] == len(VALID) + 1
    assert run(["train", "--resume", "r", "--steps", "3"]) == 0
    capsys.readouterr()
    last = json.loads((texts / "r/metrics.jsonl").read_text().splitlines()[-1])
    assert run(["evaluate", "r", "valid.txt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bits_per_byte"] == pytest.approx(last["bits_per_byte"], rel=1e-6)
    (texts / "valid.txt").write_text(VALID + "More.\n")
    assert run(["train", "--resume", "r", "--steps", "4"]) == 2
    assert "text.valid_sha256" in capsys.readouterr().err
    assert run(["train", "--resume", "r", "--valid", "valid.txt"]) == 2
    assert run([*train, "--set", "data.valid=[]"]) == 2
    command = ["compare", "train.txt", "--valid", "valid.txt", "--models", "ngram", "--steps", "2"]
    assert run([*command, "--context", "16"]) == 0
    told = json.loads((texts / "comparison/comparison.json").read_text())["corpus"]
    assert told["valid_sources"] == ["valid.txt"] and told["train_bytes"] == len(TRAIN) + 1
    assert "valid.txt" in (texts / "comparison/report.html").read_text()
