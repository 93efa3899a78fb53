"""Windows: each once an epoch, the same after a resume, and for evaluation every token once."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixlab.data import tokens as tokens_module
from mixlab.data.batches import Batches, eval_windows
from mixlab.data.tokens import Part, TokenFile
from mixlab.errors import UserError

shapes = st.integers(1, 8).flatmap(
    lambda context: st.tuples(
        st.integers(context + 1, 120), st.just(context), st.integers(1, 9), st.integers(0, 99)
    )
)


def stream(n):
    return np.arange(n, dtype=np.uint16)


@given(shapes)
def test_every_window_of_an_epoch_comes_exactly_once(shape):
    n, context, _, seed = shape
    batches = Batches(stream(n), context=context, batch_size=1, seed=seed)
    epochs: list[list[int]] = [[], []]
    while True:
        inputs, targets = batches.next()
        assert torch.equal(targets, inputs + 1) and inputs.shape == (1, context)
        epoch = batches.state_dict()["epoch"]
        if epoch == 2:
            break
        epochs[epoch].append(int(inputs[0, 0]))
    for starts in epochs:
        assert min(starts) < context
        assert sorted(starts) == list(range(min(starts), n - context, context))


@given(shapes, st.integers(0, 12), st.integers(1, 6))
def test_a_resumed_sequence_is_the_uninterrupted_one(shape, before, after):
    n, context, batch_size, seed = shape
    make = lambda: Batches(stream(n), context=context, batch_size=batch_size, seed=seed)  # noqa: E731
    whole = make()
    for _ in range(before):
        whole.next()
    resumed = make()
    resumed.load_state_dict(dict(whole.state_dict()))
    for _ in range(after):
        for a, b in zip(whole.next(), resumed.next(), strict=True):
            assert torch.equal(a, b)
    assert whole.state_dict() == resumed.state_dict() and set(whole.state_dict()) == {"epoch", "cursor"}


@given(shapes)
def test_a_batch_does_not_depend_on_how_windows_are_grouped(shape):
    n, context, batch_size, seed = shape
    grouped = Batches(stream(n), context=context, batch_size=batch_size, seed=seed)
    single = Batches(stream(n), context=context, batch_size=1, seed=seed)
    for _ in range(3):
        inputs, _ = grouped.next()
        assert torch.equal(inputs, torch.cat([single.next()[0] for _ in range(batch_size)]))


def test_epochs_and_seeds_differ_in_order_and_offset():
    def first_epoch(seed, epoch):
        batches = Batches(stream(5000), context=10, batch_size=490, seed=seed)
        batches.load_state_dict({"epoch": epoch, "cursor": 0})
        return batches.next()[0][:, 0].tolist()

    orders = [first_epoch(seed, epoch) for seed in range(4) for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == 16
    assert len({min(order) for order in orders}) > 4


def test_the_order_is_pinned():
    """Changing it would make every saved run resume elsewhere."""
    batches = Batches(stream(100), context=10, batch_size=9, seed=7)
    assert next(batches)[0][:, 0].tolist() == PINNED


PINNED = [53, 23, 33, 83, 13, 73, 63, 43, 3]


def test_batches_are_int64_contiguous_and_take_token_files():
    batches = Batches(TokenFile(np.arange(50, dtype=np.uint8), 49), context=4, batch_size=3, seed=0)
    for tensor in next(iter(batches)):
        assert tensor.dtype == torch.int64 and tensor.shape == (3, 4) and tensor.is_contiguous()


@given(st.integers(0, 120), st.integers(1, 9), st.integers(1, 9))
def test_evaluation_predicts_every_token_after_the_first_exactly_once_in_order(n, context, batch_size):
    pairs = list(eval_windows(stream(n), context=context, batch_size=batch_size))
    targets = [t for _, target in pairs for t in target.flatten().tolist()]
    inputs = [t for source, _ in pairs for t in source.flatten().tolist()]
    assert targets == list(range(1, n)) and inputs == list(range(n - 1))
    for source, target in pairs:
        assert source.shape == target.shape and source.dtype == target.dtype == torch.int64
        assert source.shape[1] == context or (source.shape[0] == 1 and source is pairs[-1][0])


def test_what_cannot_work_is_refused():
    make = lambda **kw: Batches(stream(20), **{"context": 4, "batch_size": 2, "seed": 0, **kw})  # noqa: E731
    with pytest.raises(UserError, match="at most 19"):
        make(context=20)
    for wrong in ({"context": 0}, {"batch_size": 0}, {"seed": -1}):
        with pytest.raises(UserError, match="at least"):
            make(**wrong)
    for state in ({"epoch": 0, "cursor": 99}, {"epoch": -1, "cursor": 0}, {"epoch": 0, "cursor": -1}):
        with pytest.raises(UserError, match="not in this text"):
            make().load_state_dict(state)
    with pytest.raises(UserError, match="at least"):
        next(eval_windows(stream(20), context=0, batch_size=1))


def documents(lengths, first=0):
    """A stream of documents of so many tokens: 0, then each document and a 0; tokens tell where they are."""
    stream = [0]
    for n in lengths:
        stream += [*range(first + len(stream), first + len(stream) + n), 0]
    return np.array(stream, np.uint16)


lengths = st.lists(st.integers(1, 20), min_size=3, max_size=30)
packed = st.tuples(lengths, st.integers(2, 9), st.integers(1, 5), st.integers(0, 99)).filter(
    lambda shape: sum(shape[0]) > shape[1]
)


def drawn(batches, steps):
    return [[tensor.tolist() for tensor in batches.next()] for _ in range(steps)]


@given(packed)
def test_packed_rows_keep_documents_apart_and_predict_each_token_once_an_epoch(shape):
    lengths, context, _, seed = shape
    stream = documents(lengths)
    place = {token: n for n, token in enumerate(stream.tolist()) if token}
    batches = Batches(stream, context=context, batch_size=1, seed=seed, packing="documents")
    predicted = []
    while batches.state_dict()["epoch"] == 0:
        inputs, targets, segment = (tensor[0].tolist() for tensor in batches.next())
        if batches.state_dict()["epoch"]:
            break
        for t, (token, target, number) in enumerate(zip(inputs, targets, segment, strict=True)):
            begins = t == 0 or number != segment[t - 1]
            if not begins:
                assert token == targets[t - 1]  # within a segment the text goes on
            if token == 0:
                assert begins  # what ends a document is the first thing that the next one reads, and alone
            if target:
                predicted.append(target)
                assert token in (0, stream[place[target] - 1])
    assert len(predicted) == len(set(predicted))
    assert segment[0] == 0 and segment == sorted(segment)
    left_out = sum(lengths) - len(predicted)
    assert left_out < context  # a row that could not be filled


@given(packed, st.integers(0, 9), st.integers(1, 6))
def test_a_resumed_packing_is_the_uninterrupted_one(shape, before, after):
    lengths, context, batch_size, seed = shape

    def make():
        return Batches(
            documents(lengths), context=context, batch_size=batch_size, seed=seed, packing="documents"
        )

    whole, resumed = make(), make()
    drawn(whole, before)
    resumed.load_state_dict(dict(whole.state_dict()))
    assert drawn(whole, after) == drawn(resumed, after)
    assert set(whole.state_dict()) == {"epoch", "cursor"}


def test_the_share_of_cut_documents_is_said():
    batches = Batches(documents([3] * 40 + [30]), context=8, batch_size=2, seed=0, packing="documents")
    (sentence,) = batches.notes()
    assert sentence.startswith(
        "rows of 8 tokens are packed from 41 documents, without padding: 1 longer than a row is cut, "
    )
    (sentence,) = Batches(documents([30]), context=8, batch_size=2, seed=0, packing="documents").notes()
    assert "from 1 document, without padding: 1 longer" in sentence
    assert list(Batches(documents([9, 9]), context=8, batch_size=2, seed=0).notes()) == []


def mixture(*each):
    """Several streams as the parts of one file; tokens of part k are k * 1000 and more."""
    streams = [documents(lengths, 1000 * k) for k, lengths in enumerate(each)]
    parts, start = [], 0
    for k, stream in enumerate(streams):
        parts.append(Part(f"part {k}", start, start + len(stream), len(stream) - 1, len(each[k])))
        start += len(stream) - 1
    joined = np.concatenate([streams[0][:1], *(stream[1:] for stream in streams)])
    return TokenFile(joined, len(joined) - 1, parts=tuple(parts)), streams


SHAPES = [([9, 20, 4], [30, 30, 2, 7], [12] * 9), ([300], [11, 11])]


@pytest.mark.parametrize("packing", ["stream", "documents"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_each_source_of_a_mixture_has_its_own_rows_in_its_exact_share(shape, batch_size, packing):
    file, streams = mixture(*shape)
    weights = [3, 1.5, 0.25][: len(shape)]
    options = {"context": 6, "seed": 5, "packing": packing}
    batches = Batches(file, batch_size=batch_size, weights=weights, **options)
    rows = [[] for _ in shape]
    for n in range(1, 40):
        for row in zip(*(tensor.tolist() for tensor in batches.next()), strict=True):
            rows[max(max(row[0]), max(row[1])) // 1000].append(row)
        total = n * batch_size
        for had, weight in zip(map(len, rows), weights, strict=True):
            assert abs(had - total * weight / sum(weights)) < 1
    for k, (stream, own) in enumerate(zip(streams, rows, strict=True)):
        only = TokenFile(stream, 0, parts=(Part("", 0, len(stream), 0, 0),))
        alone = Batches(only, batch_size=1, weights=[1], **options)
        alone.sources[0].number = k
        alone.sources[0].rows = alone.sources[0].plan(0)
        expected = [tuple(tensor[0].tolist() for tensor in alone.next()) for _ in own]
        assert own == expected
    epochs = [place["epoch"] for place in batches.state_dict()["sources"]]
    assert max(epochs) > min(epochs)  # each has epochs of its own


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_a_resumed_mixture_is_the_uninterrupted_one(packing):
    file, _ = mixture(*SHAPES[0])

    def make():
        return Batches(file, context=6, batch_size=4, seed=1, packing=packing, weights=[3, 1, 2])

    for before in range(0, 40, 3):
        whole, resumed = make(), make()
        drawn(whole, before)
        state = whole.state_dict()
        resumed.load_state_dict(state)
        assert drawn(whole, 5) == drawn(resumed, 5)
        assert {tuple(place) for place in state["sources"]} == {("epoch", "cursor", "turns")}


def test_a_place_in_another_mixture_is_refused():
    file, _ = mixture(*SHAPES[0])
    three = Batches(file, context=6, batch_size=4, seed=1, weights=[3, 1, 2])
    for state in ({"epoch": 0, "cursor": 1}, {"sources": three.state_dict()["sources"][:2]}):
        with pytest.raises(UserError, match="of another mixture: resume with the sources and weights"):
            three.load_state_dict(state)
    with pytest.raises(UserError, match="of another mixture"):
        Batches(file, context=6, batch_size=4, seed=1).load_state_dict(three.state_dict())
    with pytest.raises(UserError, match=r"'part 0' is 37 tokens long, .* at most 36"):
        Batches(file, context=40, batch_size=4, seed=1, weights=[3, 1, 2])
    with pytest.raises(UserError, match="unknown packing 'document': did you mean 'documents'"):
        Batches(file, context=6, batch_size=4, seed=1, packing="document")


@given(st.integers(20, 200), st.integers(1, 9), st.integers(1, 9), st.integers(1, 220))
def test_a_part_of_an_evaluation_is_whole_windows_evenly_spread(n, context, batch_size, most):
    everything = list(eval_windows(stream(n), context=context, batch_size=1))
    some = list(eval_windows(stream(n), context=context, batch_size=batch_size, most=most))
    starts = [row[0] for inputs, _ in some for row in inputs.tolist()]
    if most >= n - 1:
        assert starts == [inputs[0, 0].item() for inputs, _ in everything]
        return
    assert all(inputs.shape[1] == context for inputs, _ in some)
    assert len(starts) == max(1, most // context) == len(set(starts))
    assert all(start % context == 0 for start in starts)
    gaps = np.diff([*starts, (n - 1) // context * context])
    assert gaps.max() - gaps.min() <= context and starts[0] == 0


def test_evaluation_numbers_documents_from_the_token_that_ends_the_one_before():
    tokens = documents([2, 3, 1])
    (inputs, _, segment), *_ = eval_windows(tokens, context=9, batch_size=1, apart=True)
    assert inputs.tolist() == [[0, 1, 2, 0, 4, 5, 6, 0, 8]]
    assert segment.tolist() == [[1, 1, 1, 2, 2, 2, 2, 3, 3]]


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_pages_of_a_large_file_are_let_go_of_and_nothing_changes(tmp_path, monkeypatch, packing):
    tokens = documents([40] * 100)
    np.save(tmp_path / "tokens.npy", tokens)
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    monkeypatch.setattr(tokens_module, "_HELD_PAGES", 2000)
    monkeypatch.setattr(tokens_module, "_FAULT", 0)
    options = {"context": 16, "batch_size": 8, "seed": 0, "packing": packing}
    ours, theirs = Batches(mapped, **options), Batches(tokens, **options)
    let_go: list[int] = []
    monkeypatch.setattr(ours._pages, "_map", SimpleNamespace(madvise=let_go.append))
    for _ in range(16):
        for a, b in zip(ours.next(), theirs.next(), strict=True):
            assert torch.equal(a, b)
    assert len(let_go) == 2  # 256 bytes a batch
    assert theirs._pages._map is None
    assert Batches(mapped, **options)._pages._map is mapped._mmap


@given(shapes, st.integers(1, 40), st.booleans())
def test_the_distinct_text_of_some_rows_is_what_the_batches_read(shape, rows, documents):
    n, context, batch_size, seed = shape
    tokens = np.arange(n, dtype=np.uint16)
    if documents:
        tokens = np.where(tokens % 7, tokens, 0).astype(np.uint16)  # documents that end with a 0
        tokens[-1] = 0
    settings = {"context": context, "seed": seed, "packing": "documents" if documents else "stream"}
    batches = Batches(tokens, batch_size=1, **settings)
    read = {int(t) for _ in range(rows) for array in batches.next()[:2] for t in array.flatten()}
    chunks = Batches(tokens, batch_size=batch_size, **settings).distinct(rows)
    assert {int(token) for chunk in chunks for token in chunk} == read
    if not documents:
        assert sum(map(len, chunks)) == len(read)  # each token once, and chunks do not touch
        assert all(a[-1] + 1 < b[0] for a, b in itertools.pairwise(chunks))


def test_the_distinct_text_of_a_mixture_is_each_sources_share():
    parts = (Part("a", 0, 41, 40, 1), Part("b", 40, 201, 160, 1))
    file = TokenFile(np.arange(201, dtype=np.uint16), 200, parts=parts)
    settings = {"context": 4, "seed": 3, "weights": (3.0, 1.0)}
    batches = Batches(file, batch_size=1, **settings)
    read = {int(token) for _ in range(24) for array in batches.next() for token in array.flatten()}
    found = {int(token) for chunk in Batches(file, batch_size=2, **settings).distinct(24) for token in chunk}
    assert found == read
    assert len([token for token in found if token > 40]) < 40  # six rows of the larger source
