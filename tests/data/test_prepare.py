"""From a config to token files and facts: right tokens and counts, and a cache that is never stale."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixlab.data import dataset as module
from mixlab.data.config import DataConfig
from mixlab.data.dataset import prepare, prepare_single
from mixlab.data.tokenizer import ByteTokenizer, CharTokenizer
from mixlab.data.tokens import default_cache_dir
from mixlab.errors import UserError

TINY_SHAKESPEARE = Path(__file__).parents[3] / "shared" / "data" / "tinyshakespeare" / "input.txt"
PROSE = "It was a bright cold day in April, and the clocks — all of them — were striking.\n" * 40


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(PROSE, encoding="utf-8")
    return path


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def config(*sources, **options):
    return DataConfig(sources=tuple(map(str, sources)), **options)


def entries(cache):
    return sorted((cache / "tokens").glob("*"))


@pytest.fixture
def no_encoding(monkeypatch):
    """After this, tokens can only come from the cache."""

    def forbid():
        def fail(*_):
            raise AssertionError("tokenized although the tokens were in the cache")

        monkeypatch.setattr(ByteTokenizer, "encode", fail)

    return forbid


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_tokens_decode_to_the_text_and_bytes_are_counted_with_one_for_each_end(text, cache, kind):
    data = prepare(config(text, tokenizer=kind, vocab_size=300), cache_dir=cache)
    cut = int(0.9 * len(PROSE))
    for file, side in ((data.train, PROSE[:cut]), (data.valid, PROSE[cut:])):
        assert data.tokenizer.decode(file.tokens) == f"\0{side}\0"
        assert file.num_bytes == len(side.encode()) + 1
        assert isinstance(file.tokens, np.memmap) and file.tokens[0] == file.tokens[-1] == 0
    if kind == "byte":
        assert len(data.train) - 1 == data.train.num_bytes
    expected = {"byte": np.uint8, "char": np.uint8, "bpe": np.uint16}
    assert data.train.tokens.dtype == expected[kind]


def test_facts_are_plain_and_complete(text, cache):
    data = prepare(config(text, tokenizer="char"), cache_dir=cache)
    facts = json.loads(json.dumps(data.facts))
    assert facts == data.facts
    assert facts["sources"] == [str(text)] and facts["documents"] == 1
    assert facts["bytes"] == len(PROSE.encode()) and facts["characters"] == len(PROSE)
    assert facts["train_bytes"] + facts["valid_bytes"] == facts["bytes"] + 2
    assert facts["train_tokens"] == len(data.train) - 1 and facts["valid_tokens"] == len(data.valid) - 1
    assert facts["tokens"] == facts["train_tokens"] + facts["valid_tokens"]
    assert facts["tokenizer"] == {
        "kind": "char",
        "vocab_size": data.tokenizer.vocab_size,
        "hash": data.tokenizer.hash,
    }
    assert len(facts["sha256"]) == 64 and facts["replaced"] == 0 and facts["notes"] == []
    assert "last 0.1" in facts["split"] and "python" not in facts


def test_the_embedded_corpus_records_its_python(cache):
    facts = prepare(config("corpus:python", max_bytes=60_000), cache_dir=cache).facts
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["bytes"] <= 60_000 and facts["train_documents"] >= 1 and facts["valid_documents"] >= 1


def test_a_second_time_comes_from_the_cache_and_is_equal(text, cache, no_encoding):
    first = prepare(config(text), cache_dir=cache)
    no_encoding()
    second = prepare(config(text), cache_dir=cache)
    assert np.array_equal(first.train.tokens, second.train.tokens) and first.facts == second.facts
    assert len(entries(cache)) == 1


def test_the_cached_bpe_is_the_trained_one(text, cache, monkeypatch):
    first = prepare(config(text, tokenizer="bpe", vocab_size=300), cache_dir=cache)
    monkeypatch.setattr(module, "learn_tokenizer", None)
    assert prepare(config(text, tokenizer="bpe", vocab_size=300), cache_dir=cache).facts == first.facts


def test_another_text_of_equal_name_size_and_date_never_meets_the_old_tokens(text, cache):
    before = text.stat()
    prepare(config(text), cache_dir=cache)
    changed = PROSE.replace("bright", "brigth")
    text.write_text(changed, encoding="utf-8")
    os.utime(text, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert text.stat().st_size == before.st_size
    data = prepare(config(text), cache_dir=cache)
    assert data.tokenizer.decode(data.train.tokens)[1:-1] == changed[: int(0.9 * len(changed))]


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from(["abcdefgh", "abcdefgi", "abcdefghi", "ab\u00e9defgh"]), min_size=2, max_size=4)
)
def test_whatever_was_cached_before_the_tokens_are_those_of_the_text(versions):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "text.txt")
        for version in versions:
            path.write_text(version, encoding="utf-8")
            for fraction in (0.25, 0.5):
                data = prepare(config(path, valid_fraction=fraction), cache_dir=Path(folder, "cache"))
                cut = int((1 - fraction) * len(version))
                assert data.tokenizer.decode(data.train.tokens) == f"\0{version[:cut]}\0"
                assert data.tokenizer.decode(data.valid.tokens) == f"\0{version[cut:]}\0"


def test_tokenizer_vocabulary_split_and_version_have_entries_of_their_own(text, cache, monkeypatch):
    prepare(config(text), cache_dir=cache)
    prepare(config(text, vocab_size=999), cache_dir=cache)  # means nothing to bytes
    assert len(entries(cache)) == 1
    prepare(config(text, tokenizer="char"), cache_dir=cache)
    prepare(config(text, tokenizer="bpe", vocab_size=300), cache_dir=cache)
    prepare(config(text, tokenizer="bpe", vocab_size=301), cache_dir=cache)
    prepare(config(text, valid_fraction=0.2), cache_dir=cache)
    prepare(config(text), cache_dir=cache, tokenizer=CharTokenizer("abc"))
    prepare(config(text), cache_dir=cache, tokenizer=CharTokenizer("abd"))
    prepare_single([str(text)], ByteTokenizer(), cache_dir=cache)
    assert len(entries(cache)) == 8
    monkeypatch.setattr(module, "FORMAT_VERSION", 0)
    prepare(config(text), cache_dir=cache)
    assert len(entries(cache)) == 9


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["train.npy", "valid.npy", "tokenizer.json", "counts.json", "files.json"])
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_a_damaged_entry_is_noticed_and_made_again(text, cache, no_encoding, name, damage):
    good = prepare(config(text), cache_dir=cache).train.tokens.copy()
    damage(entries(cache)[0] / name)
    assert np.array_equal(prepare(config(text), cache_dir=cache).train.tokens, good)
    no_encoding()
    prepare(config(text), cache_dir=cache)
    assert len(entries(cache)) == 1, "no temporary folder is left"


def test_a_cache_that_cannot_be_written_means_memory_and_a_note(text, tmp_path):
    (tmp_path / "file").write_text("in the way")
    said = []
    data = prepare(config(text), cache_dir=tmp_path / "file" / "cache", notes=said.append)
    assert not isinstance(data.train.tokens, np.memmap) and data.train.tokens[0] == 0
    assert len(said) == 1 and "stay in memory" in said[0] and data.facts["notes"] == said


def test_temporary_folders_of_killed_processes_are_swept_but_not_those_in_use(text, cache):
    for name, age in (("old", 8 * 24 * 3600), ("new", 60)):
        folder = cache / "tokens" / f".writing-{name}"
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - age,) * 2)
    prepare(config(text), cache_dir=cache)
    assert [p.name for p in entries(cache) if p.name.startswith(".")] == [".writing-new"]


def test_processes_preparing_at_once_all_get_the_right_tokens(text, cache):
    program = (
        "import sys; from mixlab.data import DataConfig, prepare;"
        "sys.stdin.readline();"
        "d = prepare(DataConfig(sources=(sys.argv[1],)), cache_dir=sys.argv[2]);"
        "print(d.facts['notes'], type(d.train.tokens).__name__, d.tokenizer.decode(d.train.tokens)[1:30])"
    )
    command = [sys.executable, "-c", program, str(text), str(cache)]
    running = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True) for _ in range(4)]
    for process in running:  # all are imported and waiting before any may start
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = {process.communicate()[0] for process in running}
    assert answers == {f"[] memmap {PROSE[:29]}\n"}
    assert len(entries(cache)) == 1 and not entries(cache)[0].name.startswith(".")


def test_the_cache_is_where_the_environment_says(text, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path / "chosen"))
    assert default_cache_dir() == tmp_path / "chosen"
    prepare(config(text))
    assert len(entries(tmp_path / "chosen")) == 1
    monkeypatch.delenv("MIXLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform.startswith("linux"):
        assert default_cache_dir() == tmp_path / "xdg" / "mixlab"


def test_only_the_training_side_teaches_the_tokenizer(tmp_path, cache):
    path = tmp_path / "text.txt"
    path.write_text("a" * 90 + "ab" * 5)
    said = []
    data = prepare(config(path, tokenizer="char"), cache_dir=cache, notes=said.append)
    assert data.tokenizer.characters == "a"
    assert said == data.facts["notes"] and said[0].startswith(
        "5 characters are not in the tokenizer's vocabulary"
    )


def test_a_given_tokenizer_is_used(text, cache):
    tokenizer = CharTokenizer(PROSE)
    data = prepare(config(text, tokenizer="bpe"), cache_dir=cache, tokenizer=tokenizer)
    assert data.tokenizer.hash == tokenizer.hash and data.facts["tokenizer"]["kind"] == "char"


def test_prepare_single_is_the_whole_text(text, cache, no_encoding):
    file, facts = prepare_single([str(text)], ByteTokenizer(), cache_dir=cache)
    assert file.tokens.tobytes() == f"\0{PROSE}\0".encode() and file.num_bytes == len(PROSE.encode()) + 1
    assert facts["split"] == "none" and facts["tokens"] == len(file) - 1
    no_encoding()
    assert len(prepare_single([str(text)], ByteTokenizer(), cache_dir=cache)[0]) == len(file)


def test_a_corpus_shorter_than_the_context_says_how_long_it_may_be(tmp_path, cache):
    path = tmp_path / "short.txt"
    path.write_text("x" * 100)
    prepare(config(path), cache_dir=cache, context=91)  # 90 characters and two ends are 92 tokens
    with pytest.raises(UserError, match=r"92 tokens long.* at most 91"):
        prepare(config(path), cache_dir=cache, context=92)
    with pytest.raises(UserError, match="at most 101"):
        prepare_single([str(path)], ByteTokenizer(), cache_dir=cache, context=200)


def test_a_one_byte_text_is_refused(tmp_path, cache):
    path = tmp_path / "one.txt"
    path.write_bytes(b"x")
    with pytest.raises(UserError, match="only 1 character, too few"):
        prepare(config(path), cache_dir=cache)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokenizer": "bite"}, "did you mean 'byte'"),
        ({"tokenizer": "bpe", "vocab_size": 256}, "at least 257"),
        ({"valid_fraction": 0.0}, "between 0 and 1"),
        ({"valid_fraction": 1.0}, "between 0 and 1"),
        ({"valid_fraction": float("nan")}, "between 0 and 1"),
        ({"max_bytes": 0}, "at least 1"),
        ({"sources": ()}, "no text was named"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        DataConfig(**options)


def test_a_single_source_may_be_a_string():
    assert DataConfig(sources="my.txt").sources == ("my.txt",)


def test_importing_and_preparing_does_not_import_torch(text, cache):
    program = (
        "import sys; from mixlab.data import DataConfig, prepare;"
        "prepare(DataConfig(sources=(sys.argv[1],)), cache_dir=sys.argv[2]);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(text), str(cache)]).returncode == 0


@pytest.mark.skipif(not TINY_SHAKESPEARE.exists(), reason="needs ../shared/data/tinyshakespeare")
def test_tiny_shakespeare_has_its_usual_split(cache):
    content = TINY_SHAKESPEARE.read_text()
    data = prepare(config(TINY_SHAKESPEARE, tokenizer="char"), cache_dir=cache)
    assert data.tokenizer.decode(data.train.tokens)[1:-1] == content[: int(len(content) * 0.9)]
    assert data.tokenizer.vocab_size == 65 + 2
