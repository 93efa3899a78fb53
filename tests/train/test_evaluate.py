from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import mixlab
from mixlab.data import TokenFile, make_tokenizer, prepare_single
from mixlab.errors import RunFailed
from mixlab.model import language_model
from mixlab.train.evaluate import EvaluationStopped, evaluate

TOKENS = np.array([0, *np.random.default_rng(0).integers(1, 11, size=100)], dtype=np.uint8)
TEXT = TokenFile(TOKENS, 250)


@pytest.fixture
def model():
    return mixlab.build_model({"vocab_size": 11, "dim": 16, "depth": 1, "context": 8, "dropout": 0.5})


def test_the_number_is_that_of_a_loop_over_tokens(model):
    found = evaluate(model, TEXT, context=8, batch_size=3)
    model.eval()
    nats = [[] for _ in range(8)]
    for start in range(0, 100, 8):
        window = torch.tensor(TOKENS[start : start + 9].astype(np.int64))
        for i in range(len(window) - 1):
            log_probs = model(window[None, : i + 1]).logits[0, -1].log_softmax(-1)
            nats[i].append(-log_probs[window[i + 1]].item())
    total = sum(map(sum, nats))
    assert found.tokens == 100
    assert found.nats_per_token == pytest.approx(total / 100, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / 250, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(total / 100), rel=1e-4)
    assert found.loss_by_position == pytest.approx([sum(x) / len(x) for x in nats], rel=1e-5)


def test_the_batch_size_changes_nothing_and_the_mode_comes_back(model):
    model.train()
    first, second = (evaluate(model, TEXT, context=8, batch_size=b) for b in (1, 50))
    assert first.nats_per_token == pytest.approx(second.nats_per_token, rel=1e-6)
    assert model.training


def test_a_uniform_scorer_costs_the_logarithm_of_the_vocabulary(model):
    with torch.no_grad():
        model.head.weight.zero_()
    found = evaluate(model, TEXT, context=16)
    assert found.nats_per_token == pytest.approx(math.log(11), rel=1e-6)
    assert found.loss_by_position == pytest.approx([math.log(11)] * 16, rel=1e-6)


def test_an_ngram_is_scored_in_the_same_way():
    ngram = mixlab.NGram.train(TOKENS, order=3, vocab_size=11)
    found = evaluate(ngram, TEXT, context=8)
    total = sum(
        -ngram.score(
            torch.tensor(w[None, :-1].astype(np.int64)), torch.tensor(w[None, 1:].astype(np.int64))
        ).sum()
        for w in (TOKENS[s : s + 9] for s in range(0, 100, 8))
    )
    assert found.nats_per_token == pytest.approx(float(total) / 100, rel=1e-6)


@pytest.mark.parametrize("rows", [1, 100])
def test_a_requested_stop_ends_it_also_inside_a_batch(model, rows):
    ran, head = [], model.norm.register_forward_hook(lambda *given: ran.append(given))
    with pytest.raises(EvaluationStopped):
        evaluate(model, TEXT, context=8, batch_size=rows, stop=iter([False, True]).__next__)
    head.remove()
    assert not ran  # not even the first batch came past its one block
    assert evaluate(model, TEXT, context=8).tokens == 100  # nobody is asked any more


def test_bfloat16_is_near_float32_and_is_not_the_same(model):
    exact, rounded = (
        evaluate(model, TEXT, context=8, dtype=d).nats_per_token for d in ("float32", "bfloat16")
    )
    assert exact != rounded
    assert exact == pytest.approx(rounded, rel=1e-2)


DOCUMENTS = ["a first line\n", "été, naïve", "", "日本", "the last"]


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_bytes_are_the_documents_utf8_and_one_for_each_end(kind, tmp_path):
    """In closed form: with logits of 0 every token, ends included, costs log2 V bits."""
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in DOCUMENTS))
    tokenizer = make_tokenizer(kind, DOCUMENTS, vocab_size=300)
    text, _ = prepare_single([str(path)], tokenizer)
    kept = [document for document in DOCUMENTS if document]
    tokens = sum(len(tokenizer.encode(document)) + 1 for document in kept)
    size = sum(len(document.encode()) + 1 for document in kept)
    V = tokenizer.vocab_size
    uniform = mixlab.build_model({"vocab_size": V, "dim": 16, "depth": 1, "context": 8})
    with torch.no_grad():
        uniform.head.weight.zero_()
    found = evaluate(uniform, text, context=8)
    assert (found.tokens, found.bytes) == (tokens, size)
    assert found.bits_per_byte == pytest.approx(tokens * math.log2(V) / size, rel=1e-6)
    counted = evaluate(mixlab.NGram.train(text.tokens, order=2, vocab_size=V), text, context=8)
    assert (counted.tokens, counted.bytes) == (tokens, size)
    assert counted.bits_per_byte == pytest.approx(counted.nats_per_token * tokens / math.log(2) / size)


def test_a_large_vocabulary_is_scored_in_chunks_to_the_same(model, monkeypatch):
    whole = evaluate(model, TEXT, context=8)
    monkeypatch.setattr(language_model, "CHUNK_LOGITS", 5 * 11)
    seen = []
    real = type(model).logits
    monkeypatch.setattr(type(model), "logits", lambda self, x: seen.append(len(x)) or real(self, x))
    assert evaluate(model, TEXT, context=8).nats_per_token == pytest.approx(whole.nats_per_token, rel=1e-6)
    assert max(seen) == 5


def short_of(monkeypatch, model, most):
    """Let more than so many rows at a time run out of memory, in their middle."""
    real, seen = type(model).score, []

    def score(self, inputs, targets):
        seen.append(len(inputs))
        if len(inputs) > most:
            raise torch.OutOfMemoryError
        return real(self, inputs, targets)

    monkeypatch.setattr(type(model), "score", score)
    return seen


def test_where_memory_is_short_fewer_windows_go_at_a_time(model, monkeypatch):
    expected = evaluate(model, TEXT, context=8, batch_size=3)
    seen = short_of(monkeypatch, model, 3)
    assert evaluate(model, TEXT, context=8, batch_size=12) == expected
    assert seen == [12, 6, 3, 3, 3, 3, 1]  # the last is half a window


def test_where_not_even_one_fits_it_fails_in_a_sentence_and_the_mode_comes_back(model, monkeypatch):
    short_of(monkeypatch, model, 0)
    model.train()
    with pytest.raises(RunFailed, match="not even one window of 8 tokens"):
        evaluate(model, TEXT, context=8)
    assert model.training


def test_by_default_the_tokens_at_a_time_are_the_same_whatever_the_context(model, monkeypatch):
    seen = short_of(monkeypatch, model, 99)
    monkeypatch.setattr("mixlab.train.evaluate.TOKENS", 32)
    for context in (4, 16, 64):
        evaluate(model, TEXT, context=context)
    assert seen == [8, 8, 8, 1, 2, 2, 2, 1, 1, 1]
