"""Optimizers that ask for more than one gradient a step, and those that keep an average."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import mixlab
from mixlab.train import kinds
from mixlab.train.config import OptimizerConfig, ScheduleConfig
from mixlab.train.evaluate import evaluate
from mixlab.train.loop import train
from mixlab.train.optimizers import Optimizers
from mixlab.train.step import Stepper

from .helpers import record, with_train


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
