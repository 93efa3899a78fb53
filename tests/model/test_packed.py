"""A model given packed rows computes what it would of the documents one by one, and learns the same."""

from __future__ import annotations

import pytest
import torch

import mixlab
from mixlab.data.batches import Batches
from mixlab.parts.checks import TOLERANCE
from mixlab.parts.contract import available

T = 12
SMALL = {"vocab_size": 11, "dim": 16, "depth": 2, "context": T}
DOCUMENTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 1], [2, 3, 4, 5], [6, 7], [8, 9, 10, 1, 2], [3], [4, 5]]
"""Rows of twelve hold several of them, some begin where a row does, and one is cut."""


@pytest.fixture(scope="module")
def batch():
    stream = [0, *(token for document in DOCUMENTS for token in (*document, 0))]
    inputs, targets, segment = Batches(
        torch.tensor(stream).numpy(), context=T, batch_size=2, seed=0, packing="documents"
    ).next()
    assert segment.max() >= 2
    return inputs, targets, segment


def separate(inputs, targets, segment):
    """(inputs, targets) of each segment as a row of its own."""
    for x, y, s in zip(inputs, targets, segment, strict=True):
        sizes = torch.unique_consecutive(s, return_counts=True)[1].tolist()
        yield from zip(x[None].split(sizes, 1), y[None].split(sizes, 1), strict=True)


def check(batch, **keys):
    """Mean loss and every parameter's gradient, packed against separate."""
    torch.manual_seed(0)
    model = mixlab.build_model({**SMALL, **keys}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    inputs, targets, segment = batch
    rows = list(separate(*batch))
    assert len(rows) > 4

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    packed = model.loss(inputs, targets, segment=segment)
    alone = sum(model.loss(x, y) * y.numel() for x, y in rows) / targets.numel()
    assert abs(packed - alone) < TOLERANCE[torch.float64] * 10
    together, apart = gradients(packed), gradients(alone)
    assert together.keys() == apart.keys()
    for name, expected in apart.items():
        gap = (together[name] - expected).abs().max()
        assert gap <= TOLERANCE[torch.float64] * max(1, expected.abs().max()), name
    scores = model.score(inputs, targets, segment=segment)
    assert abs(scores.mean() + packed) < TOLERANCE[torch.float32] * 10
    crossed = model.loss(inputs, targets)
    return abs(crossed - packed) > 1e-6  # whether the part looks back at all


@pytest.mark.parametrize("position", available("position"))
@pytest.mark.parametrize("temporal", available("temporal"))
def test_every_temporal_part_under_every_position(batch, temporal, position):
    assert check(batch, temporal=temporal, position=position)


@pytest.mark.parametrize("feature", available("feature"))
def test_every_feature_part(batch, feature):
    assert check(batch, temporal="gru", feature=feature, position="learned")


def test_layers_that_are_computed_again_for_the_gradient(batch):
    torch.manual_seed(0)
    model = mixlab.build_model({**SMALL, "temporal": ["attention", "rwkv7"], "depth": 4}).double()
    inputs, targets, segment = batch
    found = []
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad()
        model.loss(inputs, targets, segment=segment).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
