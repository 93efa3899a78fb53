"""RWKV-7: the delta rule's closed forms, the value that travels between layers, init and size."""

import math

import pytest
import torch

import mixlab
from mixlab.errors import UserError
from mixlab.parts.checks import close, measured_flops
from mixlab.parts.contract import get
from mixlab.parts.temporal import delta_rule
from mixlab.parts.temporal.delta_rule import Steps
from mixlab.parts.temporal.rwkv7_core import Group, Inputs, core

WIDE = {"vocab_size": 65536, "position": "none", "norm": "layernorm", "embedding_norm": True}


def built(**place):
    torch.manual_seed(0)
    return get("temporal", "rwkv7").build(**{"dim": 128, "depth": 4, **place})


def drawn(B, T, H, K, *, decay=0.6065, dtype=torch.float64):
    """Inputs as the part makes them: unit kk, in-context rates in (0, 1), decays down to exp(-`decay`)."""
    generator = torch.Generator().manual_seed(3)
    r, k, v, kk = torch.randn(4, B, T, H, K, generator=generator, dtype=dtype)
    rate, share = torch.rand(2, B, T, H, K, generator=generator, dtype=dtype)
    kk = kk / kk.norm(dim=-1, keepdim=True)
    memory = torch.randn(B, H, K, K, generator=generator, dtype=dtype)
    return r, -decay * share, k, v, -kk, kk * rate, memory


def cut(x, size):
    """(B, N C, H, K) -> (N, B, H, C, K)."""
    return x.unflatten(1, (-1, size)).permute(1, 0, 3, 2, 4)


def chunked(r, log_w, k, v, a, b, memory, chunk, low=None):
    """y (B, T, H, V) and the memory by the delta rule, the last chunk shorter where T asks for it."""
    pieces, low = [], low or memory.dtype
    for part in zip(*(x.split(chunk, 1) for x in (r, log_w, k, v, a, b)), strict=True):
        steps = Steps(*(cut(x, x.shape[1]) for x in part))
        y, memory, _ = delta_rule.forward(steps, memory, low)
        pieces.append(y[0].transpose(1, 2))
    return torch.cat(pieces, 1), memory


def tokens_and_vectors(B, T, H, K, *, dtype=torch.float64):
    """What the projections of a part might make, with a value residual."""
    tokens = torch.randn(8, B, T, H * K, dtype=dtype)
    tokens[1] *= 0.1  # the key projection's gain
    vectors = [0.5 + 0.5 * torch.rand(H * K, dtype=dtype) for _ in range(8)]
    return Inputs(*tokens, *vectors, 0.1 * torch.randn(B, H, K, K, dtype=dtype))


def model(temporal="rwkv7", depth=2, jitter=0.1, **rest):
    """A small float64 model whose zero-initialised paths are open."""
    torch.manual_seed(0)
    shape = {"vocab_size": 16, "dim": 16, "depth": depth, "context": 16, "position": "none"}
    built = mixlab.build_model({**shape, "temporal": temporal, "feature": "gelu", **rest}).double().eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(jitter * torch.randn_like(parameter))
    return built


@pytest.mark.parametrize("T", [1, 2])
def test_a_full_write_replaces_what_stood_at_its_key(T):
    r, log_w, k, v, _, _, memory = drawn(2, T, 3, 8)
    kk = k / k.norm(dim=-1, keepdim=True)  # k_k = 1
    _, after = chunked(r, 0 * log_w, k, v, -kk, kk, memory, 8)  # w = 1, a = 1
    read = (after @ kk[:, -1].unsqueeze(-1)).squeeze(-1)
    assert (read - v[:, -1] * (k * kk).sum(-1, keepdim=True)[:, -1]).abs().max() < 1e-12


