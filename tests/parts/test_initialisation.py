"""What each part's initialisation promises, seen on the drawn parameters."""

import pytest
import torch

from mixlab.parts.contract import get


def built(kind, name, dim=256, **rest):
    torch.manual_seed(0)
    return get(kind, name).build(dim=dim, depth=8, **rest)


def std_of(tensor):
    return tensor.std().item()


@pytest.mark.parametrize("name", ["relu", "gelu", "glu", "geglu", "swiglu"])
def test_feed_forward_starts_at_gpt2s_scale(name):
    part = built("feature", name)
    assert std_of(part.up.weight) == pytest.approx(0.02, rel=0.02)
    assert std_of(part.down.weight) == pytest.approx(0.02 / 4, rel=0.02)  # 1/sqrt(2 x 8)


def test_attention_starts_at_gpt2s_scale():
    part = built("temporal", "attention")
    for linear in (part.q, part.k, part.v):
        assert std_of(linear.weight) == pytest.approx(0.02, rel=0.02)
    assert std_of(part.out.weight) == pytest.approx(0.02 / 4, rel=0.02)


@pytest.mark.parametrize(("name", "gates"), [("rnn", 1), ("gru", 3), ("lstm", 4)])
def test_recurrent_matrices_start_orthogonal_gate_by_gate(name, gates):
    part = built("temporal", name, dim=48)
    for gate in part.cell.weight_hh_l0.chunk(gates):
        assert torch.allclose(gate @ gate.T, torch.eye(48), atol=1e-5)
    assert std_of(part.cell.weight_ih_l0) == pytest.approx(48**-0.5, rel=0.05)
    assert std_of(part.out.weight) == pytest.approx(48**-0.5 / 4, rel=0.05)


@pytest.mark.parametrize(("name", "gates"), [("rnn", 1), ("gru", 3), ("lstm", 4)])
def test_recurrent_matrices_start_orthogonal_head_by_head(name, gates):
    part = built("temporal", name, dim=48, config=get("temporal", name).Config(heads=3))
    assert part.cell.weight_hh_l0.shape == (3, gates * 16, 16)
    for head in part.cell.weight_hh_l0:
        for gate in head.chunk(gates):
            assert torch.allclose(gate @ gate.T, torch.eye(16), atol=1e-5)


def test_lstm_forgets_nothing_at_first_in_any_head():
    part = built("temporal", "lstm", dim=24, config=get("temporal", "lstm").Config(heads=2))
    for head in (part.cell.bias_ih_l0 + part.cell.bias_hh_l0).chunk(2):
        i, f, g, o = head.chunk(4)
        assert torch.equal(f, torch.ones(12))
        assert all(torch.equal(b, torch.zeros(12)) for b in (i, g, o))


def test_lstm_forgets_nothing_at_first():
    part = built("temporal", "lstm", dim=24)
    i, f, g, o = (part.cell.bias_ih_l0 + part.cell.bias_hh_l0).chunk(4)
    assert torch.equal(f, torch.ones(24))
    assert all(torch.equal(b, torch.zeros(24)) for b in (i, g, o))


def test_window_keeps_its_tanh_off_saturation():
    part = built("temporal", "window", dim=64)
    x = torch.randn(4, 50, 64)
    hidden = torch.tanh(part.input(torch.randn(200, 8 * 64)))
    assert hidden.abs().mean() < 0.85
    assert part.input.bias.abs().max() == 0
    assert part(x)[0].std() < x.std()


def test_plain_and_gated_feed_forwards_hold_equal_parameters():
    for dim in (96, 256, 384, 768):
        plain, gated = built("feature", "gelu", dim=dim), built("feature", "swiglu", dim=dim)
        assert gated.parameter_count() == pytest.approx(plain.parameter_count(), rel=0.04)


def test_norms_start_as_the_identity_on_normalised_vectors():
    x = torch.randn(5, 32, dtype=torch.float64)
    unit = x / x.square().mean(-1, keepdim=True).sqrt()
    assert torch.allclose(built("norm", "rmsnorm", dim=32).double()(unit), unit, atol=1e-5)
    standard = (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, unbiased=False)
    assert torch.allclose(built("norm", "layernorm", dim=32).double()(standard), standard, atol=1e-4)
