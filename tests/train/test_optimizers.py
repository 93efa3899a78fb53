from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import mixlab
from mixlab.errors import UserError
from mixlab.train import kinds, machine, trial
from mixlab.train.config import OptimizerConfig, ScheduleConfig
from mixlab.train.evaluate import evaluate
from mixlab.train.loop import train
from mixlab.train.muon import FullPrecisionMuon
from mixlab.train.optimizers import Optimizers, assign
from mixlab.train.step import Stepper

from .helpers import record, with_train

PACKAGED = [f"pytorch_optimizer:{name}" for name in ("SOAP", "Lion", "SAM", "ScheduleFreeAdamW", "SophiaH")]


def tiny(**changes):
    return mixlab.build_model({"vocab_size": 11, "dim": 16, "depth": 1, "context": 8, **changes})


def in_groups(optimizers):
    return [
        (id(p), rule, group)
        for rule, optimizer in optimizers.by_rule.items()
        for group in optimizer.param_groups
        for p in group["params"]
    ]


class NoPasses:
    """For optimizers that need no second look at a batch."""


def with_gradients(model, seed):
    torch.manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn_like(p)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("temporal", mixlab.available("temporal"))
def test_every_parameter_is_in_exactly_one_group(temporal, kind):
    model = tiny(temporal=temporal)
    held = [key for key, _, _ in in_groups(Optimizers(model, OptimizerConfig(kind=kind)))]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("kind", [*kinds.KINDS, *PACKAGED])
def test_every_kind_has_every_parameter_once_and_matrix_rules_have_matrices_alone(kind):
    model = tiny(temporal=["rglru"])  # blocks, taps and decays beside its matrices
    roles, named = model.parameter_roles(), {id(p): (n, p) for n, p in model.named_parameters()}
    groups = in_groups(Optimizers(model, OptimizerConfig(kind=kind)))
    assert sorted(key for key, _, _ in groups) == sorted(named)
    for key, rule, _ in groups:
        name, p = named[key]
        takes = not kinds.find(kind).matrices or (roles[name] == "matrix" and p.ndim == 2)
        assert rule == (kind if takes else "adamw"), name


def test_a_parameter_in_two_groups_is_noticed():
    optimizers = Optimizers(tiny(), OptimizerConfig())
    first, second, *_ = optimizers.by_rule["adamw"].param_groups
    second["params"].append(first["params"][0])
    with pytest.raises(RuntimeError, match="exactly one"):
        optimizers.keep(tiny())


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_only_matrices_and_the_head_decay_and_only_matrices_get_muon(kind):
    model = tiny(temporal="gru")
    names = {id(p): name for name, p in model.named_parameters()}
    roles = model.parameter_roles()
    seen = set()
    for key, rule, group in in_groups(Optimizers(model, OptimizerConfig(kind=kind, weight_decay=0.3))):
        role = roles[names[key]]
        seen.add(role)
        assert group["weight_decay"] == (0.3 if role in ("matrix", "head") else 0.0)
        assert rule == ("muon" if kind == "muon" and role == "matrix" else "adamw")
    assert {"matrix", "head", "embedding", "gain"} <= seen


def test_a_role_can_have_a_decay_and_a_rate_of_its_own():
    model = tiny(temporal="rwkv7")
    config = OptimizerConfig(
        weight_decay=0.3,
        decay={"embedding": 0.2, "head": 0.0},
        lr_scale={"embedding": 3.0, "recurrence": 0.5},
    )
    optimizers = Optimizers(model, config)
    optimizers.set_lr(0.25)
    found = {
        id(p): (group["lr"], group["weight_decay"])
        for _, _, group in in_groups(optimizers)
        for p in group["params"]
    }
    roles, own = model.parameter_roles(), model.lr_scales()
    assert set(own.values()) != {1.0}
    for name, p in model.named_parameters():
        scale = own.get(name, 1.0) * {"embedding": 3.0, "recurrence": 0.5}.get(roles[name], 1.0)
        decay = {"embedding": 0.2, "matrix": 0.3}.get(roles[name], 0.0)
        assert found[id(p)] == (0.25 * scale, decay), name


