"""Self-guided training: dense matrices that guide and go, in the record, in checkpoints and on a resume."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import mixlab
from mixlab.errors import UserError
from mixlab.train.config import OptimizerConfig, ScheduleConfig
from mixlab.train.evaluate import evaluate
from mixlab.train.loop import train
from mixlab.train.run import load

from .helpers import record, stop_at, with_train

NAMES = ["low_rank", "block_dense", "block_shuffle"]


def quiet(line):
    """Take every line and say nothing."""


def guided(config, kind="low_rank", guidance=0.5):
    """The fixture's run with a structured feed-forward network in its second block."""
    feature = {"kind": kind, "guidance": guidance}
    return replace(config, model=replace(config.model, feature=feature))


def names(run, step, file):
    """The tensors of a checkpoint's file."""
    return set(load_file(run / f"checkpoints/step-{step:07d}" / file))


@pytest.mark.parametrize("kind", NAMES)
def test_no_dense_matrix_is_left_in_any_model_and_none_anywhere_at_the_end(config, tmp_path, kind):
    config = with_train(guided(config, kind), checkpoint=replace(config.train.checkpoint, keep=9))
    train(config, tmp_path / "run", progress=quiet)
    train(guided(config, kind, guidance=0.0), tmp_path / "plain", progress=quiet)
    for step in (2, 4, 6, 8):
        assert names(tmp_path / "run", step, "model.safetensors") == names(
            tmp_path / "plain", step, "model.safetensors"
        )
    halfway, end = (names(tmp_path / "run", step, "training.safetensors") for step in (4, 8))
    assert {f"training.blocks.1.feature.{map}.guide" for map in ("up", "down")} <= halfway
    assert end == names(tmp_path / "plain", 8, "training.safetensors")


def test_guides_neither_begin_nor_end_by_force_unsaid(config, tmp_path):
    train(guided(config), tmp_path / "guided", progress=stop_at(2))
    with pytest.raises(UserError, match=r"do not fit model\.feature\.guidance .*remembers .*\.guide"):
        train(guided(config, guidance=0.0), tmp_path / "guided", resume=True, force=True, progress=quiet)
    train(guided(config, guidance=0.0), tmp_path / "plain", progress=stop_at(2))
    lines = []
    train(guided(config), tmp_path / "plain", resume=True, force=True, progress=lines.append)
    notes = [line["message"] for line in lines if line["kind"] == "note"]
    assert any("what serves training alone is not begun half-way" in note for note in notes)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("part", NAMES)
def test_resume_continues_bit_for_bit_across_the_end_of_guidance(config, tmp_path, kind, part):
    config = with_train(guided(config, part), optimizer=OptimizerConfig(kind=kind, lr=1e-2, clip=0.5))
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train(config, straight, progress=quiet)
    for step in (1, 3, 4, 5, 7):  # the guides fade until step 4 and are gone from step 5 on
        summary = train(config, stopped, resume=step > 1, progress=stop_at(step))
        assert (summary["status"], summary["step"]) == ("stopped", step)
    train(config, stopped, resume=True, progress=quiet)
    assert record(stopped) == record(straight)
    for name in ("model.safetensors", "training.safetensors"):
        ours, theirs = (load_file(p / "checkpoints/step-0000008" / name) for p in (stopped, straight))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


def test_guidance_changes_the_training_it_guides(config, tmp_path):
    config = with_train(config, optimizer=OptimizerConfig(lr=0.05))
    train(guided(config), tmp_path / "guided", progress=quiet)
    train(guided(config, guidance=0.0), tmp_path / "plain", progress=quiet)
    ours, theirs = (record(tmp_path / name, "step") for name in ("guided", "plain"))
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-5)  # the guide starts as the product
    assert ours[3]["loss"] != pytest.approx(theirs[3]["loss"], rel=1e-5)


def test_the_record_counts_the_guides_work_while_they_guide(config, tmp_path):
    config = guided(config)
    train(config, tmp_path / "run", progress=quiet)
    flops = [0] + [line["flops"] for line in record(tmp_path / "run", "step")]
    steps = [after - before for before, after in itertools.pairwise(flops)]
    model = load(tmp_path / "run")
    rows = config.train.rows(config.model.context)
    T, D = config.model.context, config.model.dim
    plain = 3 * model.flops(T) * rows
    assert steps == [plain + 3 * rows * T * 2 * (2 * D * 4 * D)] * 4 + [plain] * 4


@pytest.mark.parametrize("step", [2, 4, 8])
def test_what_is_loaded_is_what_was_evaluated(config, tmp_path, step):
    config = with_train(guided(config), eval_every=2, dtype="float32")
    config = with_train(config, checkpoint=replace(config.train.checkpoint, keep=9))
    train(config, tmp_path / "run", progress=quiet)
    scores = {line["step"]: line["bits_per_byte"] for line in record(tmp_path / "run", "eval")}
    scorer = load(tmp_path / f"run/checkpoints/step-{step:07d}")
    assert not any("guide" in name for name, _ in scorer.named_parameters())
    dataset = mixlab.data.prepare(config.data)
    found = evaluate(scorer, dataset.valid, context=config.model.context, dtype="float32")
    assert found.bits_per_byte == pytest.approx(scores[step], rel=1e-6)


def test_a_longer_horizon_does_not_bring_the_guides_back(config, tmp_path):
    config = with_train(guided(config), schedule=ScheduleConfig(kind="constant", warmup=0.0))
    train(config, tmp_path / "run", progress=quiet)
    train(with_train(config, steps=24), tmp_path / "run", resume=True, progress=stop_at(9))
    assert not any("guide" in name for name in names(tmp_path / "run", 9, "training.safetensors"))
