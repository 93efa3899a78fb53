"""What "auto" comes to is chosen once and belongs to the run: kept on resume, or the change is named."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace

import pytest
import torch

from mixlab.config import to_toml
from mixlab.errors import UserError
from mixlab.train import auto, checkpoint, machine, threads
from mixlab.train.files import write_text
from mixlab.train.folder import RunFolder
from mixlab.train.loop import train
from mixlab.train.metrics import read_metrics
from mixlab.train.run import open_run
from mixlab.train.step import Stepper

from .conftest import FAKE
from .helpers import record, stop_at, with_train

OTHER = {"float32": "bfloat16", "bfloat16": "float32"}


def quiet(line):
    """Take every line and say nothing."""


def spelled(run):
    return tomllib.loads((run / "config.toml").read_text())["train"]


def said(lines):
    return [line["message"] for line in lines if line["kind"] == "note"]


def changes(run):
    return [line["changes"] for line in read_metrics(run / "metrics.jsonl", "config")]


@pytest.fixture
def cores(monkeypatch):
    """A machine of as many cores as asked for, whose threads are counted and never started."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    now = {"cores": 4, "threads": 4}
    monkeypatch.setattr(machine, "usable_cores", lambda: now["cores"])
    monkeypatch.setattr(torch, "get_num_threads", lambda: now["threads"])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: now.update(threads=number))
    monkeypatch.setattr(threads, "measured", lambda width, most: (2.0, 1.0))
    return now


def test_a_run_spells_out_what_auto_came_to_and_its_checkpoints_too(config, tmp_path, switched):
    summary = train(config, tmp_path / "run", progress=quiet)
    expected = {"dtype": switched, "threads": 1, "device": "cpu"}
    assert {key: spelled(tmp_path / "run")[key] for key in expected} == expected
    saved = json.loads((tmp_path / "run/checkpoints/step-0000008/training.json").read_text())
    assert {key: saved["config"]["train"][key] for key in expected} == expected
    assert {key: summary[key] for key in expected} == expected


def test_a_resume_keeps_the_precision_whatever_auto_comes_to_by_then(config, tmp_path, switched, monkeypatch):
    train(config, tmp_path / "straight", progress=quiet)
    train(config, tmp_path / "run", progress=stop_at(3))
    monkeypatch.setenv("MIXLAB_AUTO_DTYPE", OTHER[switched])
    lines = []
    assert train(config, tmp_path / "run", resume=True, progress=lines.append)["dtype"] == switched
    assert record(tmp_path / "run") == record(tmp_path / "straight")
    assert (said(lines), changes(tmp_path / "run")) == ([], [])


def test_the_two_precisions_are_two_runs(config, tmp_path, monkeypatch):
    """The comparisons above are worth something only if the precision shows in the losses."""
    losses = []
    for dtype in OTHER:
        monkeypatch.setenv("MIXLAB_AUTO_DTYPE", dtype)
        train(config, tmp_path / dtype, progress=quiet)
        losses.append([line["loss"] for line in record(tmp_path / dtype, "step")])
    assert losses[0] != losses[1]


def test_another_precision_is_asked_for_by_force_and_named(config, tmp_path, switched):
    train(config, tmp_path / "run", progress=stop_at(3))
    other = with_train(config, dtype=OTHER[switched])
    with pytest.raises(UserError, match=rf"train\.dtype \({switched}, now {OTHER[switched]}\)"):
        train(other, tmp_path / "run", resume=True, progress=quiet)
    lines = []
    train(other, tmp_path / "run", resume=True, force=True, progress=lines.append)
    assert said(lines) == [f"going on with another config: train.dtype ({switched}, now {OTHER[switched]})"]
    assert changes(tmp_path / "run") == [{"train.dtype": [switched, OTHER[switched]]}]
    assert spelled(tmp_path / "run")["dtype"] == OTHER[switched]