def test_what_a_part_trains_at_twice_the_rate_moves_twice_as_far():
    model = tiny(temporal="rwkv7")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = Optimizers(model, OptimizerConfig(weight_decay=0.0))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizers.set_lr(0.25)
    optimizers.step(NoPasses())
    for name, p in model.named_parameters():  # Adam's first step is the rate itself
        torch.testing.assert_close(
            before[name] - p, torch.full_like(p, 0.25 * model.lr_scales().get(name, 1.0))
        )


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("moun", r"did you mean 'muon'\? choose from: sgd, .*adamw, .*pytorch_optimizer:NAME"),
        ("soap", r"did you mean 'pytorch_optimizer:SOAP'\? choose from: .*pytorch_optimizer:NAME"),
        ("ADAMW", r"did you mean 'adamw'\?"),
        ("pytorch_optimizer:soap", r"did you mean 'pytorch_optimizer:SOAP'\? choose from: .*SOAP, .*Yogi"),
        ("pytorch_optimizer:ScheduleFree", r"did you mean 'pytorch_optimizer:ScheduleFree.*'\? choose from"),
        ("pytorch_optimizer:zzzzzz", "choose from: A2Grad, .*Yogi"),
        ("pytorch:SOAP", "choose from: sgd, .*pytorch_optimizer:NAME"),
        ("pytorch_optimizer:LBFGS", "cannot be used: it evaluates the loss many times a step"),
        ("pytorch_optimizer:AdaHessian", "cannot be used: it differentiates twice"),
    ],
)  # fmt: skip
def test_a_kind_that_is_none_or_cannot_be_used_is_refused_in_a_sentence(kind, says):
    with pytest.raises(UserError, match=says):
        OptimizerConfig(kind=kind).validate()


def test_without_the_package_its_kinds_name_the_extra(monkeypatch):
    def absent():
        raise ImportError

    monkeypatch.setattr(kinds, "_classes", absent)
    kinds.find.cache_clear()
    with pytest.raises(UserError, match="needs the package pytorch_optimizer: .*extra 'optimizers'"):
        OptimizerConfig(kind="pytorch_optimizer:SOAP").validate()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"kind": "sgd", "betas": (0.9, 0.9)}, r"optimizer\.betas: sgd takes none \(it takes weight_decay\)"),
        (
            {"kind": "pytorch_optimizer:Lion", "betas": (0.9, 0.9)},
            r"give its class's own as .*options\.betas",
        ),
        (
            {"kind": "adamw", "options": {"amsgard": True}},
            r"options\.amsgard: adamw .*did you mean 'amsgrad'",
        ),
        ({"kind": "adamw", "options": {"betas": [0.9, 0.9]}}, r"that is train\.optimizer\.betas"),
        ({"kind": "pytorch_optimizer:SAM", "options": {"lr": 0.1}}, r"options\.lr: .*choose from: adaptive"),
        ({"lr_scale": {"embeding": 3.0}}, "unknown role in .*lr_scale 'embeding': did you mean 'embedding'"),
        ({"lr_scale": {"head": 0.0}}, r"lr_scale\.head must be a positive number"),
        ({"decay": {"head": -0.1}}, r"decay\.head must be 0 or more"),
        ({"kind": "pytorch_optimizer:SPlus", "eps": 2.0}, "eps must be a small positive number"),
    ],
)
def test_a_knob_that_a_kind_does_not_take_is_refused(config, says):
    with pytest.raises(UserError, match=says):
        OptimizerConfig(**config).validate()


def test_an_option_of_the_wrong_type_is_refused_before_the_first_step():
    config = OptimizerConfig(kind="muon", options={"ns_steps": "many"}).validate()
    with pytest.raises(UserError, match="kind 'muon' cannot be used so: "):
        Optimizers(tiny(), config)


def test_options_reach_the_class():
    config = OptimizerConfig(kind="pytorch_optimizer:Lion", options={"betas": [0.5, 0.6]}).validate()
    assert Optimizers(tiny(), config).by_rule[config.kind].param_groups[0]["betas"] == (0.5, 0.6)


def test_every_class_of_the_package_resumes_or_is_refused_for_a_reason():
    refused = {}
    for name in kinds._classes():
        try:
            Optimizers(tiny(), OptimizerConfig(kind=f"pytorch_optimizer:{name}").validate())
        except UserError as error:
            refused[name] = str(error)
    assert {name for name in refused if "so: " in refused[name]} == {"Conda", "Ranger21", "ScalableShampoo"}
    forgets = {name for name in refused if "a resumed run would not be the same" in refused[name]}
    assert forgets == {"Magma"}  # a seed of its own, drawn anew
    assert set(refused) - forgets - {"Conda", "Ranger21", "ScalableShampoo"} == {
        name for name, about in kinds.PACKAGED.items() if "refused" in about
    }


class Forgetful(torch.optim.SGD):
    """Remembers the last step where no checkpoint looks."""

    last = None

    def step(self):
        if self.last is not None:
            self.param_groups[0]["params"][0].grad += self.last
        super().step()
        self.last = self.param_groups[0]["params"][0].grad.clone()


