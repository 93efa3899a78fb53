"""Byte-level byte-pair encoding by the tokenizers library (Sennrich et al. 2016; over bytes: Radford et al.
2019)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mixlab.data.config import SMALLEST_BPE
from mixlab.data.tokenizer import _Base, _checked, _utf8, token_dtype
from mixlab.errors import UserError

# Words with their leading space, numbers in threes, punctuation, white space: GPT-2's division, except that a
# piece is at most 40 characters (numbers 3). Text without spaces (DNA, base64) would otherwise be one huge
# "word", and both training and encoding slow down with a word's length.
_PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}{1,40}| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]{1,40}|\s{1,40}(?!\S)|\s"

# The name of token 0 in the vocabulary. It has plain spaces, which the byte alphabet does not (it writes a
# space as U+0120), so that no text can ever be merged into it.
_END_NAME = "<end of document>"

# Long documents are encoded in slices, in parallel and without one giant result. No piece goes on from a
# visible character into white space, so that a cut between the two changes no token.
_SLICE = 1 << 16

# Merges are learnt from at most this many characters, in slices spread evenly over the training text: the
# frequent pairs show there as well, and learning takes seconds however long the text.
SAMPLE = 1 << 24
_SAFE_CUT = re.compile(r"\S(?=[ \t\r\n])")


class BPETokenizer(_Base):
    """Token 0, the 256 bytes, and merges learnt from the training text; lossless for any text, NUL included.

    Built from the tokenizers library's JSON, which is also what `save` writes: other tools can read the file.
    """

    kind = "bpe"

    def __init__(self, content: dict[str, Any]) -> None:
        from tokenizers import Tokenizer as Engine

        self._content = content
        vocab: dict[str, int] = content["model"]["vocab"]
        if vocab.get(_END_NAME) != 0 or sorted(vocab.values()) != list(range(len(vocab))):
            raise ValueError("its vocabulary does not start with the end of a document")
        self.vocab_size = len(vocab)
        self._engine = Engine.from_str(json.dumps(content))
        self._bytes = [b"\0"] * self.vocab_size
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
        from tokenizers import Regex, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Engine

        if vocab_size < SMALLEST_BPE:
            raise UserError(f"vocab_size is {vocab_size}, but a byte-level BPE needs at least {SMALLEST_BPE}")
        engine = Engine(models.BPE())
        engine.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PIECES), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1, initial_alphabet=sorted(alphabet), show_progress=False, min_frequency=2
        )
        engine.train_from_iterator(_sample(documents), trainer)
        content = json.loads(engine.to_str())
        content["decoder"] = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        }
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
        return self._concatenate([text], ends=False)

    def encode_documents(self, documents: Sequence[str]) -> np.ndarray:
        """The stream `[0, document, 0, ..., 0]`."""
        return self._concatenate(documents, ends=True)

    def decode_bytes(self, ids: Iterable[int] | np.ndarray) -> bytes:
        """The bytes of each token in a row; `ValueError` for an id outside the vocabulary."""
        return b"".join(map(self._bytes.__getitem__, _checked(ids, self.vocab_size).tolist()))

    def _concatenate(self, documents: Sequence[str], *, ends: bool) -> np.ndarray:
        dtype = token_dtype(self.vocab_size)
        end = np.zeros(int(ends), dtype)
        arrays = [end]
        for batch in _batches(documents):
            for encoding, (_, last) in zip(
                self._engine.encode_batch_fast([t for t, _ in batch]), batch, strict=True
            ):
                arrays.append(np.array(encoding.ids, dtype=dtype))
                if last:
                    arrays.append(end)
        return np.concatenate(arrays)


def _slices(documents: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """(slice, whether it is the last of its document), cut only where no token can cross."""
    for document in documents:
        text = _utf8(document).decode()
        start = 0
        while len(text) - start > _SLICE:
            cut = _SAFE_CUT.search(text, start + _SLICE)
            if cut is None:
                break
            yield text[start : cut.end()], False
            start = cut.end()
        yield text[start:], True


def _batches(documents: Iterable[str]) -> Iterator[list[tuple[str, bool]]]:
    """The slices in groups of about 16 * _SLICE characters: the library's results take 100 bytes a token."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for text, last in _slices(documents):
        batch.append((text, last))
        size += len(text)
        if size >= 16 * _SLICE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _sample(documents: Sequence[str]) -> Iterator[str]:
    """Every n-th slice of the documents, for the smallest n that gives about `SAMPLE` characters."""
    every = max(1, -(-sum(map(len, documents)) // SAMPLE))
    return (text for n, (text, _) in enumerate(_slices(documents)) if n % every == 0)


def _byte_values() -> dict[str, int]:
    """The byte each character of the library's byte alphabet stands for (GPT-2's table).

    Printable Latin-1 characters stand for themselves; the other bytes, in order, for U+0100 and on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
