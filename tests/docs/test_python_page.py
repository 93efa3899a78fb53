"""The examples of docs/python.md run as they stand, one after the other, in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mixlab
from mixlab.opened import Continuation, OpenedRun
from mixlab.train import machine
from tests.train.conftest import FAKE

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text()


def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "measure", lambda device=None, refresh=False: FAKE)
    assert "model.dim=32" in PAGE, "or it takes long"
    Path("my.txt").write_text(
        "Once upon a time there was a text, and it was long enough to learn from.\n" * 120
    )
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    out = capsys.readouterr().out
    assert "unknown preset 'grifin': did you mean 'griffin'?" in out
    assert {path.name for path in Path("runs").iterdir()} == {"first", "mine", "counted"}


def test_the_table_names_what_there_is() -> None:
    for name in re.findall(r"`run\.(\w+)", PAGE):
        assert hasattr(OpenedRun, name), name
    for name in ("ids", "ended"):
        assert f"`.{name}`" in PAGE
        assert name in dir(Continuation) or name in Continuation.__init__.__code__.co_names
    for name in re.findall(r"mixlab\.(\w+)\(", PAGE):
        assert name in mixlab.__all__, name
