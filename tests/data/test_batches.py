"""Windows: each once an epoch, the same after a resume, and for evaluation every token once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixlab.data.batches import Batches, eval_windows
from mixlab.data.tokens import TokenFile
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
