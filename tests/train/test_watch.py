"""What the watch list says is true of closed forms, of every part, and costs training nothing but time."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mixlab.model.language_model import build_model
from mixlab.parts.contract import available
from mixlab.train.bands import BANDS, warning
from mixlab.train.watch import (
    SILENT,
    STREAM,
    WatchList,
    attention_entropy,
    dead,
    effective_rank,
)

CPU = torch.device("cpu")
NAMES = {"attention_logit", "attention_entropy", "effective_rank", "dead_units"}
PARTS = [(kind, name) for kind in ("temporal", "feature") for name in available(kind)]


def watch(model, tokens=None, *, every=1, context=16):
    """A watch list over random tokens of the model's vocabulary."""
    if tokens is None:
        tokens = np.random.default_rng(0).integers(model.vocab_size, size=1000)
    text = SimpleNamespace(tokens=tokens)
    return WatchList(model, text, every=every, context=context, device=CPU, bfloat16=False)


def model(**keys):
    base = {
        "vocab_size": 11,
        "dim": 16,
        "depth": 2,
        "context": 16,
        "temporal": "attention",
        "feature": "relu",
    }
    return build_model({**base, **keys})


def hidden_after(S):
    """Scores of zero (1, 1, S, S) where a key is visible, -inf where it is later."""
    return torch.zeros(S, S).masked_fill(torch.ones(S, S).triu(1).bool(), -torch.inf)[None, None]


def test_uniform_attention_has_the_entropy_of_its_keys():
    S = 7
    assert attention_entropy(torch.full((2, 3, 1, S), 5.0)).item() == pytest.approx(math.log(S))
    # Causal: query t sees t keys; the first, which has no choice, does not count.
    causal = sum(math.log(t) for t in range(2, S + 1)) / (S - 1)
    assert attention_entropy(hidden_after(S)).item() == pytest.approx(causal)
    one = torch.zeros(1, 1, 3, S)
    one[..., 2] = 1000.0
    assert attention_entropy(one).item() == 0
    half = torch.zeros(1, 1, 1, 4)
    half[..., :2] = 50.0
    assert attention_entropy(half).item() == pytest.approx(math.log(2))
    assert math.isnan(attention_entropy(hidden_after(1)).item())


def test_effective_rank_counts_the_directions():
    torch.manual_seed(0)
    one = torch.randn(40, 1) @ torch.randn(1, 9)
    assert effective_rank(one) == pytest.approx(1, abs=1e-4)
    basis = torch.linalg.qr(torch.randn(40, 12))[0]  # orthonormal columns: equal singular values
    for r in (2, 5, 12):
        assert effective_rank(basis[:, :r] @ torch.eye(r, 12)) == pytest.approx(r, rel=1e-6)
    # Singular values 3 and 1: p = (3/4, 1/4).
    two = basis[:, :2] @ torch.diag(torch.tensor([3.0, 1.0]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(two) == pytest.approx(math.exp(entropy), rel=1e-6)
    x = torch.randn(30, 50)
    share = torch.linalg.svdvals(x.double())
    share /= share.sum()
    assert effective_rank(x) == pytest.approx(math.exp(-(share * share.log()).sum()), rel=1e-9)
    assert effective_rank(x.T) == pytest.approx(effective_rank(x), rel=1e-9)
    assert math.isnan(effective_rank(torch.zeros(4, 5)))
    assert math.isnan(effective_rank(torch.full((4, 5), torch.nan)))


def test_a_unit_is_dead_if_it_is_silent_for_every_token():
    units = torch.zeros(2, 3, 4)
    units[1, 2, 0], units[0, 0, 1], units[0, 1, 2] = 1.0, -1.0, SILENT / 2
    assert dead(units).tolist() == [0, 0, 1, 1]
    units[0, 0, 3] = torch.nan
    assert dead(units)[:3].tolist() == [0, 0, 1] and dead(units)[3].isnan()


def test_a_relu_far_below_zero_is_all_dead_and_said_so():
    m = model(feature={"kind": "relu", "bias": True})
    torch.nn.init.constant_(m.blocks[1].feature.up.bias, -100.0)
    seen = watch(m).look({})
    assert seen["dead_units"][1] == 1
    assert seen["dead_units"][0] < 0.5
    assert set(seen["warnings"]) == {"dead_units"}
    assert seen["warnings"]["dead_units"].startswith(
        "the share of dead units is 1 in layer 1, healthy up to 0.5:"
    )


def test_uniform_attention_in_a_model():
    m = model(depth=1)
    torch.nn.init.zeros_(m.blocks[0].temporal.q.weight)
    seen = watch(m, context=16).look({})
    assert seen["attention_logit"] == [0.0]
    assert seen["attention_entropy"][0] == pytest.approx(sum(math.log(t) for t in range(2, 17)) / 15)


def test_large_queries_are_said_to_harden_attention():
    m = model()
    for linear in (m.blocks[0].temporal.q, m.blocks[0].temporal.k):
        torch.nn.init.orthogonal_(linear.weight, gain=30.0)
    seen = watch(m).look({})
    assert seen["attention_logit"][0] > 100 > seen["attention_logit"][1]
    assert "in layer 0, healthy up to 100: each query" in seen["warnings"]["attention_logit"]


def test_one_token_for_all_is_a_stream_of_rank_one():
    m = model(temporal="window", feature="none", depth=1)
    torch.nn.init.zeros_(m.blocks[0].temporal.out.weight)
    seen = watch(m, np.full(100, 3)).look({})
    assert seen["effective_rank"][0] == pytest.approx(1, abs=1e-4)
    assert seen["attention_entropy"] == seen["dead_units"] == [None]
    assert set(seen["warnings"]) == {"effective_rank"}


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=[name for _, name in PARTS])
def test_every_part_can_be_watched_and_is_not_disturbed(kind, name):
    torch.manual_seed(0)
    m = model(**{kind: name}, dropout=0.3).train()
    tokens = torch.randint(11, (3, 16))
    seen = watch(m)
    modules = [module.training for module in m.modules()]
    state = torch.get_rng_state()
    before = m.loss(tokens, tokens)
    torch.set_rng_state(state)
    found = seen.look({"matrix": 1e-3})
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(m.loss(tokens, tokens), before)
    assert [module.training for module in m.modules()] == modules
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in m.modules())
    assert all(p.grad is None for p in m.parameters())
    assert set(found) == NAMES | {"warnings"}
    assert all(len(found[key]) == 2 for key in NAMES)
    assert all(1 <= rank <= 16 for rank in found["effective_rank"])
    attends = kind == "feature" or name == "attention"
    assert all((value is not None) == attends for value in found["attention_entropy"])