def test_an_evaluation_of_a_run_is_in_the_precision_it_was_trained_in(
    config, tmp_path, switched, monkeypatch
):
    train(config, tmp_path / "run", progress=quiet)
    recorded = record(tmp_path / "run", "eval")[-1]
    monkeypatch.setenv("MIXLAB_AUTO_DTYPE", OTHER[switched])
    from mixlab.data import prepare

    found = open_run(tmp_path / "run/checkpoints/step-0000008").evaluate(prepare(config.data).valid)
    assert found.nats_per_token == recorded["nats_per_token"]


def test_a_switch_that_holds_something_else_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXLAB_AUTO_DTYPE", "float16")
    with pytest.raises(UserError, match="MIXLAB_AUTO_DTYPE must be float32 or bfloat16, got 'float16'"):
        train(config, tmp_path / "run", progress=quiet)
    assert not (tmp_path / "run/config.toml").exists()
    train(with_train(config, dtype="float32"), tmp_path / "run", progress=quiet)  # it is not asked


def test_threads_are_measured_once_and_kept(config, tmp_path, cores, monkeypatch):
    used, real = [], Stepper.loss

    def loss(self, *batch):
        used.append(torch.get_num_threads())
        return real(self, *batch)

    monkeypatch.setattr(Stepper, "loss", loss)
    lines = []
    train(config, tmp_path / "run", progress=lambda line: (lines.append(line), stop_at(3)(line)))
    assert said(lines)[0] == "4 threads: measured 2.0x one thread"
    assert (spelled(tmp_path / "run")["threads"], set(used)) == (4, {4})
    monkeypatch.setattr(threads, "measured", lambda width, most: pytest.fail("measured again"))
    assert train(config, tmp_path / "run", resume=True, progress=quiet)["threads"] == 4
    assert (set(used), cores["threads"], changes(tmp_path / "run")) == ({4}, 4, [])


def test_other_threads_may_be_given_freely_and_are_named(config, tmp_path, cores):
    train(config, tmp_path / "run", progress=stop_at(3))
    lines = []
    two = with_train(config, threads=2)
    assert train(two, tmp_path / "run", resume=True, progress=lines.append)["threads"] == 2
    assert said(lines) == ["going on with another config: train.threads (4, now 2)"]
    assert changes(tmp_path / "run") == [{"train.threads": [4, 2]}]
    assert (spelled(tmp_path / "run")["threads"], cores["threads"]) == (2, 4)


def test_fewer_cores_than_the_run_had_are_named(config, tmp_path, cores):
    train(config, tmp_path / "run", progress=stop_at(3))
    cores.update(cores=3, threads=3)
    lines = []
    assert train(config, tmp_path / "run", resume=True, progress=lines.append)["threads"] == 3
    assert said(lines)[0] == "train.threads is 4, and this process may use 3 cores: 3 are used"
    assert changes(tmp_path / "run") == [{"train.threads": [4, 3]}]


def test_a_device_that_is_gone_is_named_and_one_that_never_was_is_refused(config, tmp_path):
    train(config, tmp_path / "run", progress=stop_at(3))
    folder = RunFolder(tmp_path / "run")
    begun = folder.read_config()
    write_text(folder.config, to_toml(with_train(begun, device="cuda")))
    lines = []
    assert train(config, folder.path, resume=True, progress=lines.append)["device"] == "cpu"
    assert said(lines)[0] == ("the run was trained on cuda, which torch does not find here: resuming on cpu")
    assert spelled(folder.path)["device"] == "cpu"
    with pytest.raises(UserError, match=r"train\.device is cuda, and torch finds no such device here"):
        train(with_train(config, device="cuda"), tmp_path / "new", progress=quiet)


