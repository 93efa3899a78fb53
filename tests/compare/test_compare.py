"""Comparisons end to end: real processes, tiny models. Each process imports PyTorch, so there are few."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mixlab.cli import run
from mixlab.compare.folder import ComparisonFolder
from mixlab.compare.plan import make_plan
from mixlab.compare.request import Request
from mixlab.compare.runner import Stopped, compare
from mixlab.data.config import DataConfig
from mixlab.errors import UserError
from mixlab.report.recommend import conclude
from mixlab.train.folder import RunFolder
from mixlab.train.metrics import read_metrics
from tests.compare.conftest import TEXT, TINY

BROKEN_PARTS = """
import os, signal
from mixlab.parts.contract import register
from mixlab.parts.temporal.window import Window

@register("temporal", "raising")
class Raising(Window):
    def mix(self, x, state):
        raise ZeroDivisionError("this part never works")

@register("temporal", "dying")
class Dying(Window):
    def mix(self, x, state):
        print("on stdout, where it must not disturb")
        os.kill(os.getpid(), signal.SIGKILL)

@register("temporal", "unbuildable")
class Unbuildable(Window):
    def __init__(self, config, place):
        raise LookupError("no such table")
"""

PRESET = """
[model]
temporal = "{part}"
position = "none"

[train]
steps = 1
"""


def tiny(text: Path, *models: str, **changed: Any) -> Request:
    settings = {"params": 20_000, "steps": 4, "context": 16, "batch_size": 2, "overrides": TINY} | changed
    return Request(models=models, data=DataConfig(sources=(str(text),)), **settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A comparison through the command line, three of whose models fail, each in a way of its own."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "broken.py").write_text(BROKEN_PARTS, encoding="utf-8")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    for part in ("raising", "dying", "unbuildable"):
        (folder / f"{part}.toml").write_text(PRESET.format(part=part), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        sets = [word for setting in TINY for word in ("--set", setting)]
        status = run(
            ["compare", "text.txt", "--import", "broken.py", "--out", "out",
             "--models", "raising.toml,ngram,dying.toml,unbuildable.toml,transformer",
             "--budget", "20k", "--steps", "4", "--context", "16", "--batch-size", "2", *sets]
        )  # fmt: skip
    comparison = json.loads((folder / "out" / "comparison.json").read_text(encoding="utf-8"))
    return {"status": status, "out": folder / "out", "comparison": comparison}


def by_model(comparison: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {result["model"]: result for result in comparison["results"]}


def test_models_that_fail_are_reported_with_their_reason_and_the_others_finish(finished) -> None:
    results = by_model(finished["comparison"])
    assert finished["status"] == 1
    assert {name: result["status"] for name, result in results.items()} == {
        "raising": "failed",
        "ngram (all of the text)": "done",
        "ngram (same text)": "done",
        "dying": "failed",
        "unbuildable": "failed",
        "transformer": "done",
    }
    assert results["raising"]["reason"] == "ZeroDivisionError: this part never works (broken.py:9)"
    assert "killed, most likely for want of memory" in results["dying"]["reason"]
    assert results["unbuildable"]["reason"] == "it cannot be built: LookupError: no such table"


def test_the_command_that_is_recommended_trains_the_best_model_on_the_text(
    finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = conclude(finished["comparison"]).command
    words = shlex.split(command)
    assert words[:2] == ["mixlab", "train"] and "--import" in words
    words[words.index("--epochs") + 1] = "0.0005"  # a step or two
    monkeypatch.chdir(finished["out"].parent)
    assert run([*words[1:], "--out", str(tmp_path / "next")]) == 0
    config = RunFolder(tmp_path / "next").read_config()
    assert config.name == "transformer" and config.train.steps is None  # the length is the command's
    assert read_metrics(tmp_path / "next" / "metrics.jsonl", "step")


def test_a_result_has_every_number_of_the_table_and_they_agree_with_the_run(finished) -> None:
    result = by_model(finished["comparison"])["transformer"]
    run_folder = finished["out"] / "runs" / "transformer-seed0"
    last = read_metrics(run_folder / "metrics.jsonl", "eval")[-1]
    assert [point["step"] for point in result["curve"]] == [1, 2, 3, 4]
    assert result["evals"][-1]["bits_per_byte"] == last["bits_per_byte"]
    assert len(result["loss_by_position"]) == 16
    assert abs(result["parameters"] / 20_000 - 1) <= 0.02
    assert sum(part["parameters"] for part in result["components"].values()) == result["parameters"]
    assert sum(part["flops"] for part in result["components"].values()) == pytest.approx(
        result["flops_per_token"], rel=0.01
    )
    assert result["curve"][-1]["flops"] == pytest.approx(3 * result["flops_per_token"] * 4 * 32, rel=0.01)
    assert result["state_bytes_per_token"] == 2 * result["config"]["model"]["dim"] * 4
    assert result["decode_ms_per_token"] > 0
    rates = result["throughput"]
    assert 0 < rates["low"] <= rates["median"] == result["tokens_per_second"] <= rates["high"]
    assert (rates["steps"], result["threads"]) == (4, [1])
    assert len(result["product_flops"]) == 2
    assert 50e6 < result["peak_memory_bytes"] < 5e9
    assert result["sample"]["prompt"] in TEXT
    assert result["sample"]["text"]


def test_the_ngram_is_scored_in_the_same_windows_and_bound_by_no_budget(finished) -> None:
    result = by_model(finished["comparison"])["ngram (all of the text)"]
    assert len(result["loss_by_position"]) == 16
    assert (result["flops_per_token"], result["curve"]) == (0, [])
    assert result["parameters"] > 20_000
    assert any("(all of the text) stores" in said for said in finished["comparison"]["budget"]["unequal"])


def test_the_ngram_is_the_baseline_counted_on_all_of_the_text_and_on_what_the_others_read(finished) -> None:
    results = by_model(finished["comparison"])
    every, same = results["ngram (all of the text)"], results["ngram (same text)"]
    assert [(r["kind"], r["counted_on"]) for r in (every, same)] == [
        ("baseline", kind) for kind in ("all", "same")
    ]
    assert results["transformer"]["kind"] == results["raising"]["kind"] == "neural"
    assert every["tokens"] == finished["comparison"]["corpus"]["train_tokens"]
    # 4 steps of 2 windows of 16 tokens, each with the token that the last one predicts; two may share it.
    assert 4 * 2 * 16 <= same["tokens"] < 4 * 2 * 17
    assert same["bits_per_byte"] > every["bits_per_byte"] + 0.5


def test_the_report_is_written_and_names_every_model(finished) -> None:
    page = (finished["out"] / "report.html").read_text(encoding="utf-8")
    for name in ("ngram", "transformer", "raising", "this part never works"):
        assert name in page


def stop_in(model: str, events: list[dict[str, Any]]) -> Callable[[dict[str, Any]], None]:
    """A progress callable that interrupts the comparison after the first step of `model`."""

    def progress(line: dict[str, Any]) -> None:
        events.append(line)
        started = any(e["kind"] == "run" and e["model"] == model for e in events)
        if line["kind"] == "step" and started and line["step"] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


def test_an_interrupted_comparison_goes_on_where_it_stopped(text: Path, tmp_path: Path) -> None:
    out, events = tmp_path / "out", []
    request = tiny(text, "ngram", "window", steps=200, overrides=("model.depth=1", "train.dtype=float32"))
    with pytest.raises(Stopped, match="the same command goes on"):
        compare(request, out, progress=stop_in("window", events))
    first = out / "runs" / "ngram-seed0" / "result.json"
    written = first.stat().st_mtime_ns
    assert len(json.loads((out / "comparison.json").read_text())["results"]) == 2
    assert list((out / "runs" / "window-seed0" / "checkpoints").glob("step-*"))

    again: list[dict[str, Any]] = []
    comparison = compare(request, out, progress=again.append)
    assert [(e["model"], e["status"]) for e in again if e["kind"] == "run"] == [
        ("ngram (all of the text)", "kept"),
        ("ngram (same text)", "kept"),
        ("window", "resumed"),
        ("window", "done"),
    ]
    assert first.stat().st_mtime_ns == written
    assert "kind" not in json.loads(first.read_text())  # nor has the result of an older mixlab
    assert by_model(comparison)["ngram (all of the text)"]["kind"] == "baseline"
    steps = [line["step"] for line in again if line["kind"] == "step"]
    assert steps[0] > 1
    assert [point["step"] for point in by_model(comparison)["window"]["curve"]] == list(range(1, 201))
    assert (
        len(by_model(comparison)["window"]["throughput"]["parts"]) == 2
    )  # of the first and the second process
    assert isinstance(comparison["timing"]["trusted"], bool)


def test_a_second_comparison_in_a_folder_in_use_is_refused_and_the_first_goes_on(
    text: Path, tmp_path: Path
) -> None:
    out, second = tmp_path / "out", []
    arguments = [
        "compare",
        str(text),
        "--out",
        str(out),
        "--models",
        "ngram",
        "--steps",
        "4",
        "--context",
        "16",
    ]

    def progress(line: dict[str, Any]) -> None:
        if (
            line["kind"] == "run" and line["status"] == "begun"
        ):  # its folder is not there yet, or has no config
            before = sorted(out.rglob("*"))
            command = [sys.executable, "-m", "mixlab", *arguments, "--batch-size", "2"]
            second.append(subprocess.run(command, capture_output=True, text=True, check=False))
            assert sorted(out.rglob("*")) == before

    comparison = compare(tiny(text, "ngram", overrides=(), params=1_000_000), out, progress=progress)
    assert [(one.returncode, one.stderr) for one in second] == [
        (2, f"mixlab: {out} is in use: another process is writing this comparison; wait for it or stop it\n")
    ]
    assert [result["status"] for result in comparison["results"]] == ["done"]


def test_a_run_that_a_process_still_writes_is_not_removed(tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path)
    request = Request(models=("ngram",), steps=1).validate()
    (entry,) = make_plan(request, vocab_size=256, steps=1).entries
    begun = RunFolder(folder.run(entry))
    with begun.locked(), pytest.raises(UserError, match="in use: another process is writing this run"):
        folder.prepare_run(entry)
    assert begun.path.is_dir()
    assert folder.prepare_run(entry) is False
    assert not begun.path.exists()


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The text and the folder of a finished comparison of one n-gram."""
    folder = tmp_path_factory.mktemp("counted")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    compare(tiny(folder / "text.txt", "ngram", overrides=()), folder / "out")
    return folder / "text.txt", folder / "out"