@pytest.mark.parametrize("chunk", [1, 2, 5, 16, 40])
def test_any_chunk_gives_the_recurrence(chunk):
    *inputs, memory = drawn(2, 37, 2, 8)
    y, after = chunked(*inputs, memory, chunk)
    S = memory
    for t in range(37):
        r, log_w, k, v, a, b = (x[:, t, :, :, None] for x in inputs)
        S = S * log_w.exp().mT + (S @ a) @ b.mT + v @ k.mT
        assert (y[:, t] - (S @ r).squeeze(-1)).abs().max() < 1e-10
    assert (after - S).abs().max() < 1e-10


def test_many_chunks_at_once_equal_one_after_another():
    *inputs, memory = drawn(2, 40, 3, 8)
    y, after, _ = delta_rule.forward(Steps(*(cut(x, 8) for x in inputs)), memory, torch.float64)
    wanted, last = chunked(*inputs, memory, 8)
    assert (y - cut(wanted, 8)).abs().max() < 1e-12
    assert (after - last).abs().max() < 1e-12


def test_gradients_by_hand_are_the_slopes_and_can_be_differentiated(monkeypatch):
    monkeypatch.setattr("mixlab.parts.temporal.rwkv7_core.GROUP", 12)  # two chunks a group of one sequence
    inputs = tuple(x.requires_grad_() for x in tokens_and_vectors(1, 8, 1, 2))
    assert torch.autograd.gradcheck(lambda *x: core(Inputs(*x), 3), inputs)
    assert torch.autograd.gradgradcheck(lambda *x: core(Inputs(*x), 3), inputs)


@pytest.mark.parametrize("T", [64, 83])
def test_products_in_bfloat16_stay_within_the_table_in_every_gradient(T):
    exact = tokens_and_vectors(2, T, 2, 64)
    low = Inputs(*(x.bfloat16() for x in exact[:8]), *(x.float() for x in exact[8:]))  # as under autocast
    ends = torch.randn(2, T, 128, dtype=torch.float64), torch.randn_like(exact.memory)
    found, wanted = [], []
    for p, into in ((low, found), (Inputs(*(x.double() for x in low)), wanted)):
        p = [x.requires_grad_() for x in p]
        y, memory = core(Inputs(*p), 32)
        loss = (y * ends[0]).sum() + (memory * ends[1]).sum()
        into += [y, memory, *torch.autograd.grad(loss, p)]
    assert [x.dtype for x in found[:2]] == [torch.bfloat16, torch.float32]
    for name, a, b in zip(("y", "after", *Inputs._fields), found, wanted, strict=True):
        close(a.double(), b, name, torch.bfloat16)


def test_the_gradient_of_a_decay_summed_over_tokens_is_as_exact_as_the_products():
    # Pairs of steps cancel in it, and so must their roundings: it was off by a twentieth and more.
    exact = tokens_and_vectors(2, 256, 2, 64)
    low = Inputs(*(x.bfloat16() for x in exact[:8]), *(x.float() for x in exact[8:]))
    weight, slopes = torch.randn(2, 256, 128, dtype=torch.float64), []
    for p in (low, Inputs(*(x.double() for x in low))):
        bias = p.decay_bias.requires_grad_()
        y, _ = core(p, 32)
        slopes += torch.autograd.grad((y * weight).sum(), bias)
    found, wanted = slopes
    assert (found - wanted).norm() < 0.015 * wanted.norm()


def test_a_key_written_again_and_again_is_inverted_without_loss():
    *inputs, memory = drawn(1, 64, 1, 64)
    kk = inputs[4][:, :1].expand(
        -1, 64, -1, -1
    )  # powers of the scores grow like binomials, their inverse not
    inputs[1], inputs[4], inputs[5] = -1e-3 * torch.rand_like(kk), kk, -kk
    wanted, _ = chunked(*inputs, memory, 1)
    found, _ = chunked(*(x.float() for x in inputs), memory.float(), 64)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("chunk", [16, 32, 64])
