"""Norms and positions against their papers."""

import math

import pytest
import torch

from mixlab.errors import UserError
from mixlab.parts.contract import Choice, get
from mixlab.parts.position import interleaved_to_half
from tests.oracles.feature import layernorm, rmsnorm, sinusoid


def rotary(width, context=256, **knobs):
    scheme = get("position", "rope")
    return scheme.build(scheme.Config(**knobs), dim=width, context=context)


def p_rope(width, kept):
    scheme = get("position", "p-rope")
    return scheme.build(scheme.Config(kept=kept), dim=width)


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
    first = x[:, :, :1]
    assert torch.allclose(rope(rope(first, 5), 6), rope(first, 11))


def test_rope_lowest_frequency():
    """theta^(-2 (K/2 - 1) / K) at theta = 10000: 1.33352e-4, 1.15478e-4, 1.07461e-4 for K = 64, 128, 256."""
    for width, wanted in ((64, 1.33352e-4), (128, 1.15478e-4), (256, 1.07461e-4)):
        x = torch.zeros(1, 1, 2, width, dtype=torch.float64)
        x[..., width // 2 - 1] = 1.0
        angle = rotary(width)(x)[0, 0, 1, width - 1].asin()
        assert angle.item() == pytest.approx(wanted, abs=1e-9)


def test_rope_pairs_halves_and_equals_the_interleaved_convention_after_reordering():
    """Scores with RoFormer's pairing (2i, 2i + 1) on weights W equal ours on the reordered weights."""
    torch.manual_seed(0)
    H, K, D, T = 3, 8, 10, 6
    wq, wk = torch.randn(2, H * K, D, dtype=torch.float64)
    x = torch.randn(1, T, D, dtype=torch.float64)

    def interleaved(h):  # (1, H, T, K)
        a, b = h[..., 0::2], h[..., 1::2]
        angle = torch.arange(T)[:, None] * 10_000.0 ** (-torch.arange(0, K, 2, dtype=torch.float64) / K)
        c, s = angle.cos(), angle.sin()
        return torch.stack((a * c - b * s, a * s + b * c), -1).flatten(-2)

    def heads(weight):
        return (x @ weight.T).unflatten(-1, (H, K)).transpose(1, 2)

    rope = rotary(K)
    theirs = torch.einsum("bhtk,bhsk->bhts", interleaved(heads(wq)), interleaved(heads(wk)))
    q, k = (rope(heads(interleaved_to_half(w, H))) for w in (wq, wk))
    assert torch.allclose(torch.einsum("bhtk,bhsk->bhts", q, k), theirs, atol=1e-12)
    plain = torch.einsum("bhtk,bhsk->bhts", rope(heads(wq)), rope(heads(wk)))
    assert not torch.allclose(plain, theirs, atol=1e-3)


def test_p_rope_lies_between_no_positions_and_rope():
    """Appendix D: p = 0 turns nothing, p = 1 is RoPE, p = 0.75 keeps 96 of the 128 pairs of a head of 256."""
    x = torch.randn(1, 2, 9, 256, dtype=torch.float64)
    assert torch.equal(p_rope(256, 0.0)(x, 5), x)
    assert torch.equal(p_rope(256, 1.0)(x, 5), rotary(256)(x, 5))
    turned = p_rope(256, 0.75)(x, 5)
    moved = (turned != x)[0].flatten(0, 1).any(0).unflatten(0, (2, 128)).any(0)
    assert torch.equal(moved, torch.arange(128) < 96)  # the lowest frequencies are the last pairs
    assert torch.equal(turned[..., :96], rotary(256)(x, 5)[..., :96])  # the others keep their own frequency


def test_rope_on_a_share_of_the_channels_leaves_the_rest_alone():
    x = torch.randn(1, 2, 7, 32, dtype=torch.float64)
    turned = rotary(32, channels=0.25)(x, 3)
    assert torch.equal(turned[..., 8:], x[..., 8:])
    assert torch.equal(turned[..., :8], rotary(8)(x[..., :8], 3))
    with pytest.raises(UserError, match="channels=0.3 of a head of 10 is 3; it must be an even number"):
        rotary(10, channels=0.3)


def test_position_interpolation_squeezes_the_longer_context_into_the_trained_one():
    x = torch.randn(1, 1, 1, 16, dtype=torch.float64)
    long = rotary(16, scaling="linear", factor=4.0)
    assert torch.allclose(long(x, 100), rotary(16)(x, 25), atol=1e-12)


def test_ntk_keeps_the_highest_frequency_and_slows_the_lowest_by_the_factor():
    plain, long = (rotary(64, **knobs).frequencies for knobs in ({}, {"scaling": "ntk", "factor": 8.0}))
    assert long[0] == plain[0]
    assert long[-1] == pytest.approx(plain[-1] / 8, rel=1e-12)
    ratios = [b / a for a, b in zip(plain, long, strict=True)]
    assert ratios == sorted(ratios, reverse=True)


@pytest.mark.parametrize("scaling", ["yarn", "llama3"])
def test_ramps_keep_fast_pairs_and_interpolate_slow_ones(scaling):
    """K = 128, theta = 10000, 4096 tokens x 16: pairs that turn 32 times (4 for llama3) or more within the
    context stay, those that do not turn once are slowed by 16; the ramp between falls."""
    plain = rotary(128).frequencies
    knobs = {"scaling": scaling, "factor": 16.0, "original": 4096}
    long = rotary(128, **knobs)
    assert long.frequencies == rotary(128, context=4096, **(knobs | {"original": 0})).frequencies
    assert long.scale == pytest.approx(0.1 * math.log(16) + 1 if scaling == "yarn" else 1.0)
    ratios = [b / a for a, b in zip(plain, long.frequencies, strict=True)]
    turns = [4096 * f / (2 * math.pi) for f in plain]
    fast = 32 if scaling == "yarn" else 4
    margin = 1.2  # yarn's ramp ends at whole indices: up to one pair further out, a ratio of 10000^(1/64)
    assert all(r == pytest.approx(1) for r, n in zip(ratios, turns, strict=True) if n > fast * margin)
    assert all(r == pytest.approx(1 / 16) for r, n in zip(ratios, turns, strict=True) if n < 1 / margin)
    assert ratios == sorted(ratios, reverse=True)
    assert any(0.1 < r < 0.9 for r in ratios)


def test_a_factor_of_one_is_no_extension():
    for scaling in ("linear", "ntk", "yarn", "llama3"):
        rope = rotary(32, scaling=scaling)
        assert rope.frequencies == pytest.approx(rotary(32).frequencies, rel=1e-12)
        assert rope.scale == 1


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"base": 0.5}, "base > 1"),
        ({"scaling": "yarn", "factor": 0.5}, "factor >= 1"),
        ({"scaling": "llama3", "slow": 5.0}, "0 < slow < fast, got slow=5.0, fast=4.0"),
    ],
)
def test_rope_names_the_knob_that_does_not_fit(knobs, sentence):
    with pytest.raises(UserError, match=sentence):
        rotary(16, **knobs)


