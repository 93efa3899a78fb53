"""Device, threads and precision of a comparison: chosen once, the same for all models, kept in its folder."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from mixlab.compare.folder import ComparisonFolder, Result
from mixlab.compare.plan import make_plan
from mixlab.compare.request import Request
from mixlab.compare.runner import compare
from mixlab.compare.terms import Terms, agree
from mixlab.config import to_mapping
from mixlab.data.config import DataConfig
from mixlab.errors import UserError
from mixlab.train import machine, threads
from mixlab.train.config import TrainConfig

CHOSEN = TrainConfig(steps=1, dtype="bfloat16", threads=3, device="cpu")
SAID = {"device": "cpu", "threads": 3, "dtype": "bfloat16"}


def plan_of(*models, terms=None, **changed):
    request = Request(models=models, params=20_000, steps=4, context=16, **changed).validate()
    return make_plan(request, vocab_size=256, steps=4, terms=terms or Terms(CHOSEN, CHOSEN))


@pytest.fixture
def cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MIXLAB_AUTO_DTYPE", "float32")
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    now = {"threads": 4}
    monkeypatch.setattr(torch, "get_num_threads", lambda: now["threads"])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: now.update(threads=number))
    monkeypatch.setattr(threads, "measured", lambda width, most: (1.0, 3.0))


def test_all_models_run_on_the_same_terms_but_for_what_is_asked_for():
    plan = plan_of("gru", "rnn", "ngram", overrides=("train.threads=2",))
    trains = [entry.config.train for entry in plan.entries if not entry.counted]
    assert {(train.dtype, train.threads, train.device) for train in trains} == {("bfloat16", 2, "cpu")}
    assert plan.to_dict()["machine"] == SAID


def test_terms_are_measured_once_and_said(cores):
    notes = []
    terms = agree(None, notes.append)
    assert notes == ["1 thread: 4 threads were measured 3.0x slower: other programs use the cores"]
    assert terms.to_dict() == {"device": "cpu", "threads": 1, "dtype": "float32"}
    assert terms.begun == terms.here


def test_a_folder_keeps_the_terms_that_it_was_begun_with(cores, monkeypatch):
    monkeypatch.setattr(threads, "measured", lambda width, most: pytest.fail("measured again"))
    notes = []
    terms = agree({"machine": SAID}, notes.append)
    assert (terms.to_dict(), terms.here, notes) == (SAID, terms.begun, [])


def test_a_machine_of_fewer_cores_continues_a_comparison_and_says_so(cores, monkeypatch, tmp_path):
    begun = plan_of("gru")
    folder = ComparisonFolder(tmp_path)
    folder.begin(begun, {})
    (folder.run(begun.entries[0])).mkdir()
    result = {
        **dict.fromkeys(("model", "status", "reason"), ""),
        **{key: 0 for key in Result.__annotations__ if key not in ("model", "status", "reason")},
        "config": to_mapping(begun.entries[0].config),
    }
    (folder.run(begun.entries[0]) / "result.json").write_text(json.dumps(result))
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    notes = []
    terms = agree(folder.saved_plan(), notes.append)
    assert notes == ["train.threads is 3, and this process may use 2 cores: 2 are used"]
    plan = plan_of("gru", terms=terms, seeds=2)
    folder.begin(plan, {})
    assert [entry.config.train.threads for entry in plan.entries] == [2, 2]
    assert folder.result(plan.entries[0]) is not None
    assert folder.saved_plan()["machine"] == SAID


def test_another_precision_is_another_comparison(tmp_path):
    folder = ComparisonFolder(tmp_path)
    folder.begin(plan_of("gru"), {})
    other = replace(CHOSEN, dtype="float32")
    with pytest.raises(UserError, match=r"holds another comparison; these differ: machine\.dtype"):
        folder.begin(plan_of("gru", terms=Terms(other, other)), {})


@pytest.mark.parametrize("said", [[], 3, {}, {**SAID, "threads": "many"}, {**SAID, "dtype": "float16"}])
def test_a_plan_whose_terms_are_damaged_is_one_sentence(said):
    with pytest.raises(UserError, match=r"plan\.json is damaged"):
        agree({"machine": said}, print)


def test_a_comparison_goes_on_in_the_precision_it_was_begun_in(text, tmp_path, monkeypatch):
    request = Request(
        models=("window",), data=DataConfig(sources=(str(text),)), params=20_000, steps=1, context=16,
        batch_size=2, overrides=("model.depth=1",),
    )  # fmt: skip
    monkeypatch.setenv("MIXLAB_AUTO_DTYPE", "bfloat16")
    compare(request, tmp_path / "out")
    monkeypatch.setenv("MIXLAB_AUTO_DTYPE", "float32")
    lines = []
    found = compare(replace(request, seeds=2), tmp_path / "out", progress=lines.append)
    assert [result["dtype"] for result in found["results"]] == ["bfloat16", "bfloat16"]
    runs = [line["status"] for line in lines if line["kind"] == "run"]
    assert runs == ["kept", "begun", "done"]
