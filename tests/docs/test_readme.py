"""What README.md shows runs as shown, at a size that a test can afford."""

import re
import shlex
from pathlib import Path

import pytest

import mixlab
from mixlab.cli import run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

SMALLER = {
    "--minutes 10": "--tokens 4096 --budget params=100k --context 32 --models ngram,gru,transformer",
    "--seeds 3": "--seeds 2 --steps 2 --budget params=100k --context 32",
    "lr=0.005,0.01,0.02": "lr=0.005,0.01 --steps 2 --budget params=100k --context 32",
    "--stride 64": "--stride 8",
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
    (tmp_path / "unseen.txt").write_text("Once more there was a hare.\nIt slept.\n" * 50)
    return tmp_path


def test_commands_run_in_order(folder, capsys):
    commands = re.findall(r"^\$ mixlab (.*)$", README, re.MULTILINE)
    verbs = ["compare", "compare", "compare", "train", "train", "generate", "evaluate", "report"]
    assert [c.split()[0] for c in commands] == verbs
    for command in commands:
        for shown, small in SMALLER.items():
            command = command.replace(shown, small)
        assert run(shlex.split(command)) == 0, (command, capsys.readouterr().err)
    assert (folder / "mine" / "report.html").exists()
    assert (folder / "mine.html").exists()
    exec(compile(PYTHON[1], "README.md", "exec"), {"mixlab": mixlab})
    assert run(["generate", "runs/new", "--max-tokens", "2"]) == 0


def test_python_example_runs(capsys):
    code, _ = PYTHON
    exec(compile(code, "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "'attention'" in shown
    assert re.search(r"[\d,]+ parameters, [\d,]+ FLOPs a sequence", shown)


def test_every_linked_page_exists():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
