"""A run that was stopped and resumed is the run that was not: every registered part, to the last byte."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mixlab.config import parse, to_mapping
from mixlab.errors import UserError
from mixlab.parts.contract import available
from mixlab.train import evaluations, randomness
from mixlab.train.config import OptimizerConfig, RunConfig, ScheduleConfig
from mixlab.train.folder import RunFolder
from mixlab.train.kinds import KINDS
from mixlab.train.loop import Trainer, train
from mixlab.train.metrics import TIMES
from mixlab.train.step import FurtherPasses, Stepper

from .helpers import stop_at, with_train

PARTS = [(kind, name) for kind in ("temporal", "feature") for name in available(kind)]
OPTIMIZERS = [
    *(name for name in KINDS if name != "adamw"),  # the one of every part above
    *(
        f"pytorch_optimizer:{name}"
        for name in ("SOAP", "Shampoo", "Lion", "SophiaH", "ScheduleFreeAdamW", "SAM")
    ),
    "pytorch_optimizer:StableSPAM",  # counts in an attribute of its own
    "pytorch_optimizer:Prodigy",  # estimates its rate in its groups
]
EXTRAS = {"z_loss": 1e-3, "label_smoothing": 0.1, "ema": 0.9, "recompute": True}
OF_THIS_RUN = ("checkpoint",)  # a path, in the last line only


def quiet(line):
    """Take every line and say nothing."""


def without_times(run):
    """A run's metrics.jsonl as text, without what a clock said."""
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    drop = {*TIMES, *OF_THIS_RUN}
    return "\n".join(json.dumps({k: v for k, v in line.items() if k not in drop}) for line in lines)


@pytest.fixture
def built_on(config):
    """Six steps of a config with one part in its place: dropout, two micro-batches, an evaluation midway, and
    looks at the watch list."""
    config = with_train(config, steps=6, eval_every=3, watch_every=2)

    def build(**model):
        tables = to_mapping(config)
        tables["model"] |= model
        return parse(RunConfig, tables)

    assert config.model.dropout == 0.1
    assert config.train.accumulate == 2
    return build


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "name"), PARTS, ids=[name for _, name in PARTS])
def test_every_part_continues_to_the_last_byte(built_on, tmp_path, kind, name, dtype):
    extras = EXTRAS if dtype == "bfloat16" else {}
    stops_and_resumes(with_train(built_on(**{kind: name}), dtype=dtype, **extras), tmp_path)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_continues_to_the_last_byte(built_on, tmp_path, name):
    optimizer = OptimizerConfig(kind=name, lr=0.01, lr_scale={"embedding": 2.0}, clip=0.5)
    constant = ScheduleConfig(kind="constant")  # schedule-free takes no other
    config = with_train(built_on(depth=1), optimizer=optimizer, schedule=constant, steps=4, eval_every=2)
    stops_and_resumes(config, tmp_path, (1, 3))


