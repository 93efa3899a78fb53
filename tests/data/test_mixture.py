"""Sources with weights: each has both sides, and one entry of the cache serves all weights."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mixlab.data import DataConfig, prepare
from mixlab.data.dataset import prepare_single
from mixlab.data.tokenizer import ByteTokenizer
from mixlab.errors import UserError

PROSE = "It was a bright cold day in April, and the clocks were striking thirteen.\n"


@pytest.fixture
def sources(tmp_path):
    """A file, a folder of many, and rows."""
    folder = tmp_path / "text"
    (folder / "many").mkdir(parents=True)
    (folder / "one.txt").write_text(PROSE * 30)
    for n in range(60):
        (folder / "many" / f"{n:02}.txt").write_text(f"{n} " * (5 + n % 7))
    rows = "".join(json.dumps({"text": f"row {n} " * 9}) + "\n" for n in range(40))
    (folder / "rows.jsonl").write_text(rows)
    return tuple(str(folder / name) for name in ("one.txt", "many", "rows.jsonl"))


def config(sources, *weights, **options):
    return DataConfig(sources=sources, weights=weights, **options)


def test_each_source_is_split_by_itself_and_its_part_is_its_stream(sources, tmp_path):
    data = prepare(config(sources, 3, 1, 1), cache_dir=tmp_path / "cache")
    assert [part.name for part in data.train.parts] == ["one.txt", "many", "rows.jsonl"]
    for n, source in enumerate(sources):
        alone = prepare(DataConfig(sources=source), cache_dir=tmp_path / "alone")
        for mixed, own in ((data.train, alone.train), (data.valid, alone.valid)):
            part = mixed.parts[n]
            assert np.array_equal(part.of(mixed.tokens), own.tokens)
            assert (part.num_bytes, part.num_documents) == (own.num_bytes, own.num_documents)
    assert data.train.num_bytes == sum(part.num_bytes for part in data.train.parts)
    assert data.facts["train_documents"] == sum(part.num_documents for part in data.train.parts)


def test_facts_say_shares_and_sizes(sources, tmp_path):
    facts = prepare(config(sources, 3, 1, 1), cache_dir=tmp_path / "cache").facts
    assert json.loads(json.dumps(facts)) == facts
    assert [fact["share"] for fact in facts["mixture"]] == [0.6, 0.2, 0.2]
    assert sum(fact["train_tokens"] for fact in facts["mixture"]) == facts["train_tokens"]
    assert sum(fact["valid_bytes"] for fact in facts["mixture"]) == facts["valid_bytes"]
    assert (
        facts["split"].startswith("of each source the last 0.1") and "; or whole documents" in facts["split"]
    )


def test_other_weights_need_no_other_tokens_but_other_sources_do(sources, tmp_path, monkeypatch):
    first = prepare(config(sources, 3, 1, 1), cache_dir=tmp_path)
    plain = prepare(DataConfig(sources=sources), cache_dir=tmp_path)
    assert plain.train.parts == () and plain.facts["sha256"] == first.facts["sha256"]
    monkeypatch.setattr(ByteTokenizer, "encode", None)
    second = prepare(config(sources, 1, 5, 0.5), cache_dir=tmp_path)
    assert second.train.parts == first.train.parts and second.weights == (1, 5, 0.5)
    monkeypatch.undo()
    swapped = prepare(config(sources[::-1], 3, 1, 1), cache_dir=tmp_path)
    assert len(list((tmp_path / "tokens").iterdir())) == 3
    assert swapped.train.parts[2].num_bytes == first.train.parts[0].num_bytes


def test_the_same_documents_divided_otherwise_among_sources_have_an_entry_of_their_own(tmp_path):
    for name, rows in (("a", 10), ("b", 30), ("c", 30), ("d", 10)):
        start = {"a": 0, "b": 10, "c": 0, "d": 30}[name]
        lines = [json.dumps({"text": f"row {n} " * 9}) for n in range(start, start + rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    ab, cd = (
        prepare(
            config(tuple(str(tmp_path / f"{n}.jsonl") for n in names), 1, 1), cache_dir=tmp_path / "cache"
        )
        for names in ("ab", "cd")
    )
    assert ab.facts["sha256"] == cd.facts["sha256"]
    assert ab.train.parts[0].stop < cd.train.parts[0].stop


def test_sources_of_the_same_name_are_told_apart_by_their_paths(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(PROSE * 9)
    sources = tuple(str(tmp_path / name / "text.txt") for name in ("a", "b"))
    data = prepare(config(sources, 1, 1), cache_dir=tmp_path / "cache")
    assert [part.name for part in data.valid.parts] == list(sources)


def test_training_draws_in_the_shares_asked_for(sources, tmp_path):
    data = prepare(config(sources, 3, 1, 1), cache_dir=tmp_path)
    batches = data.batches(context=8, batch_size=10, seed=0)
    for _ in range(30):
        batches.next()
    assert batches.quota.turns == [180, 60, 60]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ((1,), "weights has 1 number for 3 sources: give one for each source, in their order"),
        ((1, 2, 3, 4), "weights has 4 numbers for 3 sources"),
        ((1, 0, 3), "weights holds 0; each must be a positive number"),
        ((1, -2, 3), "weights holds -2"),
        ((1, float("inf"), 3), "weights holds inf"),
        ((1, float("nan"), 3), "weights holds nan"),
    ],
)
def test_weights_that_cannot_work_are_refused(sources, weights, words):
    with pytest.raises(UserError, match=words):
        config(sources, *weights)


def test_what_no_mixture_can_be_made_of_is_one_sentence(sources, tmp_path):
    one, many, _ = sources
    with pytest.raises(UserError, match="no text was named"):
        DataConfig(sources=(), weights=())
    with pytest.raises(UserError, match="is named twice: with weights, name each source once"):
        config((one, one), 1, 1)
    inside = f"{many}/00.txt"
    with pytest.raises(UserError, match=r"'.*00.txt' holds no text of its own, .*: read 1 file once"):
        prepare(config((many, inside), 1, 1), cache_dir=tmp_path)
    (tmp_path / "short.txt").write_text("x")
    with pytest.raises(UserError, match=r"'.*short.txt': the text holds only 1 character, too few"):
        prepare(config((one, str(tmp_path / "short.txt")), 1, 1), cache_dir=tmp_path)
    with pytest.raises(UserError, match=r"training part of the text of 'many' is \d+ tokens long"):
        prepare(config((one, many), 1, 1), cache_dir=tmp_path, context=1990)
    with pytest.raises(UserError, match="unknown packing 'document'"):
        DataConfig(packing="document")
    with pytest.raises(UserError, match="valid_tokens is -1; it must be 0"):
        DataConfig(valid_tokens=-1)


def test_of_a_long_validation_side_a_part_is_scored_and_that_is_said(sources, tmp_path):
    data = prepare(DataConfig(sources=sources[0], valid_tokens=100), cache_dir=tmp_path)
    (sentence,) = data.facts["notes"]
    assert sentence == (
        "evaluations score 100 of the 223 tokens kept aside, in evenly spread windows (data.valid_tokens)"
    )
    assert data.valid.scored == 100 and len(data.valid) == 224
    whole = prepare(DataConfig(sources=sources[0], valid_tokens=223), cache_dir=tmp_path)
    assert whole.valid.scored == 0 and whole.facts["notes"] == []
    file, _ = prepare_single([sources[0]], ByteTokenizer(), cache_dir=tmp_path)
    assert file.scored == 0 and file.parts == ()


def test_a_mixture_in_memory_has_its_parts_too(sources, tmp_path):
    (tmp_path / "file").write_text("in the way")
    data = prepare(config(sources, 3, 1, 1), cache_dir=tmp_path / "file")
    there = prepare(config(sources, 3, 1, 1), cache_dir=tmp_path / "cache")
    assert not isinstance(data.train.tokens, np.memmap)
    assert data.train.parts == there.train.parts and data.valid.parts == there.valid.parts
