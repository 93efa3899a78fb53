"""A sample of a validation text is the same on every call, of whole documents, with their own bytes."""

from __future__ import annotations

import numpy as np
import pytest

from mixlab.data import DataConfig, make_tokenizer, prepare
from mixlab.data.sampling import sample
from mixlab.data.tokens import Part, TokenFile

DOCUMENTS = [f"document {n} " + "é" * (n % 17) for n in range(400)]


def text_of(documents: list[str], kind: str = "bpe") -> tuple[TokenFile, object]:
    tokenizer = make_tokenizer(kind, documents, vocab_size=300)
    size = sum(len(document.encode()) + 1 for document in documents)
    return TokenFile(tokenizer.encode_documents(documents), size, len(documents)), tokenizer


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_whole_documents_evenly_spread_with_the_bytes_that_they_have(kind: str) -> None:
    file, tokenizer = text_of(DOCUMENTS, kind)
    found = sample(file, 2_000, tokenizer)
    chosen = tokenizer.decode(found.tokens[1:]).split("\0")[:-1]
    assert 1_900 < len(found) - 1 <= 2_000 and found.scored == 0
    assert found.num_documents == len(chosen) == len(set(chosen)) and set(chosen) <= set(DOCUMENTS)
    assert found.num_bytes == sum(len(document.encode()) + 1 for document in chosen)
    at = [DOCUMENTS.index(document) for document in chosen]
    assert at == sorted(at) and set(np.diff(at)) <= {len(DOCUMENTS) // len(at), len(DOCUMENTS) // len(at) + 1}
    assert np.array_equal(sample(file, 2_000, tokenizer).tokens, found.tokens)


def test_longer_documents_than_the_mean_make_fewer_of_them() -> None:
    documents = [("long " * 30 if n % 10 == 0 else "short") for n in range(300)]
    file, tokenizer = text_of(documents, "byte")
    found = sample(file, 2_600, tokenizer)
    assert 1_500 < len(found) - 1 <= 2_600


def test_a_text_of_few_or_long_documents_is_sampled_in_windows() -> None:
    for documents in (["one long document " * 90], [*DOCUMENTS, "a long one " * 40]):
        file, tokenizer = text_of(documents, "byte")
        found = sample(file, 1_000, tokenizer)
        assert found.scored == 1_000 and found.tokens is file.tokens
        assert sample(found, 400, tokenizer).scored == 400
        assert sample(found, 1_000, tokenizer) is found


def test_a_text_that_is_no_longer_is_itself() -> None:
    file, tokenizer = text_of(DOCUMENTS)
    assert sample(file, len(file) - 1, tokenizer) is file
    assert sample(file, 0, tokenizer) is file


def test_each_source_of_a_mixture_gives_its_share_of_documents() -> None:
    halves = [DOCUMENTS[:300], DOCUMENTS[300:]]
    file, tokenizer = text_of(DOCUMENTS, "byte")
    cut = 1 + sum(len(document.encode()) + 1 for document in halves[0])
    parts = (Part("a", 0, cut, cut - 1, 300), Part("b", cut - 1, len(file), len(file) - cut, 100))
    found = sample(TokenFile(file.tokens, file.num_bytes, 400, parts), 3_000, tokenizer)
    assert [part.name for part in found.parts] == ["a", "b"]
    for part, half in zip(found.parts, halves, strict=True):
        stream = part.of(found.tokens)
        assert stream[0] == stream[-1] == 0
        assert set(tokenizer.decode(stream[1:]).split("\0")[:-1]) <= set(half)
        assert part.num_bytes == len(stream) - 1
    sizes = [part.stop - part.start - 1 for part in found.parts]
    assert sum(sizes) == len(found) - 1 and sizes[0] / sizes[1] == pytest.approx(cut / (len(file) - cut), 0.1)


def test_preparing_says_which_documents_evaluations_score(tmp_path) -> None:
    (tmp_path / "texts").mkdir()
    for n, document in enumerate(DOCUMENTS):
        (tmp_path / "texts" / f"{n}.txt").write_text(document, encoding="utf-8")
    config = DataConfig(sources=(str(tmp_path / "texts"),), valid_fraction=0.5, valid_tokens=1_000)
    data = prepare(config, cache_dir=tmp_path / "cache")
    found = data.valid
    assert data.facts["notes"][-1] == (
        f"evaluations score {len(found) - 1:,} of the {data.facts['valid_tokens']:,} tokens kept aside, "
        f"{found.num_documents:,} whole documents (data.valid_tokens)"
    )
