"""A run is what its config says, whatever the caller has set in torch, and the caller's settings stay."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch
from safetensors.torch import load_file

import mixlab
from mixlab.data import prepare
from mixlab.decode import generate
from mixlab.errors import UserError
from mixlab.train import surroundings
from mixlab.train.evaluate import evaluate
from mixlab.train.loop import train
from mixlab.train.range_test import find_lr

from .helpers import record, with_train


def quiet(line):
    """Take every line and say nothing."""


@contextlib.contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def product_precision():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


SETTINGS = {
    "default dtype": default_dtype,
    "default device": default_device,
    "device context": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "product precision": product_precision,
}


def settings_now():
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_autocast_enabled("cpu"),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_float32_matmul_precision(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
    )


@pytest.fixture(scope="module")
def cheap():
    """Two steps: a run's whole way, and no more."""
    return {"steps": 2, "eval_every": 0, "dtype": "float32", "watch_every": 0}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_the_callers_settings_do_not_reach_a_run_and_stay(config, tmp_path, cheap, setting):
    config = with_train(config, **cheap)
    train(config, tmp_path / "plain", progress=quiet)
    model = mixlab.load(tmp_path / "plain")
    valid = prepare(config.data).valid
    expected = evaluate(model, valid, context=16, dtype="float32")
    text = list(generate(model, [1], max_tokens=6))
    with setting():
        before = settings_now()
        train(config, tmp_path / "run", progress=quiet)
        found = mixlab.load(tmp_path / "run")
        scores = evaluate(found, valid, context=16, dtype="float32")
        drawn = []
        for token in generate(found, [1], max_tokens=6):
            drawn.append(token)
            assert settings_now() == before
        assert settings_now() == before
    assert record(tmp_path / "run") == record(tmp_path / "plain")
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    assert all(p.requires_grad and not p.is_inference() for p in found.parameters())
    assert (scores, drawn) == (expected, text)
    ours, theirs = (
        load_file(tmp_path / name / "checkpoints/step-0000002/training.safetensors")
        for name in ("run", "plain")
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in {**ours, **theirs})


def test_settings_come_back_after_an_error(config, tmp_path):
    with default_dtype(), torch.no_grad():
        before = settings_now()
        with pytest.raises(UserError):
            train(config, tmp_path / "nothing", resume=True, progress=quiet)
        assert settings_now() == before


def test_a_second_training_in_another_thread_is_refused_and_the_first_is_undisturbed(config, tmp_path, cheap):
    config = with_train(config, **cheap)
    refused = []

    def second():
        for work in (
            lambda: train(config, tmp_path / "second", progress=quiet),
            lambda: find_lr(config, prepare(config.data), steps=4),
        ):
            with pytest.raises(UserError, match="this process is training already") as error:
                work()
            refused.append(error)

    def progress(line):
        if line["kind"] == "step" and not refused:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

    train(config, tmp_path / "straight", progress=quiet)
    train(config, tmp_path / "run", progress=progress)
    assert len(refused) == 2
    assert record(tmp_path / "run") == record(tmp_path / "straight")
    assert not (tmp_path / "second").exists()
    train(config, tmp_path / "second", progress=quiet)  # once the first is over


def model_with_dropout():
    shape = {"vocab_size": 32, "dim": 16, "depth": 1, "context": 8, "temporal": "lstm", "dropout": 0.5}
    return mixlab.build_model(shape)


@pytest.mark.parametrize("what", ["whole", "one module"])
def test_generation_applies_no_dropout_and_leaves_the_modes_as_they_were(what):
    model = model_with_dropout().eval()
    expected = list(generate(model, [0], max_tokens=8, temperature=0))
    (model if what == "whole" else model.blocks).train()
    before = [module.training for module in model.modules()]
    for _ in range(3):
        drawn = []
        for token in generate(model, [0], max_tokens=8, temperature=0):
            drawn.append(token)
            assert [module.training for module in model.modules()] == before
        assert drawn == expected


def test_an_evaluation_leaves_each_module_in_its_own_mode(config):
    valid = prepare(config.data).valid
    model = mixlab.build_model({"vocab_size": 64, "dim": 16, "depth": 1, "context": 16, "dropout": 0.5})
    model.train().embedding.eval()
    before = [module.training for module in model.modules()]
    evaluate(model, valid, context=16, dtype="float32")
    assert [module.training for module in model.modules()] == before


def test_training_asked_for_between_two_tokens_is_given_to_the_caller():
    model = model_with_dropout().eval()
    tokens = generate(model, [0], max_tokens=8, temperature=0)
    next(tokens)
    model.train()
    next(tokens)
    assert model.training


def test_pinning_nests():
    with surroundings.pinned(), torch.no_grad(), surroundings.pinned():
        assert torch.is_grad_enabled()