def test_the_fastest_decay_stays_accurate_in_float32(chunk):
    *inputs, memory = drawn(2, 256, 2, 64)
    inputs[1] = torch.full_like(inputs[1], -math.exp(-0.5))
    wanted, _ = chunked(*inputs, memory, 16)
    found, _ = chunked(*(x.float() for x in inputs), memory.float(), chunk)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_decay_lies_between_half_and_one():
    p = tokens_and_vectors(1, 8, 2, 4)
    for low, bound in ((-100.0, 1.0), (100.0, math.exp(-math.exp(-0.5)))):
        gates = Group(p._replace(w=torch.full_like(p.w, low)), slice(0, 8), 4).gates()
        assert gates.steps().log_w.exp().sub(bound).abs().max() < 1e-12
    assert bound == pytest.approx(0.5452, abs=1e-4)


@pytest.mark.parametrize(
    ("depth", "dim", "ranks", "count"),
    [
        (12, 768, (64, 64, 32, 128), 191_034_624),
        (24, 1024, (64, 64, 32, 128), 450_767_872),
        (24, 2048, (96, 96, 64, 256), 1_527_404_544),
        (32, 2560, (96, 96, 64, 320), 2_947_735_040),
    ],
)
def test_released_models_have_their_size(depth, dim, ranks, count):
    names = ("decay_rank", "rate_rank", "value_rank", "gate_rank")
    temporal = {"kind": "rwkv7", **dict(zip(names, ranks, strict=True))}
    shape = {**WIDE, "dim": dim, "depth": depth, "temporal": temporal}
    with torch.device("meta"):
        large = mixlab.build_model({**shape, "feature": {"kind": "channel_mix", "version": 7}})
    assert sum(p.numel() for p in large.parameters()) == count
    assert sum(large.parameters_by_component().values()) == count
    assert {block.temporal.width for block in large.blocks} == {64}


def test_default_ranks_are_the_smallest_released_models():
    part = built(dim=768, depth=12, layer=1)
    pairs = (part.decay, part.rate, part.residual, part.gate)
    assert [pair.down.out_features for pair in pairs] == [64, 64, 32, 128]


def test_the_bottom_value_reaches_the_layer_above():
    two = model(jitter=0.1)
    below, above = (block.temporal for block in two.blocks)
    torch.nn.init.zeros_(below.out.weight)  # so that nothing but the carried value leaves the bottom layer
    tokens = torch.randint(16, (2, 9))
    before = two(tokens).logits
    torch.nn.init.normal_(below.v.weight)
    assert (two(tokens).logits - before).abs().max() > 1e-3
    torch.nn.init.constant_(above.residual_bias, -1e3)  # sigma = 0: nothing of it is taken
    shut = two(tokens).logits
    torch.nn.init.normal_(below.v.weight)
    assert torch.equal(two(tokens).logits, shut)


def test_the_value_residual_is_an_interpolation():
    two = model()
    x, carry = torch.randn(2, 5, 16, dtype=torch.float64), {}
    two.blocks[0].temporal(x, carry=carry)
    above = two.blocks[1].temporal
    torch.nn.init.constant_(above.residual_bias, 1e3)  # sigma = 1: all of the bottom value, none of its own
    taken, _ = above(x, carry=carry)
    torch.nn.init.normal_(above.v.weight)
    assert (above(x, carry=carry)[0] - taken).abs().max() < 1e-12
    assert (above(x)[0] - taken).abs().max() > 1e-3  # alone it has its own


@pytest.mark.parametrize("temporal", ["rwkv7", ["attention", "rwkv7", "gru", "rwkv7"]])
def test_packed_documents_equal_separate_ones_through_the_carried_value(temporal):
    net = model(temporal, depth=4)
    lengths = (3, 1, 5)
    tokens = torch.randint(16, (2, sum(lengths)))
    segment = torch.arange(3).repeat_interleave(torch.tensor(lengths)).expand(2, -1)
    alone = torch.cat([net(part).logits for part in tokens.split(lengths, 1)], 1)
    packed = net(tokens, segment=segment).logits
    assert (packed - alone).abs().max() < 1e-10
    parameters = list(net.parameters())
    one, other = (torch.autograd.grad(y.square().sum(), parameters) for y in (packed, alone))
    assert max((a - b).abs().max() for a, b in zip(one, other, strict=True)) < 1e-9


