"""Each number of a step's line against a computation that shares nothing with it."""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mixlab.model.language_model import build_model
from mixlab.train import machine, meters
from mixlab.train.config import CheckpointConfig, OptimizerConfig
from mixlab.train.loop import train
from mixlab.train.metrics import read_metrics
from mixlab.train.optimizers import Optimizers

from .conftest import FAKE
from .helpers import with_train

CPU = torch.device("cpu")


def quiet(line):
    """Take every line and say nothing."""


def steps_of(run):
    return read_metrics(run / "metrics.jsonl", "step")


def test_rates_are_those_of_the_seconds_that_the_record_counts(config, tmp_path):
    train(config, tmp_path / "run", progress=quiet)
    lines, before = steps_of(tmp_path / "run"), 0.0
    for line in lines:
        seconds, before = line["seconds"] - before, line["seconds"]
        assert line["tokens_per_second"] * seconds == pytest.approx(4 * 16)
        assert line["flops_per_second"] * seconds == pytest.approx(lines[0]["flops"])
        assert line["peak_fraction"] * FAKE.float32_flops == pytest.approx(line["flops_per_second"])


def test_the_peak_is_that_of_the_dtype_in_use(config, tmp_path, monkeypatch):
    monkeypatch.setattr(type(FAKE), "peak", lambda self, bfloat16: 2.0 if bfloat16 else 4.0)
    for dtype, peak in (("bfloat16", 2.0), ("float32", 4.0)):
        train(with_train(config, dtype=dtype, steps=1), tmp_path / dtype, progress=quiet)
        (line,) = steps_of(tmp_path / dtype)
        assert line["flops_per_second"] / line["peak_fraction"] == pytest.approx(peak)


def test_a_peak_that_training_surpasses_is_measured_again_once(monkeypatch):
    """It was taken on a busy machine. What is drawn after that is what would have been."""
    asked = []

    def measure(device, refresh=False):
        asked.append(refresh)
        torch.rand(3)
        return replace(FAKE, float32_flops=5e9 if refresh else 1e9)

    monkeypatch.setattr(machine, "measure", measure)
    speed = meters.Speed("cpu", bfloat16=False)
    torch.manual_seed(0)
    assert speed.rates(8, 10**9, 2.0)["peak_fraction"] == 0.5
    assert speed.rates(8, 4 * 10**9, 1.0)["peak_fraction"] == 0.8
    assert speed.rates(8, 6 * 10**9, 1.0)["peak_fraction"] == 1.2
    assert asked == [False, True]
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), drawn)


@pytest.mark.parametrize("limit", [0.0, 0.3, 1.0, 1e6])
def test_the_norm_after_clipping_is_that_of_the_gradients_torch_leaves(limit):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(n, 3)) for n in (4, 7)]
    for p in parameters:
        p.grad = torch.randn_like(p)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit or math.inf))
    left = math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters))
    assert meters.clipped_norm(norm, limit) == pytest.approx(left, rel=1e-6)
    assert meters.clipped_norm(0.0, limit) == 0


