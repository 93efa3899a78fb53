"""Byte-level byte-pair encoding by the tokenizers library (Sennrich et al. 2016; over bytes: Radford et al.
2019)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mixlab.data.config import SMALLEST_BPE
from mixlab.data.library import parse
from mixlab.data.tokenizer import END, _Base, _checked, _utf8, token_dtype
from mixlab.data.words import PIECES, Piece, Words, last_cut, slices, whole
from mixlab.errors import UserError

# The name of token 0 in the vocabulary. It has plain spaces, which the byte alphabet does not (it writes a
# space as U+0120), so that no text can ever be merged into it.
_END_NAME = "<end of document>"

_DECODER = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}

# Merges are learnt from at most this many characters, in slices spread evenly over the training text: the
# frequent pairs show there as well, and learning takes seconds however long the text.
SAMPLE = 1 << 24


class BPETokenizer(_Base):
    """Token 0, the 256 bytes, and merges learnt from the training text; lossless for any text, NUL included.

    Built from the tokenizers library's JSON, for which `is_own` holds and which is also what `save` writes:
    other tools can read the file.
    """

    kind = "bpe"
    slow = True

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content
        vocab: dict[str, int] = content["model"]["vocab"]
        self.vocab_size = len(vocab)
        self._engine = parse(content)
        self._bytes = [b"\0"] * self.vocab_size
        self._words = Words(self._engine, token_dtype(self.vocab_size))
        values = _byte_values()
        for token, i in vocab.items():
            if i:
                self._bytes[i] = bytes(values[c] for c in token)

    @classmethod
    def train(cls, documents: Sequence[str], *, vocab_size: int = 4096) -> BPETokenizer:
        """Learn merges until there are `vocab_size` tokens or nothing is left to merge; the same text, the
        same merges.

        Raises `UserError` for a `vocab_size` too small to hold every byte.
        """
        return cls.learn(whole(documents), characters=sum(map(len, documents)), vocab_size=vocab_size)

    @classmethod
    def learn(cls, pieces: Iterable[Piece], *, characters: int, vocab_size: int) -> BPETokenizer:
        """The same from pieces of documents, `characters` in all, which are read once."""
        from tokenizers import pre_tokenizers, trainers

        if vocab_size < SMALLEST_BPE:
            raise UserError(f"vocab_size is {vocab_size}, but a byte-level BPE needs at least {SMALLEST_BPE}")
        engine = _empty()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1, initial_alphabet=sorted(alphabet), show_progress=False, min_frequency=2
        )
        engine.train_from_iterator(_sample(pieces, characters), trainer)
        content = {**json.loads(engine.to_str()), "decoder": _DECODER}
        # Token 0 is made by moving the others up, not as a "special" token: the library would look for a
        # special token's name in every text, and a text that mentions it would end there.
        vocab = content["model"]["vocab"]
        content["model"]["vocab"] = {_END_NAME: 0, **{token: i + 1 for token, i in vocab.items()}}
        return cls(content)

    def to_json(self) -> dict[str, Any]:
        """The tokenizers library's own JSON."""
        return self._content

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`; id 0 never occurs."""
        return np.frombuffer(self._document(text), self._words.dtype)

    def encode_documents(self, documents: Sequence[str]) -> np.ndarray:
        """The stream `[0, document, 0, ..., 0]`."""
        end = self._words.end
        return np.frombuffer(end + b"".join(self._document(d) + end for d in documents), self._words.dtype)

    def encode_stretch(self, text: str) -> np.ndarray:
        """Ids of a stretch of a stream; NUL is the end of a document here, and has no token of its own."""
        parts = text.split(END)
        return np.frombuffer(self._words.end.join(map(self._document, parts)), self._words.dtype)

    def cut(self, text: str) -> int:
        """The last place at which a stretch that goes on may be cut in two without changing a token."""
        return last_cut(text)

    def decode_bytes(self, ids: Iterable[int] | np.ndarray) -> bytes:
        """The bytes of each token in a row; `ValueError` for an id outside the vocabulary."""
        return b"".join(map(self._bytes.__getitem__, _checked(ids, self.vocab_size).tolist()))

    def count_bytes(self, ids: np.ndarray) -> int:
        """The length of `decode_bytes(ids)`, summed by token: ten times as fast as joining the bytes."""
        lengths = np.array([len(token) for token in self._bytes])
        return int(lengths[_checked(ids, self.vocab_size)].sum())

    def _document(self, text: str) -> bytes:
        """The ids of a document or a stretch of one, as bytes."""
        return b"".join(self._words(piece) for piece, _ in slices(whole([_utf8(text).decode()])))


def _empty() -> Any:
    """The library's tokenizer before it learnt anything: how a text is divided and merged."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return engine


def is_own(content: dict[str, Any]) -> bool:
    """Whether a file of the tokenizers library is as those learnt here, but for vocabulary and merges.

    Only those may be encoded by table: whatever else a file holds (a normaliser, added tokens, another
    division) makes other ids. ValueError for what the library refuses.
    """
    found, wanted = _settings(parse(content)), {**_settings(_empty()), "decoder": _DECODER}
    vocab = content["model"]["vocab"]
    if found != wanted or vocab.get(_END_NAME) != 0 or sorted(vocab.values()) != list(range(len(vocab))):
        return False
    values = _byte_values()
    return values.keys() <= vocab.keys() and all(
        values.keys() >= set(token) for token, i in vocab.items() if i
    )


def _settings(engine: Any) -> dict[str, Any]:
    """All that a tokenizer's file says but its vocabulary and merges."""
    table: dict[str, Any] = json.loads(engine.to_str())
    model = table.pop("model")
    return {**table, "model": {key: value for key, value in model.items() if key not in ("vocab", "merges")}}


def _sample(pieces: Iterable[Piece], characters: int) -> Iterator[str]:
    """Every n-th slice of the documents, for the smallest n that gives about `SAMPLE` characters."""
    every = max(1, -(-characters // SAMPLE))
    return (text for n, (text, _) in enumerate(slices(pieces)) if n % every == 0)


def _byte_values() -> dict[str, int]:
    """The byte each character of the library's byte alphabet stands for (GPT-2's table).

    Printable Latin-1 characters stand for themselves; the other bytes, in order, for U+0100 and on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