def test_a_finished_comparison_trains_nothing_again(counted: tuple[Path, Path]) -> None:
    text, out = counted
    events: list[dict[str, Any]] = []
    comparison = compare(tiny(text, "ngram", overrides=()), out, progress=events.append)
    assert [(e["model"], e["status"]) for e in events if e["kind"] == "run"] == [("ngram", "kept")]
    assert comparison == json.loads((out / "comparison.json").read_text())


def test_a_folder_of_an_older_mixlab_that_knew_fewer_keys_is_gone_on_with(
    counted: tuple[Path, Path], tmp_path: Path
) -> None:
    text, out = counted
    old = tmp_path / "old"
    shutil.copytree(out, old)
    plan = json.loads((old / "plan.json").read_text())
    result = json.loads((old / "runs" / "ngram-seed0" / "result.json").read_text())
    del plan["machine"], plan["data"]["encoding"]
    for config in (plan["runs"]["ngram-seed0"], result["config"]):
        del config["data"]["encoding"], config["train"]["threads"], config["train"]["device"]
    (old / "plan.json").write_text(json.dumps(plan))
    (old / "runs" / "ngram-seed0" / "result.json").write_text(json.dumps(result))
    events: list[dict[str, Any]] = []
    compare(tiny(text, "ngram", overrides=()), old, progress=events.append)
    assert [e["status"] for e in events if e["kind"] == "run"] == ["kept"]


@pytest.mark.parametrize(
    ("models", "changed", "named"),
    [
        (("ngram",), {"steps": 5}, "budget.steps, budget.tokens "),
        (("ngram",), {"overrides": ("ngram.order=2",)}, "runs.ngram-seed0.ngram.order "),
        (("window",), {}, "runs.ngram-seed0 "),
        (("ngram",), {"text": TEXT + "one line more\n"}, "corpus.sha256"),
    ],
)
def test_a_folder_with_another_comparison_is_refused_and_left_alone(
    counted: tuple[Path, Path], models: tuple[str, ...], changed: dict[str, Any], named: str
) -> None:
    text, out = counted
    text.write_text(changed.pop("text", TEXT), encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(UserError, match=f"holds another comparison; these differ: {named}"):
        compare(tiny(text, *models, **{"overrides": (), **changed}), out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_standard_input_is_kept_for_the_runs_to_read(tmp_path: Path) -> None:
    out = tmp_path / "out"
    request = Request(models=("ngram",), steps=1, context=16, data=DataConfig(sources=("-",)))
    with pytest.raises(UserError, match="fewer than the context"):
        compare(replace(request, context=10**6), out, stdin=TEXT.encode())
    assert not out.exists()