def test_alibi_slopes_are_the_authors():
    """Section 3: 1/2, 1/4, ..., 1/256 for 8 heads; 12 heads take 8 and then every other of 16's."""
    slopes = get("position", "alibi").slopes
    assert slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert slopes(4).tolist() == [2.0**-i for i in (2, 4, 6, 8)]
    assert slopes(12)[8:].tolist() == pytest.approx([2.0**-i for i in (0.5, 1.5, 2.5, 3.5)])


def test_a_diagonal_head_sharpens_with_the_scale_of_its_weights():
    """Theorem 5.3 of Round and Round We Go: with q = k the weight on the own position over 512 positions is
    0.5149, 0.7320, 0.8967, 0.9870 at scales 0.5, 1, 2, 4 of the profile."""
    rope = rotary(64)
    q = torch.zeros(1, 1, 512, 64, dtype=torch.float64)
    q[..., :32] = 1.0
    turned = rope(q)[0, 0]
    profile = turned @ turned[-1]
    weights = [torch.softmax(c * profile, 0)[-1].item() for c in (0.5, 1, 2, 4)]
    assert weights == pytest.approx([0.5149, 0.7320, 0.8967, 0.9870], abs=1e-4)


def test_without_positions_a_repeated_token_takes_at_most_half():
    """Proposition 5.2: over [bos, a, a] the last query weighs both a's alike, so neither has over a half."""
    attention = get("temporal", "attention")
    torch.manual_seed(0)
    for position, told_apart in (("none", False), ("rope", True), ("alibi", True)):
        choice = Choice(position, get("position", position).Config())
        part = attention.build(attention.Config(heads=1), dim=8, position=choice).double()
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        with torch.no_grad():
            part.out.weight.copy_(torch.eye(8))
        bos, a = torch.randn(2, 8, dtype=torch.float64)
        y = part(torch.stack((bos, a, a))[None])[0]
        first, second = part.v(bos), part.v(a)
        shares = [
            torch.linalg.lstsq(torch.stack((first, second), 1), y[0, t, :, None]).solution for t in (1, 2)
        ]
        before, after = (s[1].item() / s[0].item() for s in shares)  # weight on a against that on bos
        assert (abs(after / before - 2) > 1e-6) == told_apart


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
