"""Packed rows: full, without padding, each document by itself, and hardly any cut."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlab.data import packing
from mixlab.data import tokens as tokens_module
from mixlab.data.packing import document_ends, pack
from mixlab.data.tokens import Pages

sizes = st.lists(st.integers(2, 40), min_size=1, max_size=60)


def packed(sizes, length, offset=0, seed=0):
    ends = np.concatenate([[0], np.cumsum(sizes)])
    draw = np.random.default_rng(seed)
    return ends, pack(ends, length, offset, lambda n: draw.integers(2**63, size=n, dtype=np.uint64))


def segments(packs):
    """(row, first place, size) of each."""
    rows = np.repeat(np.arange(len(packs)), np.diff(packs.first))
    return zip(rows.tolist(), packs.starts.tolist(), packs.sizes.tolist(), strict=True)


@given(sizes, st.integers(1, 16), st.data())
def test_every_row_is_full_and_no_prediction_comes_twice(sizes, length, data):
    ends, packs = packed(sizes, length, data.draw(st.integers(0, length - 1)))
    places, numbers = packs.positions(np.arange(len(packs)))
    assert places.shape == numbers.shape == (len(packs), length)
    assert len(packs) == sum(sizes) // length  # fewer than a row are left out
    assert len(set(places.ravel().tolist())) == places.size
    assert places.size == 0 or (places.min() >= 0 and places.max() < ends[-1])


@given(sizes, st.integers(1, 16), st.data())
def test_a_segment_is_of_one_document_and_those_cut_are_counted(sizes, length, data):
    ends, packs = packed(sizes, length, data.draw(st.integers(0, length - 1)))
    whole = set()
    for _, start, size in segments(packs):
        document = int(np.searchsorted(ends, start, "right")) - 1
        assert ends[document] <= start and start + size <= ends[document + 1]
        if size == sizes[document]:
            whole.add(document)
    fitting = {n for n, size in enumerate(sizes) if size <= length}
    assert packs.cut == len(fitting - whole)


@given(sizes, st.integers(1, 16), st.lists(st.integers(0, 1000), max_size=5))
def test_positions_are_those_of_the_segments_in_order(sizes, length, rows):
    _, packs = packed(sizes, length)
    assert packs.positions(np.arange(0))[0].dtype == np.int64  # whatever the places are kept in
    rows = np.array([row % len(packs) for row in rows if len(packs)], np.int64)
    places, numbers = packs.positions(rows)
    for n, row in enumerate(rows):
        own = range(packs.first[row], packs.first[row + 1])
        expected = [(packs.starts[s] + i, k) for k, s in enumerate(own) for i in range(packs.sizes[s])]
        assert list(zip(places[n].tolist(), numbers[n].tolist(), strict=True)) == expected


def test_documents_much_shorter_than_a_row_are_nearly_all_whole():
    drawn = np.random.default_rng(0)
    sizes = np.maximum(2, drawn.exponential(60, 5000).astype(int)).clip(max=250).tolist()
    ends, packs = packed(sizes, 256)
    windows = np.count_nonzero(ends[:-1] // 256 != (ends[1:] - 1) // 256)
    assert packs.cut < 0.01 * len(sizes) < 0.1 * windows


def test_who_shares_a_row_changes_with_the_numbers_drawn():
    sizes = list(range(2, 30)) * 5
    first, same, other = (packed(sizes, 32, seed=seed)[1] for seed in (0, 0, 1))
    assert first.starts.tolist() == same.starts.tolist() != other.starts.tolist()


@given(st.lists(st.integers(2, 40), min_size=20, max_size=60), st.integers(1, 16), st.integers(1, 40))
def test_in_blocks_rows_are_as_full_and_each_block_leaves_out_less_than_a_row(sizes, length, block):
    whole = packed(sizes, length)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BLOCK", block)
        ends, packs = packed(sizes, length)
        bounds = packing._blocks(ends, length)
    assert bounds[0] == 0 and bounds[-1] == len(sizes)
    assert len(bounds) > 2 or block * 4 > len(sizes)
    assert len(packs) == sum(sum(sizes[a:b]) // length for a, b in itertools.pairwise(bounds))
    assert len(whole) - len(packs) < len(bounds) - 1
    places, _ = packs.positions(np.arange(len(packs)))
    assert places.shape == (len(packs), length) and len(set(places.ravel().tolist())) == places.size
    kept, fitting = set(), {n for n, size in enumerate(sizes) if size <= length}
    for _, start, size in segments(packs):
        document = int(np.searchsorted(ends, start, "right")) - 1
        assert ends[document] <= start and start + size <= ends[document + 1]
        kept |= {document} if size == sizes[document] else set()
    assert packs.cut == len(fitting - kept)


def test_places_take_half_the_bytes_until_they_do_not_fit():
    assert packing._places(2**32 - 1) is np.uint32 and packing._places(2**32) is np.int64
    ends = np.array([0, 3, 9], np.uint32)
    packs = pack(ends, 4, 0, lambda n: np.arange(n, dtype=np.uint64))
    assert packs.starts.dtype == packs.first.dtype == np.uint32
    assert packs.positions(np.arange(len(packs)))[0].dtype == np.int64


def test_the_ends_of_documents_are_found_across_blocks(monkeypatch):
    tokens = np.array([0, 5, 0, 7, 7, 0, 3, 0], np.uint8)
    monkeypatch.setattr(packing, "_SCAN", 3)
    assert document_ends(tokens).tolist() == [0, 2, 5, 7]


def test_pages_of_a_mapped_file_are_let_go_of_while_ends_are_looked_for(tmp_path, monkeypatch):
    np.save(tmp_path / "tokens.npy", np.tile(np.array([0, 5, 6, 7], np.uint8), 1000))
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    monkeypatch.setattr(packing, "_SCAN", 500)
    monkeypatch.setattr(tokens_module, "_HELD_PAGES", 1100)
    monkeypatch.setattr(tokens_module, "_FAULT", 0)
    pages, let_go = Pages(mapped), []
    monkeypatch.setattr(pages, "_map", SimpleNamespace(madvise=let_go.append))
    assert document_ends(mapped, pages).tolist() == list(range(0, 4000, 4))
    assert len(let_go) == 2  # of eight scans, after every third


@pytest.mark.parametrize(("offset", "expected"), [(0, [5, 5, 2]), (3, [3, 5, 4]), (2, [2, 5, 5])])
def test_a_document_longer_than_a_row_is_cut_at_the_offset_and_at_every_row(offset, expected):
    starts, sizes, fits = packing._pieces(np.array([0, 12]), 5, offset)
    assert sizes.tolist() == expected and not fits.any()
    assert starts.tolist() == np.cumsum([0, *expected[:-1]]).tolist()