def test_an_optimizer_that_a_checkpoint_does_not_hold_is_not_trusted():
    prove = kinds.Kind(load=lambda: Forgetful)
    with pytest.raises(UserError, match="keeps something that a checkpoint does not hold"):
        trial.prove(prove, "forgetful", 0.1, {})
    trial.prove(kinds.Kind(load=lambda: torch.optim.SGD), "sgd", 0.1, {})


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

    def lr_scales(self):
        return {}

    def width_ratios(self):
        return {}


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
        assign(Half(roles), OptimizerConfig())


def test_muon_updates_are_of_the_size_of_adamws():
    size, lr = 64, 0.1
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(size, size))
    model.parameter_roles, model.lr_scales, model.width_ratios = lambda: {"w": "matrix"}, dict, dict
    optimizers = Optimizers(model, OptimizerConfig(kind="muon", lr=lr, weight_decay=0.0))
    model.w.grad = torch.randn(size, size)
    optimizers.step(NoPasses())
    # Singular values of the update lie in 0.7..1.2 by Newton-Schulz; all ones would make this 0.2 lr exactly.
    assert 0.6 < model.w.detach().square().mean().sqrt().item() / (0.2 * lr) < 1.25


@pytest.mark.parametrize("fast", [True, False])
def test_muon_multiplies_in_bfloat16_where_that_is_faster(monkeypatch, fast):
    found = replace(machine.measure(), use_bfloat16=fast)
    monkeypatch.setattr(machine, "measure", lambda device=None, refresh=False: found)
    cls = type(Optimizers(tiny(), OptimizerConfig(kind="muon")).by_rule["muon"])
    assert cls is (torch.optim.Muon if fast else FullPrecisionMuon)


@pytest.mark.parametrize("kind", ["adamw", "muon", "adafactor", "pytorch_optimizer:SOAP"])
def test_state_put_back_continues_bit_for_bit(kind):
    config = OptimizerConfig(kind=kind)
    model, twin = tiny(), tiny()
    first = Optimizers(model, config)
    for seed in (1, 2):
        with_gradients(model, seed)
        first.step(NoPasses())
    twin.load_state_dict(model.state_dict())
    second = Optimizers(twin, config)
    second.load_state_dict(*first.state_dict())
    for m, o in ((model, first), (twin, second)):
        with_gradients(m, 3)
        o.step(NoPasses())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_strange_parameter_in_a_checkpoint_is_noticed():
    optimizers = Optimizers(tiny(), OptimizerConfig())
    with pytest.raises(UserError, match=r"remembers blocks\.7\.x, which the model does not have"):
        optimizers.load_state_dict({"blocks.7.x:exp_avg": torch.zeros(1)}, {})


def test_clipping_returns_the_norm_before_it():
    model = tiny()
    optimizers = Optimizers(model, OptimizerConfig(clip=0.5))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    count = sum(p.numel() for p in model.parameters())
    assert optimizers.clip().item() == pytest.approx(count**0.5)
    after = sum(p.grad.square().sum().item() for p in model.parameters()) ** 0.5
    assert after == pytest.approx(0.5, rel=1e-4)


class Quadratic(nn.Module):
    """loss = sum(h p^2) / 2 on one parameter; a pass over the batch is its gradient."""

    def __init__(self, start, h):
        super().__init__()
        self.p, self.h = nn.Parameter(start.clone()), h
        self.passes = []

    def parameter_roles(self):
        return {"p": "gain"}

    def lr_scales(self):
        return {}

    def width_ratios(self):
        return {}

    def again(self):
        self.passes.append(self.p.detach().clone())
        self.p.grad = self.h * self.p.detach()

    def drawn(self):
        self.passes.append("drawn")
        self.p.grad = torch.full_like(self.p, 0.5)
        return 8


def test_sam_takes_the_gradient_at_the_worst_place_nearby():
    start, h, rho = torch.tensor([3.0, -4.0]), torch.tensor([1.0, 2.0]), 0.05
    model = Quadratic(start, h)
    config = OptimizerConfig(kind="pytorch_optimizer:SAM", weight_decay=0.0, eps=1e-12, options={"rho": rho})
    optimizers = Optimizers(model, config)
    optimizers.set_lr(0.1)
    model.p.grad = h * start
    optimizers.step(model)
    (there,) = model.passes
    torch.testing.assert_close(there, start + rho * h * start / (h * start).norm())
    torch.testing.assert_close(model.p.detach(), start - 0.1 * torch.sign(h * there))  # AdamW's first step
    assert model.p.grad is None


