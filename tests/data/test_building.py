"""Token files built in one pass: those of an uninterrupted build, whatever happens on the way."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mixlab.data import building, corpus, dataset, stretches
from mixlab.data.building import JOURNAL
from mixlab.data.config import DataConfig
from mixlab.data.dataset import prepare
from mixlab.data.tokens import TokenCache
from mixlab.errors import UserError

from ..mounts import in_mount
from . import killed

WORDS = ["the", "a", "model", "reads", "größer", "don't", "12", "and", "learns", "what", "comes", "next"]
WHOLE = ["counts.json", "files.json", "tokenizer.json", "train.npy", "valid.npy"]


@pytest.fixture
def text(tmp_path):
    """Ten kilobytes in thirty files: some forty stretches."""
    draw = random.Random(0)
    folder = tmp_path / "text"
    folder.mkdir()
    for n in range(30):
        (folder / f"{n:02}.txt").write_text(" ".join(draw.choices(WORDS, k=80)) + "\n")
    return folder


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(corpus, "HELD_BYTES", 0)
    monkeypatch.setattr(stretches, "STRETCH", 400)
    monkeypatch.setattr(building, "SECONDS", 0.0)


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([killed.__name__, "tokenizers"])
    return context


def config(text, **options):
    return DataConfig(sources=(str(text),), **options)


def entry(cache: Path) -> dict[str, bytes]:
    """The one finished entry of a cache, file by file, and nothing beside it."""
    (folder,) = (cache / "tokens").iterdir()
    assert not folder.name.startswith(".")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def half_built(text, cache, monkeypatch, **options) -> Path:
    """The folder of a build that stopped midway."""
    real, left = building.Building.append, [20]

    def append(self, *arguments):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        real(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(building.Building, "append", append)
        prepare(config(text, **options), cache_dir=cache)
    (folder,) = (cache / "tokens").iterdir()
    assert folder.name.startswith(".building-")
    return folder


def appended(monkeypatch) -> list[int]:
    """Counts the stretches that are encoded from now on."""
    real, calls = building.Building.append, []
    monkeypatch.setattr(
        building.Building, "append", lambda self, *rest: (calls.append(self.done), real(self, *rest))[1]
    )
    return calls


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_killed_at_everything_it_does_to_the_cache_it_goes_on_from_what_is_whole(
    text, tmp_path, processes, kind
):
    made = config(text, tokenizer=kind, vocab_size=300)
    log, cache = tmp_path / "log", tmp_path / "cache"
    straight = processes.Process(target=killed.life, args=(made, tmp_path / "straight", log, 0, 0.0))
    straight.start()
    straight.join()
    assert straight.exitcode == 0
    total = log.read_text().count("encoded")
    assert total > 25
    log.write_text("")
    draw, lives = random.Random(0), 0
    while True:
        lives += 1
        # Soon after the start at first, in the middle of files; then anywhere, up to the renaming.
        at = lives if lives <= 12 else draw.randrange(8, 40)
        one = processes.Process(target=killed.life, args=(made, cache, log, at, 0.0))
        one.start()
        one.join()
        if one.exitcode == 0:
            break
        assert one.exitcode == -signal.SIGKILL
    assert entry(cache) == entry(tmp_path / "straight")
    assert sorted(entry(cache)) == WHOLE
    assert lives > 15
    assert log.read_text().count("from ") >= 5
    assert log.read_text().count("encoded") <= total + 2 * lives  # nothing that was whole is made again


def test_killed_from_outside_at_any_moment(text, tmp_path, processes):
    made, cache, log = config(text), tmp_path / "cache", tmp_path / "log"
    draw, kills = random.Random(1), 0
    log.touch()
    while True:
        seen = log.stat().st_size + len("encoded\n") * draw.randrange(2, 9)
        one = processes.Process(target=killed.life, args=(made, cache, log, 0, 0.01))
        one.start()
        while one.is_alive() and log.stat().st_size < seen:
            one.join(draw.random() * 0.01)
        one.kill()
        one.join()
        if one.exitcode == 0:
            break
        kills += 1
    assert kills >= 2
    killed_once = entry(cache)
    shutil.rmtree(cache)
    prepare(made, cache_dir=cache)  # in stretches of another length, in this process
    assert killed_once == entry(cache)


def test_the_arrays_are_those_that_numpy_would_write(text, tmp_path, small):
    data = prepare(config(text, tokenizer="char"), cache_dir=tmp_path / "cache")
    for name, file in (("train", data.train), ("valid", data.valid)):
        np.save(tmp_path / "by-numpy.npy", np.asarray(file.tokens))
        assert (tmp_path / "by-numpy.npy").read_bytes() == entry(tmp_path / "cache")[f"{name}.npy"]


@pytest.mark.parametrize(
    "damage",
    [
        "none",
        "torn line",
        "no line",
        "no journal",
        "flipped token",
        "short array",
        "no array",
        "other format",
    ],
)
def test_what_of_a_half_built_entry_is_damaged_is_made_again(text, tmp_path, monkeypatch, small, damage):
    cache = tmp_path / "cache"
    folder = half_built(text, cache, monkeypatch, tokenizer="char")
    journal, train = folder / JOURNAL, folder / "train.npy"
    lines = journal.read_bytes().splitlines(keepends=True)
    if damage == "torn line":
        journal.write_bytes(b"".join(lines)[:-7])
    elif damage == "no line":
        journal.write_bytes(lines[0][:-5])
    elif damage == "no journal":
        journal.unlink()
    elif damage == "flipped token":
        content = bytearray(train.read_bytes())
        content[200] ^= 1
        train.write_bytes(content)
    elif damage == "short array":
        os.truncate(train, train.stat().st_size - 3)
    elif damage == "no array":
        (folder / "valid.npy").unlink()
    elif damage == "other format":
        journal.write_bytes(lines[0].replace(b'"format": 1', b'"format": 0') + b"".join(lines[1:]))
    with train.open("ab") as file:  # tokens that were written and never noted
        file.write(b"\7" * 50 if damage != "short array" else b"")
    calls = appended(monkeypatch)
    prepare(config(text, tokenizer="char"), cache_dir=cache)
    assert calls[0] == {"none": 19, "torn line": 18}.get(damage, 0)
    prepare(config(text, tokenizer="char"), cache_dir=tmp_path / "straight")
    assert entry(cache) == entry(tmp_path / "straight")


def test_a_tokenizer_that_was_learnt_is_not_learnt_again(text, tmp_path, monkeypatch, small):
    options = {"tokenizer": "bpe", "vocab_size": 300}
    half_built(text, tmp_path, monkeypatch, **options)
    monkeypatch.setattr(dataset, "learn_tokenizer", None)
    data = prepare(config(text, **options), cache_dir=tmp_path)
    assert data.tokenizer.vocab_size == 300


def test_tokens_of_a_text_that_changed_meanwhile_are_never_taken_up(text, tmp_path, monkeypatch, small):
    """Read, then changed, then half encoded and killed, then changed back: the key is the first text's."""
    first, cache = text / "00.txt", tmp_path / "cache"
    before = first.read_text()
    real = corpus.Corpus.pieces

    def pieces(self):
        first.write_text(before.replace("the", "eht"))
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(corpus.Corpus, "pieces", pieces)
        half_built(text, cache, monkeypatch)
    first.write_text(before)
    calls = appended(monkeypatch)
    data = prepare(config(text), cache_dir=cache)
    assert calls[0] == 0
    prepare(config(text), cache_dir=tmp_path / "straight")
    assert entry(cache) == entry(tmp_path / "straight")
    assert "eht" not in data.tokenizer.decode(data.train.tokens)


