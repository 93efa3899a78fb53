"""Sinks hear what metrics.jsonl holds, and however one fails, the run is the one without it."""

from __future__ import annotations

import json
import math
import threading
from time import monotonic, sleep

import pytest

from mixlab.errors import UserError
from mixlab.train import sink_kinds, sinks
from mixlab.train.config import SINKS
from mixlab.train.loop import train
from mixlab.train.metrics import read_metrics
from mixlab.train.sinks import PREFIXES, plotted

from .helpers import record, stop_at, with_train

OUT = "the sink trackio is out ({}); metrics.jsonl has everything"


@pytest.fixture
def fake(config, tmp_path, monkeypatch):
    """fake(CLASS, TROUBLE): the config with a sink of tests/train/fake_sinks.py, under a real one's name."""

    def make(name="Told", trouble="", **changes):
        monkeypatch.setitem(sinks.KINDS, "trackio", f"tests.train.fake_sinks:{name}")
        monkeypatch.setenv("TROUBLE", trouble)
        return with_train(config, sinks=("trackio",), **changes)

    yield make
    for thread in threading.enumerate():
        if thread.name.startswith("sink "):
            thread.join()


WITHOUT = []
"""The record of the run without a sink, which is the same in every test."""


@pytest.fixture
def plain(config, tmp_path):
    """That record."""
    if not WITHOUT:
        train(config, tmp_path / "plain", progress=lambda line: None)
        WITHOUT.extend(record(tmp_path / "plain"))
    return WITHOUT


def notes_of(config, run, **more):
    """Train to the end; the notes."""
    seen = []
    assert train(config, run, progress=seen.append, **more)["status"] == "done"
    return [line["message"] for line in seen if line["kind"] == "note"]


def told(run):
    """What the fake sink was told."""
    return [json.loads(text) for text in (run / "told.jsonl").read_text().splitlines()]


def values(calls):
    """(name, step) -> value."""
    writes = [call[1:] for call in calls if call[0] == "write"]
    return {(name, step): value for step, found in writes for name, value in found.items()}


def expected(run):
    """(name, step) -> value of every number that a sink should have, from metrics.jsonl."""
    found = {}
    for line in read_metrics(run / "metrics.jsonl"):
        if line["kind"] in PREFIXES:
            found |= {(name, line["step"]): value for name, value in plotted(line).items()}
    return found


def test_the_names_are_those_that_the_config_takes_and_the_classes_are_there():
    assert tuple(sinks.KINDS) == SINKS
    assert all(hasattr(sink_kinds, where.split(":")[1]) for where in sinks.KINDS.values())


def test_a_sink_gets_every_number_of_the_record(fake, tmp_path, capfd):
    assert notes_of(fake(watch_every=4), tmp_path / "run") == []
    first, *writes, last = told(tmp_path / "run")
    assert (first, last) == (["open", 0, 8], ["close"])
    found = values(writes)
    assert found == expected(tmp_path / "run")
    names = {name for name, _ in found}
    assert {"train/loss", "train/learning_rates/adamw/matrix", "valid/bits_per_byte"} <= names
    assert {"train/update_ratio/matrix", "watch/effective_rank/layer 1"} <= names
    assert (tmp_path / "run/trackio.log").read_text() == "a library's chatter\n"
    assert capfd.readouterr().out == ""


def test_what_is_plotted_of_a_line():
    line = {"kind": "watch", "step": 3, "x": [1, None, 2.5], "flag": True, "text": "no", "bad": math.nan}
    line |= {"warnings": {"x": "y"}, "by": {"a": 1.0, "b": None}, "worse": math.inf}
    assert plotted(line) == {"watch/x/layer 0": 1.0, "watch/x/layer 2": 2.5, "watch/by/a": 1.0}
    line = {"kind": "eval", "step": 3, "loss_by_position": [1.0], "bits_per_byte": 2.0}
    assert plotted(line) == {"valid/bits_per_byte": 2.0}


