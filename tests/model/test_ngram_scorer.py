"""The n-gram behind the scorer protocol: steps, windows and distributions agree with log_prob."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.model.test_ngram import skewed

from mixlab.errors import UserError
from mixlab.model.ngram import NGram, NGramConfig

ORDERS = pytest.mark.parametrize("order", [1, 2, 5, 8])
V = 11


def model_and_rows(order: int, B: int = 3, T: int = 17) -> tuple[NGram, torch.Tensor]:
    model = NGram.train([skewed(s, 400, V - 1) for s in range(2)], order=order, vocab_size=V)
    return model, torch.tensor([skewed(100 + s, T + 1, V) for s in range(B)])


@ORDERS
def test_score_is_log_prob_of_the_window(order):
    model, rows = model_and_rows(order)
    found = model.score(rows[:, :-1], rows[:, 1:])
    assert found.dtype == torch.float32
    expected = model.log_prob(rows, start=False)[:, 1:].astype(np.float32)
    np.testing.assert_array_equal(found.numpy(), expected)


@ORDERS
def test_logits_are_the_scores_of_every_token(order):
    model, rows = model_and_rows(order)
    out = model(rows)
    assert out.state is None
    assert out.logits.dtype == torch.float32
    for token in range(V):  # targets that are not the next input: the context is still the inputs
        expected = model.score(rows, torch.full_like(rows, token))
        torch.testing.assert_close(out.logits[:, :, token], expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        out.logits.double().exp().sum(-1), torch.ones(rows.shape).double(), rtol=0, atol=1e-5
    )


@ORDERS
@pytest.mark.parametrize("pieces", [[1] * 18, [2, 9, 1, 6], [18]])
def test_pieces_with_a_state_are_the_whole(order, pieces):
    model, rows = model_and_rows(order)
    state, found = model.init_state(len(rows), 18), []
    for piece in rows.split(pieces, dim=1):
        out = model(piece, state)
        found.append(out.logits)
        state = out.state
    assert torch.equal(torch.cat(found, dim=1), model(rows).logits)
    assert state.tokens.nbytes == len(rows) * model.state_bytes(18, torch.float32)


def test_decoding_leaves_the_given_state_as_it_was():
    model, rows = model_and_rows(4)
    state = model.init_state(len(rows), 8)
    model(rows, state)
    assert torch.equal(state.tokens, model.init_state(len(rows), 8).tokens)


def test_the_bookkeeping_adds_up():
    model = NGram.train([0, 1, 0], order=2, vocab_size=4)
    # 4 unigrams, back-offs of 4 unigrams and <s>; bigrams <s>a, ab, ba
    assert model.parameters == 4 + 5 + 3
    assert sum(model.parameters_by_component().values()) == model.parameters
    assert list(model.parameters_by_component()) == ["embedding", "temporal", "feature", "norm", "head"]
    assert model.flops(7) == sum(model.flops_by_component(7).values()) == 0
    assert NGramConfig().order == 6


def test_shapes_and_ids_that_do_not_fit_are_refused():
    model, rows = model_and_rows(3)
    with pytest.raises(UserError, match="must have the shape of the tokens before them"):
        model.score(rows, rows[:, :-1])
    with pytest.raises(UserError, match="outside the vocabulary"):
        model(rows + V)
    with pytest.raises(UserError, match="outside the vocabulary"):
        model.score(rows, rows - V)