@pytest.mark.parametrize("temporal", ["rwkv7", ["attention", "rwkv7", "gru", "rwkv7"]])
def test_decoding_equals_the_whole_through_the_carried_value(temporal):
    net = model(temporal, depth=4)
    tokens = torch.randint(16, (2, 9))
    state, pieces = net.init_state(2, 9), []
    for piece in tokens.split((1, 1, 4, 2, 1), 1):
        out, state = net(piece, state)
        pieces.append(out)
    assert (torch.cat(pieces, 1) - net(tokens).logits).abs().max() < 1e-10


@pytest.mark.parametrize("temporal", ["rwkv7", ["attention", "rwkv7"]])
def test_flops_count_the_carried_value(temporal):
    net = model(temporal)
    for T in (1, 9, 33, 70):
        tokens = torch.randint(16, (1, T))
        assert measured_flops(lambda tokens=tokens: net(tokens)) == net.flops(T)


def test_one_step_costs_less_than_a_chunk_of_one():
    assert delta_rule.products(1, 4, 64, 32) < 2 * 4 * 64 * (8 + 4 * 64)


@pytest.mark.parametrize("layer", [0, 3])
def test_initial_values_are_the_official_codes(layer):
    part, D, K = built(layer=layer), 128, 64
    fall, rise = 1 - layer / 4, layer / 3
    for row, power in zip(part.mix_last, (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True):
        assert row[0] == 1  # the first channel looks at the last token alone
        assert row[77].item() == pytest.approx(1 - (77 / D) ** (power * fall), abs=1e-6)
    n = (77 % K - (K - 1) / 2) / ((K - 1) / 2)
    zigzag = n * abs(n)
    decay = -6 + 6 * (77 / (D - 1)) ** (1 + rise**0.3) + 0.5 + 2.5 * zigzag
    assert part.decay_bias[77].item() == pytest.approx(decay, abs=1e-5)
    rate = -0.19 + 0.3 * zigzag + 0.4 * (77 / (D - 1) - 0.5)
    assert part.rate_bias[77].item() == pytest.approx(rate, abs=1e-6)
    assert part.k_k[77].item() == pytest.approx(0.71 - 0.1 * (77 / (D - 1) - 0.5), abs=1e-6)
    assert (part.k_a == 1.02).all() and (part.r_k == -0.04).all()
    assert part.norm_gain[5].item() == pytest.approx(((1 + layer) / 4) ** 0.7)
    assert (part.residual is None) == (layer == 0)
    if layer:
        assert part.residual_bias[77].item() == pytest.approx(0.73 - 0.4 * (77 / (D - 1) - 0.5), abs=1e-6)
    eye = torch.eye(D)
    for linear, gain in ((part.r, 1), (part.k, 0.1), (part.v, 1)):
        assert torch.allclose(linear.weight @ linear.weight.T, gain**2 * eye, atol=1e-5)
    up = part.gate.up.weight
    assert torch.allclose(up.T @ up, 0.01 * torch.eye(up.shape[1]), atol=1e-6)


def test_the_layer_starts_as_the_identity_and_can_leave_it():
    part, x = built(layer=1), torch.randn(2, 6, 128)
    y, _ = part(x)
    assert not y.any()
    y.sum().backward()
    assert part.out.weight.grad.abs().max() > 0  # the gate is half of its upper matrix's row sums, not 0


@pytest.mark.parametrize(
    "knobs", [{"heads": 5}, {"heads": -1}, {"chunk": 0}, {"chunk": 500}, {"decay_rank": -2}]
)
def test_knobs_that_do_not_fit_are_named(knobs):
    with pytest.raises(UserError, match=next(iter(knobs))):
        mixlab.build_model({"dim": 64, "temporal": {"kind": "rwkv7", **knobs}})
