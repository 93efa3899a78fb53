"""Text in any encoding is read, or refused with the name of one that reads it; never mostly replaced."""

import codecs
import gzip
import json
from encodings.aliases import aliases

import pytest

from mixlab.cli import run
from mixlab.data import DataConfig
from mixlab.data.charsets import likely, plain_name, wide
from mixlab.data.corpus import Corpus
from mixlab.data.formats import Decoder
from mixlab.errors import UserError

RUSSIAN = "Все люди рождаются свободными и равными в своём достоинстве и правах. Они наделены разумом.\n"
SIMPLIFIED = "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。\n"
TRADITIONAL = "人人生而自由，在尊嚴和權利上一律平等。他們賦有理性和良心，並應以兄弟關係的精神相對待。\n"
JAPANESE = "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。\n"
KOREAN = "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.\n"
FRENCH = (
    "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison.\n"
)
POLISH = "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni źli.\n"
GREEK = "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.\n"
HEBREW = "כל בני אדם נולדו בני חורין ושווים בערכם ובזכויותיהם. כולם חוננו בתבונה ובמצפון.\n"
WRITTEN = [
    (RUSSIAN, "cp1251"),
    (RUSSIAN, "koi8_r"),
    (RUSSIAN, "iso8859_5"),
    (RUSSIAN, "cp866"),
    (SIMPLIFIED, "gb18030"),
    (TRADITIONAL, "big5"),
    (JAPANESE, "cp932"),
    (JAPANESE, "euc_jp"),
    (KOREAN, "euc_kr"),
    (FRENCH, "latin_1"),
    (FRENCH, "mac_roman"),
    ("“It’s fine”, he said – and went on talking of other things for a while.\n", "cp1252"),
    (POLISH, "iso8859_2"),
    (POLISH, "cp1250"),
    (GREEK, "iso8859_7"),
    (HEBREW, "cp1255"),
    (RUSSIAN, "utf-16-le"),
    (FRENCH, "utf-16-be"),
    (SIMPLIFIED, "utf-16-le"),
    ("Plain words, and nothing else.\n", "utf-16-be"),
    (RUSSIAN, "utf-32-le"),
    (FRENCH, "utf-32-be"),
]


def read(*sources, **options):
    return Corpus.read([str(source) for source in sources], **options)


def refused(*sources, **options):
    with pytest.raises(UserError) as caught:
        read(*sources, **options)
    return str(caught.value)


def named(message):
    return message.split("--encoding ")[1].split()[0]


@pytest.mark.parametrize(("text", "codec"), WRITTEN)
@pytest.mark.parametrize("ending", [".txt", ".txt.gz"])
def test_the_encoding_that_a_refusal_names_reads_the_text(tmp_path, text, codec, ending):
    path, data = tmp_path / f"text{ending}", ("A heading in English.\n" + text * 20).encode(codec)
    path.write_bytes(gzip.compress(data) if ending.endswith(".gz") else data)
    message = refused(path)
    assert str(path) in message and "would be lost" in message
    corpus = read(path, encoding=DataConfig(encoding=named(message)).encoding)
    assert corpus.documents == (data.decode(codec),) and corpus.replaced == 0 and not corpus.notes


@pytest.mark.parametrize("codec", ["cp1251", "utf-16-le", "utf-16-be", "utf-32-le"])
def test_rows_of_json_are_read_in_their_encoding_too(tmp_path, codec):
    path = tmp_path / "rows.jsonl"
    rows = "".join(json.dumps({"text": RUSSIAN}, ensure_ascii=False) + "\n" for _ in range(30))
    path.write_bytes(rows.encode(codec))
    corpus = read(path, encoding=named(refused(path)))
    assert corpus.documents == (RUSSIAN,) * 30 and not corpus.replaced


MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("gz", [False, True])
def test_each_file_of_a_folder_has_its_own_byte_order_mark(tmp_path, gz, monkeypatch):
    monkeypatch.setattr("mixlab.data.reader.BLOCK", 7)  # blocks end inside characters
    monkeypatch.setattr("mixlab.data.formats.BLOCK", 7)
    for codec, mark in MARKED.items():
        for ending, text in ((".txt", FRENCH), (".jsonl", json.dumps({"text": FRENCH}, ensure_ascii=False))):
            data = mark + text.encode(codec)
            name = f"{codec}{ending}{'.gz' * gz}"
            (tmp_path / name).write_bytes(gzip.compress(data) if gz else data)
    corpus = read(tmp_path)
    assert corpus.documents == (FRENCH,) * 10 and not corpus.notes


def test_json_lines_that_were_joined_keep_no_mark_in_their_middle(tmp_path):
    row = codecs.BOM_UTF8 + b'{"text": "a row"}\n'
    (tmp_path / "joined.jsonl").write_bytes(row * 3)
    assert read(tmp_path / "joined.jsonl").documents == ("a row",) * 3


def test_a_null_text_is_left_out_with_a_count(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": null}\n{"text": "row"}\n{"text": null}\n')
    corpus = read(tmp_path / "rows.jsonl")
    assert corpus.documents == ("row",)
    assert corpus.notes == (f"left out 2 rows without text in 1 file ('{tmp_path / 'rows.jsonl'}')",)


def test_a_number_of_thousands_of_digits_in_another_field_is_nothing_to_us(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "row", "n": ' + "9" * 5000 + "}\n")
    assert read(tmp_path / "rows.jsonl").documents == ("row",)
    (tmp_path / "rows.jsonl").write_text('{"text": ' + "9" * 5000 + "}\n")
    assert "field 'text' is int, not text" in refused(tmp_path / "rows.jsonl")


def test_a_stray_byte_is_a_note_and_one_in_a_thousand_is_too_many(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"caf\xe9")
    assert "replaced 1 invalid UTF-8" in read(path).notes[0]
    path.write_bytes(b"caf\xe9 " * 3 + b"plain words " * 200)  # 3 of 2415
    assert read(path).replaced == 3
    path.write_bytes(b"caf\xe9 " * 3 + b"plain words " * 150)
    assert "0.17% of its bytes would be lost: it reads as cp1252" in refused(path)


def test_in_a_folder_it_is_the_share_of_the_whole_and_the_worst_file_is_named(tmp_path):
    (tmp_path / "a.txt").write_text(FRENCH * 400)
    (tmp_path / "b.txt").write_bytes(FRENCH.encode() + b"Stray \xe9 byte\n" * 2)
    assert "replaced 2" in read(tmp_path).notes[0]
    (tmp_path / "c.txt").write_bytes(RUSSIAN.encode("koi8_r") * 10)
    message = refused(tmp_path)
    assert "c.txt' (and 1 more) is not UTF-8" in message and "--encoding koi8_r" in message


@pytest.mark.parametrize(("text", "codec"), WRITTEN)
def test_a_small_file_in_another_encoding_is_refused_in_a_large_folder_too(tmp_path, text, codec):
    (tmp_path / "large.txt").write_text("Plain words, and nothing else.\n" * 20_000)
    path = tmp_path / "small.txt"
    path.write_bytes((text * 4).encode(codec))
    alone, among = refused(path), refused(tmp_path)
    assert alone.startswith(f"'{path}' is not UTF-8") and among == alone


def test_a_damaged_file_of_a_folder_is_kept_where_most_of_it_is_sound(tmp_path):
    (tmp_path / "large.txt").write_text("Plain words, and nothing else.\n" * 20_000)
    (tmp_path / "small.txt").write_bytes((RUSSIAN * 2).encode() + b"\xe9 \xe9 \xe9\n")
    (tmp_path / "stray.txt").write_bytes(b"One stray \xe9 byte.\n")
    assert read(tmp_path).replaced == 4


def test_what_no_encoding_fits_is_said_to_be_no_text_perhaps(tmp_path):
    path = tmp_path / "noise.txt"
    path.write_bytes(bytes(1 + (n * n * 7 + n // 3) % 255 for n in range(5000)))
    assert "leave it out if it is no text" in refused(path)


def test_a_wrong_encoding_is_refused_too_and_one_that_hides_utf8_is_noted(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(SIMPLIFIED.encode("gb18030") * 10)
    message = refused(path, encoding="big5")
    assert "is not big5" in message and named(message) == "gb18030"
    path.write_text(FRENCH * 10, encoding="utf-8")
    assert "could be UTF-8" in read(path, encoding="latin-1").notes[0]
    assert read(path, encoding="utf8").documents == read(path).documents


def test_binary_files_are_no_wide_text(tmp_path):
    for data in (b"\x89PNG\0\0\0" * 50, b"\0" * 200, bytes(range(256)) * 8, b"\0\1\2\3" * 100):
        assert wide(data) == ""
    assert likely(b"") == []


@pytest.mark.parametrize(
    ("name", "words"), [("cp1521", "did you mean 'cp1"), ("rot13", "unknown"), ("", "un")]
)
def test_an_unknown_encoding_is_refused_with_the_nearest_name(name, words):
    with pytest.raises(UserError, match=words):
        DataConfig(encoding=name)


@pytest.mark.parametrize(
    "codec", ["utf-16", "UTF16", "utf_16_be", "utf-32", "utf-32-le", "utf-8-sig", "utf-7"]
)
def test_unicode_encodings_can_be_named_in_any_spelling(tmp_path, codec):
    path = tmp_path / "text.txt"
    for written in (codec, plain_name(codec)):  # with a byte-order mark, if it has one, and without
        path.write_bytes((RUSSIAN * 20).encode(written))
        corpus = read(path, encoding=DataConfig(encoding=codec).encoding)
        assert corpus.documents == (RUSSIAN * 20,) and corpus.replaced == 0


BESIDE = ("idna", "punycode", "undefined", "utf_8_sig", "unicode_escape", "raw_unicode_escape", "charmap")


def test_each_codec_of_python_reads_any_bytes_or_is_refused_with_another_name(tmp_path):
    path, refusals = tmp_path / "text.txt", {}
    path.write_bytes((RUSSIAN * 300).encode() + rb"+2AA- \ud800 " + bytes(sorted({*range(256)} - {92})))
    for codec in sorted({*aliases, *aliases.values(), *BESIDE}):
        try:
            DataConfig(encoding=codec)
        except UserError as error:
            refusals[codec] = str(error)
            continue
        text, _ = Decoder(codec)(path.read_bytes(), final=True)
        assert text.encode() and "\0" not in text, codec
    assert {"idna", "base64_codec", "uu_codec", "rot_13", "undefined"} <= refusals.keys()
    assert len(refusals) < 40 and "utf_16_le" not in refusals
    for codec, message in refusals.items():
        assert f"unknown encoding '{codec}'" in message
        if "did you mean" in message:
            DataConfig(encoding=message.split("did you mean '")[1].split("'")[0])


def test_the_verbs_take_the_option_and_a_resume_remembers_it(tmp_path, monkeypatch, capsys):
    from mixlab.train import machine

    from ..train.conftest import FAKE

    monkeypatch.setattr(machine, "measure", lambda device=None, refresh=False: FAKE)
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_bytes("".join(f"{n} {RUSSIAN}" for n in range(40)).encode("cp1251"))
    train = ["train", "text.txt", "--preset", "ngram", "--out", "r"]
    for command in (train, ["compare", "text.txt", "--models", "ngram", "--steps", "2"]):
        assert run(command) == 2
        assert "give --encoding cp1251" in capsys.readouterr().err
    assert run([*train, "--encoding", "cp1251"]) == 0
    assert run(["train", "--resume", "r"]) == 0
    assert run(["train", "--resume", "r", "--encoding", "cp1251"]) == 2
    assert run(["evaluate", "r", "text.txt"]) == 2
    capsys.readouterr()
    assert run(["evaluate", "r", "text.txt", "--encoding", "cp1251", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"]["replaced"] == 0
