"""Overlapping windows, word-level perplexity and documents by themselves, against loops over tokens."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import mixlab
from mixlab.data import TokenFile, make_tokenizer, prepare_single
from mixlab.data.corpus import Corpus
from mixlab.data.formats import Piece
from mixlab.data.text_counts import count_words
from mixlab.errors import UserError
from mixlab.train.evaluate import evaluate

DRAW = np.random.default_rng(0)
TOKENS = np.concatenate([[0], *([*DRAW.integers(1, 11, size=n), 0] for n in (30, 1, 0, 23, 40, 2))])
TEXT = TokenFile(TOKENS.astype(np.uint8), 250)
C = 8


@pytest.fixture(params=["attention", "gru", "ngram"])
def scorer(request):
    if request.param == "ngram":
        return mixlab.NGram.train(TOKENS.astype(np.uint8), order=3, vocab_size=11)
    shape = {"vocab_size": 11, "dim": 16, "depth": 1, "context": C, "temporal": request.param}
    return mixlab.build_model(
        {**shape, "position": "rope" if request.param == "attention" else "none"}
    ).eval()


def nats_of_each(scorer, tokens, stride, *, apart=False):
    """(nats, tokens before) of every target, in the first window that has it, each from a call of its own."""
    found = []
    with torch.no_grad():
        for target in range(1, len(tokens)):
            begin = 0
            while begin + C < target:
                begin += stride
            if apart and isinstance(scorer, torch.nn.Module):
                begin = max([begin, *np.flatnonzero(tokens[:target] == 0)])
            row = torch.from_numpy(tokens[begin:target].astype(np.int64))[None]
            logits = scorer(row).logits[0, -1]
            found.append((-logits.log_softmax(-1)[int(tokens[target])].item(), target - begin))
    return found


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("stride", [1, 3, 7, 8])
@pytest.mark.parametrize("length", [2, 8, 9, 10, 57, 103])
def test_each_token_counts_once_in_the_first_window_that_has_it(scorer, stride, length, apart):
    text = TokenFile(TEXT.tokens[:length], 250, apart=apart)
    found = evaluate(scorer, text, context=C, stride=stride, batch_size=3, by_document=True)
    expected = nats_of_each(scorer, text.tokens, stride, apart=apart)
    assert found.tokens == length - 1 and (found.context, found.stride) == (C, stride)
    assert found.nats_per_token == pytest.approx(sum(n for n, _ in expected) / (length - 1), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(found.nats_per_token * (length - 1) / math.log(2) / 250)
    by_position = [[n for n, before in expected if before == at + 1] for at in range(C)]
    means = [sum(nats) / len(nats) for nats in by_position if nats]
    assert found.loss_by_position == pytest.approx(means, rel=1e-5)


@pytest.mark.parametrize("stride", [3, 8])
def test_documents_are_summed_by_themselves_with_their_ends(scorer, stride):
    found = evaluate(scorer, TEXT, context=C, stride=stride, by_document=True)
    expected, document = [0.0] * 6, 0
    for target, (nats, _) in enumerate(nats_of_each(scorer, TEXT.tokens, stride), 1):
        expected[document] += nats
        document += TEXT.tokens[target] == 0
    assert found.nats_by_document == pytest.approx(expected, rel=1e-5)
    assert sum(found.nats_by_document) == pytest.approx(found.nats_per_token * found.tokens)


def test_a_stride_of_the_context_is_what_there_was_to_the_last_bit(scorer):
    plain = evaluate(scorer, TEXT, context=C)
    assert evaluate(scorer, TEXT, context=C, stride=C) == plain and plain.nats_by_document is None
    assert set(plain.line()) == {
        "bits_per_byte", "nats_per_token", "perplexity", "loss_by_position", "scored",
    }  # fmt: skip


@pytest.mark.parametrize("stride", [0, -1, C + 1])
def test_a_stride_that_leaves_tokens_out_is_refused(scorer, stride):
    with pytest.raises(UserError, match="from 1 to the context, 8"):
        evaluate(scorer, TEXT, context=C, stride=stride)


def test_a_sample_has_no_stride(scorer):
    with pytest.raises(UserError, match="scored whole"):
        evaluate(scorer, TokenFile(TEXT.tokens, 250, scored=20), context=C, stride=2)


def test_progress_counts_each_token_once(scorer):
    told = []
    evaluate(scorer, TEXT, context=C, stride=2, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (102, 102) and told == sorted(told)


@pytest.mark.parametrize(
    ("text", "words", "lines"),
    [("a b\n\n c", 3, 3), ("a b\n", 2, 1), (" \n", 0, 1), ("one", 1, 1), ("a\u00a0b\tc\r\n", 3, 1)],
)
def test_words_are_separated_by_whitespace_and_the_last_line_counts(text, words, lines):
    assert count_words([Piece(text, text.encode(), True)]) == (words, lines)
    letters = [Piece(letter, letter.encode(), n == len(text)) for n, letter in enumerate(text, 1)]
    assert count_words([*letters, *letters]) == (2 * words, 2 * lines)


def test_perplexity_per_word_is_that_of_all_nats(tmp_path):
    """In closed form: with logits of 0 every token costs log V, ends of documents included."""
    path = tmp_path / "text.jsonl"
    documents = ["a first line\nand more", "one"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    tokenizer = make_tokenizer("byte", documents)
    text, facts = prepare_single([str(path)], tokenizer, cache_dir=tmp_path, by_document=True)
    assert (facts["words"], facts["lines"]) == (6, 3)
    assert facts["places"] == [(f"{path}, row 1", 21), (f"{path}, row 2", 3)]
    uniform = mixlab.build_model({"vocab_size": 256, "dim": 16, "depth": 1, "context": 8})
    with torch.no_grad():
        uniform.head.weight.zero_()
    found = evaluate(uniform, text, context=8, stride=4, by_document=True)
    assert found.perplexity_per(6) == pytest.approx(256 ** (26 / 6), rel=1e-5)
    assert found.nats_by_document == pytest.approx([22 * math.log(256), 4 * math.log(256)], rel=1e-6)


def test_places_name_files_and_rows(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "rows.jsonl").write_text('{"text": ""}\n\n{"text": "é"}\n')
    found = Corpus.read([str(tmp_path)], places=True)
    assert found.places == [(str(tmp_path / "a.txt"), 4), (f"{tmp_path / 'rows.jsonl'}, row 2", 2)]
    assert Corpus.read([str(tmp_path)]).places is None
