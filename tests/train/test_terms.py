"""What is added to the loss, and blocks that are recomputed, as a run's record shows them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mixlab
from mixlab.data import Batches
from mixlab.train.config import OptimizerConfig
from mixlab.train.evaluate import evaluate
from mixlab.train.loop import train
from mixlab.train.run import load

from .helpers import record, with_train


def quiet(line):
    """Take every line and say nothing."""


def without(lines, *keys):
    return [{key: value for key, value in line.items() if key not in keys} for line in lines]


def test_the_reported_loss_is_the_plain_one_and_each_term_stands_beside_it(config, tmp_path):
    undropped = replace(config, model=replace(config.model, dropout=0.0))
    still = with_train(undropped, optimizer=OptimizerConfig(lr=1e-30))  # the weights stay as they are
    train(still, tmp_path / "plain", progress=quiet)
    added = with_train(still, z_loss=0.1, label_smoothing=0.2)
    train(added, tmp_path / "run", progress=quiet)
    plain, ours = record(tmp_path / "plain", "step"), record(tmp_path / "run", "step")
    assert not {"z_loss", "label_smoothing"} & set(plain[0])
    assert [line["loss"] for line in ours] == [line["loss"] for line in plain]
    assert ours[0]["grad_norm"] != plain[0]["grad_norm"]
    train_side = mixlab.data.prepare(config.data).train
    inputs, targets = Batches(train_side, context=16, batch_size=4, seed=0).next()
    with torch.no_grad():
        expected = load(tmp_path / "run").losses(inputs, targets, z_loss=0.1, label_smoothing=0.2).tolist()
    for key, value in zip(("z_loss", "label_smoothing"), expected[1:], strict=True):
        assert ours[0][key] == pytest.approx(value, rel=1e-5)


def test_only_a_term_that_is_on_is_recorded_and_it_moves_the_weights(config, tmp_path):
    train(config, tmp_path / "plain", progress=quiet)
    for key, value in (("z_loss", 1.0), ("label_smoothing", 0.5)):
        train(with_train(config, **{key: value}), tmp_path / key, progress=quiet)
        plain, ours = record(tmp_path / "plain", "step"), record(tmp_path / key, "step")
        assert set(ours[0]) - set(plain[0]) == {key}
        assert ours[0]["loss"] == plain[0]["loss"]
        assert ours[-1]["loss"] != plain[-1]["loss"]


def test_evaluation_knows_nothing_of_them(config, tmp_path):
    added = with_train(config, z_loss=1.0, label_smoothing=0.5, dtype="float32")
    train(added, tmp_path / "run", progress=quiet)
    line = record(tmp_path / "run", "eval")[-1]
    valid = mixlab.data.prepare(config.data).valid
    found = evaluate(load(tmp_path / "run/checkpoints/step-0000008"), valid, context=16, dtype="float32")
    assert found.bits_per_byte == pytest.approx(line["bits_per_byte"], rel=1e-6)


def test_recomputed_blocks_leave_the_record_as_it_is_flops_included(config, tmp_path):
    train(config, tmp_path / "plain", progress=quiet)
    train(with_train(config, recompute=True), tmp_path / "run", progress=quiet)
    assert record(tmp_path / "run") == record(tmp_path / "plain")
