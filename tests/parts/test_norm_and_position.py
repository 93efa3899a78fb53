"""Norms and positions against their papers."""

import math

import pytest
import torch

from mixlab.errors import UserError
from mixlab.parts.contract import Choice, get
from mixlab.parts.position import interleaved_to_half
from tests.oracles.feature import layernorm, rmsnorm, sinusoid


def rotary(width, base=10_000.0):
    scheme = get("position", "rope")
    return scheme.build(scheme.Config(base=base), dim=width)


@pytest.mark.parametrize(("name", "oracle"), [("rmsnorm", rmsnorm), ("layernorm", layernorm)])
def test_norm_equals_its_oracle(name, oracle):
    norm = get("norm", name).build(dim=12).double()
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(5, 12, dtype=torch.float64)
    wanted = oracle(dict(norm.named_parameters()), x, norm.config.eps)
    assert torch.allclose(norm(x), wanted, atol=1e-12)


def test_rmsnorm_ignores_scale_and_keeps_the_mean():
    cls = get("norm", "rmsnorm")
    norm = cls.build(cls.Config(eps=0.0), dim=16).double()
    x = torch.randn(3, 16, dtype=torch.float64) + 5
    assert torch.allclose(norm(7 * x), norm(x), atol=1e-12)
    assert torch.allclose(norm(x).square().mean(-1), torch.ones(3, dtype=torch.float64))
    assert norm(x).mean() > 0.9


def test_norm_under_autocast_reads_float32_and_returns_the_compute_dtype():
    norm = get("norm", "rmsnorm").build(dim=8)
    x = torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == torch.bfloat16
    assert norm(x).dtype == torch.float32


def test_sinusoids_are_the_papers():
    scheme = get("position", "sinusoidal").build(dim=12)
    table = scheme(torch.arange(50)).double() / (0.02 * math.sqrt(2))
    wanted = torch.stack([sinusoid(t, 12) for t in range(50)])
    assert torch.allclose(table, wanted, atol=1e-5)


def test_learned_positions_end_at_the_context():
    scheme = get("position", "learned").build(dim=4, context=6)
    assert scheme(torch.arange(6)).shape == (6, 4)
    with pytest.raises(UserError, match="context of 6 tokens, position 6"):
        scheme(torch.arange(7))


def test_rope_profile_over_distance():
    """Unit chunks, q = k, K = 64: 32, 30.9168, 28.3039, 21.0516 at distances 0, 1, 2, 10 (computed from
    sum_i cos(distance x base^(-2i/K))); and a key turned by 100 peaks at distance 100, not at 0."""
    rope = rotary(64)
    q = torch.zeros(1, 1, 1, 64, dtype=torch.float64)
    q[..., :32] = 1.0
    profile = torch.stack([(rope(q, 600) * rope(q, 600 - d)).sum() for d in range(512)])
    wanted = torch.tensor([32, 30.9168, 28.3039, 21.0516], dtype=torch.float64)
    assert torch.allclose(profile[[0, 1, 2, 10]], wanted, atol=1e-4)
    assert (profile.diff() > 0).any()  # it does not decay monotonically
    key = rope(q, 100)
    peak = torch.stack([(rope(q, 600) * rope(key, 600 - d)).sum() for d in range(512)]).argmax()
    assert peak == 100


def test_rope_keeps_norms_and_composes():
    rope = rotary(16)
    x = torch.randn(2, 3, 4, 16, dtype=torch.float64)
    assert torch.allclose(rope(x, 7).norm(dim=-1), x.norm(dim=-1))
    first = x[:, :1]
    assert torch.allclose(rope(rope(first, 5), 6), rope(first, 11))


def test_rope_lowest_frequency():
    """theta^(-2 (K/2 - 1) / K) at theta = 10000: 1.33352e-4, 1.15478e-4, 1.07461e-4 for K = 64, 128, 256."""
    for width, wanted in ((64, 1.33352e-4), (128, 1.15478e-4), (256, 1.07461e-4)):
        x = torch.zeros(1, 2, 1, width, dtype=torch.float64)
        x[..., width // 2 - 1] = 1.0
        angle = rotary(width)(x)[0, 1, 0, width - 1].asin()
        assert angle.item() == pytest.approx(wanted, abs=1e-9)


def test_rope_pairs_halves_and_equals_the_interleaved_convention_after_reordering():
    """Scores with RoFormer's pairing (2i, 2i + 1) on weights W equal ours on the reordered weights."""
    torch.manual_seed(0)
    H, K, D, T = 3, 8, 10, 6
    wq, wk = torch.randn(2, H * K, D, dtype=torch.float64)
    x = torch.randn(1, T, D, dtype=torch.float64)

    def interleaved(h):  # (1, T, H, K)
        a, b = h[..., 0::2], h[..., 1::2]
        angle = torch.arange(T)[:, None] * 10_000.0 ** (-torch.arange(0, K, 2, dtype=torch.float64) / K)
        c, s = angle.cos()[:, None], angle.sin()[:, None]
        return torch.stack((a * c - b * s, a * s + b * c), -1).flatten(-2)

    def heads(weight):
        return (x @ weight.T).unflatten(-1, (H, K))

    rope = rotary(K)
    theirs = torch.einsum("bthk,bshk->bhts", interleaved(heads(wq)), interleaved(heads(wk)))
    q, k = (rope(heads(interleaved_to_half(w, H))) for w in (wq, wk))
    assert torch.allclose(torch.einsum("bthk,bshk->bhts", q, k), theirs, atol=1e-12)
    plain = torch.einsum("bthk,bshk->bhts", rope(heads(wq)), rope(heads(wk)))
    assert not torch.allclose(plain, theirs, atol=1e-3)


def test_rope_refuses_an_odd_head_width():
    attention = get("temporal", "attention")
    rope = Choice("rope", get("position", "rope").Config())
    with pytest.raises(UserError, match="head width 5 must be even"):
        attention.build(attention.Config(heads=3), dim=15, position=rope)


def test_hand_written_gradients_are_right_to_second_order():
    """RMSNorm and the rotation have fused backward passes; both must also survive being differentiated."""
    norm = get("norm", "rmsnorm").build(dim=6).double()
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    inputs = (x, torch.rand(6, dtype=torch.float64, requires_grad=True))
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda v, g: torch.func.functional_call(norm, {"gain": g}, (v,)), inputs)
        assert check(lambda v: rotary(6)(v.view(1, 3, 1, 6), 5), (x,))


def test_norm_and_rotation_are_the_same_with_and_without_gradients():
    norm, rope = get("norm", "rmsnorm").build(dim=8), rotary(8)
    x = torch.randn(2, 5, 3, 8)
    with torch.no_grad():
        plain = norm(x), rope(x, 3)
    for a, b in zip((norm(x), rope(x, 3)), plain, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
