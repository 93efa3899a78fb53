"""Blocks that do their forward again for the gradient: the same numbers, less kept between."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import mixlab
from mixlab.parts.contract import available

PARTS = [(kind, name) for kind in ("temporal", "feature") for name in available(kind)]
DEPTH, B, T = 3, 2, 12


def build(**model):
    torch.manual_seed(0)
    shape = {"vocab_size": 11, "dim": 16, "depth": DEPTH, "context": T, "dropout": 0.2}
    return mixlab.build_model({**shape, **model}).train()


def trained(model, *, recompute, segment=None, bfloat16=False):
    """Loss and gradients of one step, and the random number that comes after it."""
    model.recompute = recompute
    model.zero_grad()
    torch.manual_seed(1)
    inputs, targets = torch.randint(11, (2, B, T))
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = model.loss(inputs, targets, segment=segment)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters()), torch.rand(())]


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=[name for _, name in PARTS])
def test_loss_and_gradients_stay_the_same_bit_for_bit(kind, name):
    model = build(**{kind: name})
    segment = torch.tensor([[0] * 5 + [1] * 7, [0] * 9 + [1] * 2 + [2]])
    for options in ({}, {"segment": segment}, {"bfloat16": True}):
        plain = trained(model, recompute=False, **options)
        assert_equal(trained(model, recompute=True, **options), plain)


@pytest.mark.parametrize("name", ["low_rank", "block_dense", "block_shuffle"])
def test_guided_parts_are_guided_the_second_time_too(name):
    model = build(feature={"kind": name, "guidance": 0.5})
    model.set_progress(0.0)
    model.set_progress(0.2)
    assert any("guide" in name for name, _ in model.named_parameters())
    assert_equal(trained(model, recompute=True), trained(model, recompute=False))


def test_a_second_forward_finds_what_layers_hand_up_as_the_first_did(monkeypatch):
    """A part that looks whether it is the first must not find its own value."""
    model, seen = build(temporal="rwkv7"), []
    for block in model.blocks:
        real = block.temporal.forward

        def watched(x, state=None, *, segment=None, carry=None, real=real):
            seen.append("value" in carry)
            return real(x, state, segment=segment, carry=carry)

        monkeypatch.setattr(block.temporal, "forward", watched)
    trained(model, recompute=True)
    assert seen == [False, True, True, True, True, False]  # and from the last block down


def saved(model, *, recompute):
    """Bytes that the forward keeps for the backward outside of blocks that run again, each storage once."""
    model.recompute, kept = recompute, {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    inputs, targets = torch.randint(11, (2, B, T))
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model.loss(inputs, targets)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in own)


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=[name for _, name in PARTS])
def test_what_blocks_keep_is_their_input(kind, name):
    one, model = build(depth=1, **{kind: name}), build(**{kind: name})
    stream = B * T * model.config.dim * 4
    assert saved(model, recompute=True) == saved(one, recompute=True) + (DEPTH - 1) * stream
    assert saved(model, recompute=True) < 0.6 * saved(model, recompute=False)


def test_evaluation_and_states_go_through_blocks_as_ever():
    model = build()
    model.recompute = True
    tokens = torch.randint(11, (B, T))
    with torch.no_grad():
        assert model(tokens).state is None
    model.eval()
    state = model.init_state(B, T)
    assert torch.allclose(model(tokens, state).logits, model(tokens).logits, atol=1e-5)
