"""Terms beside the cross-entropy: what they are, to whom they are added, and what they cost in memory."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import mixlab
from mixlab.model import language_model

V, SHAPE = 11, {"vocab_size": 11, "dim": 16, "depth": 1, "context": 8, "temporal": "gru"}


@pytest.fixture
def model():
    return mixlab.build_model(SHAPE).double()


@pytest.fixture
def batch():
    return torch.randint(V, (2, 3, 8))


def gradients(model, objective):
    model.zero_grad()
    objective.backward()
    return [p.grad.clone() for p in model.parameters()]


def test_the_terms_are_the_papers(model, batch):
    inputs, targets = batch
    found = model.losses(inputs, targets, z_loss=0.3, label_smoothing=0.2)
    logits = model(inputs).logits
    log_z = logits.exp().sum(-1).log()
    target = -(logits.gather(-1, targets[..., None]).squeeze(-1) - log_z)
    uniform = -(logits - log_z[..., None]).mean(-1)
    expected = [target.mean(), 0.3 * (log_z**2).mean(), 0.2 * (uniform - target).mean()]
    assert torch.allclose(found, torch.stack(expected), rtol=1e-12, atol=0)
    smoothed = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=0.2)
    assert (found[0] + found[2]).item() == pytest.approx(smoothed.item(), rel=1e-12)
    for ours, theirs in zip(gradients(model, found.sum()), gradients(model, sum(expected)), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_the_first_is_the_plain_loss_whatever_is_added(model, batch):
    plain = model.loss(*batch)
    assert torch.equal(model.losses(*batch), torch.stack([plain, plain * 0, plain * 0]))
    assert torch.equal(model.losses(*batch, z_loss=1e-4, label_smoothing=0.1)[0], plain)


def test_a_large_vocabulary_is_done_in_chunks_to_the_same(model, batch, monkeypatch):
    whole = model.losses(*batch, z_loss=0.3, label_smoothing=0.2)
    expected = gradients(model, whole.sum())
    monkeypatch.setattr(language_model, "CHUNK_LOGITS", 5 * V)
    found = model.losses(*batch, z_loss=0.3, label_smoothing=0.2)
    assert torch.allclose(found, whole, rtol=1e-12, atol=0)
    for ours, theirs in zip(gradients(model, found.sum()), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_no_more_logits_are_kept_than_without(model, batch):
    def sizes(**terms):
        kept = {}

        def pack(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            model.losses(*batch, **terms)
        return sum(tensor.numel() == batch[0].numel() * V for tensor in kept.values())

    assert sizes(z_loss=0.3, label_smoothing=0.2) <= sizes() + 1  # the logits beside their softmax


def test_a_soft_cap_bounds_what_z_is_of(batch):
    model = mixlab.build_model({**SHAPE, "logit_softcap": 0.5})
    with torch.no_grad():
        model.head.weight.mul_(1000)
    z = model.losses(*batch, z_loss=1.0)[1].item()
    assert z <= (torch.log(torch.tensor(float(V))).item() + 0.5) ** 2
