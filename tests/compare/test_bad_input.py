"""What a user may get wrong, through the command line: one sentence, status 2, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixlab.cli import run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--models", "gru,transfomer"], "unknown preset 'transfomer': did you mean 'transformer'?"),
        (["--models", "nowhere.toml"], "nowhere.toml: no such file"),
        (["--budget", "flops=3"], "'flops' is no budget: write params=1M"),
        (["--budget", "params=many"], "--budget: 'many' is not a whole number"),
        (["--budget", "2k", "--models", "gru"], "gru: 2,000 parameters are too few"),
        (["--tokens", "2X"], "--tokens: '2X' is not a whole number"),
        (["--tokens", "2M", "--steps", "3"], "give one of --steps and --tokens"),
        (["--set", "model.dim=8"], "the parameter budget chooses it"),
        (["--set", "model.dept=8", "--models", "gru"], "did you mean 'depth'?"),
        (["--set", "data.tokenizer=bytes"], "unknown tokenizer 'bytes': did you mean 'byte'?"),
        (["--context", "100000"], "fewer than the context of 100000"),
        (["--out", "text.txt"], "text.txt is a file"),
        (["--out", "taken"], "taken already holds something else (runs)"),
        (["--report", "taken"], "--report taken is a folder"),
        (["--out", "/proc/nowhere/out"], "/proc/nowhere"),
        (["--import", "nowhere.py"], "nowhere.py: no such file"),
    ],
)
def test_one_sentence_and_status_2(
    arguments: list[str], sentence: str, text: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken" / "runs" / "mine").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert run(["compare", "text.txt", "--models", "ngram", *arguments]) == 2
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, said.err
    assert sentence in lines[0]
    assert said.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_text_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["compare", "absent.txt"]) == 2
    assert "absent.txt" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
