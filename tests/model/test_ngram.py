"""The n-gram's estimates against the oracle and closed forms, and its edges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles.ngram import START, NaiveNGram

from mixlab.errors import UserError
from mixlab.model.ngram import NGram
from mixlab.model.ngram_estimate import FALLBACK_DISCOUNTS, discounts

SHAKESPEARE = Path(__file__).parents[3] / "shared" / "data" / "tinyshakespeare" / "input.txt"


def skewed(seed: int, size: int, vocab_size: int) -> list[int]:
    """Tokens with frequencies like those of a text, so that counts 1, 2, 3 and 4 all occur."""
    weights = 1 / np.arange(1, vocab_size + 1)
    draws = np.random.default_rng(seed).choice(vocab_size, size=size, p=weights / weights.sum())
    return draws.tolist()


few_tokens = st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=4).filter(any)
two_texts = st.tuples(st.integers(0, 999), st.integers(50, 400))
text_like = two_texts.map(lambda drawn: [skewed(*drawn, 12), skewed(drawn[0] + 1, 40, 12)])
corpora = st.one_of(st.tuples(few_tokens, st.integers(5, 9)), st.tuples(text_like, st.integers(12, 14)))


def oracle_log_prob(oracle: NaiveNGram, tokens: list[int], start: bool) -> list[float]:
    seen = [START, *tokens] if start else [None, *tokens]
    return [
        float(np.log(oracle.prob(tuple(t for t in seen[: i + 1] if t is not None), token)))
        for i, token in enumerate(tokens)
    ]


@settings(max_examples=200)
@given(corpus=corpora, order=st.integers(1, 5), seed=st.integers(0, 999), start=st.booleans())
def test_every_probability_is_the_oracles(corpus, order, seed, start):
    documents, vocab_size = corpus
    model = NGram.train(documents, order=order, vocab_size=vocab_size)
    oracle = NaiveNGram(documents, order, vocab_size)
    seen = max(documents, key=len)[:30]
    other = np.random.default_rng(seed).integers(vocab_size, size=20).tolist()
    for tokens in (seen, other, seen[: len(seen) // 2] + other):
        expected = oracle_log_prob(oracle, tokens, start)
        np.testing.assert_allclose(model.log_prob(tokens, start=start), expected, rtol=0, atol=1e-10)


def test_both_discount_branches_are_met_by_the_corpora_above():
    formula, fallback = NaiveNGram([skewed(0, 300, 12)], 3, 12), NaiveNGram([[0, 1, 0]], 3, 12)
    assert formula.discount[3][1:] != FALLBACK_DISCOUNTS
    assert fallback.discount[3][1:] == FALLBACK_DISCOUNTS


@settings(max_examples=20)
@given(
    corpus=corpora,
    order=st.integers(1, 8),
    context=st.lists(st.integers(0, 11), max_size=9),
    start=st.booleans(),
)
def test_distributions_sum_to_one_after_seen_and_unseen_contexts(corpus, order, context, start):
    documents, vocab_size = corpus
    model = NGram.train(documents, order=order, vocab_size=vocab_size)
    for before in ([t % vocab_size for t in context], max(documents, key=len)[:6]):
        rows = [[*before, token] for token in range(vocab_size)]
        assert np.exp(model.log_prob(rows, start=start)[:, -1]).sum() == pytest.approx(1, abs=1e-12)


def test_discounts_are_chen_and_goodmans():
    counts = np.repeat([1, 2, 3, 4, 9], [10, 4, 2, 1, 3])
    y = 10 / 18
    expected = [0, 1 - 2 * y * 4 / 10, 2 - 3 * y * 2 / 4, 3 - 4 * y * 1 / 2]
    np.testing.assert_allclose(discounts(counts), expected, rtol=1e-15)


@pytest.mark.parametrize(
    "frequencies",
    [[0, 4, 2, 1], [10, 0, 2, 1], [10, 4, 0, 1], [10, 4, 2, 0], [1, 1, 9, 1], [10, 4, 1, 9], [0, 0, 0, 0]],
)
def test_discounts_fall_back_where_the_formula_says_nothing(frequencies):
    assert tuple(discounts(np.repeat([1, 2, 3, 4], frequencies))[1:]) == FALLBACK_DISCOUNTS


def test_a_bigram_worked_by_hand():
    # <s> a b a: bigrams <s>a, ab, ba. Before a stand <s> and b, before b stands a: continuations 2 and 1.
    # The corpus is too small for the formula, so D = (0.5, 1, 1.5).
    model = NGram.train([0, 1, 0], order=2, vocab_size=4)
    unigram = [(2 - 1.0) / 3 + 0.5 / 4, (1 - 0.5) / 3 + 0.5 / 4, 0.5 / 4, 0.5 / 4]
    after_a = [0.5 * p for p in unigram]
    after_a[1] += 0.5
    found = model.log_prob([[0, token] for token in range(4)], start=False)
    np.testing.assert_allclose(np.exp(found[:, 1]), after_a, rtol=1e-14)
    assert np.exp(found[0, 0]) == pytest.approx(unigram[0], rel=1e-14)


def test_a_token_never_seen_has_its_share_of_the_uniform_everywhere():
    model = NGram.train([0, 1, 2, 0, 1, 2, 0], order=4, vocab_size=50)
    found = model.log_prob([0, 1, 2, 49, 49, 30])
    assert np.all(np.isfinite(found))
    assert (
        found[5] == model.log_prob([7], start=False)[0]
    )  # 49 was never seen: all of its context is forgotten


@pytest.mark.parametrize("order", range(1, 9))
@pytest.mark.parametrize("documents", [[3], [[3]], [[], [0], []], [[0], [0, 1]]])
def test_documents_shorter_than_the_order_are_counted(documents, order):
    model = NGram.train(documents, order=order, vocab_size=5)
    rows = np.exp(model.log_prob([[token] for token in range(5)]))
    assert rows.sum() == pytest.approx(1, abs=1e-12)
    assert model.order == order


def test_nothing_is_learned_across_two_documents():
    apart, together = NGram.train([[0, 1], [2, 3]], order=2), NGram.train([0, 1, 2, 3], order=2)
    assert together.log_prob([1, 2])[1] > together.log_prob([1, 3])[1]
    assert apart.log_prob([1, 2])[1] == apart.log_prob([1, 3])[1]  # 1 ended its document: nothing follows
    assert apart.log_prob([2])[0] > apart.log_prob([1])[0]


@pytest.mark.parametrize("order", [3, 8])
def test_a_large_vocabulary_packs_into_the_same_counts_as_a_small_one(order):
    small = np.array(skewed(5, 3000, 200))
    spread = small * 5243  # ids up to 2^20, in the same order
    near, far = (NGram.train(ids, order=order, vocab_size=1 << 20) for ids in (small, spread))
    np.testing.assert_array_equal(near.log_prob(small), far.log_prob(spread))
    assert near.parameters == far.parameters


def test_windows_too_wide_for_one_sort_are_ranked_as_tuples_are():
    from mixlab.model.ngram_estimate import _sort_windows

    vocab_size, order = 5000, 8  # 8 x 12.3 bits: two sorts
    text = np.random.default_rng(0).integers(vocab_size, size=6000)
    text[3000:] = text[:3000]
    stream = np.concatenate([[vocab_size], text, [vocab_size]])
    rank, at = _sort_windows(stream, order, vocab_size)
    padded = np.concatenate([stream, np.full(order, vocab_size)]).tolist()
    windows = [tuple(padded[i : i + order]) for i in range(len(stream))]
    rows = {window: row for row, window in enumerate(sorted(set(windows)))}
    assert rank.tolist() == [rows[window] for window in windows]
    assert [windows[i] for i in at] == list(rows)


def test_the_forms_a_corpus_may_take_agree():
    import torch

    text = skewed(3, 200, 20)
    reference = NGram.train(text, order=3, vocab_size=20).log_prob(text)
    for form in (np.array(text, np.uint8), torch.tensor(text), [np.array(text, np.uint16)], np.array([text])):
        np.testing.assert_array_equal(NGram.train(form, order=3, vocab_size=20).log_prob(text), reference)
    assert NGram.train(text, order=3).vocab_size == max(text) + 1


def test_rows_are_scored_apart():
    model = NGram.train(skewed(3, 300, 10), order=4, vocab_size=10)
    rows = np.array([skewed(s, 15, 10) for s in range(4)])
    np.testing.assert_array_equal(model.log_prob(rows), np.stack([model.log_prob(row) for row in rows]))
    assert model.log_prob([]).shape == (0,)
    assert model.log_prob(np.empty((3, 0), int)).shape == (3, 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"tokens": [1, 2], "order": 0}, "from 1 to 8"),
        ({"tokens": [1, 2], "order": 9}, "from 1 to 8"),
        ({"tokens": []}, "corpus is empty"),
        ({"tokens": [[], []]}, "corpus is empty"),
        ({"tokens": [0, 7, 2], "vocab_size": 7}, "token 7 at position 1 is outside the vocabulary"),
        ({"tokens": [[0], [-1]], "vocab_size": 7}, "token -1 at position 0 is outside the vocabulary"),
        ({"tokens": [0.5, 1.0]}, "must be integers"),
        ({"tokens": "text"}, "must be integers"),
        ({"tokens": [[[0]]]}, "document 0 has 2 dimensions"),
        ({"tokens": [0, [1]]}, "must be an array of integers"),
    ],
)
def test_bad_input_gets_a_sentence(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        NGram.train(arguments.pop("tokens"), **arguments)


def test_scoring_refuses_what_the_vocabulary_does_not_hold():
    model = NGram.train([0, 1, 2], order=2, vocab_size=3)
    with pytest.raises(UserError, match="token 3 at position 1"):
        model.log_prob([0, 3])
    with pytest.raises(UserError, match="3 dimensions"):
        model.log_prob(np.zeros((1, 1, 1), int))


def test_tiny_shakespeare_costs_what_it_should():
    if not SHAKESPEARE.exists():
        pytest.skip(f"{SHAKESPEARE} is absent")
    text = np.frombuffer(SHAKESPEARE.read_bytes(), np.uint8)
    characters, ids = np.unique(text, return_inverse=True)
    cut = len(ids) * 9 // 10
    model = NGram.train(ids[:cut], order=6, vocab_size=len(characters))
    # What the oracle gives on this split; KenLM's lmplz, trained on the lines, makes equal estimates.
    assert -model.log_prob(ids[cut:]).mean() == pytest.approx(1.5226140, abs=1e-6)
