"""A text that is only looked at: nothing is written; what is told of it is exact, or said to be estimated."""

from __future__ import annotations

import json
import random

import pytest

from mixlab.data import preparation, prepare, survey
from mixlab.data.config import DataConfig

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "wizards"]


@pytest.fixture
def folder(tmp_path):
    """Two files of documents, some 40 000 characters in all."""
    draw = random.Random(0)
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("one", "two"):
        lines = (json.dumps({"text": " ".join(draw.choices(WORDS, k=40))}) for _ in range(100))
        (texts / f"{name}.jsonl").write_text("\n".join(lines))
    return texts


def looked(config, cache, notes=None):
    return prepare(config, cache_dir=cache, notes=notes, look=True, processes=1)


def lengths(dataset):
    return len(dataset.train), len(dataset.valid), dataset.tokenizer.vocab_size


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe"])
@pytest.mark.parametrize("kept", [False, True])
def test_a_short_text_or_one_in_the_cache_is_known_exactly(folder, tmp_path, tokenizer, kept, monkeypatch):
    config = DataConfig(sources=(str(folder),), tokenizer=tokenizer, vocab_size=300)
    cache = tmp_path / "cache"
    expected = prepare(config, cache_dir=cache if kept else tmp_path / "other", processes=1)
    if kept:
        monkeypatch.setattr(preparation, "LOOKED", 100)
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    notes = []
    assert lengths(looked(config, cache, notes.append)) == lengths(expected)
    assert notes == []
    assert {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()} == before
    assert cache.exists() == kept


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe"])
@pytest.mark.parametrize("own", [False, True])
def test_a_long_text_is_estimated_from_its_beginning_and_that_is_said(
    folder, tmp_path, tokenizer, own, monkeypatch
):
    sources, valid = (
        ((str(folder / "one.jsonl"),), (str(folder / "two.jsonl"),)) if own else ((str(folder),), ())
    )
    config = DataConfig(sources=sources, valid=valid, tokenizer=tokenizer, vocab_size=300)
    for module in (preparation, survey):
        monkeypatch.setattr(module, "LOOKED", 10_000)
    notes = []
    found = looked(config, tmp_path / "cache", notes.append)
    expected = prepare(config, cache_dir=tmp_path / "other", processes=1)
    assert [len(found.train), len(found.valid)] == pytest.approx(
        [len(expected.train), len(expected.valid)], rel=0.1 if tokenizer == "bpe" else 0.02
    )
    assert found.tokenizer.vocab_size == expected.tokenizer.vocab_size
    assert len(notes) == 1
    assert notes[0].startswith("lengths are estimated from the first 10,000 of ")
    assert notes[0].endswith("not in the cache yet, and nothing is written")
    assert not (tmp_path / "cache").exists()


def test_a_mixture_is_estimated_source_by_source(folder, tmp_path, monkeypatch):
    sources = tuple(str(folder / f"{name}.jsonl") for name in ("one", "two"))
    config = DataConfig(sources=sources, weights=(3.0, 1.0))
    for module in (preparation, survey):
        monkeypatch.setattr(module, "LOOKED", 5_000)
    found = looked(config, tmp_path / "cache")
    expected = prepare(config, cache_dir=tmp_path / "other", processes=1)
    for ours, theirs in zip(found.train.parts, expected.train.parts, strict=True):
        assert (ours.name, ours.num_documents) == (theirs.name, theirs.num_documents)
        assert ours.stop - ours.start == pytest.approx(theirs.stop - theirs.start, rel=0.02)
