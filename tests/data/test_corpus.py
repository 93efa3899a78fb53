"""Whatever a person names is read or refused with one sentence; nothing in a text is fatal."""

import gzip
import io
import json
import sys

import pytest

from mixlab.data.corpus import Corpus
from mixlab.data.formats import decode_text
from mixlab.errors import UserError


def read(*sources, **options):
    return Corpus.read([str(source) for source in sources], **options)


def refused(*sources, **options):
    with pytest.raises(UserError) as caught:
        read(*sources, **options)
    message = str(caught.value)
    assert "\n" not in message and "Traceback" not in message
    return message


@pytest.fixture
def texts(tmp_path):
    """A folder of every plain kind of source."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_text("zwei\n")
    (tmp_path / "a.txt").write_text("eins\n")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress("drei ü\n".encode()))
    (tmp_path / "d.jsonl").write_text('{"text": "four"}\n\n{"text": "five", "n": 1}\n')
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(b'{"text": "six"}'))
    (tmp_path / ".hidden").write_text("secret")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.txt").write_text("compiled")
    return tmp_path


def test_a_folder_is_read_recursively_in_sorted_order_without_hidden_files(texts):
    assert read(texts).documents == ("eins\n", "zwei\n", "drei ü\n", "four", "five", "six")


def test_a_glob_gives_its_matches_and_double_stars_cross_folders(texts):
    assert read(texts / "*.txt").documents == ("eins\n",)
    assert read(texts / "**" / "*.txt").documents == ("eins\n", "zwei\n")
    assert "no file matches" in refused(texts / "*.md")


def test_sources_keep_their_order_and_a_file_named_twice_is_read_once(texts):
    corpus = read(texts / "b", texts / "a.txt", texts / "b" / "two.txt")
    assert corpus.documents == ("zwei\n", "eins\n")
    assert len(corpus.notes) == 1 and "named twice" in corpus.notes[0]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    (tmp_path / "a[1].txt").write_text("one")
    assert read(tmp_path / "a[1].txt").documents == ("one",)


def test_a_dash_is_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("größer".encode())))
    assert read("-").documents == ("größer",)


def test_the_text_field_can_be_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"body": "hello", "text": "no"}\n')
    assert read(path, text_field="body").documents == ("hello",)


def test_missing_files_name_the_nearest_that_exists(texts):
    assert "a.txt" in refused(texts / "a.tx")
    message = refused(texts / "bb" / "two.txt")
    assert str(texts / "b") in message and "bb" in message
    assert "no file or folder" in refused(texts / "a.txt" / "below-a-file")
    assert "cannot be opened as a path" in refused("to be or not to be " * 100)


def test_a_link_that_leads_nowhere_is_said_to_be_one(tmp_path):
    links = {"itself": "itself", "a": "b", "b": "a", "lost": "gone.txt", "lost too": "lost"}
    for link, to in links.items():
        (tmp_path / link).symlink_to(to)
    for link, to in links.items():
        with pytest.raises(UserError) as caught:
            Corpus.read([str(tmp_path / link)])
        why = "does not exist" if "lost" in link else "leads back to it"
        assert f"{link}' is a link to '{to}', which {why}" in str(caught.value)


def test_an_unknown_embedded_corpus_names_the_one_there_is():
    assert "did you mean 'corpus:python'" in refused("corpus:pyton")


def test_invalid_utf8_is_replaced_and_counted(tmp_path):
    path = tmp_path / "latin.txt"
    plain = "and plain words, " * 120
    path.write_bytes("déjà vu, ".encode("latin-1") + (plain + "genuine \ufffd").encode())
    corpus = read(path)
    assert corpus.documents == (f"d\ufffdj\ufffd vu, {plain}genuine \ufffd",)
    assert corpus.replaced == 2
    assert "replaced 2 invalid" in corpus.notes[0] and "latin.txt" in corpus.notes[0]


def test_invalid_utf8_in_json_lines_is_replaced_and_counted(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "caf\xe9"}\n{"text": "\\ud800 and \\u0000"}\n')
    corpus = read(path)
    assert corpus.documents == ("caf\ufffd", "\ufffd and \ufffd")
    assert corpus.replaced == 3


def test_byte_order_marks_are_obeyed_and_dropped():
    assert decode_text("\ufeffhé".encode()) == ("hé", 0)
    assert decode_text("hé".encode("utf-16")) == ("hé", 0)
    assert decode_text(b"\xfe\xff" + "hé".encode("utf-16-be")) == ("hé", 0)


def test_a_nul_far_into_a_text_becomes_a_replacement_character(tmp_path):
    path = tmp_path / "late.txt"
    path.write_bytes(b"x" * 10_000 + b"\0y")
    corpus = read(path)
    assert corpus.documents[0].endswith("x\ufffdy") and corpus.replaced == 1


def test_odd_files_get_a_sentence_each_and_the_rest_is_used(tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0\0")
    (tmp_path / "other.bin").write_bytes(b"\0" * 100)
    (tmp_path / "one.txt").write_bytes(b"x")
    (tmp_path / "wide.txt").write_bytes(b"a b " * 300_000)
    (tmp_path / "rows.jsonl").write_text('{"text": ""}\n{"text": "row"}\n')
    said = []
    corpus = read(tmp_path, notes=said.append)
    assert [len(d) for d in corpus.documents] == [1, 3, 1_200_000]
    assert tuple(said) == corpus.notes and len(said) == 5
    for words in (
        "1 empty file",
        "2 binary files",
        "single byte",
        "line of more than",
        "1 rows without text in 1 file (",
    ):
        assert sum(words in note for note in said) == 1


@pytest.mark.parametrize("content", [b"", b"\0\1\2", b"\xef\xbb\xbf"])
def test_nothing_usable_is_an_error_that_says_why(tmp_path, content):
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    message = refused(path)
    assert "holds no text" in message and "left out" in message


def test_an_empty_folder_is_an_error(tmp_path):
    assert "holds no files" in refused(tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "open', "line 3: not JSON"),
        ('["text"]', "line 3: expected an object"),
        ('{"txet": "x"}', "did you mean 'txet'"),
        ('{"text": 5}', "line 3: field 'text' is int, not text"),
        ("{}", "line 3: no field 'text'"),
        ("[" * 100_000, "line 3: not JSON"),
    ],
)
def test_a_bad_json_line_is_named_by_file_and_number(tmp_path, line, words):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    message = refused(path)
    assert words in message and "rows.jsonl" in message


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"no gzip", lambda b: b[:20] + b"\xff" * 30])
def test_a_broken_gzip_is_named(tmp_path, damage):
    path = tmp_path / "x.txt.gz"
    path.write_bytes(damage(gzip.compress(bytes(range(1, 200)) * 50)))
    assert "x.txt.gz' is not a whole gzip file" in refused(path)


def test_a_file_that_cannot_be_read_is_an_error_alone_and_a_note_in_a_folder(tmp_path, monkeypatch):
    from pathlib import Path

    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "locked.txt").write_text("locked")
    real = Path.open

    def guarded(path, *mode):
        if path.name == "locked.txt":
            raise PermissionError(13, "Permission denied")
        return real(path, *mode)

    monkeypatch.setattr(Path, "open", guarded)
    assert "Permission denied" in refused(tmp_path / "locked.txt")
    corpus = read(tmp_path)
    assert corpus.documents == ("good",) and "cannot be read" in corpus.notes[0]


def test_parquet_without_its_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    (tmp_path / "saved").mkdir()
    for name in ("dataset_info.json", "state.json"):
        (tmp_path / "saved" / name).write_text("{}")
    assert "pip install 'mixlab[data]'" in refused(tmp_path / "x.parquet")
    assert "pip install 'mixlab[data]'" in refused(tmp_path / "saved")


def test_the_hash_sees_text_boundaries_and_order(tmp_path):
    def digest(*rows):
        path = tmp_path / "x.jsonl"
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
        return read(path).sha256

    assert digest("ab", "c") == digest("ab", "c")
    assert len({digest("ab", "c"), digest("a", "bc"), digest("c", "ab"), digest("abc")}) == 4
