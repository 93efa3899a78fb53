"""Attention in tiles against its definition, at every way of cutting."""

import pytest
import torch

from mixlab.parts.contract import get
from mixlab.parts.temporal import tiled


def definition(q, k, v, scale):
    """softmax(scale Q K^T + causal mask) V, (B, H, T, K)."""
    T = q.shape[2]
    scores = scale * torch.einsum("bhtk,bhsk->bhts", q, k)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    return torch.einsum("bhts,bhsk->bhtk", scores.masked_fill(future, -torch.inf).softmax(-1), v)


def random_heads(B, H, T, K, dtype):
    """Queries, keys, values and a gradient as attention lays them out, (B, T, H, K) seen as (B, H, T, K)."""
    return [torch.randn(B, T, H, K, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(4)]


@pytest.mark.parametrize("kept", [0, 512], ids=["made again", "kept"])
@pytest.mark.parametrize(("queries", "scores"), [(256, 1 << 20), (4, 1 << 20), (4, 100), (5, 1)], ids=str)
def test_tiles_of_every_size_equal_the_definition_in_float64(monkeypatch, queries, scores, kept):
    monkeypatch.setattr(tiled, "QUERIES", queries)
    monkeypatch.setattr(tiled, "SCORES", scores)
    monkeypatch.setattr(tiled, "KEPT", kept)
    torch.manual_seed(0)
    q, k, v, dy = random_heads(3, 4, 13, 6, torch.float64)
    for scale in (None, 0.7):
        wanted = definition(q, k, v, 6**-0.5 if scale is None else scale)
        found = tiled.causal_attention(q, k, v, scale)
        assert torch.allclose(found, wanted, atol=1e-12)
        gradients = (torch.autograd.grad(y, (q, k, v), dy) for y in (found, wanted))
        for a, b in zip(*gradients, strict=True):
            assert torch.allclose(a, b, atol=1e-12)


def test_bfloat16_is_as_near_to_the_definition_as_rounded_scores_allow():
    torch.manual_seed(0)
    q, k, v, dy = random_heads(2, 3, 300, 16, torch.bfloat16)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    wanted = definition(*exact, 0.25)
    found = tiled.causal_attention(q, k, v)
    assert found.dtype == torch.bfloat16
    gradients = torch.autograd.grad(found, (q, k, v), dy)
    wanted_gradients = torch.autograd.grad(wanted, exact, dy.double())
    for a, b in zip((found, *gradients), (wanted, *wanted_gradients), strict=True):
        assert (a.double() - b).norm() < 2 * 2**-8 * b.norm()


def test_the_gradient_has_a_gradient():
    torch.manual_seed(0)
    q, k, v, _ = random_heads(1, 2, 5, 4, torch.float64)
    assert torch.autograd.gradgradcheck(lambda *x: tiled.causal_attention(*x), (q, k, v))


def test_beyond_the_kept_length_memory_for_the_backward_grows_linearly():
    def kept_bytes(T):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):
            tiled.causal_attention(*random_heads(1, 2, T, 8, torch.bfloat16)[:3])
        return sum(sizes)

    assert kept_bytes(1200) == 2 * kept_bytes(600)
    assert kept_bytes(512) > kept_bytes(600)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_under_autocast_takes_tiles_and_agrees_with_float32(kv_heads, monkeypatch):
    torch.manual_seed(0)
    cls = get("temporal", "attention")
    part = cls.build(cls.Config(heads=4, kv_heads=kv_heads), dim=32)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    calls = []
    inner = tiled.causal_attention
    monkeypatch.setattr(tiled, "causal_attention", lambda *a: calls.append(1) or inner(*a))
    x = torch.randn(2, 20, 32)
    wanted, _ = part(x)
    assert not calls
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = part(x)
    assert len(calls) == 1
    assert (found.float() - wanted).norm() < 0.04 * wanted.norm()
