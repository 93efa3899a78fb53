"""Every tokenizer writes token 0 only for the end of a document and gives back what it was given."""

import errno
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mixlab.data import bpe
from mixlab.data import tokenizer as tokenizer_module
from mixlab.data.bpe import BPETokenizer
from mixlab.data.tokenizer import ByteTokenizer, CharTokenizer, load_tokenizer, make_tokenizer
from mixlab.errors import UserError

TEXT = ["The cat sat on the mat, and the dog's 12345 bones — «déjà vu»!\n\n    indented\tcode\n" * 20]
BPE = BPETokenizer.train(TEXT, vocab_size=320)
CHAR = CharTokenizer.train(TEXT)
ALL = [ByteTokenizer(), CHAR, BPE]

any_text = st.text() | st.text(alphabet="ab \n\t\r'sé1<>|\x00\x85\u2028\u180e中😀", max_size=200)


@given(any_text)
@example("<end of document>\0<|endoftext|>")
@example("\x00\x01\xff\ufffd\U0010ffff")
def test_bytes_and_bpe_give_back_any_text(text):
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == text
    assert BPE.decode(BPE.encode(text)) == text


@given(st.text(alphabet=CHAR.characters))
def test_characters_give_back_any_text_of_their_vocabulary(text):
    ids = CHAR.encode(text)
    assert len(ids) == len(text) and CHAR.decode(ids) == text and not CHAR.count_unknown(ids)


def test_a_text_longer_than_a_block_of_characters_is_encoded_whole(monkeypatch):
    whole = CHAR.encode(TEXT[0]).tolist()
    monkeypatch.setattr(tokenizer_module, "_BLOCK", 7)
    assert CHAR.encode(TEXT[0]).tolist() == whole and len(whole) == len(TEXT[0])


def test_an_unknown_character_is_token_one():
    ids = CHAR.encode("cat中\U0010ffffx")
    assert ids.tolist()[3:5] == [1, 1] and CHAR.count_unknown(ids) == 3  # x is not in the text either
    assert CHAR.decode(ids) == "cat\ufffd\ufffd\ufffd"


@given(any_text)
def test_ids_lie_in_the_vocabulary_and_zero_is_only_the_end(text):
    for tokenizer in ALL:
        ids = tokenizer.encode(text.replace("\0", ""))
        assert ids.dtype == np.min_scalar_type(tokenizer.vocab_size - 1)
        assert not ids.size or (ids.min() > 0 and ids.max() < tokenizer.vocab_size)
    assert 0 not in BPE.encode(text), "bpe has a token of its own for NUL"


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\0", codec="utf-8")), max_size=5))
def test_a_stream_is_the_documents_with_zeros_around(documents):
    for tokenizer in ALL:
        stream = [0]
        for document in documents:
            stream += [*tokenizer.encode(document).tolist(), 0]
        assert tokenizer.encode_documents(documents).tolist() == stream


def test_lone_surrogates_become_replacement_characters():
    for tokenizer in (ByteTokenizer(), BPE):
        assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert CHAR.encode("\ud800").tolist() == [1]


def test_decode_takes_lists_arrays_and_iterators_and_broken_utf8():
    byte = ByteTokenizer()
    assert byte.decode([72, 105, 0]) == "Hi\0" == byte.decode(iter([72, 105, 0]))
    assert byte.decode(np.array([0xC3])) == "\ufffd" and byte.decode([]) == ""
    assert byte.decode_bytes([0xC3]) == b"\xc3"
    assert BPE.decode([0]) == "\0" == CHAR.decode([0])


@pytest.mark.parametrize("tokenizer", ALL, ids=lambda t: t.kind)
def test_bytes_are_counted_as_they_are_decoded(tokenizer):
    ids = np.concatenate(
        [np.arange(tokenizer.vocab_size), tokenizer.encode_documents(["déjà vu", "the the"])]
    )
    assert tokenizer.count_bytes(ids) == len(tokenizer.decode_bytes(ids)) > len(ids) // 2


