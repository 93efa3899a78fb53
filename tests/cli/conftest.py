"""A command line run in this process, and two small runs that verbs can be tried on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from mixlab.cli import run


class Result(NamedTuple):
    """What a command left: its exit status and what it printed."""

    status: int
    out: str
    err: str


Command = Callable[..., Result]
TEXT = "".join(f"{n} green bottles hanging on the wall, \u00e9t\u00e9 {n * 7}.\n" for n in range(300))
TINY = [
    "model.dim=16",
    "model.depth=1",
    "model.context=16",
    "train.batch_tokens=64",
    "train.eval_every=0",
    "train.dtype=float32",
]


def settings(*more: str) -> list[str]:
    """`--set` for each of the tiny model's settings and `more`."""
    return [word for setting in [*TINY, *more] for word in ("--set", setting)]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, by its path."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def mixlab(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str | Path) -> Result:
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        return Result(status, *capsys.readouterr())

    return command


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    text = str(folder / "text.txt")
    neural = ["train", text, "--preset", "transformer", "--steps", "3", "--out", str(folder / "neural")]
    assert run([*neural, *settings()]) == 0
    assert run(["train", text, "--preset", "ngram", "--out", str(folder / "ngram")]) == 0
    return folder


@pytest.fixture
def runs(_trained: Path, tmp_path: Path) -> Path:
    """A folder of this test's own with text.txt and the runs `neural` and `ngram`."""
    return shutil.copytree(_trained, tmp_path / "given")
