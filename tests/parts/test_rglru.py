"""RG-LRU: its initialisation, its closed forms, and both of its backward passes."""

import math

import pytest
import torch

from mixlab.errors import UserError
from mixlab.parts.checks import Case, close
from mixlab.parts.temporal import rglru_core
from mixlab.parts.temporal.rglru import RGLRU


def built(dim=64, depth=1, dtype=torch.float64, **knobs):
    torch.manual_seed(0)
    return RGLRU.build(RGLRU.Config(**knobs), dim=dim, depth=depth).to(dtype)


def decays(part):
    """a of an open gate, channel by channel."""
    return torch.exp(-torch.nn.functional.softplus(part.decay.double()))


def ks_p(sample, low, high):
    """The p-value of the sample under the uniform law on [low, high], Kolmogorov-Smirnov."""
    x = ((sample.sort().values - low) / (high - low)).clamp(0, 1)
    n = len(x)
    steps = torch.arange(1, n + 1) / n
    gap = max((steps - x).max().item(), (x - steps + 1 / n).max().item())
    scaled = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * gap
    return min(1.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101)))


LAWS = {  # what is uniform at the start: the power of a
    "code": (2, 0.9**2, 0.999**2),  # the area of a ring
    "paper": (8, 0.9, 0.999),  # a^c itself
}


@pytest.mark.parametrize("init", LAWS)
def test_the_decay_spectrum_starts_as_it_says(init):
    power, low, high = LAWS[init]
    a = decays(built(dim=3072, init=init, dtype=torch.float32))
    assert len(a) == 4096
    assert low - 1e-4 < (a**power).min() < (a**power).max() < high + 1e-4
    assert ks_p(a**power, low, high) > 0.01
    other_power, low, high = LAWS["paper" if init == "code" else "code"]
    assert ks_p(a**other_power, low, high) < 1e-9


def test_the_two_initialisations_remember_for_different_times():
    # Steps after which an open gate has let 1 - 1/e go: 1 / (c log 1/a).
    memory = {init: -1 / (8 * decays(built(dim=3072, init=init)).log()) for init in LAWS}
    assert memory["code"].median() < 3
    assert memory["code"].max() < 126
    assert memory["paper"].min() > 9.4
    assert 15 < memory["paper"].median() < 25


def test_weights_start_as_in_the_released_code():
    part = built(dim=384, depth=8, blocks=8)  # R = 512, blocks of 64
    stds = {
        part.value.weight: 384**-0.5, part.gate.weight: 384**-0.5, part.taps: 0.05,
        part.recurrence_gate: 1 / 8, part.input_gate: 1 / 8, part.out.weight: (2 / 8 / 512) ** 0.5,
    }  # fmt: skip
    for tensor, std in stds.items():
        assert tensor.std().item() == pytest.approx(std, rel=0.05)
    biases = (part.value.bias, part.gate.bias, part.out.bias, part.shift)
    assert all(b.abs().max() == 0 for b in (*biases, part.recurrence_bias, part.input_bias))


def test_the_papers_widths_come_out():
    shapes = {}
    for name, (dim, ratio, blocks) in {"7B": (4096, 1.375, 32), "2B": (2560, 1.0, 10)}.items():
        with torch.device("meta"):
            part = RGLRU.build(RGLRU.Config(ratio=ratio, blocks=blocks), dim=dim)
        shapes[name] = (part.hidden, tuple(part.input_gate.shape))
    assert shapes == {"7B": (5632, (32, 176, 176)), "2B": (2560, (10, 256, 256))}


def test_knobs_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="conv >= 1"):
        built(conv=0)
    with pytest.raises(UserError, match="ratio > 0"):
        built(ratio=-1.0)


def with_gates(part, r, i):
    """The part with gates that say r and i whatever comes, and a convolution that passes its input on."""
    with torch.no_grad():
        for weight in (part.recurrence_gate, part.input_gate, part.taps):
            weight.zero_()
        part.taps[:, -1] = 1
        part.recurrence_bias.fill_(math.log(r / (1 - r)))
        part.input_bias.fill_(math.log(i / (1 - i)))
    return part


def hidden_after(part, values):
    """The part's h after inputs whose value branch is `values` (B, T, R)."""
    state = part.init_state(len(values), values.shape[1], device="cpu", dtype=torch.float64)
    part.value = torch.nn.Identity()
    part.gate = torch.nn.Identity()
    with torch.no_grad():
        return part.mix(values, state)[1].h


