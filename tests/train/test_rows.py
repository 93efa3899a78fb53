"""Packed documents and mixtures in a run: exact over a resume, evaluated as they are trained, said beside."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mixlab.config import parse, to_mapping
from mixlab.data import TokenFile, prepare
from mixlab.errors import UserError
from mixlab.model.language_model import LanguageModel
from mixlab.model.ngram import NGramConfig
from mixlab.train import counted
from mixlab.train.config import RunConfig
from mixlab.train.counted import spread, tokens_to_count
from mixlab.train.evaluate import evaluate
from mixlab.train.loop import train
from mixlab.train.metrics import read_metrics
from mixlab.train.run import open_run

from .helpers import record, stop_at


def quiet(line):
    """Take every line and say nothing."""


@pytest.fixture
def rows(text, tmp_path):
    """Two sources: the text, whole, and its lines as documents."""
    lines = [json.dumps({"text": line}) for line in text.read_text().splitlines()]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    return (str(text), str(path))


@pytest.fixture
def made(config, rows):
    """The config of tiny runs with other [data] keys."""

    def make(**data):
        tables = to_mapping(config)
        tables["data"] |= {"sources": list(rows), **data}
        return parse(RunConfig, tables)

    return make


PACKED = {"packing": "documents"}
MIXED = {"weights": [3, 1]}


@pytest.mark.parametrize("data", [PACKED, MIXED, PACKED | MIXED], ids=["packed", "mixed", "both"])
def test_a_stopped_and_resumed_run_is_the_uninterrupted_one(made, tmp_path, data):
    config = made(**data)
    config = replace(config, model=replace(config.model, temporal=("attention", "rwkv7")))
    notes = []
    train(config, tmp_path / "straight", progress=lambda line: notes.append(line.get("message", "")))
    for step in (1, 3, 6):
        train(config, tmp_path / "stopped", resume=step > 1, progress=stop_at(step))
    train(config, tmp_path / "stopped", resume=True, progress=quiet)
    assert record(tmp_path / "stopped") == record(tmp_path / "straight")
    packed = [note for note in notes if note.startswith("rows of 16 tokens are packed from")]
    assert bool(packed) == ("packing" in data)


def test_the_model_is_given_the_numbers_of_the_documents_in_every_micro_batch(made, tmp_path, monkeypatch):
    real, seen = LanguageModel.losses, []

    def losses(self, inputs, targets, **rest):
        seen.append((inputs, rest["segment"]))
        return real(self, inputs, targets, **rest)

    monkeypatch.setattr(LanguageModel, "losses", losses)
    config = made(**PACKED)
    train(config, tmp_path / "run", progress=stop_at(2))
    assert len(seen) == 4  # two micro-batches a step
    rows = config.train.rows(16)
    batches = prepare(config.data).batches(context=16, batch_size=rows, seed=config.train.seed)
    numbers = []
    for step in (seen[:2], seen[2:]):
        inputs, _, segment = batches.next()
        assert torch.equal(torch.cat([piece for piece, _ in step]), inputs)
        assert torch.equal(torch.cat([piece for _, piece in step]), segment)
        numbers.append(segment)
    assert torch.cat(numbers).max() > 0


def test_packing_and_weights_change_what_is_drawn(made):
    kinds = ({}, PACKED, MIXED, PACKED | MIXED)
    drawn = [prepare(made(**data).data).batches(context=16, batch_size=4, seed=0).next() for data in kinds]
    assert [len(batch) for batch in drawn] == [2, 3, 2, 3]
    assert len({batch[0].numpy().tobytes() for batch in drawn}) == 4


def test_other_weights_are_another_config_with_which_the_text_begins_afresh_by_force(made, tmp_path):
    train(made(**MIXED), tmp_path / "run", progress=stop_at(3))
    other, said = made(weights=[1, 1]), []
    with pytest.raises(UserError, match=r"data\.weights \(\[3\.0, 1\.0\], now \[1\.0, 1\.0\]\)"):
        train(other, tmp_path / "run", resume=True, progress=quiet)
    train(
        other,
        tmp_path / "run",
        resume=True,
        force=True,
        progress=lambda line: said.append(line.get("message", "")),
    )
    assert any("data.weights" in note and "the text begins afresh" in note for note in said)
    (line,) = read_metrics(tmp_path / "run" / "metrics.jsonl", "config")
    assert line["step"] == 3 and "data.weights" in line["changes"]
    assert len(record(tmp_path / "run", "step")) == 8


def test_a_mixtures_sources_are_scored_beside_the_total(made, tmp_path):
    config = made(**MIXED)
    train(config, tmp_path / "run", progress=quiet)
    data, scorer = prepare(config.data), open_run(tmp_path / "run").load()
    last = read_metrics(tmp_path / "run" / "metrics.jsonl", "eval")[-1]
    bits = {}
    for part in data.valid.parts:
        alone = TokenFile(part.of(data.valid.tokens), part.num_bytes)
        bits[part.name] = evaluate(scorer, alone, context=16, dtype="float32").bits_per_byte
    assert bits == pytest.approx(last["sources"], rel=1e-6) and set(bits) == {"text.txt", "rows.jsonl"}
    size = sum(part.num_bytes for part in data.valid.parts)
    total = sum(bits[part.name] * part.num_bytes / size for part in data.valid.parts)
    assert last["bits_per_byte"] == pytest.approx(total, rel=1e-6)
    assert "sources" not in evaluate(scorer, prepare(made().data).valid, context=16).line()


def test_a_model_of_packed_rows_is_evaluated_with_documents_apart(made, tmp_path):
    config = made(**PACKED)
    train(config, tmp_path / "run", progress=quiet)
    run = open_run(tmp_path / "run")
    scorer, valid = run.load(), prepare(config.data).valid
    found = evaluate(scorer, valid, context=16, dtype="float32")
    nats, by_place = 0.0, [[] for _ in range(16)]
    for start in range(0, len(valid) - 1, 16):
        window = torch.from_numpy(valid.tokens[start : start + 17].astype(np.int64))
        inputs, targets = window[:-1], window[1:]
        begins = [0, *(t for t in range(1, len(inputs)) if inputs[t] == 0), len(inputs)]
        for a, b in itertools.pairwise(begins):  # each document by itself
            scores = -scorer.score(inputs[None, a:b], targets[None, a:b])[0].double().detach()
            nats += float(scores.sum())
            for place, value in enumerate(scores.tolist()):
                by_place[place].append(value)
    assert found.nats_per_token == pytest.approx(nats / (len(valid) - 1), rel=1e-6)
    assert found.loss_by_position == pytest.approx([np.mean(values) for values in by_place if values])
    across = evaluate(scorer, replace(valid, apart=False), context=16, dtype="float32")
    assert abs(across.nats_per_token - found.nats_per_token) > 1e-4
    last = read_metrics(tmp_path / "run" / "metrics.jsonl", "eval")[-1]
    assert last["bits_per_byte"] == pytest.approx(found.bits_per_byte, rel=1e-6)
    assert run.evaluate(replace(valid, apart=False)).bits_per_byte == pytest.approx(found.bits_per_byte)


def test_a_sample_of_the_validation_text_is_scored_at_the_whole_texts_bytes_a_token(made):
    class Uniform:
        """log 2 for every token."""

        vocab_size = 2

        def score(self, inputs, targets):
            return torch.full(targets.shape, -math.log(2.0))

    for data in ({}, MIXED):
        valid = prepare(made(**data, tokenizer="bpe", vocab_size=300).data).valid
        whole = evaluate(Uniform(), valid, context=16, dtype="float32")
        some = evaluate(Uniform(), replace(valid, scored=64), context=16, dtype="float32")
        assert abs(some.tokens - 64) <= 16 * len(valid.parts)
        assert some.tokens < whole.tokens / 2
        assert some.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=0.05 if data else 1e-12)
        assert some.sources == pytest.approx(whole.sources)
        assert abs(some.bytes - whole.bytes * some.tokens / whole.tokens) < 0.05 * some.bytes


def counting(made, note=quiet, **keys):
    config = made(**keys.pop("data", {}))
    data = prepare(config.data)
    return data, tokens_to_count(data, NGramConfig(order=3, **keys), note)


def test_an_ngram_counts_the_whole_of_a_text_that_is_not_too_long(made):
    said = []
    data, (stream,) = counting(made, said.append)
    assert np.array_equal(stream, data.train.tokens) and not said
    _, streams = counting(made, said.append, max_tokens=len(data.train))
    assert len(streams) == 1 and not said
    assert len(counting(made, max_tokens=0)[1]) == 1


def test_of_a_longer_text_stretches_all_over_it_are_counted_and_that_is_said(made, monkeypatch):
    monkeypatch.setattr(counted, "STRETCH", 100)
    said = []
    data, streams = counting(made, said.append, max_tokens=1000)
    assert [len(stream) for stream in streams] == [100] * 10
    assert np.array_equal(streams[0], data.train.tokens[:100])
    assert np.array_equal(streams[-1], data.train.tokens[-100:])
    assert said == [
        f"the n-gram counts 1,000 of {len(data.train):,} tokens, evenly spread (ngram.max_tokens)"
    ]


@pytest.mark.parametrize(("n", "most"), [(1000, 999), (1000, 450), (1000, 100), (1000, 7), (101, 100)])
def test_stretches_do_not_overlap(monkeypatch, n, most):
    monkeypatch.setattr(counted, "STRETCH", 100)
    found = [token for stretch in spread(np.arange(n), most) for token in stretch.tolist()]
    assert len(set(found)) == len(found) <= most
    assert len(found) > most / 2


def test_an_ngram_counts_the_sources_of_a_mixture_in_their_proportions(made, tmp_path, monkeypatch):
    monkeypatch.setattr(counted, "STRETCH", 10)
    said = []
    data, streams = counting(made, said.append, data=MIXED)
    first, second = data.train.parts
    assert "in the proportions of data.weights" in said[0]
    total = sum(map(len, streams))
    assert len(streams[0]) == len(first.of(data.train.tokens))  # all of the one that is short of its share
    assert total - len(streams[0]) == pytest.approx(len(streams[0]) / 3, abs=10)
    assert all(set(stream.tolist()) <= set(second.of(data.train.tokens).tolist()) for stream in streams[1:])
    config = replace(made(**MIXED), model=None, ngram=NGramConfig(order=3))
    summary = train(config, tmp_path / "run", progress=quiet)
    assert summary["tokens"] == total - 1


def test_counting_that_memory_does_not_hold_is_refused_with_what_it_would(made, monkeypatch):
    monkeypatch.setattr(counted, "free_memory", lambda: 200_000)
    monkeypatch.setattr(counted, "TRIED", 500)
    with pytest.raises(UserError) as caught:
        counting(made)
    message = str(caught.value)
    assert "of memory, and 0.0 GB are free: set ngram.max_tokens to " in message
    most = int(message.rpartition(" to ")[2].removesuffix(" or less").replace(",", ""))
    counting(made, max_tokens=most)
    monkeypatch.setattr(counted, "free_memory", lambda: None)
    counting(made)


def test_the_memory_of_a_text_is_estimated_from_its_own_ngrams(made, monkeypatch):
    """Twelve words in random order need less than random tokens would."""
    data, streams = counting(made)
    worst = len(data.train) * (counted.TOKEN_BYTES + counted.GRAM_BYTES * 2)
    monkeypatch.setattr(counted, "free_memory", lambda: worst - 1)
    counted.check_memory(streams, 3, data.tokenizer.vocab_size)