def test_both_norms_of_a_run(config, tmp_path):
    train(with_train(config, optimizer=OptimizerConfig(clip=0.5)), tmp_path / "run", progress=quiet)
    lines = steps_of(tmp_path / "run")
    assert any(line["grad_norm"] > 0.5 for line in lines)
    for line in lines:
        assert line["grad_norm_clipped"] == pytest.approx(min(line["grad_norm"], 0.5), rel=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
def test_update_ratios_are_those_between_two_checkpoints(config, tmp_path, kind):
    keep = CheckpointConfig(every=1, keep=8)
    changes = {"optimizer": OptimizerConfig(kind=kind, lr=0.01), "checkpoint": keep, "watch_every": 3}
    train(with_train(config, **changes), tmp_path / "run", progress=quiet)
    lines = steps_of(tmp_path / "run")
    assert [line["step"] for line in lines if "update_ratio" in line] == [1, 3, 6]
    weights = {n: load_file(tmp_path / f"run/checkpoints/step-000000{n}/model.safetensors") for n in (5, 6)}
    roles = build_model(config.model).parameter_roles()
    assert set(roles) == set(weights[5])
    for role, ratio in lines[5]["update_ratio"].items():
        names = [name for name in roles if roles[name] == role]
        old, new = (torch.cat([weights[n][name].flatten() for name in names]).double() for n in (5, 6))
        assert ratio == pytest.approx(((new - old).norm() / old.norm()).item(), rel=1e-5)
    assert set(lines[5]["update_ratio"]) == set(roles.values())


def test_parameters_that_are_zero_have_no_ratio(config):
    model = build_model(config.model)
    optimizers = Optimizers(model, OptimizerConfig())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if optimizers.plan[name].role == "gain":
                p.zero_()
        update = meters.Update(optimizers)
        for p in model.parameters():
            p.add_(1.0)
    found, moved = update.ratios(), model.head.weight.numel() ** 0.5
    assert found["gain"] is None
    assert found["head"] == pytest.approx(moved / (model.head.weight - 1).norm().item())


def test_without_memory_for_the_copy_the_update_goes_unmeasured(config, tmp_path, monkeypatch):
    def short(self, optimizers):
        raise MemoryError

    monkeypatch.setattr(meters.Update, "__init__", short)
    assert train(with_train(config, watch_every=4), tmp_path / "run", progress=quiet)["status"] == "done"
    assert [line["update_ratio"] for line in steps_of(tmp_path / "run") if "update_ratio" in line] == [{}] * 3


def test_learning_rates_are_those_that_the_groups_hold(config):
    model = build_model(config.model)
    optimizers = Optimizers(model, OptimizerConfig(kind="muon", lr_scale={"head": 0.25}))
    optimizers.set_lr(0.4)
    found = meters.learning_rates(optimizers)
    assert {key: rate for key, rate in found.items() if key.startswith("muon")} == {"muon/matrix": 0.4}
    rest = {f"adamw/{role}" for role in ("embedding", "gain", "recurrence")}
    assert set(found) - {"muon/matrix"} <= rest | {"adamw/head x0.25"}
    assert found["adamw/head x0.25"] == pytest.approx(0.1)
    for label, rate in found.items():
        rule, role = label.split(" ")[0].split("/")
        held = [
            group["lr"]
            for group in optimizers.by_rule[rule].param_groups
            for p in group["params"]
            if any(p is q and optimizers.plan[name].role == role for name, q in model.named_parameters())
        ]
        assert set(held) == {rate}


def test_every_group_of_a_run_follows_the_schedule(config, tmp_path):
    train(config, tmp_path / "run", progress=quiet)
    for line in steps_of(tmp_path / "run"):
        assert set(line["learning_rates"].values()) == {line["lr"]}
        assert "adamw/embedding" in line["learning_rates"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says what is resident")
def test_memory_is_what_the_system_says():
    def resident():
        found = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", Path("/proc/self/status").read_text()))
        return {key: int(value) * 1024 for key, value in found.items()}

    before = meters.memory(CPU)
    block = mmap.mmap(-1, 64 << 20)  # from the system, not of what this process freed earlier
    for page in range(0, len(block), mmap.PAGESIZE):
        block[page] = 1
    after, says = meters.memory(CPU), resident()
    assert after["memory_bytes"] - before["memory_bytes"] == pytest.approx(64 << 20, rel=0.05)
    assert after["memory_bytes"] == pytest.approx(says["VmRSS"], rel=0.02)
    assert after["peak_memory_bytes"] >= says["VmHWM"] * 0.98
    block.close()


RANK = """
import json, os, sys
import torch, torch.distributed as dist
from mixlab.train.meters import mean_over_ranks

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
loss = mean_over_ranks(torch.tensor([2.0, 5.0][rank]), [30, 10][rank])
print(json.dumps([loss.item(), str(loss.dtype)]), flush=True)
dist.destroy_process_group()
os._exit(0)  # gloo's threads may yet want an interpreter that is closing down
"""


def test_the_loss_of_several_processes_is_the_mean_over_their_tokens(tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-c", RANK]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": env}
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path / "store")], **pipes) for rank in (0, 1)]
    for process in ranks:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err[-2000:]
        assert json.loads(out) == [(30 * 2.0 + 10 * 5.0) / 40, "torch.float32"]


def test_without_a_group_the_loss_is_its_own():
    loss = torch.tensor(2.5)
    assert meters.mean_over_ranks(loss, 3) is loss
