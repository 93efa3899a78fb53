"""Width transfer: what is tuned at one width holds at another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mixlab
from mixlab.errors import UserError
from mixlab.model.config import ModelConfig
from mixlab.model.language_model import build_model
from mixlab.parts.contract import available
from mixlab.train.config import OptimizerConfig
from mixlab.train.coordinates import coordinate_check, growth
from mixlab.train.kinds import KINDS
from mixlab.train.optimizers import Optimizers, assign

WIDTHS = [32, 96, 256]
STEPS = 3
ATTENTION = {"kind": "attention", "heads": 4}
SMALL = ModelConfig(vocab_size=32, dim=32, depth=2, context=16, temporal=ATTENTION, mup_base_dim=32)
RATES = {
    "sgd": 0.5,
    "momentum": 0.2,
    "nesterov": 0.2,
    "adam": 3e-3,
    "adamw": 3e-3,
    "muon": 0.01,
    "adafactor": 0.01,
}
FLAT = 0.3
"""An exponent below this: over a factor of 8 in width the change grows less than twofold."""


@pytest.fixture(scope="module")
def batches():
    """Every second token repeats the one before it: something to learn in a step or two."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(STEPS):
        tokens = torch.randint(0, 32, (4, 17), generator=draw)
        tokens[:, 1::2] = tokens[:, 0:-1:2]
        found.append((tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()))
    return found


def exponents(model, kind, batches):
    optimizer = OptimizerConfig(kind=kind, lr=RATES[kind])
    changes = coordinate_check(model, optimizer, batches, WIDTHS)
    return {name: growth(values, WIDTHS) for name, values in changes.items()}


@pytest.mark.parametrize("kind", ["sgd", "adamw", "muon"])
def test_activations_change_by_as_much_at_every_width_and_not_without(batches, kind):
    found = exponents(SMALL, kind, batches)
    assert set(found) == {"temporal 0", "feature 0", "temporal 1", "feature 1", "stream", "logits"}
    assert all(abs(b) < FLAT for b in found.values()), found
    without = exponents(replace(SMALL, mup_base_dim=0), kind, batches)
    assert min(without["stream"], without["logits"]) > 0.45, without


@pytest.mark.parametrize("temporal", ["gru", "rglru", "rwkv4", "gmlp"])
def test_nothing_grows_with_the_width_in_other_mixers(batches, temporal):
    feature = {"kind": "channel_mix", "version": 4} if temporal == "rwkv4" else "low_rank"
    found = exponents(replace(SMALL, temporal=temporal, feature=feature, position="none"), "adamw", batches)
    assert all(b < FLAT for b in found.values()), found
    assert abs(found["stream"]) < FLAT


def test_growth_is_the_exponent():
    assert growth([3.0 * w**0.7 for w in WIDTHS], WIDTHS) == pytest.approx(0.7)


PARTS = [(kind, name) for kind in ("temporal", "feature") for name in available(kind) if name != "none"]


@pytest.mark.parametrize(("place", "name"), PARTS, ids=[name for _, name in PARTS])
def test_at_the_base_width_it_is_the_model_without(place, name):
    plain = {"vocab_size": 32, "dim": 32, "depth": 2, "context": 16, place: name}
    models = []
    for base in (0, 32):
        torch.manual_seed(0)
        models.append(build_model({**plain, "mup_base_dim": base}))
    tokens = torch.randint(0, 32, (2, 16))
    assert torch.equal(models[0](tokens).logits, models[1](tokens).logits)
    for kind in KINDS:
        config = OptimizerConfig(kind=kind)
        assert assign(models[0], config) == assign(models[1], config)


@pytest.mark.parametrize(("place", "name"), PARTS, ids=[name for _, name in PARTS])
def test_every_part_has_a_model_at_the_base_width(place, name):
    model = build_model(
        {"vocab_size": 32, "dim": 64, "depth": 2, "context": 16, "mup_base_dim": 32, place: name}
    )
    ratios = model.width_ratios()
    assert set(ratios) == {name for name, _ in model.named_parameters()}
    assert all(0.9 <= ratio <= 4.1 for pair in ratios.values() for ratio in pair)
    for config in (OptimizerConfig(), OptimizerConfig(kind="muon")):
        Optimizers(model, config)


def factors(kind, **model):
    built = build_model(replace(SMALL, dim=4 * SMALL.dim, temporal="gru", **model))
    return built, {n: group.lr_scale for n, group in assign(built, OptimizerConfig(kind=kind)).items()}


