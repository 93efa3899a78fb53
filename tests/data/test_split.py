"""The split depends on content alone, and neither side is ever empty."""

import hashlib
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlab.data.split import split_documents
from mixlab.errors import UserError


class Sides(NamedTuple):
    train: tuple[str, ...]
    valid: tuple[str, ...]
    rule: str


def split(documents, fraction=0.1):
    lengths = np.array([len(d) for d in documents])
    starts = [hashlib.sha256(d.encode()).digest()[:8] for d in documents]
    digests = np.array([int.from_bytes(start, "big") for start in starts], np.uint64)
    found = split_documents(lengths, digests, fraction)
    pairs = list(zip(documents, found.cuts.tolist(), strict=True))
    train = tuple(document[:cut] for document, cut in pairs if cut)
    return Sides(train, tuple(document[cut:] for document, cut in pairs if cut < len(document)), found.rule)


MANY = [f"document {i}: " + "word " * (i % 7) for i in range(200)]


def test_one_document_gives_exactly_its_last_part():
    text = "".join(chr(0x100 + i) for i in range(1007))
    both = split([text])
    assert both.train == (text[: int(0.9 * 1007)],) and both.valid == (text[int(0.9 * 1007) :],)


def test_many_documents_stay_whole_and_about_the_fraction_is_kept_aside():
    both = split(MANY)
    assert sorted(both.train + both.valid) == sorted(MANY)
    assert 8 <= len(both.valid) <= 35
    assert both.train == tuple(d for d in MANY if d in set(both.train)), "the order of the sources is kept"


@given(st.permutations(MANY[:40]), st.sampled_from([0.1, 0.25, 0.5]))
def test_the_side_of_a_document_never_depends_on_order(documents, fraction):
    shuffled, plain = split(documents, fraction), split(MANY[:40], fraction)
    assert sorted(shuffled.train) == sorted(plain.train) and sorted(shuffled.valid) == sorted(plain.valid)


@given(st.lists(st.sampled_from(MANY[:30]), min_size=60, max_size=90))
def test_equal_documents_land_on_the_same_side(documents):
    both = split(documents)
    assert not set(both.train) & set(both.valid)


@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=12), st.floats(1e-20, 1 - 1e-9))
def test_neither_side_is_empty_and_no_character_is_lost(documents, fraction):
    try:
        both = split(documents, fraction)
    except UserError as error:
        cuts = [min(int((1.0 - fraction) * len(d)), len(d) - 1) for d in documents]
        assert not any(cuts) and "too few" in str(error)
        return
    assert both.train and both.valid and all(both.train) and all(both.valid)
    assert sum(map(len, both.train + both.valid)) == sum(map(len, documents))


def test_documents_that_hashing_leaves_on_one_side_are_each_cut():
    same = ["all the same text, ten times over"] * 10
    both = split(same)
    assert both.train == (same[0][:29],) * 10 and both.valid == (same[0][29:],) * 10
    assert "every document" in both.rule


@pytest.mark.parametrize("giant", ["0 " * 50_000, "3 " * 50_000])
def test_one_document_that_outweighs_the_others_is_cut_too(giant):
    # Whole, it would leave next to nothing to train on, or next to nothing to validate on.
    both = split([giant, *MANY])
    assert "every document" in both.rule
    share = sum(map(len, both.valid)) / sum(map(len, [giant, *MANY]))
    assert 0.1 <= share < 0.12


@pytest.mark.parametrize("documents", [["x"], ["x", "y"]])
def test_too_few_characters_to_split_are_refused(documents):
    with pytest.raises(UserError, match="too few"):
        split(documents)