def test_sophia_divides_by_tokens_times_the_square_of_the_gradient_towards_drawn_tokens():
    start = torch.tensor([3.0, -4.0])
    model = Quadratic(start, torch.ones(2))
    options = {"update_period": 2, "p": 10.0, "betas": [0.0, 0.0]}
    config = OptimizerConfig(kind="pytorch_optimizer:SophiaH", weight_decay=0.0, options=options)
    optimizers = Optimizers(model, config)
    optimizers.set_lr(0.1)
    for _ in range(3):
        before = model.p.detach().clone()
        model.p.grad = torch.tensor([1.0, -6.0])
        optimizers.step(model)
        torch.testing.assert_close(before - model.p, 0.1 * torch.tensor([1.0, -6.0]) / (8 * 0.5**2))
    assert model.passes == ["drawn", "drawn"]  # before the first step and the third


def free(config):
    optimizer = OptimizerConfig(kind="pytorch_optimizer:ScheduleFreeAdamW", lr=0.05)
    return with_train(config, optimizer=optimizer, schedule=ScheduleConfig(kind="constant"), dtype="float32")


def test_schedule_free_evaluates_and_saves_the_average_and_trains_on_from_where_it_was(config, tmp_path):
    seldom = with_train(free(config), eval_every=0)
    train(free(config), tmp_path / "often", progress=lambda line: None)
    train(seldom, tmp_path / "seldom", progress=lambda line: None)
    assert record(tmp_path / "often", "step") == record(tmp_path / "seldom", "step")
    saved = mixlab.load(tmp_path / "often/checkpoints/step-0000008")
    dataset = mixlab.data.prepare(config.data)
    found = evaluate(saved, dataset.valid, context=config.model.context, dtype="float32")
    assert found.bits_per_byte == pytest.approx(
        record(tmp_path / "often", "eval")[-1]["bits_per_byte"], rel=1e-6
    )
    kept = load_file(tmp_path / "often/checkpoints/step-0000008/training.safetensors")
    trained = kept["optimizer.head.weight:trained"]
    assert not torch.equal(trained, saved.head.weight)
    torch.testing.assert_close(  # y = 0.9 x + 0.1 z
        trained, torch.lerp(kept["optimizer.head.weight:z"], saved.head.weight.detach(), 0.9)
    )


def test_the_gradient_of_a_second_pass_is_clipped_as_the_first(config, tmp_path, monkeypatch):
    SAM = kinds.find("pytorch_optimizer:SAM").load()
    real, norms = SAM.second_step, []

    def second_step(self):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm().item())
        real(self)

    monkeypatch.setattr(SAM, "second_step", second_step)
    optimizer = OptimizerConfig(kind="pytorch_optimizer:SAM", lr=1e-3, clip=0.01)
    train(with_train(config, optimizer=optimizer, steps=2), tmp_path / "run", progress=lambda line: None)
    assert norms[-2:] == pytest.approx([0.01, 0.01], rel=1e-3)  # before them, the optimizer is tried


def test_the_record_counts_the_further_passes(config, tmp_path):
    for name, share in (("Lion", 1), ("SAM", 2)):
        optimizer = OptimizerConfig(kind=f"pytorch_optimizer:{name}", lr=1e-3)
        train(with_train(config, optimizer=optimizer), tmp_path / name, progress=lambda line: None)
        (line,) = record(tmp_path / name, "step")[-1:]
        rows = config.train.rows(config.model.context)
        one = 3 * mixlab.load(tmp_path / name).flops(config.model.context) * rows
        assert line["flops"] == share * line["step"] * one
    optimizer = OptimizerConfig(kind="pytorch_optimizer:SophiaH", lr=1e-3, options={"update_period": 4})
    train(with_train(config, optimizer=optimizer), tmp_path / "SophiaH", progress=lambda line: None)
    assert record(tmp_path / "SophiaH", "step")[-1]["flops"] == 8 * one + 2 * (one * 4 // 3)


def test_drawn_tokens_follow_the_models_own_probabilities():
    def model(tokens, segment=None):  # the next token is the same or, one time in four, the one after it
        p = torch.eye(5)[tokens] * 0.75 + torch.eye(5)[(tokens + 1) % 5] * 0.25
        return SimpleNamespace(logits=p.log())

    state = SimpleNamespace(model=model, device=torch.device("cpu"))
    stepper = SimpleNamespace(micro_batches=3, state=state, bfloat16=False)
    inputs = torch.arange(4000).view(8, 500) % 5
    shift = (Stepper.draw(stepper, inputs) - inputs) % 5
    assert set(shift.unique().tolist()) == {0, 1}
    assert shift.float().mean().item() == pytest.approx(0.25, abs=0.03)  # four standard deviations