@pytest.mark.parametrize(
    ("kind", "hidden", "gain", "embedding", "head"),
    [
        ("adamw", 1 / 4, 1, 1, 1),
        ("pytorch_optimizer:Lion", 1 / 4, 1, 1, 1),
        ("sgd", 1, 4, 4, 4),
        ("muon", 1 / 2, 1, 1, 1),
        ("adafactor", 1 / 2, 1, 1, 1),
    ],
)
def test_the_factors_are_those_of_the_table(kind, hidden, gain, embedding, head):
    _, found = factors(kind)
    for name in ("up", "down"):  # a hidden width that is rounded
        assert found[f"blocks.0.feature.{name}.weight"] == pytest.approx(hidden, rel=0.06)
    assert found["blocks.0.temporal.out.weight"] == pytest.approx(hidden)
    assert found["norm.gain"] == gain
    assert found["embedding.weight"] == embedding
    assert found["head.weight"] == head


def test_what_reads_or_writes_a_fixed_width_has_its_own_factor():
    built = build_model(replace(SMALL, dim=128, temporal={"kind": "gmlp", "attention": 8}))
    for kind, qkv, lift in (("adamw", 1 / 4, 1), ("sgd", 1 / 4, 4), ("muon", 1 / 4, 1)):
        plan = assign(built, OptimizerConfig(kind=kind))
        assert plan["blocks.0.temporal.qkv.weight"].lr_scale == pytest.approx(qkv)
        assert plan["blocks.0.temporal.lift.weight"].lr_scale == pytest.approx(lift)
    assert built.blocks[0].temporal.qkv.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
    assert built.blocks[0].temporal.lift.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_rate_times_decay_stays():
    built, scales = factors("adamw")
    plan = assign(built, OptimizerConfig(weight_decay=0.3))
    for name, group in plan.items():
        if group.role in ("matrix", "head"):
            assert group.lr_scale * group.decay == pytest.approx(0.3), name
    assert set(scales.values()) != {1.0}


def test_attention_divides_by_the_head_width():
    def scale(**knobs):
        model = build_model(replace(SMALL, dim=128, temporal={"kind": "attention", **knobs}))
        return model.blocks[0].temporal.scoring.scale

    assert scale(heads=4) == pytest.approx(8**0.5 / 32)  # heads of 8 at the base, of 32 here
    assert scale(heads=4, temperature=2.0) == pytest.approx(8**0.5 / 32 / 2)
    wide = build_model(replace(SMALL, dim=512, mup_base_dim=256, temporal="attention"))
    assert wide.blocks[0].temporal.scoring.scale is None  # more heads, as wide as before


def test_initial_weights_and_logits_follow_the_width():
    torch.manual_seed(0)
    model = build_model(replace(SMALL, dim=128, mup_base_dim=8, depth=2))
    block = model.blocks[0]
    for weight, std in (
        (block.temporal.q.weight, 0.02 / 4),
        (block.temporal.out.weight, 0.02 / 4 / 2),
        (block.feature.gate.weight, 0.02 / 4),
        (block.feature.down.weight, 0.02 / 4 / 2),
        (model.embedding.weight, 0.02),
        (model.head.weight, 0.02),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.03)
    x = torch.randn(2, 3, 128)
    torch.testing.assert_close(model.logits(x), model.head(x) / 16)


@pytest.mark.parametrize(
    ("model", "kind", "says"),
    [
        ({}, "pytorch_optimizer:SOAP", "rate of pytorch_optimizer:SOAP follows the width is not known"),
        ({"mup_base_dim": 30}, "adamw", "no model of that width: .*4 heads do not divide the width 30"),
        ({"mup_base_dim": -1}, "adamw", "model.mup_base_dim must be 0"),
    ],
)  # fmt: skip
def test_what_cannot_transfer_is_refused(model, kind, says):
    with pytest.raises(UserError, match=says):
        Optimizers(build_model(replace(SMALL, **model)), OptimizerConfig(kind=kind))


def test_a_run_trains_saves_and_is_read_back(config, tmp_path):
    from mixlab.train.loop import train

    config = replace(config, model=replace(config.model, mup_base_dim=8))
    train(config, tmp_path / "run", progress=lambda line: None)
    assert mixlab.load(tmp_path / "run").widening == 2.0
