"""A user's mistake gets one sentence and exit status 2, and nothing on the disk changes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Command, contents, settings

from mixlab.errors import RunFailed, UserError

TRAIN = ["train", "given/text.txt", "--preset", "transformer", "--steps", "2"]

WRONG: dict[str, tuple[list[str], str]] = {
    "verb": (["trian"], "Did you mean 'train'"),
    "option": (["train", "--stpes", "3"], "--steps"),
    "no run": (["generate"], "RUN"),
    "number": (["generate", "given/ngram", "--max-tokens", "many"], "--max-tokens"),
    "no preset": (["train", "given/text.txt"], "give --preset NAME"),
    "preset": (["train", "--preset", "transfomer"], "did you mean 'transformer'"),
    "preset file": (["train", "--preset", "absent.toml"], "absent.toml: no such file"),
    "text": (["train", "absent.txt", "--preset", "ngram"], "absent.txt"),
    "empty text": (["train", "empty.txt", "--preset", "ngram"], "empty.txt"),
    "short text": ([*TRAIN, "--set", "model.context=100000"], "context"),
    "huge batch": ([*TRAIN, "--batch-tokens", "1000000000000"], "must be from 1 to 268,435,456"),
    "batch of many texts": ([*TRAIN, "--batch-tokens", "200000000"], "more than 100 times the"),
    "part": ([*TRAIN, "--set", "model.temporal=atention"], "did you mean 'attention'"),
    "key": (
        [*TRAIN, "--set", "train.optimizer.lrr=1"],
        "train.optimizer.lrr: unknown key; did you mean 'lr'?",
    ),
    "knob": (
        [*TRAIN, "--set", "model.temporal.haeds=2"],
        "model.temporal.haeds: unknown key; did you mean 'heads'?",
    ),
    "type": ([*TRAIN, "--set", "train.seed=three"], "train.seed: expected an integer, got 'three'"),
    "choice": ([*TRAIN, "--set", "train.schedule.kind=cosin"], "did you mean 'cosine'"),
    "range": ([*TRAIN, "--set", "train.optimizer.lr=-1"], "train.optimizer.lr must be a positive number"),
    "heads": (
        [*TRAIN, "--set", "model.temporal.heads=7"],
        "the nearest that do are 6 and 8",
    ),
    "order": (
        ["train", "given/text.txt", "--preset", "ngram", "--set", "ngram.order=9"],
        "ngram.order must be from 1 to 8",
    ),
    "override": ([*TRAIN, "--set", "train.seed"], "an override is key=value"),
    "tokenizer": ([*TRAIN, "--set", "data.tokenizer=bytes"], "did you mean 'byte'"),
    "count": (["train", "--preset", "gru", "--tokens", "lots"], "--tokens: 'lots' is not a whole number"),
    "no steps": (["train", "--preset", "gru", "--steps", "0"], "--steps: '0' is not a whole number"),
    "negative minutes": (
        ["train", "--preset", "gru", "--minutes", "-1"],
        "train.minutes must be a positive number",
    ),
    "two lengths": ([*TRAIN, "--minutes", "1"], "give one of --steps and --minutes"),
    "length twice": ([*TRAIN, "--set", "train.steps=3"], "--steps and --set train.steps say the same"),
    "length in two ways": ([*TRAIN, "--set", "train.minutes=3"], "--steps and --set train.minutes"),
    "weights": ([*TRAIN, "--weights", "3,x"], "--weights: '3,x' is no list of numbers, such as 3,1"),
    "more weights than texts": ([*TRAIN, "--weights", "3,1"], "weights has 2 numbers for 1 source"),
    "weights twice": (
        [*TRAIN, "--weights", "1", "--set", "data.weights=[2]"],
        "--weights and --set data.weights say the same",
    ),
    "seed twice": (
        [*TRAIN, "--seed", "1", "--set", "train.seed=1"],
        "--seed and --set train.seed say the same",
    ),
    "other files": ([*TRAIN, "--out", "given"], "given holds other files"),
    "no name for the output": ([*TRAIN, "--out", ""], ". holds other files"),
    "taken": ([*TRAIN, "--out", "given/neural"], "already holds a run"),
    "out is a file": ([*TRAIN, "--out", "given/text.txt"], "given/text.txt"),
    "resume and more": (
        ["train", "--resume", "given/neural", "--preset", "gru", "--seed", "1"],
        "leave out --preset, or start",
    ),
    "resume nothing": (["train", "--resume", "given"], "given is not a run"),
    "resume absent": (["train", "--resume", "absent"], "absent"),
    "long run": (["generate", "n" * 300], "file name too long"),
    "long run to evaluate": (["evaluate", "n" * 300, "given/text.txt"], "file name too long"),
    "long run to resume": (["train", "--resume", "n" * 300], "file name too long"),
    "long output": ([*TRAIN, "--out", "n" * 300], "file name too long"),
    "long name": ([*TRAIN, "--set", f"name={'n' * 300}"], "file name too long"),
    "long report": (["report", "given/ngram", "--out", "n" * 300], "file name too long"),
    "long run to report": (["report", "n" * 300], "file name too long"),
    "long comparison": (
        ["compare", "given/text.txt", "--steps", "2", "--out", "n" * 300],
        "file name too long",
    ),
    "name that is no text": ([*TRAIN, "--set", "name=a\udcff"], "is not UTF-8 text"),
    "digits": ([*TRAIN, "--set", f"train.seed={'9' * 4301}"], "more than 4,300 digits"),
    "no such run": (["generate", "absent"], "absent: no such run folder"),
    "not a run": (["generate", "given"], "given is not a run"),
    "a file": (["generate", "given/text.txt"], "given/text.txt is a file"),
    "temperature": (["generate", "given/ngram", "--temperature", "-1"], "temperature -1.0 is out of range"),
    "top-k": (["generate", "given/ngram", "--top-k", "0"], "top-k 0 is out of range"),
    "top-p": (["generate", "given/ngram", "--top-p", "1.1"], "top-p 1.1 is out of range"),
    "max-tokens": (["generate", "given/ngram", "--max-tokens", "-1"], "max-tokens -1 is out of range"),
    "dtype": (["generate", "given/ngram", "--dtype", "float61"], "unknown dtype 'float61': did you mean"),
    "evaluate text": (["evaluate", "given/ngram", "absent.txt"], "absent.txt"),
    "evaluate empty": (["evaluate", "given/ngram", "empty.txt"], "empty.txt"),
    "evaluate nothing": (["evaluate", "given/ngram"], "TEXT"),
    "report": (["report", "given"], "given is not a run folder"),
    "report out": (["report", "given/ngram", "--out", "given"], "given"),
    "kind": (["parts", "temporl"], "unknown kind of part 'temporl': did you mean 'temporal'?"),
    "module": (["--import", "no_such_part", "parts"], "there is no module 'no_such_part'"),
    "module file": (["parts", "--import", "absent.py"], "absent.py: no such file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_sentence_status_2_and_nothing_touched(
    mixlab: Command, runs: Path, tmp_path: Path, name: str
) -> None:
    arguments, words = WRONG[name]
    Path("empty.txt").touch()
    before = contents(tmp_path)
    done = mixlab(*arguments)
    said = [line for line in done.err.splitlines() if not line.startswith("note: ")]
    assert len(said) == 1, done.err
    assert said[0].startswith("mixlab: ")
    assert words in said[0]
    assert "note: training" not in done.err
    assert done.status == 2
    assert done.out == ""
    assert contents(tmp_path) == before


def test_a_damaged_toml_file_is_named_with_its_line(mixlab: Command) -> None:
    Path("bad.toml").write_text("[model]\ndim = = 3\n")
    done = mixlab("train", "--preset", "bad.toml")
    assert done.status == 2
    assert "bad.toml: not valid TOML" in done.err
    assert "line 2" in done.err


@pytest.mark.parametrize("kind", ["neural", "ngram"])
def test_a_damaged_checkpoint_is_named(mixlab: Command, runs: Path, kind: str) -> None:
    for path in (runs / kind / "checkpoints").glob("*/*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    done = mixlab("generate", runs / kind, "--max-tokens", "3")
    assert (done.status, done.out) == (2, "")
    assert "is damaged" in done.err
    assert "Traceback" not in done.err


def test_a_damaged_comparison_is_named(mixlab: Command) -> None:
    for text, words in (
        ("{", "it is not JSON"),
        ("[]", "is not a comparison"),
        ('{"results": 3}', "is not a"),
    ):
        Path("comparison.json").write_text(text)
        done = mixlab("report", ".")
        assert done.status == 2
        assert words in done.err


def test_sigterm_before_a_run_has_begun_is_an_interruption(tmp_path: Path) -> None:
    script = "import os, signal, sys, mixlab.cli as cli; sys.argv[1:] = ['doctor']; "
    script += "import mixlab.train.machine as m; "
    script += "m.measure = lambda *a, **k: os.kill(os.getpid(), signal.SIGTERM); cli.main()"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.endswith("mixlab: interrupted\n") and "Traceback" not in done.stderr


def raising(error: BaseException) -> Callable[..., None]:
    def work(*arguments: object, **options: object) -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (UserError("the text is odd"), 2, "mixlab: the text is odd\n"),
        (RunFailed("the loss is nan at step 3"), 1, "mixlab: the loss is nan at step 3\n"),
        (KeyboardInterrupt(), 130, "mixlab: interrupted\n"),
        (OSError(28, "No space left on device", "runs/x"), 1, "mixlab: runs/x: no space left on device\n"),
        (OSError(30, "Read-only file system", "runs/x"), 2, "mixlab: runs/x: read-only file system\n"),
        (PermissionError(13, "Permission denied", "a.txt"), 2, "mixlab: a.txt: permission denied\n"),
        (OSError(5, "Input/output error"), 1, "mixlab: input/output error\n"),
    ],
)
def test_each_failure_has_its_status(
    mixlab: Command, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, sentence: str
) -> None:
    monkeypatch.setattr("mixlab.train.machine.measure", raising(error))
    done = mixlab("doctor")
    assert done.status == status
    assert done.err.endswith(sentence)


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), OSError("no errno"), TypeError("a bug")])
def test_a_bug_is_not_hidden(mixlab: Command, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr("mixlab.train.machine.measure", raising(error))
    with pytest.raises(type(error)):
        mixlab("doctor")


def test_a_stopped_run_says_how_to_go_on(
    mixlab: Command, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: object, **options: object) -> dict[str, object]:
        return {"status": "stopped", "message": "go on with: mixlab train --resume runs/x", "step": 1}

    monkeypatch.setattr("mixlab.train.loop.train", stopped)
    done = mixlab(*TRAIN, *settings(), "--json")
    assert "note: go on with: mixlab train --resume runs/x\n" in done.err
    assert json.loads(done.out)["status"] == "stopped"