def older(run, **environment):
    """Make a run folder one of an older mixlab: nothing of this is in its config or its checkpoints."""
    for path in (run / "checkpoints").iterdir():
        scalars = json.loads((path / "training.json").read_text())
        plain = scalars["config"]["train"]
        plain["dtype"] = "auto"
        del plain["threads"], plain["device"]
        write_text(path / "training.json", json.dumps(scalars))
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"]["training.json"] = checkpoint._facts(path / "training.json")
        manifest["sha256"] = checkpoint._digest(manifest)
        write_text(path / "manifest.json", json.dumps(manifest))
    lines = (run / "config.toml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("threads =", "device ="))]
    text = "\n".join('dtype = "auto"' if line.startswith("dtype =") else line for line in kept)
    write_text(run / "config.toml", text + "\n")
    facts = json.loads((run / "environment.json").read_text())
    facts["machine"] |= environment
    write_text(run / "environment.json", json.dumps(facts))


@pytest.mark.parametrize("ended", [True, False])
def test_an_older_run_goes_on_as_its_files_say_it_was_trained(config, tmp_path, switched, monkeypatch, ended):
    train(config, tmp_path / "straight", progress=quiet)
    train(config, tmp_path / "run", progress=stop_at(3))
    older(
        tmp_path / "run", use_bfloat16=(switched == "bfloat16") is not ended
    )  # the record's end counts more
    if not ended:
        path = tmp_path / "run/metrics.jsonl"
        path.write_text("".join(t for t in path.read_text().splitlines(True) if '"end"' not in t))
    monkeypatch.setenv("MIXLAB_AUTO_DTYPE", OTHER[switched])
    assert open_run(tmp_path / "run").config.train.dtype == switched
    lines = []
    train(config, tmp_path / "run", resume=True, progress=lines.append)
    assert record(tmp_path / "run") == record(tmp_path / "straight")
    assert (said(lines), spelled(tmp_path / "run")["dtype"]) == ([], switched)


def test_an_older_run_that_does_not_say_goes_on_as_a_new_one_with_a_note(config, tmp_path, switched):
    train(config, tmp_path / "run", progress=stop_at(3))
    older(tmp_path / "run")
    write_text(tmp_path / "run/environment.json", '{"machine": {"threads": "many", "device": 3}}')
    path = tmp_path / "run/metrics.jsonl"
    path.write_text("".join(t for t in path.read_text().splitlines(True) if '"end"' not in t))
    lines = []
    train(config, tmp_path / "run", resume=True, progress=lines.append)
    assert said(lines) == [
        f"the run does not say its precision: train.dtype is {switched}, as for a new run here"
    ]


@pytest.mark.parametrize(
    ("one", "every", "number", "reason"),
    [
        (1.7, 1.0, 2, "2 threads: measured 1.7x one thread"),
        (1.0, 4.1, 1, "1 thread: 2 threads were measured 4.1x slower: other programs use the cores"),
        (1.0, 1.2, 1, "1 thread: 2 threads were measured 1.2x slower"),
        (1.04, 1.0, 1, "1 thread: 2 threads were measured 1.04x as fast as one"),
    ],
)
def test_all_threads_are_used_where_they_were_measured_faster_than_one(one, every, number, reason):
    choice = threads.judge(one, every, 2)
    assert (choice.number, choice.reason) == (number, reason)


def test_nothing_is_measured_where_there_is_no_choice(cores, monkeypatch):
    monkeypatch.setattr(threads, "measured", lambda width, most: pytest.fail("measured"))
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert threads.choose()[:2] == (4, "4 threads, as OMP_NUM_THREADS says")
    monkeypatch.delenv("OMP_NUM_THREADS")
    cores.update(cores=1)
    assert threads.choose()[:2] == (1, "1 thread, all that there are")


def test_a_measurement_leaves_threads_and_random_numbers_as_they_were(monkeypatch):
    monkeypatch.setattr(threads, "WORK", 1e6)
    before = torch.get_rng_state(), torch.get_num_threads()
    assert min(threads.measured(16, 1)) > 0
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]


def test_the_peaks_are_those_of_the_threads_in_use(config, tmp_path, cores, monkeypatch):
    seen = []
    monkeypatch.setattr(
        machine, "measure", lambda d=None, refresh=False: seen.append(torch.get_num_threads()) or FAKE
    )
    train(with_train(config, threads=2), tmp_path / "run", progress=quiet)
    assert set(seen) == {2}


def test_settled_values_stand_and_open_ones_are_filled(config):
    given = replace(config.train, dtype="bfloat16", threads=0)
    begun = replace(config.train, dtype="float32", threads=1, device="cpu")
    found = auto.fill(given, begun)
    assert (found.dtype, found.threads, found.device) == ("bfloat16", 1, "cpu")
