"""What docs/optimizers.md shows runs as shown, on a smaller text."""

import re
import shlex
import string
from pathlib import Path

import pytest

from mixlab.cli import run
from mixlab.config import load_run_config
from mixlab.train.kinds import KINDS, PACKAGED

PAGE = (Path(__file__).parents[2] / "docs" / "optimizers.md").read_text()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with a text of one's own in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "my.txt").write_text("Once upon a time there was a fox.\nIt ran.\n" * 300)
    return tmp_path


def test_explain_prints_the_table_that_is_shown(folder, capsys):
    (block,) = re.findall(r"```console\n(\$ mixlab train [^\n]*--explain)\n(.*?)```", PAGE, re.DOTALL)
    command, shown = block
    alphabet = string.ascii_letters + string.digits + " .\n"  # as large as Tiny Shakespeare's
    (folder / "my.txt").write_text(alphabet * 50)
    assert run(shlex.split(command)[2:]) == 0
    printed = capsys.readouterr().out
    of_its_length = r"[\d.]+k? (epochs|validation)"
    assert re.sub(of_its_length, "", printed) == re.sub(of_its_length, "", shown)
    assert {path.name for path in folder.iterdir()} == {"my.txt"}


def test_find_lr_prints_what_is_shown(folder, capsys):
    (block,) = re.findall(r"```console\n(\$ mixlab train [^\n]*--find-lr[^\n]*)\n(.*?)```", PAGE, re.DOTALL)
    command, shown = block
    small = ["--set", "model.dim=16", "--set", "model.context=16", "--set", "train.batch_tokens=64"]
    assert run([*shlex.split(command)[2:], *small]) == 0
    printed = capsys.readouterr().out

    def words(text):
        return [re.findall(r"[a-z]{2,}", line) for line in text.splitlines()]

    assert words(printed)[0] == words(shown)[0]
    assert words(printed)[-1] == words(shown)[-1]
    assert len(printed.splitlines()) == len(shown.splitlines())
    assert (folder / "rates.html").exists()


def test_what_find_lr_found_is_told_even_if_its_page_cannot_be_written(folder, capsys, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device", "rates.html")

    monkeypatch.setattr("mixlab.report.rates.write_rates", full)
    small = ["model.dim=16", "model.depth=1", "model.context=16", "train.batch_tokens=64"]
    settings = [word for setting in small for word in ("--set", setting)]
    assert run(["train", "my.txt", "--preset", "gru", *settings, "--find-lr", "--out", "rates.html"]) == 1
    printed = capsys.readouterr()
    assert "try train.optimizer.lr=" in printed.out
    assert printed.err.endswith("mixlab: rates.html: no space left on device\n")


def test_every_toml_of_the_page_is_a_config_that_works():
    import tomllib

    blocks = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert blocks
    for block in blocks:
        tables = {"model": {}, **tomllib.loads(block)}
        tables.setdefault("train", {}).setdefault("steps", 1)
        load_run_config(tables)


def test_the_table_of_kinds_is_the_codes():
    rows = re.findall(r"^\| (`.*?) \| (.*?) \| (.*?) \|$", PAGE.split("## Kinds")[1], re.MULTILINE)
    shown = {}
    for kinds, _, knobs in rows:
        for kind in re.findall(r"`([a-z]+)`", kinds):
            shown[kind] = dict(re.findall(r"`(\w+)` ([\d.e-]+(?:, [\d.]+)?)", knobs))
    assert set(shown) == set(KINDS)
    for kind, knobs in shown.items():
        values = {k: v if isinstance(v, tuple) else (v,) for k, v in KINDS[kind].knobs.items()}
        assert {k: tuple(map(float, v.split(", "))) for k, v in knobs.items()} == values, kind


def test_every_optimizer_that_is_named_is_one():
    for name, about in PACKAGED.items():
        if about.get("matrices") or about.get("refused") or about.get("averages"):
            assert re.search(rf"\b{name}\b", PAGE), name
