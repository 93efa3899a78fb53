"""Text to token ids and back: bytes, characters, byte-level BPE, or a tokenizer of others.

In every tokenizer made here id 0 is the end of a document, which also stands before the first one; `decode`
writes it as NUL. A prepared stream is `[0, document, 0, document, ..., 0]`, so that every token after the
first is predicted once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mixlab.errors import UserError, unknown
from mixlab.records import checked, parse_json

FILE_NAME = "tokenizer.json"
END = "\0"
UNKNOWN = "\ufffd"

# Characters looked up at a time: four bytes each, which for a whole corpus would be its largest copy.
_BLOCK = 1 << 20


@runtime_checkable
class Tokenizer(Protocol):
    """What every tokenizer does. `hash` is the sha256 (hex) of its canonical serialisation."""

    kind: str
    vocab_size: int
    slow: bool  # whether encoding a long text is worth processes of its own
    end: int | None  # the end of a document: 0, but in a tokenizer of others, which may have none

    @property
    def hash(self) -> str:
        """sha256 in hex of the canonical serialisation: equal hashes mean equal tokens."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, 1-D in the smallest unsigned type that holds the vocabulary; no end of document is
        added."""
        ...

    def encode_documents(self, documents: Sequence[str]) -> np.ndarray:
        """The stream `[0, document, 0, ..., 0]` of the documents, in the same type."""
        ...

    def encode_stretch(self, text: str) -> np.ndarray:
        """Ids of a stretch of a stream, in the same type: text in which NUL is the end of a document."""
        ...

    def cut(self, text: str) -> int:
        """The last place at which a stretch that goes on may be cut in two without changing a token."""
        ...

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of `ids`: id 0 is NUL, and bytes that make no UTF-8 are U+FFFD."""
        ...

    def decode_bytes(self, ids: Iterable[int] | np.ndarray) -> bytes:
        """The UTF-8 bytes of `ids`, which may end inside a character: for streaming through an incremental
        decoder."""
        ...

    def count_bytes(self, ids: np.ndarray) -> int:
        """The length of `decode_bytes(ids)`."""
        ...

    def count_unknown(self, ids: np.ndarray) -> int:
        """How many of `ids` stand for text that the vocabulary cannot write."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What `save` writes."""
        ...

    def save(self, directory: Path | str) -> None:
        """Write `tokenizer.json` into `directory`."""
        ...


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint8, uint16 and uint32 that holds ids below `vocab_size`."""
    return np.dtype(np.min_scalar_type(vocab_size - 1))


class _Base:
    """What the tokenizers share: their file, their hash, and text out of bytes."""

    kind: str
    vocab_size: int
    slow = False
    end: int | None = 0

    def to_json(self) -> dict[str, Any]:
        """What `save` writes, by each tokenizer itself."""
        raise NotImplementedError

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, 1-D, by each tokenizer itself."""
        raise NotImplementedError

    def decode_bytes(self, ids: Iterable[int] | np.ndarray) -> bytes:
        """The UTF-8 bytes of `ids`, by each tokenizer itself."""
        raise NotImplementedError

    def count_bytes(self, ids: np.ndarray) -> int:
        """The length of `decode_bytes(ids)`."""
        return len(self.decode_bytes(ids))

    @property
    def hash(self) -> str:
        """sha256 in hex of the canonical serialisation: equal hashes mean equal tokens."""
        return hashlib.sha256(_canonical(self.to_json())).hexdigest()

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of `ids`: id 0 is NUL, and bytes that make no UTF-8 are U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def encode_documents(self, documents: Sequence[str]) -> np.ndarray:
        """The stream `[0, document, 0, ..., 0]`; NUL is token 0 here, so the joined text is the stream."""
        return self.encode(END.join(["", *documents, ""]) if documents else END)

    def encode_stretch(self, text: str) -> np.ndarray:
        """Ids of a stretch of a stream; NUL is token 0 here, so they are its text's."""
        return self.encode(text)

    def cut(self, text: str) -> int:
        """At the end: tokens are no longer than characters here."""
        return len(text)

    def count_unknown(self, ids: np.ndarray) -> int:
        """Always 0: bytes write any text."""
        return 0

    def save(self, directory: Path | str) -> None:
        """Write `tokenizer.json` into `directory`, at once: a run is killed at any moment, and resumed."""
        target, temporary = Path(directory, FILE_NAME), Path(directory, f".{FILE_NAME}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(_canonical(self.to_json()))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(target)) from None
        finally:
            with contextlib.suppress(OSError):  # gone, or never made
                temporary.unlink()


class ByteTokenizer(_Base):
    """The 256 bytes of UTF-8: an id is a byte's value, and NUL is the end of a document."""

    kind = "byte"
    vocab_size = 256

    def to_json(self) -> dict[str, Any]:
        """What `save` writes."""
        return {"format": "mixlab", "kind": self.kind}

    def encode(self, text: str) -> np.ndarray:
        """UTF-8 bytes of `text` (lone surrogates as U+FFFD), uint8 and read-only."""
        return np.frombuffer(_utf8(text), dtype=np.uint8)

    def decode_bytes(self, ids: Iterable[int] | np.ndarray) -> bytes:
        """The bytes themselves; `ValueError` for an id of 256 or more."""
        return _checked(ids, self.vocab_size).astype(np.uint8).tobytes()


class CharTokenizer(_Base):
    """One id a character: 0 the end of a document (NUL), 1 any character not in the vocabulary, then
    `characters`.

    An unknown character is decoded as U+FFFD.
    """

    kind = "char"

    def __init__(self, characters: str) -> None:
        self.characters = "".join(sorted(set(characters) - {END}))
        self.vocab_size = 2 + len(self.characters)
        points = _code_points(self.characters)
        # One slot beyond the last known code point stands for everything above it.
        self._ids = np.ones(int(points.max(initial=0)) + 2, dtype=token_dtype(self.vocab_size))
        self._ids[points] = np.arange(2, self.vocab_size)
        self._ids[0] = 0
        self._points = np.concatenate([_code_points(END + UNKNOWN), points])

    @classmethod
    def train(cls, documents: Iterable[str]) -> CharTokenizer:
        """The vocabulary of `documents` (or of any pieces of them): their characters, by code point."""
        seen = np.zeros(sys.maxunicode + 1, bool)
        for text in documents:
            for start in range(0, len(text), _BLOCK):
                seen[_code_points(text[start : start + _BLOCK])] = True
        return cls("".join(map(chr, np.flatnonzero(seen))))

    def to_json(self) -> dict[str, Any]:
        """What `save` writes."""
        return {"format": "mixlab", "kind": self.kind, "characters": self.characters}

    def encode(self, text: str) -> np.ndarray:
        """One id a character, by table."""
        ids = np.empty(len(text), dtype=self._ids.dtype)
        for start in range(0, len(text), _BLOCK):
            points = _code_points(text[start : start + _BLOCK])
            ids[start : start + _BLOCK] = self._ids[np.minimum(points, len(self._ids) - 1)]
        return ids

    def decode_bytes(self, ids: Iterable[int] | np.ndarray) -> bytes:
        """The characters in UTF-8; `ValueError` for an id outside the vocabulary."""
        points: np.ndarray = self._points[_checked(ids, self.vocab_size)]
        return points.tobytes().decode("utf-32-le").encode()

    def count_unknown(self, ids: np.ndarray) -> int:
        """How many of `ids` are 1, a character outside the vocabulary."""
        return int(np.count_nonzero(ids == 1))


def make_tokenizer(kind: str, documents: Sequence[str], *, vocab_size: int = 4096) -> Tokenizer:
    """A new tokenizer, fitted to `documents` (the training side only) where it has anything to learn."""
    pieces = ((document, True) for document in documents)
    return learn_tokenizer(kind, pieces, characters=sum(map(len, documents)), vocab_size=vocab_size)


def learn_tokenizer(
    kind: str, pieces: Iterable[tuple[str, bool]], *, characters: int, vocab_size: int
) -> Tokenizer:
    """The same from pieces of the documents, (text, whether its document ends), of so many `characters`."""
    if kind == "byte":
        return ByteTokenizer()
    if kind == "char":
        return CharTokenizer.train(text for text, _ in pieces)
    if kind == "bpe":
        from mixlab.data.bpe import BPETokenizer

        return BPETokenizer.learn(pieces, characters=characters, vocab_size=vocab_size)
    raise unknown("tokenizer", kind, ("byte", "char", "bpe"))


def load_tokenizer(directory: Path | str) -> Tokenizer:
    """Read the `tokenizer.json` in `directory`; `UserError` when it is missing or not one of ours."""
    path = Path(directory, FILE_NAME)
    try:
        return from_json(checked(parse_json(path.read_bytes()), dict[str, Any]))
    except OSError as error:
        raise UserError(f"no tokenizer can be read from '{path}': {error.strerror}") from None
    except Exception as error:  # that of the tokenizers library has no narrower type
        raise UserError(f"'{path}' is not a tokenizer that mixlab wrote: {error}") from None


def from_json(content: dict[str, Any]) -> Tokenizer:
    """The tokenizer whose `to_json` is `content`; `ValueError` or `KeyError` when it is none."""
    if "model" in content:  # the tokenizers library's own format
        from mixlab.data.bpe import BPETokenizer, is_own
        from mixlab.data.library import LibraryTokenizer

        return BPETokenizer(content) if is_own(content) else LibraryTokenizer(content)
    if content["kind"] == "byte":
        return ByteTokenizer()
    if content["kind"] == "char":
        return CharTokenizer(content["characters"])
    raise ValueError(f"unknown kind {content['kind']!r}")


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        # surrogatepass through UTF-16 joins surrogates that make a pair and leaves lone ones to "replace".
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _checked(ids: Iterable[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)
    if array.size and not (array.min() >= 0 and array.max() < vocab_size):
        raise ValueError(f"a token id lies outside the vocabulary of {vocab_size}")
    return array
