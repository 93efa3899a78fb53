"""The fast way through BPE divides and encodes any text as the tokenizers library does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from mixlab.data import words
from mixlab.data.bpe import BPETokenizer
from mixlab.data.words import PIECES, Divider, Words, divider, last_cut, slices

TEXT = "The cat sat on the mat, and the dog's 12345 bones — «déjà vu»!\n\n    indented\tcode 中文 😀\n" * 20
BPE = BPETokenizer.train([TEXT], vocab_size=320)
LIBRARY = Split(Regex(PIECES), "isolated")

clean = st.text(alphabet=st.characters(exclude_characters="\0", codec="utf-8"))
spaced = st.text(alphabet="ab \n\t\r'.1é中\x1c\x85\u2028\u180e\u3000²Ⅷ_😀", max_size=200)


def by_library(text: str) -> list[int]:
    return BPE._engine.encode(text).ids


@given(clean | spaced)
@example(" " * 90 + "x" * 90 + "1" * 90 + "!" * 90)
@example("we'll don't 'tis ''s 's's")
def test_any_text_is_divided_as_the_library_divides_it(text):
    assert divider()(text) == [piece for piece, _ in LIBRARY.pre_tokenize_str(text)]


def test_every_character_is_of_the_class_that_the_library_gives_it():
    planes = [*range(0xD800), *range(0xE000, 0x20000), *range(0x30000, 0x32000), *range(0xE0000, 0xE1000)]
    text = "".join(chr(point) for point in planes)
    assert Divider()(text) == [piece for piece, _ in LIBRARY.pre_tokenize_str(text)]


@pytest.fixture
def short(monkeypatch):
    """Texts of any length take the fast way."""
    monkeypatch.setattr(words, "SLICE", 16)


@given(st.lists(clean | spaced, min_size=1, max_size=4))
def test_ids_by_table_are_the_librarys(texts):
    table = Words(BPE._engine, np.dtype(np.uint16))
    kept, words.SLICE = words.SLICE, 16
    try:
        for text in (*texts, *texts):
            assert np.frombuffer(table(text), np.uint16).tolist() == by_library(text)
    finally:
        words.SLICE = kept


def test_the_table_does_not_grow_for_ever(monkeypatch, short):
    monkeypatch.setattr(words, "_KEPT", 50)
    table = Words(BPE._engine, np.dtype(np.uint16))
    for start in range(0, 2000, 30):
        text = " ".join(f"w{n}" for n in range(start, start + 30))
        assert np.frombuffer(table(text), np.uint16).tolist() == by_library(text)
        assert len(table._ids) <= 60


def cut_up(text: str, places: list[int]) -> list[tuple[str, bool]]:
    """A document as pieces that end at these places."""
    ends = sorted({place % (len(text) + 1) for place in places} | {len(text)})
    return [(text[a:b], b == len(text)) for a, b in zip([0, *ends], ends, strict=False)]


places = st.lists(st.integers(0, 10_000), max_size=5)


@given(clean | spaced, spaced, places)
def test_slices_do_not_depend_on_the_pieces_and_cutting_changes_no_token(text, other, places):
    kept, words.SLICE = words.SLICE, 3
    try:
        found = list(slices([*cut_up(text, places), (other, True)]))
        assert found == list(slices([(text, True), (other, True)]))
    finally:
        words.SLICE = kept
    assert "".join(piece for piece, _ in found) == text + other
    first = next(n for n, (_, last) in enumerate(found) if last) + 1
    assert [token for piece, _ in found[:first] for token in by_library(piece)] == by_library(text)


@given(clean | spaced, clean | spaced)
def test_a_text_that_goes_on_may_be_cut_where_it_is_said(text, more):
    cut = last_cut(text)
    assert by_library(text[:cut]) + by_library(text[cut:] + more) == by_library(text + more)


@pytest.mark.parametrize("letters", ["acgt", "中文字", "123", "!?"])
def test_text_without_spaces_is_cut_all_the_same(letters, short):
    text = "".join(np.random.default_rng(0).choice(list(letters), 5000))
    cut = last_cut(text)
    assert len(text) - cut < 100
    found = [piece for piece, _ in slices([(text, True)])]
    assert max(map(len, found)) <= 17 * 16 and "".join(found) == text
    assert [token for piece in found for token in by_library(piece)] == by_library(text)


def test_a_long_document_is_encoded_as_by_the_library():
    text = TEXT * 100
    assert BPE.encode(text).tolist() == by_library(text)
    assert BPE.encode_documents([text, "", TEXT]).tolist() == [
        0,
        *by_library(text),
        0,
        0,
        *by_library(TEXT),
        0,
    ]
