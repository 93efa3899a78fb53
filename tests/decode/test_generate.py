"""Generation asks a scorer for one token at a time and gets what a full forward pass would say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mixlab
from mixlab.decode import generate
from mixlab.errors import UserError
from mixlab.model.scorer import Output

VOCAB = 11


class Counter:
    """A mock scorer: the next token is the last one plus one; it records every call."""

    vocab_size = VOCAB

    def __init__(self, max_positions: int | None = None) -> None:
        self.max_positions = max_positions
        self.calls: list[list[int]] = []
        self.rooms: list[int] = []

    def init_state(self, batch_size: int, max_length: int) -> int:
        assert batch_size == 1
        self.rooms.append(max_length)
        return 0

    def __call__(self, tokens: torch.Tensor, state: int) -> Output:
        assert torch.is_inference_mode_enabled()
        self.calls.append(tokens[0].tolist())
        logits = torch.nn.functional.one_hot((tokens + 1) % VOCAB, VOCAB).float() * 50
        return Output(logits, state + tokens.shape[1])


def test_the_prompt_is_read_once_and_then_one_token_a_call() -> None:
    scorer: Any = Counter()
    assert list(generate(scorer, [3, 4], max_tokens=3)) == [5, 6, 7]
    assert scorer.calls == [[3, 4], [5], [6]]
    assert scorer.rooms == [5]


def test_a_stop_token_ends_the_text_and_is_not_part_of_it() -> None:
    scorer: Any = Counter()
    assert list(generate(scorer, [7], max_tokens=9, stop={0})) == [8, 9, 10]


def test_nothing_is_asked_beyond_what_is_consumed() -> None:
    scorer: Any = Counter()
    stream = generate(scorer, [3], max_tokens=1000)
    assert scorer.calls == []
    next(stream)
    assert scorer.calls == [[3]]
    assert not torch.is_inference_mode_enabled()
    assert list(generate(scorer, [3], max_tokens=0)) == []


def test_past_its_positions_a_model_goes_on_from_the_last_half_and_says_so_once() -> None:
    scorer: Any = Counter(max_positions=6)
    notes: list[str] = []
    text = list(generate(scorer, [0], max_tokens=14, note=notes.append))
    assert text == [token % VOCAB for token in range(1, 15)]
    assert scorer.calls[:8] == [[0], [1], [2], [3], [4], [5], [4, 5, 6], [7]]
    assert max(scorer.rooms) == 6
    assert len(notes) == 1
    assert "knows 6 positions" in notes[0]


def test_a_prompt_longer_than_the_positions_is_cut_to_its_end() -> None:
    scorer: Any = Counter(max_positions=6)
    assert list(generate(scorer, list(range(9)), max_tokens=1)) == [9]
    assert scorer.calls == [[6, 7, 8]]


@pytest.mark.parametrize(
    ("prompt", "settings", "sentence"),
    [
        ([], {}, "the prompt is empty"),
        ([VOCAB], {}, "token 11 is outside the vocabulary of 11"),
        ([-1], {}, "token -1 is outside"),
        ([1], {"max_tokens": -1}, "max-tokens -1 is out of range"),
        ([1], {"temperature": -1.0}, "temperature -1.0 is out of range"),
        ([1], {"top_k": 0}, "top-k 0"),
        ([1], {"top_p": 2.0}, "top-p 2.0"),
        ("text", {}, r"a prompt is token ids, .*, got 'text': a tokenizer's encode\(text\) gives them"),
        (None, {}, "a prompt is token ids, whole numbers one after another, got None"),
        ([1.5], {}, r"a prompt is token ids, .*, got \[1.5\]"),
        ([1], {"max_tokens": "3"}, "max-tokens must be a whole number, got '3'"),
        ([1], {"max_tokens": 3.5}, "max-tokens must be a whole number, got 3.5"),
        ([1], {"seed": None}, "seed must be a whole number, got None"),
        ([1], {"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ([1], {"top_k": 2.5}, "top-k must be a whole number, got 2.5"),
        ([1], {"top_p": True}, "top-p must be a number, got True"),
    ],
)
def test_wrong_input_is_refused_before_the_first_token(
    prompt: Any, settings: dict[str, Any], sentence: str
) -> None:
    scorer: Any = Counter()
    with pytest.raises(UserError, match=sentence):
        generate(scorer, prompt, **{"max_tokens": 5, **settings})


def scorers() -> dict[str, Any]:
    torch.manual_seed(0)
    shape = {"vocab_size": VOCAB, "dim": 16, "depth": 2, "context": 32}
    neural = {
        f"{temporal}-{position}": mixlab.build_model(
            {**shape, "temporal": temporal, "position": position}
        ).eval()
        for temporal, position in [("attention", "rope"), ("attention", "learned"), ("gru", "none")]
    }
    text = torch.randint(VOCAB, (500,)).numpy()
    return {**neural, "ngram": mixlab.NGram.train(text, order=3, vocab_size=VOCAB)}


SCORERS = scorers()


@pytest.mark.parametrize("name", SCORERS)
def test_greedy_steps_agree_with_full_forward_passes(name: str) -> None:
    scorer, tokens = SCORERS[name], [0, 3, 5]
    stepped = list(generate(scorer, tokens, max_tokens=8, temperature=0))
    full = list(tokens)
    with torch.no_grad():
        for _ in stepped:
            full.append(int(scorer(torch.tensor([full])).logits[0, -1].argmax()))
    assert stepped == full[3:]


@pytest.mark.parametrize("name", SCORERS)
def test_the_same_seed_gives_the_same_text_whatever_was_drawn_before(name: str) -> None:
    def text(seed: int) -> list[int]:
        torch.rand(7)
        return list(generate(SCORERS[name], [0], max_tokens=30, seed=seed))

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_learned_positions_do_not_stop_a_long_text() -> None:
    model = SCORERS["attention-learned"]
    assert model.max_positions == 32
    assert len(list(generate(model, [0], max_tokens=80))) == 80


def test_generation_leaves_the_model_as_it_was() -> None:
    model = SCORERS["gru-none"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    list(generate(model, [0], max_tokens=3))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_seed_out_of_range_and_a_length_beyond_memory_get_a_sentence():
    model = mixlab.build_model({"vocab_size": 8, "dim": 8, "depth": 1, "context": 8}).eval()
    for seed in (-1, 2**63, 10**30):
        with pytest.raises(UserError, match="seed .* out of range"):
            generate(model, [0], max_tokens=1, seed=seed)
    with pytest.raises(UserError, match="no memory for 1000000000001 tokens"):
        next(generate(model, [0], max_tokens=10**12))
