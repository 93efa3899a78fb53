"""Pipes and standard input are read once and kept; what is no text is refused; names may be any bytes."""

import io
import json
import os
import socket
import sys
import threading
from pathlib import Path

import pytest

from mixlab.cli import run
from mixlab.compare.runner import called
from mixlab.config import load_run_config, to_mapping
from mixlab.data import DataConfig, corpus, prepare, streams
from mixlab.data.corpus import Corpus
from mixlab.data.sources import as_path, spelled
from mixlab.errors import UserError
from mixlab.train import machine

from ..train.conftest import FAKE

TEXT = "".join(f"{n} green bottles hanging on the wall.\n" for n in range(200))
NAME = os.fsdecode(b"b\xff.txt")

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")


def read(*sources, **options):
    return Corpus.read([str(source) for source in sources], **options)


def fifo(path, data):
    """A named pipe, into which `data` is written once it is read."""
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=(data,), daemon=True).start()
    return path


def pipe(data):
    """The name that a shell gives a pipe out of which `data` comes."""
    out, into = os.pipe()
    with os.fdopen(into, "wb") as file:
        file.write(data)
    return f"/dev/fd/{out}"


@pytest.fixture
def verbs(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "measure", lambda device=None, refresh=False: FAKE)
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)


@pytest.mark.parametrize("held", [1 << 25, 0])
def test_pipes_are_read_once_however_often_the_text_is_needed(tmp_path, monkeypatch, held):
    monkeypatch.setattr(corpus, "HELD_BYTES", held)
    monkeypatch.setattr(streams, "HELD_BYTES", held)
    rows = fifo(tmp_path / "rows.jsonl", b'{"text": "a row"}\n')
    found = read(pipe(b"one"), fifo(tmp_path / "two", b"two"), rows, spool=tmp_path / "kept")
    for _ in range(2):
        assert "".join(piece.text for piece in found.pieces()) == "onetwoa row"
    assert found.counts == (1, 1, 1)


def test_pipes_in_a_folder_are_no_part_of_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text.txt").write_text("text")
    assert read(tmp_path).documents == read(tmp_path / "*").documents == ("text",)


def test_a_pipe_in_another_encoding_is_refused_with_it(tmp_path):
    with pytest.raises(UserError, match="--encoding cp1251"):
        read(fifo(tmp_path / "p", ("Всё это написано по-русски, и не иначе.\n" * 9).encode("cp1251")))


def test_sockets_and_devices_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("s")
        with pytest.raises(UserError, match="'s' is a socket, not a text"):
            read("s")
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(UserError, match=f"'{device}' is a device, not a text"):
            read(device)
        with Path(device).open() as opened:
            monkeypatch.setattr(sys, "stdin", opened)
            with pytest.raises(UserError, match="standard input is a device"):
                read("-")


def test_a_closed_standard_input_is_a_sentence_for_every_verb(verbs, monkeypatch, capsys):
    assert run(["train", "text.txt", "--preset", "ngram", "--out", "r"]) == 0
    monkeypatch.setattr(sys, "stdin", None)
    for command in ("train - --preset ngram", "compare - --models ngram --steps 2", "evaluate r -"):
        assert run(command.split()) == 2
        assert "standard input is closed" in capsys.readouterr().err
    assert not Path("comparison").exists()


def test_a_run_on_a_pipe_says_how_it_is_resumed_and_is(verbs, capsys):
    number = 163  # which nothing else takes meanwhile
    os.dup2(int(Path(pipe(TEXT.encode())).name), number)
    assert run(["train", f"/dev/fd/{number}", "--preset", "ngram", "--out", "r"]) == 0
    os.close(number)
    assert run(["train", "--resume", "r"]) == 2
    assert f"give this one the same text again, as in {number}<FILE" in capsys.readouterr().err
    with Path("text.txt").open() as file:
        os.dup2(file.fileno(), number)
        assert run(["train", "--resume", "r"]) == 0
    os.close(number)
    assert "with the same text on" in streams.to_give_again(["-", "text.txt"])
    assert streams.to_give_again(["text.txt"]) == ""


def test_a_comparison_keeps_the_text_of_a_pipe_for_its_runs_and_shows_any_name(verbs, capsys):
    Path(NAME).write_text(TEXT.upper())
    command = ["--models", "ngram", "--steps", "2", "--context", "16"]
    for _ in range(2):  # the second time the folder holds the pipe's text, which is not the folder's
        assert run(["compare", pipe(TEXT.encode()), NAME, ".", *command]) == 0
    assert "finished before" in capsys.readouterr().err
    assert [path.read_text() for path in Path("comparison/text").glob("*.txt")] == [TEXT]
    told = json.loads(Path("comparison/comparison.json").read_text())
    assert told["corpus"]["sources"][1] == r"b\xff.txt" and "3 texts" in told["title"]
    assert r"b\xff.txt" in Path("comparison/report.html").read_text()


def test_a_name_that_is_not_utf8_is_a_text_wherever_it_stands(verbs, capsys):
    Path("d").mkdir()
    for path in (NAME, f"d/{NAME}"):
        Path(path).write_text(TEXT)
    for source in (NAME, "d", "d/*", f"*{NAME[1:]}", r"b\xff.txt"):
        assert read(source).documents == (TEXT,)
    config = DataConfig(sources=(NAME,))
    assert config.sources == (r"b\xff.txt",) == DataConfig(**to_mapping(config)).sources
    assert run(["train", NAME, "--preset", "ngram", "--out", "r"]) == 0
    assert run(["train", "--resume", "r"]) == 0
    assert run(["evaluate", "r", NAME]) == 0
    assert run(["report", "r"]) == 0
    assert r"b\xff.txt" in Path("r/data.json").read_text().replace("\\\\", "\\")


def test_titles_name_the_file_or_what_its_text_came_from():
    names = {r"/d/b\xff.txt": r"b\xff.txt", "q/text/pipe-0123456789ab.txt": "a pipe"}
    assert all(called([source]) == name for source, name in names.items())


def test_notes_name_it_in_letters_that_any_file_holds(tmp_path):
    (tmp_path / NAME).write_bytes(b"")
    (tmp_path / "text.txt").write_text("text")
    (note,) = read(tmp_path).notes
    assert r"b\xff.txt" in note


def test_a_real_name_is_never_taken_for_a_spelled_one(tmp_path):
    path = tmp_path / r"b\xff.txt"
    path.write_text("by its letters")
    (tmp_path / NAME).write_text("by its bytes")
    assert as_path(str(path)) == path and spelled("naïve") == "naïve"
    assert read(path).documents == ("by its letters",)


def test_another_value_that_is_not_utf8_is_refused():
    with pytest.raises(UserError, match=r"name: 'a\\udcff' is not UTF-8 text"):
        load_run_config("ngram", [os.fsdecode(b"name=a\xff")])


@pytest.mark.parametrize("name", ["n" * 300, "n" * 300 + "*", "a\0b", "d/" * 3000])
def test_a_name_that_no_file_can_have_is_a_sentence(name):
    with pytest.raises(UserError, match="cannot be opened as a path|no file"):
        read(name)


def test_prepare_reads_standard_input_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    monkeypatch.setattr(corpus, "HELD_BYTES", 0)
    found = prepare(DataConfig(sources=("-",)), cache_dir=tmp_path)
    assert found.facts["bytes"] == len(TEXT)
