"""Text appears character by character, never half of one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mixlab.decode import stream_text
from mixlab.decode.text import HELD


class Bytes:
    """A byte-level tokenizer; `kind` says whether the stream may know that."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


@given(st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"])))
def test_every_piece_is_whole_and_the_pieces_are_the_text(text: str) -> None:
    for kind in ("byte", "bpe"):
        pieces = list(stream_text(Bytes(kind), text.encode()))
        assert "".join(pieces) == text
        assert len(pieces) == len(text)


@given(st.binary(max_size=20))
def test_bytes_that_are_not_utf8_become_the_replacement_character(raw: bytes) -> None:
    assert "".join(stream_text(Bytes("byte"), raw)) == raw.decode("utf-8", "replace")


def test_an_unfinished_character_at_the_end_is_not_lost() -> None:
    for kind in ("byte", "bpe"):
        assert "".join(stream_text(Bytes(kind), "é".encode()[:1])) == "\ufffd"


def test_bytes_that_never_become_a_character_are_not_held_back_for_ever() -> None:
    stream = stream_text(Bytes("bpe"), iter([0x80] * HELD + [ord("a")]))
    assert next(stream) == "\ufffd" * HELD