def test_a_resumed_run_says_from_where_it_goes_on(fake, tmp_path):
    config = fake()
    train(config, tmp_path / "run", progress=stop_at(5))
    assert told(tmp_path / "run")[-1] == ["close"]
    notes_of(config, tmp_path / "run", resume=True)
    calls = told(tmp_path / "run")
    again = calls.index(["open", 5, 8])
    assert {step for _, step in values(calls[again:])} == {6, 7, 8}


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        ("open:SystemExit", "SystemExit: no"),
        ("write:RuntimeError", "RuntimeError: no"),
        ("close:OSError", "OSError: no"),
        ("write:die", "its process ended with status 3"),
        ("open:hang", "it did not finish in time"),
        ("write:hang", "it did not finish in time"),
        ("close:hang", "it did not finish in time"),
    ],
)
def test_a_sink_that_fails_is_dropped_with_one_note(fake, tmp_path, plain, monkeypatch, trouble, why):
    if trouble.endswith("hang"):
        monkeypatch.setattr(sinks, "LAST_PATIENCE", 0.2)
    assert notes_of(fake(trouble=trouble), tmp_path / "run") == [OUT.format(why)]
    assert record(tmp_path / "run") == plain


def test_one_that_falls_behind_is_dropped_on_the_way(fake, tmp_path, plain, monkeypatch):
    # A process that does not read fills a pipe before the queue: here nothing gets as far as either.
    over = threading.Event()
    monkeypatch.setattr(sinks, "QUEUE", 3)
    monkeypatch.setattr(sinks.Channel, "_talk", lambda self, child, start: over.wait() and "")
    seen = []
    config = fake()

    def progress(line):
        seen.append(line)
        if line["kind"] == "note":
            over.set()

    train(config, tmp_path / "run", progress=progress)
    (at,) = [index for index, line in enumerate(seen) if line["kind"] == "note"]
    assert seen[at]["message"] == OUT.format("it is 3 lines behind")
    assert seen[at + 1]["kind"] in PREFIXES  # not only at the end
    assert record(tmp_path / "run") == plain


def test_a_stopped_run_waits_less_and_a_second_ctrl_c_not_at_all(fake, tmp_path, monkeypatch):
    def progress(line):
        if line["kind"] == "eval":
            raise KeyboardInterrupt

    waits = []
    monkeypatch.setattr(sinks, "monotonic", lambda: 100.0)
    monkeypatch.setattr(sinks.Channel, "finish", lambda self, deadline: waits.append(deadline - 100.0))
    train(fake(), tmp_path / "stopped", progress=stop_at(1))
    with pytest.raises(KeyboardInterrupt):
        train(fake(), tmp_path / "killed", progress=progress)
    train(fake(), tmp_path / "done", progress=lambda line: None)
    assert waits == [sinks.STOPPED_PATIENCE, sinks.LAST_PATIENCE]


def test_a_run_that_fails_still_lets_its_sinks_finish(fake, tmp_path):
    def progress(line):
        if line["kind"] == "eval":
            raise ValueError("a caller's own")

    with pytest.raises(ValueError, match="a caller's own"):
        train(fake(), tmp_path / "run", progress=progress)
    calls = told(tmp_path / "run")
    assert calls[-1] == ["close"]
    assert ("train/loss", 4) in values(calls)


@pytest.mark.parametrize(
    ("name", "trouble", "said"),
    [
        ("Absent", "", "is not installed: pip install 'mixlab[no_such_package_at_all]'"),
        ("Told", "check:ImportError", "cannot be used (ImportError: no)"),
        ("Told", "check:refuse", "is out of order"),
        ("Told", "check:die", "cannot be started"),
        ("Told", "check:hang", "did not start within 2 s"),
    ],
)
def test_one_that_cannot_be_used_is_one_sentence_and_nothing_is_written(
    fake, tmp_path, monkeypatch, name, trouble, said
):
    monkeypatch.setattr(sinks, "CHECK_PATIENCE", 2.0 if trouble == "check:hang" else 60.0)
    config = fake(name, trouble)
    with pytest.raises(UserError) as error:
        train(config, tmp_path / "run")
    assert str(error.value) == f"the sink trackio {said}; leave it out of train.sinks to train without it"
    assert not (tmp_path / "run").exists()


def test_an_optional_one_is_gone_without(fake, tmp_path, plain):
    config = fake("Absent", sinks_optional=True)
    said = "the sink trackio is not installed: pip install 'mixlab[no_such_package_at_all]'"
    assert notes_of(config, tmp_path / "run") == [f"{said}; going on without it"]
    assert record(tmp_path / "run") == plain


def test_an_unknown_name_gets_the_nearest(config):
    with pytest.raises(UserError, match=r"train\.sinks 'tensorbord': did you mean 'tensorboard'"):
        with_train(config, sinks=("tensorbord",)).validate()
    with pytest.raises(UserError, match="unknown sink 'wandbb': did you mean 'wandb'"):
        sinks.check("wandbb")


