"""What a run that went bad says: signs from its record, changes with values, the checkpoint to go back to."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from mixlab.errors import RunFailed
from mixlab.train import evaluations, loop, train
from mixlab.train.advice import advice
from mixlab.train.config import CheckpointConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from mixlab.train.metrics import read_metrics
from mixlab.train.trend import BEFORE, LATELY, Trend
from tests.train.helpers import with_train


def quiet(line: dict[str, Any]) -> None:
    pass


SELDOM = CheckpointConfig(every=0)
CONFIG = TrainConfig(steps=1000, optimizer=OptimizerConfig(lr=0.02), schedule=ScheduleConfig(warmup=0.05))


def trend(losses: list[float], norms: list[float], *, lr: float = 0.02, **left: int) -> Trend:
    """Of steps with these losses and gradient norms; left: number -> the step that warned of it."""
    found = Trend()
    for n, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1):
        found.take({"kind": "step", "step": n, "loss": loss, "grad_norm": norm, "lr": lr})
    for name, step in left.items():
        found.take({"kind": "watch", "step": step, "warnings": {name: "it is so"}})
    return found


def said(found: Trend, config: TrainConfig = CONFIG, *, at: float = 0.5, bfloat16: bool = False) -> str:
    return advice(config, found, fraction=at, bfloat16=bfloat16)


def calm(steps: int = 200) -> Trend:
    return trend([3.0] * steps, [1.0, 2.0] * (steps // 2))


def test_the_trend_is_of_the_last_steps_against_those_before() -> None:
    losses = [4.0] * 50 + [2.0] * LATELY + [3.0] * (LATELY // 2)
    norms = [1.0, 2.0, 3.0] * 20 + [50.0] + [2.0] * (len(losses) - 61)
    found = trend(losses, norms)
    assert found.loss == 2.5 and found.rise == pytest.approx(0.5)
    assert found.readings() == {"loss_rise": found.rise, "gradient_jump": found.jump}
    assert found.usual_norm == 2 and found.largest_norm == 50 and found.jump == 25
    short = trend([2.0] * (LATELY - 1), [1.0] * (LATELY - 1))
    assert short.loss is short.rise is short.jump is None


def test_a_resumed_run_sees_the_trend_of_an_uninterrupted_one(tmp_path: Any, config: Any) -> None:
    config = with_train(config, steps=25, watch_every=2, accumulate=1, eval_every=0, checkpoint=SELDOM)
    train(config, tmp_path / "run", progress=quiet)
    train(with_train(config, steps=40), tmp_path / "run", resume=True, progress=quiet)
    one_go, looks = Trend(), 0
    for line in read_metrics(tmp_path / "run/metrics.jsonl"):
        if line["kind"] == "watch":
            looks += 1
            assert {name: line[name] for name in one_go.readings()} == one_go.readings(), line["step"]
        one_go.take(line)
    assert looks == 21 and one_go.rise is not None and one_go.jump is not None


def test_the_first_step_blames_no_rate() -> None:
    words = said(Trend(), at=0.0)
    assert words.startswith("no step was taken before") and "train.optimizer.lr" not in words


def test_a_calm_record_points_to_the_layer() -> None:
    words = said(calm())
    assert words == (
        "nothing announced it: loss, gradient norm and watch list were as before; look at that layer before "
        "the learning rate"
    )
    assert said(calm(), bfloat16=True) == words + "; train.dtype=float32 tells whether bfloat16 is to blame"


def test_a_gradient_that_grew_lowers_the_rate_to_a_third() -> None:
    words = said(trend([3.0] * 200, [1.0] * 190 + [400.0] * 10))
    assert "the gradient norm, usually 1, came to 400 in the last 20 steps" in words
    assert "try train.optimizer.lr=0.0067, a third of the peak;" in words
    assert "warmup" not in words and "clip" not in words and "mixlab train --find-lr" in words


def test_in_warm_up_the_rate_that_was_reached_counts() -> None:
    words = said(trend([3.0] * 30, [1.0] * 29 + [90.0], lr=0.012), at=0.03)
    assert "train.optimizer.lr=0.0012, a tenth of the 0.012 that warm-up had reached" in words
    assert "train.schedule.warmup=0.1 for 0.05, a slower start" in words


def test_without_warm_up_one_is_asked_for() -> None:
    config = replace(CONFIG, schedule=ScheduleConfig(warmup=0.0))
    assert "train.schedule.warmup=0.05 for 0, a slower start" in said(calm(), config, at=0.0)


def test_steps_that_were_too_large_from_the_start_lower_it_to_a_tenth() -> None:
    words = said(trend([3.0] * 200, [1.0] * 200, update_ratio=1, effective_rank=50))
    assert words.startswith(
        "the update-to-weight ratio at step 1 and the effective rank of the residual stream at step 50 had "
        "left their healthy bands; try train.optimizer.lr=0.002, a tenth of the peak;"
    )


def test_attention_that_hardened_asks_for_qk_norm() -> None:
    words = said(trend([3.0] * 200, [1.0] * 200, attention_logit=150))
    assert "the largest attention logit at step 150 had left its healthy band" in words
    assert "model.temporal.qk_norm=true" in words and "a third of the peak" in words


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        (0.0, "train.optimizer.clip=1, as clipping is off"),
        (100.0, "train.optimizer.clip=4, as 100 is far above the usual norm 2"),
        (4.0, None),
    ],
)
def test_a_clip_that_bounds_nothing_is_named(clip: float, words: str | None) -> None:
    config = replace(CONFIG, optimizer=OptimizerConfig(lr=0.02, clip=clip))
    text = said(trend([3.0] * 200, [2.0] * 190 + [900.0] * 10), config)
    assert words in text if words else "clip" not in text


def test_a_loss_is_hopeless_if_it_is_high_for_long_and_does_not_fall() -> None:
    ones = [1.0] * BEFORE
    assert trend([9.1] * BEFORE, ones).hopeless(3.0)
    assert not trend([9.1] * (BEFORE - 1), ones[1:]).hopeless(3.0)
    assert not trend([8.9] * BEFORE, ones).hopeless(3.0)
    falling = [30.0 - n / 10 for n in range(BEFORE)]  # a bad start that gets better
    assert not trend(falling, ones).hopeless(3.0)
    assert trend(falling[::-1], ones).hopeless(3.0)
    assert not trend([9.1] * 49 + [2.0] * 51, ones).hopeless(3.0)


def test_a_network_that_died_of_a_rate_too_high_is_hopeless_and_one_that_has_yet_to_learn_is_not() -> None:
    def why(*losses: float) -> str:
        return trend(list(losses), [1.0] * len(losses)).hopeless(3.0)

    dead = [3.0] * BEFORE
    assert why(500.0, *dead) == (
        "it had been 500, and its median over 100 steps is the 3 nats of knowing nothing, and does not fall"
    )
    assert not why(*dead)  # a slow warm-up
    assert not why(500.0, *([2.9] * BEFORE))  # it knows something
    assert not why(500.0, *dead[2:])


def test_a_rate_far_too_high_ends_with_advice_and_the_best_checkpoint(config: Any, tmp_path: Any) -> None:
    # The constant rate of 10 throws Muon's matrices about; the loss settles at 40 nats and more.
    config = with_train(
        config,
        steps=300,
        accumulate=1,
        checkpoint=SELDOM,
        eval_every=50,
        watch_every=10,
        optimizer=OptimizerConfig(kind="muon", lr=10.0),
        schedule=ScheduleConfig(kind="constant"),
    )
    with pytest.raises(RunFailed) as failure:
        train(config, tmp_path / "run", progress=quiet)
    message, lines = str(failure.value), read_metrics(tmp_path / "run/metrics.jsonl")
    assert message.startswith("the loss diverged: up to step ")
    assert "the update-to-weight ratio at step 1" in message and "train.optimizer.lr=1, a tenth" in message
    best = min((line for line in lines if line["kind"] == "eval"), key=lambda line: line["bits_per_byte"])
    folder = tmp_path / "run/checkpoints" / f"step-{best['step']:07}"
    assert message.endswith(f"; the best checkpoint is {folder}") and folder.is_dir()
    end = lines[-1]
    assert (end["kind"], end["status"], end["message"]) == ("end", "failed", message)
    assert BEFORE <= end["step"] < 300
    ignorance = math.log(len(set((tmp_path / "text.txt").read_text())) + 1)
    assert all(line["loss"] > ignorance for line in lines if line["kind"] == "step" and line["step"] > 20)


def test_a_checkpoint_that_was_better_before_it_broke_is_named_too(
    config: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    real = loop.Trainer.step

    def broken(self: Any) -> Any:
        if self.done.step + 1 == 8:
            self.model.head.weight.data[0, 0] = math.nan
        return real(self)

    scores = iter([3.0, 2.0, 4.0])

    def scored(*args: Any, **keys: Any) -> Any:
        return SimpleNamespace(tokens=1, line=lambda: {"bits_per_byte": next(scores), "loss_by_position": []})

    monkeypatch.setattr(loop.Trainer, "step", broken)
    monkeypatch.setattr(evaluations, "evaluate", scored)
    with pytest.raises(RunFailed) as failure:
        train(with_train(config, eval_every=2), tmp_path / "run", progress=quiet)
    folder = tmp_path / "run/checkpoints"
    assert (folder / "step-0000004").is_dir()
    end = f"; the last good checkpoint is {folder / 'step-0000006'}, the best by its evaluation "
    assert str(failure.value).endswith(f"{end}{folder / 'step-0000004'}")


def test_without_clipping_a_rate_of_thousands_says_what_to_set(config: Any, tmp_path: Any) -> None:
    config = with_train(config, steps=300, optimizer=OptimizerConfig(kind="sgd", lr=1000.0, clip=0.0))
    with pytest.raises(RunFailed) as failure:
        train(config, tmp_path / "run", progress=quiet)
    message = str(failure.value)
    for words in (
        " at step ",
        "the update-to-weight ratio at step 1 had left its healthy band",
        "that warm-up had reached",
        "train.schedule.warmup=0.1 for 0.05",
        "train.optimizer.clip=1, as clipping is off",
        "the last good checkpoint is ",
    ):
        assert words in message, words
