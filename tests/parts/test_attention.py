"""What attention's knobs promise beyond the contract."""

import pytest
import torch

from mixlab.errors import UserError
from mixlab.parts.checks import close, measured_flops, run_in_chunks
from mixlab.parts.contract import Choice, get
from mixlab.parts.temporal.attention_core import Scoring, attend

POSITIONS = ("none", "rope", "alibi")


def built(position="rope", dim=16, **knobs):
    cls = get("temporal", "attention")
    torch.manual_seed(0)
    choice = Choice(position, get("position", position).Config())
    part = cls.build(cls.Config(**{"heads": 4, **knobs}), dim=dim, position=choice).double().eval()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return part


def sample(T, B=2, dim=16):
    return torch.randn(B, T, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_blocks_of_a_window_equal_one_masked_square(position, softcap):
    """T = 1 to 40 over windows that divide it and that do not, with and without cached keys before."""
    slopes = get("position", "alibi").slopes(4).double() if position == "alibi" else None
    for T, w, past in ((40, 8, 0), (37, 5, 0), (11, 10, 0), (23, 7, 7), (9, 8, 3), (3, 4, 4), (12, 1, 1)):
        q, k, v = (sample(T + past, dim=32).unflatten(-1, (4, 8)).transpose(1, 2) for _ in range(3))
        q = q[:, :, past:]
        found = attend(q, k, v, Scoring(window=w, softcap=softcap, slopes=slopes))
        scores = q @ k.transpose(2, 3) / 8**0.5
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        distance = torch.arange(past, past + T)[:, None] - torch.arange(past + T)
        if slopes is not None:
            scores = scores - slopes[:, None, None] * distance
        scores = scores.masked_fill((distance < 0) | (distance >= w), -torch.inf)
        close(found, scores.softmax(-1) @ v, f"T={T}, window={w}, past={past}")


@pytest.mark.parametrize("position", POSITIONS)
def test_a_window_forgets_what_left_it(position):
    part, x = built(position, window=4), sample(20)
    other = x.clone()
    other[:, :10] = sample(10, dim=16) + 1
    assert torch.equal(part(x)[0][:, 13:], part(other)[0][:, 13:])
    assert not torch.allclose(part(x)[0][:, 12], part(other)[0][:, 12])


@pytest.mark.parametrize("position", POSITIONS)
def test_a_windows_cache_stops_growing_and_goes_on_for_ever(position):
    part, x = built(position, window=6, kv_heads=2), sample(50)
    whole, _ = part(x)
    state = part.init_state(2, 10_000, device="cpu", dtype=torch.float64)
    assert state.keys.shape[2] == 6
    assert part.state_bytes(10_000, torch.float32) == part.state_bytes(6, torch.float32)
    assert part.state_bytes(5, torch.float32) < part.state_bytes(6, torch.float32)
    with torch.no_grad():
        for cuts in ((1, 2, 3, 30), (7, 14, 49), tuple(range(1, 50)), (6, 12, 13, 14, 40)):
            close(run_in_chunks(part, x, cuts), whole, f"cuts {cuts}")


def test_a_window_smaller_than_the_text_costs_linear_work():
    part = built(window=8, dim=16)
    flops = [measured_flops(lambda T=T: part(sample(T, B=1))) for T in (64, 128, 256)]
    assert flops == [part.flops(T) for T in (64, 128, 256)]
    assert flops[2] - flops[1] == 2 * (flops[1] - flops[0])


def test_without_a_window_a_full_cache_is_an_error():
    for knobs in ({}, {"window": 8}):
        part = built(**knobs)
        state = part.init_state(1, 4, device="cpu", dtype=torch.float64)
        with pytest.raises(UserError, match="room for 4 tokens, 5 were given"):
            part(sample(5, B=1), state)


def test_normed_queries_and_keys_do_not_see_the_scale_of_their_projections():
    plain, normed = built(), built(qk_norm=True)
    before = [part(sample(9))[0] for part in (plain, normed)]
    with torch.no_grad():
        for part in (plain, normed):
            part.q.weight.mul_(30)
            part.k.weight.mul_(0.5)
    assert torch.allclose(normed(sample(9))[0], before[1], atol=1e-3)  # up to the norm's eps
    assert not torch.allclose(plain(sample(9))[0], before[0], atol=1e-1)


def test_temperature_runs_from_the_largest_score_to_the_mean():
    x = sample(9)
    cold, hot, plain = (built(temperature=t) for t in (1e-4, 1e6, 1.0))
    v = plain.v(x)
    mean = plain.out(v.cumsum(1) / torch.arange(1, 10)[:, None])
    assert torch.allclose(hot(x)[0], mean, atol=1e-4)
    rope, (q, k) = plain.position, (f(x).unflatten(-1, (4, 4)).transpose(1, 2) for f in (plain.q, plain.k))
    scores = torch.einsum("bhtk,bhsk->bhts", rope(q), rope(k)).masked_fill(
        torch.ones(9, 9, dtype=torch.bool).triu(1), -torch.inf
    )
    chosen = torch.nn.functional.one_hot(scores.argmax(-1), 9).double()
    picked = torch.einsum("bhts,bshk->bthk", chosen, v.unflatten(-1, (4, 4))).flatten(2)
    assert torch.allclose(cold(x)[0], plain.out(picked), atol=1e-6)


def test_a_learned_temperature_starts_at_the_fixed_one():
    cls = get("temporal", "attention")
    learned = cls.build(cls.Config(heads=4, temperature=0.5, learned_temperature=True), dim=16).double()
    fixed = cls.build(cls.Config(heads=4, temperature=0.5), dim=16).double()
    fixed.load_state_dict({k: v for k, v in learned.state_dict().items() if k != "log_temperature"})
    close(learned(sample(7))[0], fixed(sample(7))[0], "learned temperature at its start")
    assert learned.parameter_roles()["log_temperature"] == "gain"


def test_a_softcap_bounds_how_far_one_key_can_stand_out():
    """With |score| <= c no weight among n exceeds 1 / (1 + (n - 1) exp(-2c))."""
    part, x = built("none", softcap=1.0), sample(12)
    with torch.no_grad():
        part.q.weight.mul_(1e3)
        part.v.weight.zero_()
        part.v.weight[:, 0] = 1.0
        part.out.weight.copy_(torch.eye(16))
        x[:, :, 0] = 0.0
        x[:, 5, 0] = 1.0  # the output is the weight on position 5
        weight = part(x)[0][:, -1]
    bound = 1 / (1 + 11 * torch.exp(torch.tensor(-2.0)))
    assert weight.max() <= bound
    assert weight.max() > 1 / 12


@pytest.mark.parametrize("bias", ["none", "qkv", "out", "all"])
def test_biases_are_where_they_were_asked_for(bias):
    part = built(bias=bias)
    found = {name for name in ("q", "k", "v", "out") if getattr(part, name).bias is not None}
    assert (
        found == {"none": set(), "qkv": {"q", "k", "v"}, "out": {"out"}, "all": {"q", "k", "v", "out"}}[bias]
    )


@pytest.mark.parametrize("knobs", [{"window": -1}, {"softcap": -1.0}, {"temperature": 0.0}])
def test_knobs_out_of_range_are_named(knobs):
    with pytest.raises(UserError, match="window >= 0, softcap >= 0 and temperature > 0"):
        built(**knobs)
