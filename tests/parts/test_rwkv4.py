"""RWKV-4: the three forms of its average, its initialisation, its closed forms."""

import math

import pytest
import torch
from torch import nn

from mixlab import build_model
from mixlab.errors import UserError
from mixlab.parts.checks import TOLERANCE, tensors
from mixlab.parts.contract import get
from mixlab.parts.temporal.wkv import wkv


def draw(B=2, T=40, A=5, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, B, T, A, generator=generator, dtype=torch.float64)
    raw, u = torch.randn(2, A, generator=generator, dtype=torch.float64)
    return scale * k, v, raw, u


def parallel(k, v, raw, u):
    """Equation 16, all pairs at once."""
    T, rate = k.shape[1], raw.exp()
    t, i = torch.arange(T)[:, None, None], torch.arange(T)[None, :, None]
    log = torch.where(i == t, u, -(t - 1 - i) * rate).masked_fill(i > t, -torch.inf)
    e = (log + k[:, None]).exp()  # (B, T, T, A)
    return (e * v[:, None]).sum(2) / e.sum(2)


def recurrent(k, v, raw, u):
    """Equations 19 to 22."""
    a = b = torch.zeros_like(k[:, 0])
    y = []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        now = (u + k_t).exp()
        y.append((a + now * v_t) / (b + now))
        a = (-raw.exp()).exp() * a + k_t.exp() * v_t
        b = (-raw.exp()).exp() * b + k_t.exp()
    return torch.stack(y, 1)


def test_parallel_recurrent_and_stable_forms_agree():
    inputs = draw()
    assert (parallel(*inputs) - recurrent(*inputs)).abs().max() < 2e-15 * 20
    assert (wkv(*inputs)[0] - recurrent(*inputs)).abs().max() < 2e-15 * 20


@pytest.mark.parametrize("wide", [1, 100])
@pytest.mark.parametrize("steps", [1, 6, 7, 16, 40, 64])
def test_blocks_and_pieces_of_time_make_no_difference(monkeypatch, steps, wide):
    """Blocks of so many steps of 40, whether or not they divide it, cut into pieces or (wide = 1) not."""
    variables = [z.requires_grad_() for z in draw()]
    dy = torch.randn(2, 40, 5, dtype=torch.float64)
    monkeypatch.setattr("mixlab.parts.temporal.wkv.BLOCK", 10 * steps)
    monkeypatch.setattr("mixlab.parts.temporal.wkv.WIDE", wide)
    y, (a, b, _) = wkv(*variables)
    wanted = recurrent(*variables)
    assert torch.allclose(y, wanted, atol=1e-13)
    for found, right in zip(
        torch.autograd.grad((y * dy).sum() + (a / b).sum(), variables),
        torch.autograd.grad((wanted * dy).sum() + average_after(*variables[:3]).sum(), variables),
        strict=True,
    ):
        assert torch.allclose(found, right, atol=1e-12)


def average_after(k, v, raw):
    """Of all the past: what a later token would read of it."""
    fading = torch.arange(k.shape[1], dtype=k.dtype).flip(0)[:, None] * raw.exp()
    e = (k - fading).exp()
    return (e * v).sum(1) / e.sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keys_of_5000_stay_finite_in_value_and_gradient(dtype):
    k, v, raw, u = draw(scale=2000.0)
    assert k.abs().max() > 5000
    assert not recurrent(k, v, raw, u).isfinite().all()
    inputs = [z.to(dtype).requires_grad_() for z in (k, v, raw, u)]
    y, state = wkv(*inputs)
    assert all(t.isfinite().all() for t in (y, *state))
    assert (y <= v.max()).all() and (y >= v.min()).all()  # an average
    for gradient in torch.autograd.grad(y.square().sum(), inputs):
        assert gradient.isfinite().all()