def read_tensorboard(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return {
        (name, event.step): event.value for name in found.Tags()["scalars"] for event in found.Scalars(name)
    }


def test_tensorboard_reads_back_what_was_written_also_after_a_kill_and_a_resume(config, tmp_path):
    pytest.importorskip("tensorboard")
    config = with_train(config, sinks=("tensorboard",))

    def die(line):
        if line["kind"] == "step" and line["step"] == 8:  # with the newest checkpoint at 6
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", progress=die)
    for thread in threading.enumerate():
        if thread.name == "sink tensorboard":
            thread.join()
    assert ("train/loss", 7) in read_tensorboard(tmp_path / "run")  # which the resumed run makes again
    assert notes_of(config, tmp_path / "run", resume=True) == []
    wanted, found = expected(tmp_path / "run"), read_tensorboard(tmp_path / "run")
    assert found.keys() == wanted.keys()
    assert all(found[key] == pytest.approx(wanted[key], rel=1e-6) for key in wanted)
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 2


def test_a_disk_too_full_for_tensorboard_leaves_the_run_alone(fake, tmp_path, plain):
    pytest.importorskip("tensorboard")
    why = "OSError: [Errno 28] No space left on device"
    assert notes_of(fake("full_disk"), tmp_path / "run") == [OUT.format(why)]
    assert record(tmp_path / "run") == plain


def read_wandb(run):
    """Histories and run ids in W&B's files: protocol buffers in LevelDB's log format, after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    found, ids = {}, set()
    for path in (run / "wandb").glob("offline-run-*/*.wandb"):
        data, at, parts = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
            if at + 7 + length > len(data):
                break
            parts, at = parts + data[at + 7 : at + 7 + length], at + 7 + length
            if kind in (1, 4):  # whole, or the last part
                message, parts = Record.FromString(parts), b""
                items = message.history.item
                row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
                found |= {(name, row["step"]): value for name, value in row.items() if "/" in name}
                ids |= {message.run.run_id} - {""}
    return found, ids


def test_wandb_offline_holds_the_numbers_of_one_run_also_after_a_resume(config, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = with_train(config, sinks=("wandb",))
    for patience in ("STOPPED_PATIENCE", "LAST_PATIENCE"):  # however slow the machine
        monkeypatch.setattr(sinks, patience, 120.0)
    monkeypatch.setattr(sinks, "check", lambda name: None)  # which imports the package once more each time
    train(config, tmp_path / "run", progress=stop_at(5))
    assert notes_of(config, tmp_path / "run", resume=True) == []
    wanted, deadline = expected(tmp_path / "run"), monotonic() + 30
    while (found := read_wandb(tmp_path / "run")[0]) != wanted and monotonic() < deadline:
        sleep(0.05)  # its service may write the last rows after it has said that the run is finished
    _, ids = read_wandb(tmp_path / "run")
    assert found == wanted
    assert ids == {(tmp_path / "run/wandb/id.txt").read_text().strip()}


def test_wandb_without_a_key_asks_nobody(config, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where its key would be
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match="no API key here: run `wandb login`, or set WANDB_MODE=offline"):
        train(with_train(config, sinks=("wandb",)), tmp_path / "run")


def test_trackio_is_told_and_leaves_stdout_to_the_result(fake, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TRACKIO_PROJECT", "mine")
    monkeypatch.setenv("TALKING", str(tmp_path / "calls"))
    assert notes_of(fake("stand_in"), tmp_path / "run") == []
    first, *logs, last = map(json.loads, (tmp_path / "calls").read_text().splitlines())
    assert (first, last) == (["init", "mine", "run", 8, "allow"], ["finish"])
    found = {(name, step): value for _, metrics, step in logs for name, value in metrics.items()}
    assert found == expected(tmp_path / "run")
    assert capfd.readouterr().out == ""


def test_the_real_trackio(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    assert notes_of(with_train(config, sinks=("trackio",)), tmp_path / "run") == []
    from trackio.sqlite_storage import SQLiteStorage

    found = {
        (name, row["step"]): value
        for row in SQLiteStorage.get_logs("mixlab", "run")
        for name, value in row.items()
        if "/" in name
    }
    assert found == pytest.approx(expected(tmp_path / "run"))
