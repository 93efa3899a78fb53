"""The recurrences that run under autocast on a CPU: torch.nn's own, in value and gradient."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mixlab.errors import UserError
from mixlab.parts.checks import Case, close
from mixlab.parts.contract import get
from mixlab.parts.temporal import recurrent_core
from mixlab.parts.temporal.recurrent_core import ElmanCell, GRUCell, LSTMCell, scan

CELLS = {"rnn": (nn.RNN, ElmanCell()), "gru": (nn.GRU, GRUCell()), "lstm": (nn.LSTM, LSTMCell())}
kinds = pytest.mark.parametrize("kind", CELLS)


def headed(kind, heads, dim=16, dtype=torch.float64):
    return Case("temporal", kind, get("temporal", kind).Config(heads=heads), dim=dim).build(dtype)


def inputs(kind, B=2, T=7, D=6, H=5):
    """torch.nn's module in float64, an input, a state of (B, H) tensors."""
    module = CELLS[kind][0](D, H, batch_first=True).double()
    state = [torch.randn(B, H, dtype=torch.float64, requires_grad=True) for _ in range(1 + (kind == "lstm"))]
    return module, torch.randn(B, T, D, dtype=torch.float64, requires_grad=True), state


def wanted(kind, module, x, state):
    before = tuple(s[None] for s in state)
    y, after = module(x, before if kind == "lstm" else before[0])
    return [y, *(s[0] for s in (after if kind == "lstm" else [after]))]


def found(kind, module, x, state):
    a = F.linear(x.transpose(0, 1), module.weight_ih_l0, module.bias_ih_l0)
    y, after = scan(CELLS[kind][1], a, module.weight_hh_l0, module.bias_hh_l0, tuple(state))
    return [y.transpose(0, 1), *after]


@kinds
@pytest.mark.parametrize("chunk", [1, 70, 1 << 17], ids=["one step", "a few", "all"])
def test_scan_equals_torch_nn(kind, chunk, monkeypatch):
    monkeypatch.setattr(recurrent_core, "CHUNK", chunk)
    module, x, state = inputs(kind)
    leaves = [x, *state, *module.parameters()]
    outputs = [run(kind, module, x, state) for run in (found, wanted)]
    weights = [torch.randn_like(y) for y in outputs[0]]
    sums = [sum((y * w).sum() for y, w in zip(ys, weights, strict=True)) for ys in outputs]
    gradients = [torch.autograd.grad(s, leaves) for s in sums]
    for ours, theirs in (outputs, gradients):
        for a, b in zip(ours, theirs, strict=True):
            close(a, b, kind)
    with torch.no_grad():
        for a, b in zip(found(kind, module, x, state), outputs[1], strict=True):
            close(a, b, "without gradient")


@kinds
def test_the_gradient_of_scan_has_a_gradient(kind):
    module, x, state = inputs(kind, B=1, T=3, D=2, H=2)
    parameters = [p.requires_grad_() for p in module.parameters()]

    def run(x, *rest):
        return tuple(found(kind, module, x, rest[: len(state)]))

    assert torch.autograd.gradgradcheck(run, (x, *state), rtol=1e-6, atol=1e-8)
    y = found(kind, module, x, state)[0].square().sum()
    (slope,) = torch.autograd.grad(y, parameters[1], create_graph=True)
    assert slope.requires_grad


@kinds
@pytest.mark.parametrize("heads", [1, 4])
def test_under_autocast_the_state_is_not_rounded_to_bfloat16(kind, heads):
    part = headed(kind, heads, dtype=torch.float32)
    state = part.init_state(1, 1, device="cpu", dtype=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y, after = part(torch.randn(1, 9, 16).bfloat16(), state)
    assert y.dtype == torch.bfloat16
    assert {s.dtype for s in after} == {torch.float32}
    assert all((s != s.bfloat16()).any() for s in after)


@kinds
def test_one_head_is_torch_nns_own_module(kind):
    assert type(headed(kind, 1).cell) is CELLS[kind][0]


@kinds
def test_each_head_is_a_network_of_torch_nn_by_itself(kind):
    part, x = headed(kind, 4), torch.randn(2, 9, 16, dtype=torch.float64, requires_grad=True)
    lone = CELLS[kind][0](16, 4, batch_first=True).double()
    hidden = []
    for names in zip(*(p.chunk(4) for p in part.cell.parameters()), strict=True):
        shapes = {name: p.shape for name, p in lone.named_parameters()}
        own = {name: value.reshape(shapes[name]) for name, value in zip(shapes, names, strict=True)}
        hidden.append(torch.func.functional_call(lone, own, (x,))[0])
    found, wanted = part(x)[0], torch.cat(hidden, -1) @ part.out.weight.T
    close(found, wanted, kind)
    leaves = [x, *part.parameters()]
    gradients = [torch.autograd.grad(y.square().sum(), leaves) for y in (found, wanted)]
    for a, b in zip(*gradients, strict=True):
        close(a, b, kind)


@kinds
def test_the_gradient_with_heads_has_a_gradient(kind):
    part, x = headed(kind, 2, dim=4), torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: part(x)[0], (x,), rtol=1e-6, atol=1e-8)


@kinds
def test_heads_in_bfloat16_keep_a_float32_state(kind):
    part = headed(kind, 4, dtype=torch.float32)
    x, exact = torch.randn(2, 40, 16).bfloat16(), part.init_state(2, 40, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        part.bfloat16()
        y, after = part(x, part.init_state(2, 40, device="cpu", dtype=torch.bfloat16))
        part.float()  # the same weights, rounded
        wanted, exact = part(x.float(), exact)
    close(y, wanted, "output")
    close(after.h, exact.h, "state", torch.bfloat16)
    assert (after.h != after.h.bfloat16()).any()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"heads": 5}, "hidden width 24 cannot have heads=5; the nearest that divide it are 4 and 6"),
        ({"heads": 0}, "are 1 and 2"),
        ({"heads": 48}, "are 12 and 24"),
        ({"ratio": 0.0}, "ratio > 0"),
    ],
)
def test_knobs_that_do_not_fit_are_named(knobs, message):
    cls = get("temporal", "gru")
    with pytest.raises(UserError, match=message):
        cls.build(cls.Config(**knobs), dim=24)