def test_a_pulse_fades_by_a_to_the_c_times_the_gate():
    part = with_gates(built(dim=16, ratio=1.0), r=0.25, i=0.5)
    pulse = torch.zeros(1, 11, part.hidden, dtype=torch.float64)
    pulse[:, 0] = 3.0
    expected = 3.0 * 0.5 * decays(part) ** (8 * 0.25 * 10)  # it entered whole, as nothing came before
    assert (hidden_after(part, pulse) - expected).abs().max() < 1e-12


def test_noise_keeps_its_variance_whatever_the_decay():
    # h_t = a h + sqrt(1 - a^2) x with unit white noise x: variance 1 at every t for every a.
    part = with_gates(built(dim=16, ratio=1.0), r=0.5, i=1 - 1e-12)
    noise = torch.randn(4000, 20, part.hidden, dtype=torch.float64)
    variance = hidden_after(part, noise).var(0)
    assert (variance - 1).abs().max() < 0.12


@pytest.mark.parametrize("chunk", [1, 64, 500])
@pytest.mark.parametrize("conv", [1, 4, 9])
def test_chunks_of_any_length_give_one_gradient(monkeypatch, chunk, conv):
    part = Case("temporal", "rglru", RGLRU.Config(conv=conv)).build()
    x = torch.randn(2, 23, 16, dtype=torch.float64, requires_grad=True)
    results = []
    for size in (1 << 20, chunk):
        monkeypatch.setattr(rglru_core, "CHUNK", size)
        y, _ = part(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *part.parameters()])))
    for one, other in zip(*results, strict=True):
        close(one, other, "chunked")


def test_gradients_are_those_of_finite_differences_and_can_be_differentiated():
    part = Case("temporal", "rglru").build()
    names = ("decay", "taps", "recurrence_gate", "input_bias")
    start = [dict(part.named_parameters())[name].detach().clone().requires_grad_() for name in names]
    x = torch.randn(2, 4, 16, dtype=torch.float64, requires_grad=True)

    def run(x, *values):
        return torch.func.functional_call(part, dict(zip(names, values, strict=True)), (x,))[0].sum(2)

    assert torch.autograd.gradcheck(run, (x, *start), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, *start), fast_mode=True)


def test_the_slope_of_the_multiplier_is_bounded_where_nothing_is_forgotten():
    part = built(dim=16, dtype=torch.float32)
    with torch.no_grad():
        part.decay.fill_(-40.0)  # softplus underflows to 4e-18: a is exactly 1
    x = torch.randn(2, 6, 16, requires_grad=True)
    y, _ = part(x)
    gradients = torch.autograd.grad(y.square().sum(), [x, *part.parameters()])
    assert all(g.isfinite().all() for g in gradients)
    again = torch.autograd.grad(part(x)[0].square().sum(), [x, *part.parameters()], create_graph=True)
    for one, other in zip(gradients, again, strict=True):
        close(one, other, "by hand and composed")


def test_a_state_holds_nothing_but_itself():
    part = built(dim=32, dtype=torch.float32)
    state = part.init_state(1, 500, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        for T in (500, 1):
            _, state = part(torch.randn(1, T, 32), state)
            held = sum(t.untyped_storage().nbytes() for t in state)
            assert held == part.state_bytes(500, torch.float32)


def test_the_roles_keep_decay_and_taps_from_weight_decay():
    roles = built().parameter_roles()
    assert roles["decay"] == "recurrence"
    assert {n for n, role in roles.items() if role == "matrix"} == {
        "value.weight", "gate.weight", "out.weight", "recurrence_gate", "input_gate",
    }  # fmt: skip


def test_a_shard_reads_no_other_shards_channels():
    """Claim: block-diagonal gates keep the block at one sum; whole blocks on either side do not meet."""
    part = Case("temporal", "rglru", RGLRU.Config(blocks=4)).build()
    half = part.hidden // 2
    x = torch.randn(1, 7, 16, dtype=torch.float64)
    whole = part(x)[0]
    halves = []
    for keep in (slice(0, half), slice(half, None)):
        shard = Case("temporal", "rglru", RGLRU.Config(blocks=4)).build()
        with torch.no_grad():
            mask = torch.zeros(part.hidden, dtype=torch.float64)
            mask[keep] = 1
            for linear in (shard.value, shard.gate):
                linear.weight.mul_(mask[:, None])
                linear.bias.mul_(mask)
            shard.out.weight.mul_(mask)
            shard.out.bias.zero_()
        halves.append(shard(x)[0])
    close(sum(halves) + part.out.bias, whole, "sum over shards")
