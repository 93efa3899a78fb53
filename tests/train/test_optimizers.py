from __future__ import annotations

import pytest
import torch
from torch import nn

import mixlab
from mixlab.train.config import OptimizerConfig
from mixlab.train.optimizers import Optimizers, assign


def tiny(**changes):
    return mixlab.build_model({"vocab_size": 11, "dim": 16, "depth": 1, "context": 8, **changes})


def in_groups(optimizers):
    return [
        (id(p), rule, group["weight_decay"])
        for rule, optimizer in optimizers.by_rule.items()
        for group in optimizer.param_groups
        for p in group["params"]
    ]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("temporal", mixlab.available("temporal"))
def test_every_parameter_is_in_exactly_one_group(temporal, kind):
    model = tiny(temporal=temporal)
    held = [key for key, _, _ in in_groups(Optimizers(model, OptimizerConfig(kind=kind)))]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_only_matrices_and_the_head_decay_and_only_matrices_get_muon(kind):
    model = tiny(temporal="gru")
    names = {id(p): name for name, p in model.named_parameters()}
    roles = model.parameter_roles()
    seen = set()
    for key, rule, decay in in_groups(Optimizers(model, OptimizerConfig(kind=kind, weight_decay=0.3))):
        role = roles[names[key]]
        seen.add(role)
        assert decay == (0.3 if role in ("matrix", "head") else 0.0)
        assert rule == ("muon" if kind == "muon" and role == "matrix" else "adamw")
    assert {"matrix", "head", "embedding", "gain"} <= seen


def test_a_tied_head_is_updated_once():
    model = tiny(tied=True)
    held = [key for key, _, _ in in_groups(Optimizers(model, OptimizerConfig()))]
    assert held.count(id(model.head.weight)) == 1


class Half(nn.Module):
    """A model whose roles are not those of its parameters."""

    def __init__(self, roles):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.roles = roles

    def parameter_roles(self):
        return self.roles


@pytest.mark.parametrize(
    ("roles", "says"),
    [
        ({"a.weight": "matrix"}, "b.weight"),
        ({"a.weight": "matrix", "b.weight": "matrix", "c": "gain"}, "about c"),
        ({"a.weight": "matrix", "b.weight": "bias"}, "unknown parameter roles: bias"),
    ],
)
def test_roles_that_do_not_cover_the_parameters_are_refused(roles, says):
    with pytest.raises(RuntimeError, match=says):
        assign(Half(roles), "adamw")


def test_muon_updates_are_of_the_size_of_adamws():
    size, lr = 64, 0.1
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(size, size))
    model.parameter_roles = lambda: {"w": "matrix"}
    optimizers = Optimizers(model, OptimizerConfig(kind="muon", lr=lr, weight_decay=0.0))
    model.w.grad = torch.randn(size, size)
    optimizers.step()
    # Singular values of the update lie in 0.7..1.2 by Newton-Schulz; all ones would make this 0.2 lr exactly.
    assert 0.6 < model.w.detach().square().mean().sqrt().item() / (0.2 * lr) < 1.25


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_put_back_continues_bit_for_bit(kind):
    def gradients(model, seed):
        torch.manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn_like(p)

    config = OptimizerConfig(kind=kind)
    model, twin = tiny(), tiny()
    first = Optimizers(model, config)
    for seed in (1, 2):
        gradients(model, seed)
        first.step()
    twin.load_state_dict(model.state_dict())
    second = Optimizers(twin, config)
    second.load_state_dict(first.state_dict())
    for m, o in ((model, first), (twin, second)):
        gradients(m, 3)
        o.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_clipping_returns_the_norm_before_it():
    model = tiny()
    optimizers = Optimizers(model, OptimizerConfig(clip=0.5))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    count = sum(p.numel() for p in model.parameters())
    assert optimizers.clip().item() == pytest.approx(count**0.5)
    after = sum(p.grad.square().sum().item() for p in model.parameters()) ** 0.5
    assert after == pytest.approx(0.5, rel=1e-4)
