"""Muon in full precision: torch's own but for rounding, and the same however matrices are put together."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mixlab.train.muon import FullPrecisionMuon, orthogonalised


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16)])
@pytest.mark.parametrize("more", [{}, {"nesterov": False, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3}])
def test_muon_in_full_precision_is_torchs_up_to_rounding(shape, more):
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    both = [
        cls([p], lr=0.1, weight_decay=0.5, **more)
        for cls, p in ((FullPrecisionMuon, ours), (torch.optim.Muon, theirs))
    ]
    for _ in range(3):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        before = [p.detach().clone() for p in (ours, theirs)]
        for optimizer in both:
            optimizer.step()
        moves = [p.detach() - b for p, b in zip((ours, theirs), before, strict=True)]
        assert (moves[0] - moves[1]).norm() < 0.02 * moves[1].norm()  # bfloat16 has 8 bits
    kept = [optimizer.state[p] for optimizer, p in zip(both, (ours, theirs), strict=True)]
    assert kept[0].keys() == kept[1].keys()
    torch.testing.assert_close(kept[0]["momentum_buffer"], kept[1]["momentum_buffer"])


@pytest.mark.parametrize("shape", [(6, 6), (6, 8), (6, 9), (6, 40)])
def test_orthogonalising_moves_singular_values_by_the_polynomial(shape):
    """Both ways of going about it, which the shape decides on."""
    matrices = torch.randn(3, *shape, dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    expected = s / s.norm(dim=-1, keepdim=True)
    for _ in range(4):
        expected = 3.0 * expected - 4.0 * expected**3 + 2.0 * expected**5
    found = orthogonalised(matrices, (3.0, -4.0, 2.0), 4, 1e-7)
    torch.testing.assert_close(found, u @ torch.diag_embed(expected) @ v)


@pytest.mark.parametrize("numbers", [1, 2 * 4 * 8])
def test_muon_updates_a_matrix_beside_others_as_it_does_alone(monkeypatch, numbers):
    """Of one shape, of its transpose, more of them than go together, and one without a gradient."""
    shapes = [(8, 8), (4, 8), (8, 4), (4, 8), (8, 4), (4, 8), (8, 8)]
    monkeypatch.setattr("mixlab.train.muon.NUMBERS", numbers)
    together, alone = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    settings = {"lr": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = [
        FullPrecisionMuon(together, **settings),
        *(FullPrecisionMuon([p], **settings) for p in alone),
    ]
    for _ in range(2):
        for p, q in zip(together[:-1], alone[:-1], strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(together, alone, strict=True):
        torch.testing.assert_close(p, q)
    assert torch.equal(together[-1], torch.ones(8, 8))
    assert not any(torch.equal(p, torch.ones_like(p)) for p in together[:-1])


@pytest.mark.parametrize("steps", [1, 5, 10, 15])
@pytest.mark.parametrize("shape", [(64, 64), (64, 256)])
def test_no_singular_value_runs_away_in_float32(shape, steps):
    """Of a matrix of rank 1, whose others are roundings."""
    m = torch.randn(shape[0], 1) @ torch.randn(1, shape[1])
    found = orthogonalised(m[None], (3.4445, -4.7750, 2.0315), steps, 1e-7)
    assert torch.linalg.svdvals(found).max() < 1.3


def test_a_gradient_of_zero_moves_nothing():
    p = nn.Parameter(torch.ones(4, 8))
    p.grad = torch.zeros(4, 8)
    FullPrecisionMuon([p], lr=0.1, weight_decay=0.0).step()
    assert torch.equal(p, torch.ones(4, 8))