def test_the_largest_key_is_what_a_channel_that_keeps_all_returns():
    k, v, raw, u = draw(scale=2000.0)
    y, _ = wkv(k, v, torch.full_like(raw, -50.0), torch.zeros_like(u))  # a decay of exp(-e^-50) = 1
    best = v.gather(1, k.cummax(1).indices)
    assert torch.allclose(y, best, atol=1e-12)


def test_float32_equals_float64_over_a_long_row():
    k, v, raw, u = draw(B=1, T=4096, A=8, scale=3.0)
    wanted, _ = wkv(k, v, raw, u)
    found, _ = wkv(k.float(), v.float(), raw.float(), u.float())
    assert (found - wanted).abs().max() < TOLERANCE[torch.float32] * wanted.abs().max()


def test_gradient_can_be_differentiated():
    inputs = [z.requires_grad_() for z in draw(B=1, T=4, A=2)]
    assert torch.autograd.gradgradcheck(lambda *z: wkv(*z)[0], inputs)


def test_gradient_flows_through_the_state():
    inputs = draw(T=6)
    a, b = torch.rand(2, 2, 5, dtype=torch.float64)
    p = torch.randn(2, 5, dtype=torch.float64)
    variables = [z.requires_grad_() for z in (*inputs, a, b)]

    def run(k, v, raw, u, a, b):
        y, (a, b, p_) = wkv(k, v, raw, u, (a, b, p))
        return y, (a * p_.exp()) / (b * p_.exp())

    assert torch.autograd.gradcheck(run, variables)


def built(layer, depth=12, dim=768, kind="temporal", name="rwkv4", **knobs):
    cls = get(kind, name)
    torch.manual_seed(0)
    return cls.build(cls.Config(**knobs), dim=dim, depth=depth, layer=layer)


@pytest.mark.parametrize("layer", [0, 5, 11])
def test_time_mixing_starts_as_the_released_code(layer):
    part = built(layer)
    up, down = layer / 11, 1 - layer / 12
    for i in (0, 1, 100, 767):
        assert part.mu_k[i].item() == pytest.approx((i / 768) ** down, abs=1e-6)
        assert part.mu_v[i].item() == pytest.approx((i / 768) ** down + 0.3 * up, abs=1e-6)
        assert part.mu_r[i].item() == pytest.approx((i / 768) ** (down / 2), abs=1e-6)
        assert part.w[i].item() == pytest.approx(-5 + 8 * (i / 767) ** (0.7 + 1.3 * up), abs=1e-5)
        assert part.u[i].item() == pytest.approx(math.log(0.3) + 0.5 * ((i + 1) % 3 - 1), abs=1e-6)
    keep = (-part.w.double().exp()).exp()
    assert keep[0].item() == pytest.approx(0.99328, abs=1e-5)
    assert keep[-1].item() == pytest.approx(1.9e-9, rel=0.02)
    v = part.v.weight
    assert torch.allclose(v @ v.T, torch.eye(768), atol=1e-4)
    assert all(z.weight.abs().max() == 0 for z in (part.r, part.k, part.out))


def test_one_layer_alone_can_be_initialised():
    assert built(0, depth=1, dim=8).w.isfinite().all()
    assert built(0, depth=1, dim=1).w.isfinite().all()


@pytest.mark.parametrize("layer", [0, 5])
def test_channel_mixing_starts_as_the_released_code(layer):
    part = built(layer, dim=64, kind="feature", name="channel_mix")
    down = 1 - layer / 12
    for mu in (part.mu_k, part.mu_r):
        assert mu[40].item() == pytest.approx((40 / 64) ** down, abs=1e-6)
    k = part.k.weight
    assert torch.allclose(k.T @ k, 4 * torch.eye(64), atol=1e-4)  # orthogonal, gain 2
    assert part.r.weight.abs().max() == 0 and part.v.weight.abs().max() == 0