def stops_and_resumes(config, tmp_path, stops=(1, 3, 5)):
    """Run straight, and with stops on the way: the records and all tensors at the end are the same."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train(config, straight, progress=quiet)
    for step in stops:
        assert train(config, stopped, resume=step > 1, progress=stop_at(step))["step"] == step
    assert train(config, stopped, resume=True, progress=quiet)["status"] == "done"
    assert without_times(stopped) == without_times(straight)
    for file in ("model.safetensors", "training.safetensors"):
        ours, theirs = (
            load_file(run / f"checkpoints/step-{config.train.steps:07d}" / file)
            for run in (stopped, straight)
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), file


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("temporal", ["attention", "gmlp", "rglru"])
def test_watching_changes_nothing_that_training_computes(built_on, tmp_path, temporal, dtype):
    config = with_train(built_on(temporal=temporal), dtype=dtype)
    for every in (0, 1):
        train(with_train(config, watch_every=every), tmp_path / str(every), progress=quiet)
    without, watched = (without_times(tmp_path / every).splitlines() for every in "01")
    lines = [json.loads(text) for text in watched]
    assert [line.pop("step") for line in lines if line["kind"] == "watch"] == [1, 2, 3, 4, 5, 6]
    assert all("update_ratio" in line for line in lines if line["kind"] == "step")
    kept = [json.loads(text) for text in watched if '"watch"' not in text]
    for line in kept:
        line.pop("update_ratio", None)
    assert kept == [json.loads(text) for text in without]
    weights = [load_file(tmp_path / e / "checkpoints/step-0000006/model.safetensors") for e in "01"]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_every_other_key_is_held_to_that(config, tmp_path):
    """The comparison leaves out what a clock says and nothing that training computes."""
    train(config, tmp_path / "run", progress=quiet)
    step, watch = map(json.loads, without_times(tmp_path / "run").splitlines()[:2])
    totals = {"kind", "step", "tokens", "flops"}
    assert set(step) == totals | {
        "loss", "lr", "learning_rates", "grad_norm", "grad_norm_clipped", "clipped_fraction", "update_ratio",
    }  # fmt: skip
    assert set(watch) == totals | {
        "attention_logit", "attention_entropy", "effective_rank", "dead_units", "loss_rise", "gradient_jump",
        "warnings",
    }  # fmt: skip


def draw():
    """A number or two from each generator; normal ones come in pairs, the second of which is kept."""
    normal = random.gauss(0, 1), float(np.random.normal()), float(torch.randn(()))
    return *normal, random.random(), float(np.random.random()), torch.rand(17).tolist()


def test_every_generator_goes_on_from_what_json_and_tensors_hold():
    device = torch.device("cpu")
    randomness.seed(2**63 - 1)
    draw()
    found = randomness.capture(device)
    expected = draw(), draw()
    scalars = json.loads(json.dumps(found.scalars))
    randomness.put_back(found.tensors, scalars, device)
    assert (draw(), draw()) == expected
    randomness.put_back(found.tensors, scalars, device)
    with randomness.kept():
        randomness.seed(1)
        assert draw() != expected[0]
    assert (draw(), draw()) == expected


def test_what_a_part_draws_from_numpy_continues_and_the_callers_is_not_moved(
    config, tmp_path, monkeypatch, switched
):
    # Not Python's generator: the type checks that tests run under draw from it, at a save too.
    real, drawn = Trainer.step, {}

    def step(self):
        line = real(self)
        numbers = np.random.normal(), np.random.random()
        drawn.setdefault(self.folder.path.name, {})[line["step"]] = numbers
        return line

    monkeypatch.setattr(Trainer, "step", step)
    before = np.random.get_state()[1].tolist()
    train(config, tmp_path / "straight", progress=quiet)
    for stop in (3, 5):
        train(config, tmp_path / "stopped", resume=stop > 3, progress=stop_at(stop))
    train(config, tmp_path / "stopped", resume=True, progress=quiet)
    assert drawn["stopped"] == drawn["straight"]
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.parametrize("lost", ["deleted", "emptied"])
def test_the_early_record_is_in_the_checkpoint(config, tmp_path, lost, switched):
    train(config, tmp_path / "straight", progress=quiet)
    train(config, tmp_path / "run", progress=stop_at(5))
    metrics = tmp_path / "run/metrics.jsonl"
    metrics.unlink() if lost == "deleted" else metrics.write_text("")
    summary = train(config, tmp_path / "run", resume=True, progress=quiet)
    assert without_times(tmp_path / "run") == without_times(tmp_path / "straight")
    assert summary["best_step"] in (4, 8)


def test_an_evaluation_without_a_number_is_never_the_best_also_after_a_resume(config, tmp_path, monkeypatch):
    real = evaluations.evaluate
    monkeypatch.setattr(
        evaluations, "evaluate", lambda *a, **k: replace(real(*a, **k), bits_per_byte=float("inf"))
    )
    train(config, tmp_path / "run", progress=stop_at(5))
    monkeypatch.setattr(evaluations, "evaluate", real)
    assert train(config, tmp_path / "run", resume=True, progress=quiet)["best_step"] == 8


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("within", ["forward", "backward"])
def test_a_stop_inside_a_step_gives_it_up_and_resume_takes_it(
    config, tmp_path, monkeypatch, within, recompute
):
    """In the last micro-batch of two of the sixth step; what it goes back to, the fifth, is not yet saved."""
    config = with_train(config, recompute=recompute)
    train(config, tmp_path / "straight", progress=quiet)
    real, calls = Stepper.loss, []

    def loss(self, inputs, targets):
        calls.append(inputs)
        self.stop.requested = len(calls) == 2 * 6 and within == "forward"
        found = real(self, inputs, targets)
        self.stop.requested = len(calls) == 2 * 6
        return found

    monkeypatch.setattr(Stepper, "loss", loss)
    summary = train(config, tmp_path / "run", progress=quiet)
    assert (summary["status"], summary["step"], len(calls)) == ("stopped", 5, 12)
    monkeypatch.setattr(Stepper, "loss", real)
    train(config, tmp_path / "run", resume=True, progress=quiet)
    assert without_times(tmp_path / "run") == without_times(tmp_path / "straight")


@pytest.mark.parametrize(
    ("kind", "method", "options"),
    [("SAM", "again", {}), ("SophiaH", "drawn", {"update_period": 1})],
)
def test_a_stop_in_a_further_pass_waits_for_the_step(config, tmp_path, monkeypatch, kind, method, options):
    """Parameters may not be where a checkpoint could find them then."""
    optimizer = OptimizerConfig(kind=f"pytorch_optimizer:{kind}", lr=1e-3, options=options)
    config = with_train(config, optimizer=optimizer)
    train(config, tmp_path / "straight", progress=quiet)
    real, calls = getattr(FurtherPasses, method), []

    def further(self):
        calls.append(self)
        self.stepper.stop.requested = len(calls) == 5
        return real(self)

    monkeypatch.setattr(FurtherPasses, method, further)
    summary = train(config, tmp_path / "run", progress=quiet)
    assert (summary["status"], summary["step"], len(calls)) == ("stopped", 5, 5)
    monkeypatch.setattr(FurtherPasses, method, real)
    train(config, tmp_path / "run", resume=True, progress=quiet)
    assert without_times(tmp_path / "run") == without_times(tmp_path / "straight")


def test_nothing_is_unpickled_on_the_way(config, tmp_path, monkeypatch):
    import pickle

    def refuse(*args, **kwargs):
        raise AssertionError("pickle was used")

    for where, name in ((pickle, "loads"), (pickle, "load"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(where, name, refuse)
    train(config, tmp_path / "run", progress=stop_at(5))
    train(config, tmp_path / "run", resume=True, progress=quiet)


def test_a_lock_outlives_no_run(config, tmp_path):
    train(config, tmp_path / "run", progress=stop_at(3))
    with RunFolder(tmp_path / "run").locked():
        pass


@pytest.mark.parametrize("wanted", [True, False])
def test_deterministic_kernels_are_asked_for_while_training_and_no_longer(
    config, tmp_path, monkeypatch, wanted
):
    torch.use_deterministic_algorithms(False)
    loss, seen = Stepper.loss, []

    def spy(self, *batch):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return loss(self, *batch)

    monkeypatch.setattr(Stepper, "loss", spy)
    train(with_train(config, deterministic=wanted), tmp_path / "run", progress=quiet)
    assert set(seen) == {wanted}
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_an_operation_without_a_deterministic_kernel_is_named(config, tmp_path, monkeypatch):
    torch.use_deterministic_algorithms(False)
    twice = torch.zeros(2, dtype=torch.int64)
    monkeypatch.setattr(Stepper, "loss", lambda self, *batch: torch.zeros(1).put_(twice, torch.ones(2)))
    with pytest.raises(UserError, match=r"train.deterministic cannot be kept: put_ .*; train without it"):
        train(with_train(config, deterministic=True), tmp_path / "run", progress=quiet)
    assert not torch.are_deterministic_algorithms_enabled()
