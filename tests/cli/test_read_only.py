"""On a disk that is mounted read-only: what writes says so in a sentence, what only reads works."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Result, contents, settings
from tests.mounts import in_mount

MOUNT = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && cd "$0" && exec "$@"'

RUN_EACH = """
import contextlib, io, json, sys
from mixlab.cli import run

results = {}
for name, arguments in json.load(sys.stdin).items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(arguments)
    results[name] = status, out.getvalue(), err.getvalue()
json.dump(results, sys.stdout)
"""

TRAIN = ["train", "text.txt", "--preset", "transformer", "--steps", "2", *settings()]
COMPARE = ["compare", "text.txt", "--models", "ngram", "--tokens", "2k", "--context", "16"]

WRITES = {
    "train": ([*TRAIN], "runs"),
    "train into a folder": ([*TRAIN, "--out", "deep/er/run"], "deep"),
    "train an ngram": (["train", "text.txt", "--preset", "ngram", "--out", "new"], "new"),
    "train where a run is": ([*TRAIN, "--out", "empty"], "empty"),
    "resume": (["train", "--resume", "neural", "--steps", "5"], "neural"),
    "resume an ngram": (["train", "--resume", "ngram"], "ngram"),
    "compare": (COMPARE, "comparison"),
    "compare into a folder": ([*COMPARE, "--out", "empty"], "empty"),
    "report of a run": (["report", "neural"], "report.html"),
    "report into a file": (["report", "neural", "--out", "page.html"], "page.html"),
}
READS = {
    "generate": ["generate", "neural", "--max-tokens", "3"],
    "generate by counts": ["generate", "ngram", "--max-tokens", "3"],
    "evaluate": ["evaluate", "neural", "text.txt"],
    "doctor": ["doctor"],
}


@pytest.fixture(scope="module")
def disk(_trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and two runs in it; skips where none can be mounted read-only."""
    folder = shutil.copytree(_trained, tmp_path_factory.mktemp("disk") / "read-only")
    (folder / "empty").mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare, which makes mounts of one's own, on this system")
    tried = in_mount(MOUNT, folder, "touch", "new")
    if "ead-only" not in tried.stderr:
        pytest.skip(f"no read-only mount can be made here: {tried.stderr.strip() or 'it is writable'}")
    return folder


@pytest.fixture(scope="module")
def results(disk: Path) -> dict[str, Result]:
    """What each command of WRITES and READS left, run one after another on the read-only disk."""
    commands = {name: arguments for name, (arguments, _) in WRITES.items()} | READS
    before = contents(disk)
    environment = {**os.environ, "MIXLAB_CACHE": str(disk / "cache"), "OMP_NUM_THREADS": "1"}
    done = in_mount(MOUNT, disk, sys.executable, "-c", RUN_EACH, input=json.dumps(commands), env=environment)
    assert done.returncode == 0, done.stderr
    assert contents(disk) == before
    return {name: Result(*result) for name, result in json.loads(done.stdout).items()}


@pytest.mark.parametrize("name", WRITES)
def test_what_cannot_be_written_is_one_sentence_and_status_2(results: dict[str, Result], name: str) -> None:
    done = results[name]
    said = [line for line in done.err.splitlines() if not line.startswith("note: ")]
    assert len(said) == 1, done.err
    assert said[0].startswith("mixlab: ")
    assert "read-only file system" in said[0].lower()
    assert WRITES[name][1] in said[0]
    assert ".tmp" not in said[0]
    assert "note: training" not in done.err
    assert (done.status, done.out) == (2, "")


@pytest.mark.parametrize("name", READS)
def test_what_only_reads_works(results: dict[str, Result], name: str) -> None:
    assert results[name].status == 0, results[name].err
    assert results[name].out


def test_what_cannot_be_written_from_python_is_a_user_error_too(disk: Path) -> None:
    work = """
from mixlab.config import load_run_config
from mixlab.errors import UserError
from mixlab.train import train

config = load_run_config("neural/config.toml")
longer = load_run_config("neural/config.toml", ["train.steps=5"])
for act in (
    lambda: train(config, "new", progress=lambda line: None),
    lambda: train(longer, "neural", resume=True, progress=lambda line: None),
):
    try:
        act()
    except UserError as error:
        print(error)
"""
    environment = {**os.environ, "MIXLAB_CACHE": str(disk / "cache"), "OMP_NUM_THREADS": "1"}
    done = in_mount(MOUNT, disk, sys.executable, "-c", work, env=environment)
    assert done.stdout.splitlines() == [
        "cannot write to new (new): Read-only file system",
        "cannot write to neural (neural/metrics.jsonl): Read-only file system",
    ], done.stderr
