"""A tied head stays tied, however weights come to the model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mixlab.errors import UserError
from mixlab.model.config import ModelConfig
from mixlab.model.language_model import LanguageModel

TOKENS = torch.arange(6).view(1, 6)


def model(tied: bool = True) -> LanguageModel:
    return LanguageModel(ModelConfig(vocab_size=20, dim=16, depth=1, context=8, tied=tied))


def is_tied(one: LanguageModel) -> bool:
    return one.head.weight is one.embedding.weight


def test_equal_weights_that_are_assigned_apart_are_tied_again():
    given = {name: tensor.clone() for name, tensor in model().state_dict().items()}
    one = model()
    one.load_state_dict(given, assign=True)
    assert is_tied(one)
    assert torch.equal(one.embedding.weight, given["embedding.weight"])
    one.loss(TOKENS, TOKENS).backward()
    assert one.head.weight.grad is one.embedding.weight.grad
    assert len(list(one.parameters())) == len(list(model().parameters()))


@pytest.mark.parametrize("left_out", ["head.weight", "embedding.weight"])
def test_the_one_that_is_given_is_that_of_both(left_out: str):
    given = {name: tensor.clone() for name, tensor in model().state_dict().items()}
    kept = given[left_out]
    del given[left_out]
    one = model()
    one.load_state_dict(given, assign=True, strict=False)
    assert is_tied(one) and torch.equal(one.embedding.weight, kept)


def test_weights_that_differ_are_refused_in_words_and_nothing_comes_untied():
    one = model()
    with pytest.raises(UserError, match=r"tied to the embedding .* tied = false"):
        one.load_state_dict(model(tied=False).state_dict(), assign=True)
    assert is_tied(one)


def test_it_holds_in_a_module_of_ones_own_and_in_copies():
    outer = nn.ModuleDict({"inner": copy.deepcopy(model())})
    given = {name: tensor.clone() for name, tensor in outer.state_dict().items()}
    outer.load_state_dict(given, assign=True)
    assert is_tied(outer["inner"])


def test_a_head_of_its_own_stays_one():
    one = model(tied=False)
    one.load_state_dict(model(tied=False).state_dict(), assign=True)
    assert not is_tied(one)