@pytest.mark.parametrize("layer", [0, 5])
def test_channel_mixing_of_version_7_starts_as_the_released_code(layer):
    part = built(layer, dim=64, kind="feature", name="channel_mix", version=7)
    down = 1 - layer / 12
    assert part.mu_k[40].item() == pytest.approx(1 - (40 / 64) ** down**4, abs=1e-6)
    assert part.k.weight.abs().max() <= 0.5 / 8
    assert part.k.weight.std().item() == pytest.approx(0.5 / 8 / 3**0.5, rel=0.02)
    assert part.v.weight.abs().max() == 0
    assert {name for name, _ in part.named_parameters()} == {"mu_k", "k.weight", "v.weight"}


def rwkv(vocab_size=50_277, **shape):
    norm = {"position": "none", "norm": "layernorm", "embedding_norm": True}
    parts = {"temporal": "rwkv4", "feature": {"kind": "channel_mix", "version": 4}}
    return build_model({"vocab_size": vocab_size, **norm, **parts, **shape})


def test_at_init_every_block_is_the_identity():
    torch.manual_seed(0)
    model = rwkv(vocab_size=40, dim=16, depth=3).double()
    tokens = torch.randint(40, (2, 9))
    nn.init.normal_(model.norm.gain)
    stream = model.embedding_norm(model.embedding(tokens))
    assert torch.equal(model(tokens).logits, model.head(model.norm(stream)))


@pytest.mark.parametrize(
    ("depth", "dim", "parameters", "flops"),
    [
        (12, 768, 169_342_464, 261_250_560),
        (24, 1024, 430_397_440, 757_278_720),
        (24, 2048, 1_515_106_304, 2_823_180_288),
        (32, 2560, 2_984_627_200, 5_710_013_440),
        (32, 4096, 7_392_649_216, 14_370_512_896),
        (40, 5120, 14_148_597_760, 27_777_812_480),
    ],
    ids=["169M", "430M", "1.5B", "3B", "7B", "14B"],
)
def test_sizes_of_the_papers_table_2(depth, dim, parameters, flops):
    with torch.device("meta"):
        model = rwkv(dim=dim, depth=depth)
    assert sum(model.parameters_by_component().values()) == parameters
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.flops(1) == flops
    assert model.state_bytes(10**6, torch.float32) == 4 * 5 * dim * depth + 8


def test_state_is_five_vectors_a_block_at_any_length():
    model = rwkv(vocab_size=9, dim=16, depth=2)
    state = model.init_state(1, 10**9)
    assert sum(t.numel() for t in tensors(state.blocks)) == 5 * 16 * 2
    for _ in range(3):
        state = model(torch.randint(9, (1, 50)), state).state
        assert sum(t.numel() * t.element_size() for t in tensors(state)) == model.state_bytes(50)


def test_decay_and_mixing_weights_have_no_weight_decay():
    roles = rwkv(vocab_size=9, dim=16, depth=1).parameter_roles()
    assert roles["blocks.0.temporal.w"] == roles["blocks.0.temporal.u"] == "recurrence"
    assert all(role == "gain" for name, role in roles.items() if ".mu_" in name)
    assert all(role == "matrix" for name, role in roles.items() if name.startswith("blocks.0.temporal.out"))


@pytest.mark.parametrize(
    ("kind", "name", "knobs", "message"),
    [
        ("temporal", "rwkv4", {"ratio": 0.0}, "ratio > 0"),
        ("feature", "channel_mix", {"version": 5}, "version 4 and version 7"),
        ("feature", "channel_mix", {"ratio": -1.0}, "ratio > 0"),
    ],
)
def test_knobs_that_do_not_fit_are_refused(kind, name, knobs, message):
    with pytest.raises(UserError, match=message):
        built(0, dim=16, kind=kind, name=name, **knobs)


def test_decay_and_bonus_learn_at_the_released_codes_rates():
    scales = rwkv(vocab_size=9, dim=16, depth=2).lr_scales()
    wanted = {"w": 2.0, "u": 3.0}
    assert scales == {f"blocks.{i}.temporal.{name}": s for i in range(2) for name, s in wanted.items()}