@pytest.mark.parametrize("tokenizer", ALL, ids=lambda t: t.kind)
def test_an_id_outside_the_vocabulary_is_refused(tokenizer):
    for wrong in (-1, tokenizer.vocab_size):
        for read in (tokenizer.decode, tokenizer.count_bytes):
            with pytest.raises(ValueError, match="outside the vocabulary"):
                read(np.array([wrong]))


@pytest.mark.parametrize("tokenizer", ALL, ids=lambda t: t.kind)
def test_saved_and_loaded_is_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.kind, loaded.vocab_size, loaded.hash) == (
        tokenizer.kind,
        tokenizer.vocab_size,
        tokenizer.hash,
    )
    assert loaded.encode(TEXT[0]).tolist() == tokenizer.encode(TEXT[0]).tolist()


def test_hashes_differ_where_tokens_do():
    others = [CharTokenizer("abc"), CharTokenizer("abd"), BPETokenizer.train(TEXT, vocab_size=300)]
    assert len({tokenizer.hash for tokenizer in [*ALL, *others]}) == 6


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kind": "word"}', '{"model": {"vocab": {"a": 0}}}'])
def test_a_file_that_is_no_tokenizer_is_refused(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="not a tokenizer"):
        load_tokenizer(tmp_path)


def test_a_missing_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="no tokenizer can be read"):
        load_tokenizer(tmp_path)


def test_bpe_merges_what_is_frequent_and_stops_at_the_size_asked_for():
    assert BPE.vocab_size <= 320
    assert len(BPE.encode(TEXT[0])) < len(TEXT[0].encode()) / 2
    assert BPETokenizer.train(["ab"], vocab_size=1000).vocab_size < 300
    with pytest.raises(UserError, match="at least 257"):
        BPETokenizer.train(TEXT, vocab_size=256)


def test_bpe_learns_a_long_text_from_slices_spread_over_it(monkeypatch):
    documents = [f"{word} " * 100 for word in ("alpha", "beta", "gamma", "delta")]
    monkeypatch.setattr(bpe, "SAMPLE", sum(map(len, documents)) // 2)
    tokenizer = BPETokenizer.train(documents, vocab_size=300)
    lengths = {word: len(tokenizer.encode(f" {word}")) for word in ("alpha", "beta", "gamma", "delta")}
    assert lengths["alpha"] == lengths["gamma"] == 1 and lengths["beta"] > 1 and lengths["delta"] > 1


def test_bpe_trains_to_the_same_merges_in_every_process():
    program = (
        "import sys, json; from mixlab.data.bpe import BPETokenizer;"
        "print(BPETokenizer.train(json.load(sys.stdin), vocab_size=320).hash)"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(TEXT),
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed},
            check=True,
        )
        assert done.stdout.strip() == BPE.hash


def test_the_saved_bpe_is_a_file_of_the_tokenizers_library(tmp_path):
    from tokenizers import Tokenizer

    BPE.save(tmp_path)
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = BPE.encode(TEXT[0]).tolist()
    assert theirs.encode(TEXT[0]).ids == ids and theirs.decode(ids) == TEXT[0]


def test_text_without_spaces_is_cut_into_short_pieces():
    dna = "".join(np.random.default_rng(0).choice(list("acgt"), 50_000))
    tokenizer = BPETokenizer.train([dna], vocab_size=400)
    assert tokenizer.decode(tokenizer.encode(dna)) == dna


def test_make_tokenizer_knows_its_kinds():
    assert [make_tokenizer(kind, TEXT).kind for kind in ("byte", "char", "bpe")] == ["byte", "char", "bpe"]
    with pytest.raises(UserError, match="did you mean 'byte'"):
        make_tokenizer("bytes", TEXT)


def test_a_tokenizer_is_written_at_once(tmp_path, monkeypatch):
    """A process killed while it writes leaves the file that was there, or the new one."""
    ByteTokenizer().save(tmp_path)
    before = (tmp_path / "tokenizer.json").stat().st_ino
    ByteTokenizer().save(tmp_path)
    assert (tmp_path / "tokenizer.json").stat().st_ino != before, "written over, not replaced"

    def full(descriptor):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"no space.*tokenizer\.json'$"):
        ByteTokenizer().save(tmp_path)
    assert load_tokenizer(tmp_path).kind == "byte"
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
