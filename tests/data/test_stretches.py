"""A stream cut in stretches is the stream, whoever encodes them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixlab.data import stretches as module
from mixlab.data.bpe import BPETokenizer
from mixlab.data.building import Memory
from mixlab.data.formats import Piece
from mixlab.data.stretches import Encoders, OtherText, Stretch, fill, processes_for, stretches
from mixlab.data.tokenizer import ByteTokenizer, CharTokenizer
from mixlab.errors import RunFailed

TEXT = "the cat sat on the mat, don't! 12 ü\n" * 30
TOKENIZERS = [ByteTokenizer(), CharTokenizer.train([TEXT]), BPETokenizer.train([TEXT], vocab_size=300)]

documents = st.lists(st.text(alphabet="ab \n!'1é中", min_size=1, max_size=40), min_size=1, max_size=8)


def pieces(texts, places=()):
    """The documents, each cut at the places that fall into it."""
    for text in texts:
        ends = sorted({place for place in places if 0 < place < len(text)} | {len(text)})
        for start, end in zip([0, *ends], ends, strict=False):
            yield Piece(text[start:end], text[start:end].encode(), end == len(text))


@settings(max_examples=60)
@given(documents, st.data())
def test_both_sides_of_every_part_are_whole_and_in_order(texts, data):
    cuts = np.array([data.draw(st.integers(0, len(text))) for text in texts])
    first = data.draw(st.integers(0, len(texts)))
    counts = [0, first, 0, len(texts) - first, 0]
    places = data.draw(st.lists(st.integers(1, 40), max_size=4))
    tokenizer = data.draw(st.sampled_from(TOKENIZERS))
    kept, module.STRETCH = module.STRETCH, data.draw(st.integers(1, 30))
    try:
        found = list(stretches(pieces(texts, places), cuts, counts, tokenizer.cut))
        memory = Memory(("train", "valid"), len(counts), tokenizer)
        fill(memory, found, tokenizer, processes=1, behind=lambda done: None)
    finally:
        module.STRETCH = kept
    assert all(stretch.text for stretch in found)
    parts = {1: range(first), 3: range(first, len(texts))}
    for side, name in enumerate(memory.names):
        sides = [text[:cut] if side == 0 else text[cut:] for text, cut in zip(texts, cuts, strict=True)]
        assert memory.arrays()[name].tolist() == tokenizer.encode_documents([*filter(None, sides)]).tolist()
        for part, count in enumerate(memory.counts[name]):
            own = [sides[n] for n in parts.get(part, ()) if sides[n]]
            assert count.documents == len(own)
            assert count.bytes == sum(len(text.encode()) + 1 for text in own)
            assert count.tokens == len(tokenizer.encode_documents(own)) - 1
            assert count.unknown == sum(tokenizer.count_unknown(tokenizer.encode(text)) for text in own)


def stream(n=40):
    return [Stretch(k % 2, 0, f"{TEXT[: 7 * k]}\0") for k in range(n)]


def filled(tokenizer, processes, behind=lambda done: None):
    memory = Memory(("train", "valid"), 1, tokenizer)
    fill(memory, stream(), tokenizer, processes=processes, behind=behind)
    return memory


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: t.kind)
def test_other_processes_give_the_same_in_the_same_order(tokenizer):
    told = []
    alone, together = filled(tokenizer, 1), filled(tokenizer, 2, told.append)
    assert (alone.chain, alone.counts) == (together.chain, together.counts)
    for name, array in alone.arrays().items():
        assert np.array_equal(array, together.arrays()[name])
    assert told == np.cumsum([len(stretch.text) - 1 for stretch in stream()]).tolist()


def test_an_encoder_that_dies_is_one_sentence_and_leaves_no_process():
    with Encoders(TOKENIZERS[2], 2) as encoders, pytest.raises(RunFailed, match="run the command again"):
        for child in encoders._children:
            child.kill()
        list(encoders.map((stretch, 0, "") for stretch in stream()))
    assert all(child.returncode is not None for child in encoders._children)


def test_a_failure_midway_ends_the_processes():
    def broken():
        yield from stream(5)
        raise ValueError("broken")

    memory = Memory(("train", "valid"), 1, TOKENIZERS[2])
    with pytest.raises(ValueError, match="broken"):
        fill(memory, broken(), TOKENIZERS[2], processes=2, behind=lambda done: None)


@pytest.mark.parametrize("other", [stream()[:10], [*stream()[:19], Stretch(1, 0, "other"), *stream()[20:]]])
def test_a_sink_that_holds_another_text_is_noticed(other):
    memory = Memory(("train", "valid"), 1, TOKENIZERS[0])
    fill(memory, stream()[:20], TOKENIZERS[0], processes=1, behind=lambda done: None)
    with pytest.raises(OtherText):
        fill(memory, other, TOKENIZERS[0], processes=1, behind=lambda done: None)


def test_only_what_is_slow_and_long_is_worth_processes(monkeypatch):
    byte, _, bpe = TOKENIZERS
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert processes_for(byte, 10**10) == 1
    assert [processes_for(bpe, n) for n in (10**6, 2 * module.ENOUGH, 10**10)] == [
        1,
        2,
        module.MOST_PROCESSES,
    ]
