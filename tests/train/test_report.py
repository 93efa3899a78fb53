"""The page of a run as the trainer writes it: going on, killed, resumed with another config, diverged."""

from __future__ import annotations

from typing import Any

import pytest

from mixlab.errors import RunFailed
from mixlab.report import from_run, render
from mixlab.train import train
from mixlab.train.config import CheckpointConfig, OptimizerConfig
from tests.report.test_page import Page, payload
from tests.train.helpers import stop_at, with_train


def page(folder: Any) -> tuple[str, dict[str, Any]]:
    """What the page of a run says, and its figures."""
    html = render(from_run(folder))
    return Page(html).text, payload(html)["figures"]


def test_a_report_at_any_step_of_a_run_shows_what_was_done(config: Any, tmp_path: Any) -> None:
    config, seen = with_train(config, watch_every=4), {}

    def progress(line: dict[str, Any]) -> None:
        if line["kind"] in ("start", "step", "watch", "eval") and line.get("step", 0) in (0, 1, 4):
            seen[line["kind"], line.get("step", 0)] = page(tmp_path / "run")

    train(config, tmp_path / "run", progress=progress)
    assert list(seen) == [("start", 0), ("step", 1), ("watch", 1), ("step", 4), ("watch", 4), ("eval", 4)]
    assert all("still running" in text or "still training" in text for text, _ in seen.values())
    assert "How training went" not in seen["start", 0][0]
    for (_, step), (text, figures) in list(seen.items())[1:]:
        norms = figures["meter-grad_norm"]["all"]["data"][0]
        assert norms["x"] == list(range(1, step + 1)) and "How training went" in text
    assert "meter-effective_rank" not in seen["step", 1][1]
    assert len(seen["watch", 4][1]["meter-effective_rank"]["all"]["data"][-1]["x"]) == 2
    assert "No model has a score yet." in seen["watch", 4][0] and "run reaches" in seen["eval", 4][0]
    text, figures = page(tmp_path / "run")
    assert "still running" not in text and len(figures["meter-lr"]["all"]["data"][0]["x"]) == 8
    # A recurrent model has no attention: no figure for what it cannot show.
    assert "meter-attention_logit" not in figures


def test_a_run_of_one_step_has_a_page(config: Any, tmp_path: Any) -> None:
    unclipped = OptimizerConfig(clip=0.0)  # its norm is then the one number of its figure
    train(with_train(config, steps=1, optimizer=unclipped), tmp_path / "run", progress=lambda line: None)
    text, figures = page(tmp_path / "run")
    assert "run reaches" in text and figures["meter-grad_norm"]["all"]["data"][0]["x"] == [1]


def test_a_report_of_a_killed_and_of_a_resumed_run(config: Any, tmp_path: Any) -> None:
    summary = train(config, tmp_path / "run", progress=stop_at(3))
    assert summary["status"] == "stopped"
    assert "stopped: saved at step 3; go on with: " in page(tmp_path / "run")[0]
    record = tmp_path / "run/metrics.jsonl"
    whole = record.read_bytes()
    for cut in (len(whole) - 20, len(whole) - 200, 50):  # as a kill or a full disk leaves it
        record.write_bytes(whole[:cut])
        assert "its process ended without a word, and the run can be resumed" in page(tmp_path / "run")[0]
    record.write_bytes(whole)
    faster = with_train(config, optimizer=OptimizerConfig(lr=0.005))
    train(faster, tmp_path / "run", resume=True, force=True, progress=lambda line: None)
    text, figures = page(tmp_path / "run")
    assert "run went on at step 3 with train.optimizer.lr 0.005 (it was 0.002)." in text
    assert figures["meter-grad_norm"]["all"]["data"][0]["x"] == list(range(1, 9))


def test_a_report_of_a_run_that_diverged_shows_how_and_says_what_to_do(config: Any, tmp_path: Any) -> None:
    config = with_train(
        config,
        steps=300,
        checkpoint=CheckpointConfig(every=0),
        eval_every=0,
        optimizer=OptimizerConfig(kind="sgd", lr=1000.0, clip=0.0),
    )
    with pytest.raises(RunFailed):
        train(config, tmp_path / "run", progress=lambda line: None)
    text, figures = page(tmp_path / "run")
    assert "No model has a score: run failed after step " in text
    assert "train.optimizer.clip=1, as clipping is off" in text
    assert "Step 1 (1 of 1 looks): the update-to-weight ratio is " in text
    assert {"meter-grad_norm", "loss-tokens", "meter-update_ratio"} <= set(figures)


def test_a_runs_page_has_a_sample_of_its_best_checkpoint(
    config: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    train(with_train(config, steps=2), folder, progress=lambda line: None)
    assert "A sample" not in page(folder)[0]
    (result,) = from_run(folder, sample_seconds=5.0)["results"]
    again = from_run(folder, sample_seconds=5.0)["results"][0]
    assert result["sample"]["text"] and result["sample"] == again["sample"]
    html = render(from_run(folder, sample_seconds=5.0))
    assert "A sample" in Page(html).text and "The prompt is set in bold" not in html
    monkeypatch.setattr("mixlab.report.run.LARGEST", 10)
    assert "sample" not in from_run(folder, sample_seconds=5.0)["results"][0]
    monkeypatch.undo()
    for weights in folder.glob("checkpoints/*/model.safetensors"):
        weights.write_bytes(b"damaged")
    assert "sample" not in from_run(folder, sample_seconds=5.0)["results"][0]
