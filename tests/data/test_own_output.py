"""A folder of texts that also holds what mixlab wrote is read without that, and says so."""

import json

import pytest

from mixlab.cli import run
from mixlab.data.corpus import Corpus
from mixlab.errors import UserError
from mixlab.report import render
from mixlab.train import machine

from ..train.conftest import FAKE

TEXT = "".join(f"{n} green bottles hanging on the wall.\n" for n in range(200))
TINY = ["model.dim=16", "model.depth=1", "model.context=16", "train.batch_tokens=64", "train.dtype=float32"]


def read(*sources):
    return Corpus.read([str(source) for source in sources])


@pytest.fixture
def folder(tmp_path):
    """One text, and beside it a run, a comparison and a report, marked as mixlab marks them."""
    (tmp_path / "text.txt").write_text(TEXT)
    for name in ("tokenizer.json", "data.json", "environment.json", "config.toml", "metrics.jsonl"):
        (tmp_path / "runs" / "gru").mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / "gru" / name).write_text('{"text": "of a run"}')
    (tmp_path / "tried" / "text").mkdir(parents=True)
    (tmp_path / "tried" / "plan.json").write_text(json.dumps({"format": "mixlab-comparison-1"}, indent=1))
    (tmp_path / "tried" / "text" / "stdin.txt").write_text("of a comparison")
    (tmp_path / "page.html").write_text(render({"results": []}))
    return tmp_path


def test_a_folder_is_read_without_runs_comparisons_and_reports_and_one_note_counts_them(folder):
    corpus = read(folder)
    assert corpus.documents == (TEXT,)
    (note,) = corpus.notes
    for said in ("1 run folder", "runs/gru", "1 comparison folder", "tried", "1 report", "page.html"):
        assert said in note


@pytest.mark.parametrize("pattern", ["**/*", "*", "**/*.*", "**"])
def test_a_glob_is_read_without_them_too(folder, pattern):
    corpus = read(folder / pattern)
    assert corpus.documents == (TEXT,) and "left out what mixlab wrote" in corpus.notes[0]


def test_a_file_inside_a_run_that_is_named_is_read(folder):
    named, matched = read(folder / "runs/gru/metrics.jsonl"), read(folder / "runs/gru/*.jsonl")
    assert named.documents == matched.documents == ("of a run",) and not named.notes


@pytest.mark.parametrize(
    ("name", "kind"), [("runs/gru", "a run folder"), ("tried", "a comparison"), ("page.html", "a report")]
)
def test_output_that_is_named_as_the_text_is_refused(folder, name, kind):
    with pytest.raises(UserError, match=f"is {kind}.* that mixlab wrote, not a text"):
        read(folder / name)


def test_a_folder_of_nothing_else_is_refused_with_what_was_left_out(folder):
    (folder / "text.txt").unlink()
    with pytest.raises(UserError, match="holds no files but what mixlab wrote: .*1 run folder"):
        read(folder)
    with pytest.raises(UserError, match="no file matches .* but what mixlab wrote: .*1 report"):
        read(folder / "*.html")


def test_likeness_is_not_enough(folder):
    """A page, a plan and a config of the user's own are texts."""
    (folder / "own").mkdir()
    (folder / "own" / "page.html").write_text("<title>mixlab</title>")
    (folder / "own" / "plan.json").write_text('{"format": "garden"}')
    (folder / "own" / "tokenizer.json").write_text("{}")
    assert read(folder / "own").documents == ("<title>mixlab</title>", '{"format": "garden"}', "{}")


def test_the_cache_is_left_out_where_it_lies_inside(folder, monkeypatch):
    cache = folder / "kept"
    (cache / "tokens").mkdir(parents=True)
    (cache / "tokens" / "machine.json").write_text("{}")
    monkeypatch.setenv("MIXLAB_CACHE", str(cache))
    corpus = read(folder)
    assert corpus.documents == (TEXT,) and "1 cache folder" in corpus.notes[0]


def test_what_the_verbs_leave_in_the_text_s_folder_does_not_change_the_text(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "measure", lambda device=None, refresh=False: FAKE)
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "p").mkdir()
    monkeypatch.chdir(tmp_path / "p")
    (tmp_path / "p" / "text.txt").write_text(TEXT)
    small = [word for key in TINY for word in ("--set", key)]
    assert run(["train", ".", "--preset", "gru", "--steps", "2", *small]) == 0
    assert run(["train", "--resume", "runs/gru", "--steps", "3"]) == 0
    assert "left out what mixlab wrote: 1 run folder" in capsys.readouterr().err
    assert run(["report", "runs/gru", "--out", "page.html"]) == 0
    assert run(["compare", ".", "--models", "ngram", "--steps", "2", "--context", "16"]) == 0
    capsys.readouterr()
    assert run(["evaluate", "runs/gru", ".", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"]["documents"] == 1 and found["bytes"] == len(TEXT) + 1
