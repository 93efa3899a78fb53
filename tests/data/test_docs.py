"""The page on data says what happens."""

import doctest
import json
import re
import shlex
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_python_lines_of_the_page_give_what_they_show(monkeypatch, tmp_path):
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path))
    results = doctest.testfile(str(PAGE), module_relative=False)
    assert results.attempted >= 5 and not results.failed


def test_the_page_names_every_fact(tmp_path):
    from mixlab.data import DataConfig, prepare

    facts = prepare(DataConfig(max_bytes=50_000), cache_dir=tmp_path).facts
    page = PAGE.read_text()
    derived = {f"valid_{name}" for name in ("documents", "bytes", "tokens")}
    assert not [key for key in facts if f"`{key}`" not in page and key not in derived]


def test_the_mixture_of_the_page_is_trained_and_its_sources_are_told_apart(monkeypatch, tmp_path):
    from mixlab.cli import run
    from mixlab.train import machine

    from ..train.conftest import FAKE

    monkeypatch.setattr(machine, "measure", lambda device=None, refresh=False: FAKE)
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("novels.txt").write_text("Once upon a time there was a fox.\n" * 200)
    Path("reviews.jsonl").write_text("".join(f'{{"text": "Number {n} was fine."}}\n' for n in range(200)))
    (command,) = re.findall(r"^    mixlab (.*--weights.*)$", PAGE.read_text(), re.MULTILINE)
    small = ["model.dim=16", "model.depth=1", "model.context=16", "train.batch_tokens=64"]
    words = [word for key in small for word in ("--set", key)]
    assert run([*shlex.split(command.replace("--steps 200", "--steps 2")), *words]) == 0
    mixture = json.loads(Path("runs/mixed/data.json").read_text())["mixture"]
    assert [(part["source"], part["share"]) for part in mixture] == [
        ("novels.txt", 0.75),
        ("reviews.jsonl", 0.25),
    ]
    lines = map(json.loads, Path("runs/mixed/metrics.jsonl").read_text().splitlines())
    assert [set(line["sources"]) for line in lines if line["kind"] == "eval"] == [
        {"novels.txt", "reviews.jsonl"}
    ]