def test_a_model_that_went_bad_has_no_numbers_and_stops_nothing():
    m = model()
    torch.nn.init.constant_(m.blocks[0].temporal.out.weight, torch.inf)
    found = watch(m).look({"matrix": float("nan")})
    assert found["effective_rank"] == [None, None]
    assert found["attention_logit"][1] is found["attention_entropy"][1] is None
    assert found["dead_units"] == [None, None]


def test_the_rank_is_of_tokens_evenly_spread_over_the_batch():
    m, seen = model(temporal="window", feature="none", depth=1), []
    m.blocks[0].register_forward_hook(lambda block, inputs, output: seen.append(output[0].flatten(0, 1)))
    found = watch(m, np.arange(5000) % 11).look({})["effective_rank"]
    assert found == [effective_rank(seen[0][::2])]
    assert len(seen[0][::2]) == STREAM


def test_without_memory_for_a_look_nothing_is_seen(monkeypatch):
    def short(part, x):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory")

    m = model().train()
    monkeypatch.setattr(type(m.blocks[1].feature), "watched", short)
    assert watch(m).look({}) == {**{name: [None, None] for name in NAMES}, "warnings": {}}
    assert m.training


def test_what_raises_inside_leaves_no_hook_and_the_mode(monkeypatch):
    m = model().train()
    monkeypatch.setattr(type(m.blocks[1].feature), "watched", lambda part, x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        watch(m).look({})
    assert m.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in m.modules())


def test_the_batch_is_the_texts_beginning_and_bounded():
    m = model()
    tokens = np.arange(5000) % 11
    assert watch(m, tokens, context=16).tokens.tolist() == (torch.arange(512) % 11).view(32, 16).tolist()
    assert watch(m, tokens, context=4000).tokens.shape == (1, 512)
    assert watch(m, tokens[:6], context=16).tokens.tolist() == [[0, 1, 2, 3, 4]]


def test_when_it_looks():
    m = model()
    assert [step for step in range(1, 13) if watch(m, every=5).is_due(step)] == [1, 5, 10]
    assert not any(watch(m, every=0).is_due(step) for step in range(1, 13))


def test_the_worst_place_is_named_and_news_are_told_once():
    band = BANDS["update_ratio"]
    found = {"the matrix parameters": 0.6, "the head parameters": 0.9, "the gain parameters": None}
    words = warning(band, found)
    assert words.startswith("the update-to-weight ratio is 0.9 in the head parameters, healthy up to 0.5: ")
    assert warning(band, {"a": 0.5, "b": 0.0}) is None
    assert warning(band, {}) is None
    assert warning(BANDS["attention_entropy"], {"layer 0": 0.05, "layer 1": 0.0, "layer 2": 4.0}) == (
        "attention entropy is 0 in layer 1, healthy from 0.1 on: nearly every query sees one key alone; "
        "a lower learning rate or a longer warm-up helps"
    )
    seen = watch(model())
    ratios = {"head": 0.8}
    found = seen.look(ratios)["warnings"]
    assert set(found) == {"update_ratio"}
    assert seen.news(found) == list(found.values())
    assert seen.news(seen.look(ratios)["warnings"]) == []
    assert seen.news({**found, "dead_units": "x"}) == ["x"]


def test_a_warning_has_the_digits_that_show_it_is_outside():
    band = BANDS["attention_logit"]
    for value, shown in ((100.2, "100.2"), (100.0004, "100.0004"), (123.456, "123")):
        assert f"logit is {shown} in layer 1, healthy up to 100:" in band.sentence(value, "layer 1")


def test_the_page_on_training_states_the_bands():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    table = page[page.index("| number | healthy |") :].splitlines()[2:]
    stated = [row.split("|")[2].strip() for row in table[: len(BANDS)]]
    assert sorted(stated) == sorted(band.limit for band in BANDS.values())