def test_a_text_that_changes_while_it_is_read_is_one_sentence_and_no_entry(
    text, tmp_path, monkeypatch, small
):
    real = corpus.Corpus.pieces

    def pieces(self):
        (text / "29.txt").write_text("something else")
        return real(self)

    monkeypatch.setattr(corpus.Corpus, "pieces", pieces)
    with pytest.raises(UserError, match=r"changed while it was read .*: run the command again"):
        prepare(config(text), cache_dir=tmp_path / "cache")
    assert all(path.name.startswith(".") for path in (tmp_path / "cache" / "tokens").iterdir())


def test_a_process_waits_for_another_that_builds_the_same_and_takes_its_tokens(
    text, tmp_path, monkeypatch, small
):
    folder = half_built(text, tmp_path / "cache", monkeypatch)
    stages: list[str] = []
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    found = []
    second = threading.Thread(
        target=lambda: found.append(
            prepare(
                config(text), cache_dir=tmp_path / "cache", progress=lambda line: stages.append(line["stage"])
            )
        )
    )
    second.start()
    while "waiting for another process that prepares this text" not in stages:
        time.sleep(0.01)
    assert not found
    os.close(handle)  # it was killed
    second.join()
    assert found[0].facts["notes"] == [] and len(entry(tmp_path / "cache")) == len(WHOLE)


