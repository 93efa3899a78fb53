"""Saved n-grams come back to the last bit, damage is noticed, and other tools read the ARPA file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.model.test_ngram import skewed

from mixlab.errors import UserError
from mixlab.model.ngram import NGram


@pytest.fixture
def model() -> NGram:
    return NGram.train([skewed(s, 300, 10) for s in range(3)], order=4, vocab_size=12)


@pytest.mark.parametrize("order", [1, 2, 8])
def test_a_saved_model_loads_bit_for_bit(order, tmp_path):
    text = skewed(0, 500, 20)
    model = NGram.train(text, order=order, vocab_size=30)
    model.save(tmp_path / "new" / "folder")
    again = NGram.load(tmp_path / "new" / "folder")
    assert (again.order, again.vocab_size, again.parameters) == (order, 30, model.parameters)
    np.testing.assert_array_equal(again.log_prob(text), model.log_prob(text))
    for before, after in zip(model._levels, again._levels, strict=True):
        assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_damaged_model_is_refused(model, tmp_path):
    model.save(tmp_path)
    path = tmp_path / "ngram.safetensors"
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"ngram.safetensors is damaged: its sha256"):
        NGram.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"order": 5}, "not a whole n-gram"),
        ({"order": 3}, "shapes"),
        ({"order": 0}, "order 0"),
        ({"vocab_size": 13}, "shapes"),
        ({"vocab_size": "many"}, "not a whole n-gram"),
        ({"format": "other"}, "does not describe an n-gram"),
        ({"sha256": None}, "damaged"),
    ],
)
def test_facts_that_do_not_fit_the_tables_are_refused(model, tmp_path, change, sentence):
    model.save(tmp_path)
    facts = json.loads((tmp_path / "ngram.json").read_text())
    (tmp_path / "ngram.json").write_text(json.dumps(facts | change))
    with pytest.raises(UserError, match=sentence):
        NGram.load(tmp_path)


def test_a_folder_without_a_model_is_named(model, tmp_path):
    with pytest.raises(UserError, match=r"holds no n-gram: ngram.json cannot be read"):
        NGram.load(tmp_path / "nowhere")
    model.save(tmp_path)
    (tmp_path / "ngram.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        NGram.load(tmp_path)


def test_a_place_that_cannot_be_written_is_named(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        model.save(tmp_path / "file" / "folder")
    with pytest.raises(UserError, match="cannot be written"):
        model.write_arpa(tmp_path / "file" / "a.arpa")


def back_off_score(path, words: list[str]) -> float:
    """log10 P(last word | the others) by the ARPA format's definition; no code of mixlab's."""
    entries = {}
    for line in path.read_text().splitlines():
        fields = line.split("\t")
        if len(fields) > 1:
            entries[tuple(fields[1].split(" "))] = (
                float(fields[0]),
                float(fields[2]) if len(fields) > 2 else 0.0,
            )
    total, gram = 0.0, tuple(words)
    while gram not in entries:
        total += entries.get(gram[:-1], (0, 0.0))[1]
        gram = gram[1:]
    return total + entries[gram][0]


def test_the_arpa_file_scores_as_the_model_does(model, tmp_path):
    path = tmp_path / "a.arpa"
    model.write_arpa(path)
    tokens = skewed(9, 12, 12)
    found = [
        back_off_score(path, ["<s>", *(f"w{t}" for t in tokens[: i + 1])][-4:]) for i in range(len(tokens))
    ]
    np.testing.assert_allclose(found, model.log_prob(tokens) / np.log(10), rtol=0, atol=1e-7)
    text = path.read_text()
    assert "-99\t</s>\n" in text
    assert "-99\t<unk>\n" in text


def test_the_arpa_header_counts_its_entries(model, tmp_path):
    model.write_arpa(tmp_path / "a.arpa", [*"abcdefghijk", "</s>"])
    sections = (tmp_path / "a.arpa").read_text().split("\n\n")
    sizes = [int(line.split("=")[1]) for line in sections[0].splitlines()[1:]]
    assert sizes == [len([line for line in s.splitlines() if "\t" in line]) for s in sections[1:5]]
    assert sizes[0] == 12 + 2  # <s> and <unk>; </s> is a token here
    assert sections[5] == "\\end\\\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["a"], "1 words for a vocabulary of 12"),
        ([*"abcdefghijk", "a"], "'a' stands for two tokens"),
        ([*"abcdefghijk", "<s>"], "'<s>' stands for two tokens"),
        ([*"abcdefghijk", " "], "has white space"),
        ([*"abcdefghijk", ""], "is empty"),
    ],
)
def test_words_that_arpa_cannot_hold_are_refused(model, tmp_path, words, sentence):
    with pytest.raises(UserError, match=sentence):
        model.write_arpa(tmp_path / "a.arpa", words)
    assert not (tmp_path / "a.arpa").exists()


def test_kenlm_reads_the_arpa_file_with_equal_scores(model, tmp_path):
    kenlm = pytest.importorskip("kenlm", reason="kenlm is not installed (it needs a compiler)")
    model.write_arpa(tmp_path / "a.arpa")
    reader = kenlm.Model(str(tmp_path / "a.arpa"))
    for seed in range(5):
        tokens = skewed(seed, 60, 12)
        scores = reader.full_scores(" ".join(f"w{t}" for t in tokens), bos=True, eos=False)
        found = [score for score, *_ in scores]
        # KenLM keeps float32 and adds back-offs in it.
        np.testing.assert_allclose(found, model.log_prob(tokens) / np.log(10), rtol=0, atol=2e-6)
