"""Samples for a page: short prompts of whole words, continuations that end where a reader would end them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mixlab import build_model
from mixlab.data import TokenFile
from mixlab.data.tokenizer import ByteTokenizer
from mixlab.decode import samples
from mixlab.decode.samples import prompt_of, sample, whole


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("One is done. Two is done. Thr", "One is done. Two is done."),
        ('He said "yes." And th', 'He said "yes."'),
        ("a line\nanother line\nhalf", "a line\nanother line"),
        ("words without any full stop here", "words without any full stop"),
        (
            "Early. then a very long rest without an end to be fou",
            "Early. then a very long rest without an end to be",
        ),
        ("unbroken", "unbroken"),
        ("", ""),
    ],
)
def test_a_continuation_ends_where_a_reader_would_end_it(text: str, kept: str) -> None:
    assert whole(text) == kept


def token_file(ids: np.ndarray) -> TokenFile:
    return TokenFile(np.concatenate([[0], np.asarray(ids), [0]]).astype(np.uint16), len(ids))


@pytest.mark.parametrize(
    "line", ["the quick brown fox jumps over the lazy dog again and again", "short line"]
)
def test_a_prompt_is_short_and_of_whole_words(line: str) -> None:
    tokenizer = ByteTokenizer()
    found = prompt_of(token_file(tokenizer.encode(f"{line}\n" * 200)), tokenizer)
    assert line.startswith(found.splitlines()[0]) and 5 < len(found) <= samples.PROMPT
    assert set(found.split()) <= set(line.split())


def test_one_long_line_gives_whole_words_too() -> None:
    tokenizer = ByteTokenizer()
    words = "alpha beta gamma delta "
    found = prompt_of(token_file(tokenizer.encode(words * 200)), tokenizer)
    assert set(found.split()) <= set(words.split()) and 5 < len(found) <= samples.PROMPT


def test_a_sample_stops_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = build_model({"vocab_size": 256, "dim": 16, "depth": 1, "context": 32, "temporal": "gru"}).eval()
    clock = iter(range(1_000))
    monkeypatch.setattr(samples.time, "monotonic", lambda: float(next(clock)))
    asked: list[int] = []
    generate = samples.generate

    def counted(*args, **kwargs):
        for token in generate(*args, **kwargs):
            asked.append(token)
            yield 65

    monkeypatch.setattr(samples, "generate", counted)
    found = sample(model, ByteTokenizer(), "ab", seed=0, seconds=10.0)
    assert found["text"] == "A" * 10 and len(asked) == 11


@pytest.mark.parametrize(("end", "text"), [(0, "A"), (66, "A\0C\0"), (None, "A\0CB\0")])
def test_a_sample_stops_at_the_tokenizers_own_end_of_a_document(
    monkeypatch: pytest.MonkeyPatch, end: int | None, text: str
) -> None:
    class Other(ByteTokenizer):
        pass

    Other.end = end
    drawn = [65, 0, 67, 66, 0] if end != 66 else [65, 0, 67, 0, 66, 65]
    monkeypatch.setattr(samples, "generate", lambda *args, **kwargs: iter(drawn))
    assert sample(None, Other(), "ab", seed=0)["text"] == text  # type: ignore[arg-type]
