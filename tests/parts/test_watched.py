"""What a part shows to meters is what it mixes with."""

from __future__ import annotations

import pytest
import torch

from mixlab.parts.checks import Case
from mixlab.parts.contract import get
from tests.contract.cases import CASES, label

ATTENTION = [case for case in CASES if case.name == "attention"]
FEED_FORWARD = [case for case in CASES if case.kind == "feature" and case.name != "none"]


@pytest.mark.parametrize("case", ATTENTION, ids=label)
def test_attention_shows_the_scores_it_attends_by(case):
    part, x = case.build(), case.sample(2, 9)
    p = part.watched(x)["scores"].softmax(-1)
    v = (
        part.v(x)
        .view(2, 9, part.kv_heads, -1)
        .transpose(1, 2)
        .repeat_interleave(part.heads // part.kv_heads, 1)
    )
    y = part.out((p @ v).transpose(1, 2).reshape(2, 9, -1))
    assert (y - part(x)[0]).abs().max() < 1e-12


@pytest.mark.parametrize("case", FEED_FORWARD, ids=label)
def test_feed_forward_parts_show_the_units_that_they_sum(case):
    part, x = case.build(), case.sample(2, 5)
    units = part.watched(x)["units"]
    gate = 1.0
    if case.name == "channel_mix":
        before = torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]
        gate = part.r(part.mu_r * x + (1 - part.mu_r) * before).sigmoid() if part.gated else 1.0
    down = part.v if case.name == "channel_mix" else part.down
    assert (gate * down(units) - part(x)[0]).abs().max() < 1e-12


def test_gmlp_shows_both_halves_and_the_tiny_attention():
    case = Case("temporal", "gmlp", get("temporal", "gmlp").Config(attention=4))
    part, x = case.build(), case.sample(2, 6)
    shown = part.watched(x)
    z1, z2 = shown["units"].chunk(2, -1)
    v = part.qkv(x).chunk(3, -1)[2]
    W = part.rows(0, 6).expand(2, -1, -1)
    tiny = part.lift(shown["scores"].softmax(-1)[:, 0] @ v)
    y = part.out(z1 * (W @ part.normalise(z2) + part.bias[:6, None] + tiny))
    assert (y - part(x)[0]).abs().max() < 1e-12


def test_rglru_shows_the_gate_that_lets_the_recurrence_out():
    case = Case("temporal", "rglru")
    part, x = case.build(), case.sample(2, 6)
    assert (part.watched(x)["units"].abs() > 1e-3).any()
    part.gate.weight.data.zero_()
    part.gate.bias.data.fill_(-20.0)
    assert part.watched(x)["units"].abs().max() < 1e-12
    assert (part(x)[0] - part.out.bias).abs().max() < 1e-12
