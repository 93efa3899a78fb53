"""What README.md shows runs as shown, at a size that a test can afford."""

import re
import shlex
from pathlib import Path

import pytest

from mixlab.cli import run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

SMALLER = {
    "--minutes 10": "--tokens 4096 --budget params=100k --context 32 --models ngram,gru,transformer",
    "--steps 2000": "--steps 6 --set model.dim=16 --set model.context=32 --set train.eval_every=0",
    "--max-tokens 200": "--max-tokens 20",
}
"""What the test puts in place of the README's sizes; everything else runs to the letter."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with a text of one's own in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "my.txt").write_text("Once upon a time there was a fox.\nIt ran.\n" * 300)
    (tmp_path / "other.txt").write_text("Twice upon a time there was a hen.\n" * 50)
    return tmp_path


def test_commands_run_in_order(folder, capsys):
    commands = re.findall(r"^\$ mixlab (.*)$", README, re.MULTILINE)
    assert [c.split()[0] for c in commands] == ["compare", "train", "train", "generate", "evaluate", "report"]
    for command in commands:
        for shown, small in SMALLER.items():
            command = command.replace(shown, small)
        assert run(shlex.split(command)) == 0, (command, capsys.readouterr().err)
    assert (folder / "mine" / "report.html").exists()
    assert (folder / "mine.html").exists()


def test_python_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "'attention'" in shown
    assert re.search(r"[\d,]+ parameters, [\d,]+ FLOPs a sequence", shown)


def test_every_linked_page_exists():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