def test_a_cache_without_locks_works_in_a_folder_of_its_own(text, tmp_path, monkeypatch, small):
    half_built(text, tmp_path / "cache", monkeypatch)
    monkeypatch.setattr("mixlab.data.tokens.fcntl", None)
    prepare(config(text), cache_dir=tmp_path / "cache")
    names = sorted(path.name[0] for path in (tmp_path / "cache" / "tokens").iterdir())
    assert len(names) == 2 and names[0] == "."  # the entry, and what the other left


def test_an_entry_that_was_whole_but_not_renamed_is_only_renamed(text, tmp_path, monkeypatch, small):
    cache = TokenCache(tmp_path)
    prepare(config(text), cache_dir=tmp_path)
    (folder,) = cache.root.iterdir()
    folder.rename(cache.root / f".building-{folder.name}")
    calls = appended(monkeypatch)
    prepare(config(text), cache_dir=tmp_path)
    assert not calls and sorted(entry(tmp_path)) == WHOLE


def test_every_stage_tells_how_far_it_is(text, tmp_path, monkeypatch, small):
    monkeypatch.setattr(corpus, "_TELL_SECONDS", 0.0)
    lines: list[dict] = []
    prepare(config(text, tokenizer="bpe", vocab_size=300), cache_dir=tmp_path, progress=lines.append)
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    assert stages == ["reading the text", "learning the bpe tokenizer", "encoding the text"]
    size = sum(path.stat().st_size for path in text.iterdir())
    characters = sum(len(path.read_text()) for path in text.iterdir())
    for stage, total in zip(stages, (size, characters, characters), strict=True):
        done = [line["done"] for line in lines if line["stage"] == stage]
        assert done == sorted(done) and done[-1] <= total
        assert {line["total"] for line in lines if line["stage"] == stage} == {total}
        assert done[-1] > 0.9 * total


ON_A_SMALL_DISK = """
import sys
from pathlib import Path
from mixlab.data import DataConfig, dataset, preparation, prepare
from mixlab.errors import RunFailed

disk, text, small = map(Path, sys.argv[1:4])
first = prepare(DataConfig(sources=(str(small),)), cache_dir=disk)
kept = sorted(path.name for path in (disk / "tokens").iterdir())
said = []
data = prepare(DataConfig(sources=(str(text),)), cache_dir=disk, notes=said.append)
print(said, type(data.train.tokens).__name__, data.train.num_bytes + data.valid.num_bytes)
print(sorted(path.name for path in (disk / "tokens").iterdir()) == kept)
preparation.IN_MEMORY = 1000
try:
    prepare(DataConfig(sources=(str(text),)), cache_dir=disk)
except RunFailed as error:
    print(error)
print(sorted(path.name for path in (disk / "tokens").iterdir()) == kept)
dataset.learn_tokenizer = None
print(prepare(DataConfig(sources=(str(small),)), cache_dir=disk).facts == first.facts)
"""


def test_a_full_disk_leaves_the_cache_as_it_was_and_says_so(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare, which makes mounts of one's own, on this system")
    mount = 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"'
    tried = in_mount(mount, disk, "stat", "--file-system", "--format=%T", str(disk))
    if tried.stdout.strip() != "tmpfs":
        pytest.skip(f"no small disk can be mounted here: {tried.stderr.strip() or tried.stdout.strip()}")
    (tmp_path / "small.txt").write_text("a small text " * 100)
    (tmp_path / "large.txt").write_text("a large text " * 200_000)
    arguments = [str(disk), str(tmp_path / "large.txt"), str(tmp_path / "small.txt")]
    done = in_mount(mount, disk, sys.executable, "-c", ON_A_SMALL_DISK, *arguments)
    assert done.returncode == 0, done.stderr
    memory, kept, refused, kept_again, served = done.stdout.splitlines()
    assert "the tokens stay in memory" in memory and "No space left on device" in memory
    assert memory.endswith(f"ndarray {13 * 200_000 + 2}")
    assert refused == (
        f"the tokens of this text (0.0 GB) cannot be written to the cache '{disk}/tokens' (No space left on "
        "device): make room there, or name another folder in MIXLAB_CACHE"
    )
    assert (kept, kept_again, served) == ("True", "True", "True")
