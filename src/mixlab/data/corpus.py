"""A corpus: documents read from whatever text a person has, and what there is to say about the reading."""

from __future__ import annotations

import hashlib
import time
import weakref
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mixlab.data.charsets import DEFAULT
from mixlab.data.formats import BLOCK, Piece
from mixlab.data.own_output import OwnOutput
from mixlab.data.reader import Reader
from mixlab.data.sources import find_files
from mixlab.data.streams import HELD_BYTES, STDIN, is_stream, keep
from mixlab.errors import UserError, unknown

EMBEDDED = "corpus:python"

Progress = Callable[[dict[str, Any]], None]
"""Told {"kind": "prepare", "stage", "done", "total", "unit"} now and then; `total` is 0 where unknown."""

_TELL_SECONDS = 0.2


class Stage:
    """One stage of preparing a text, which tells `progress` how far it is, a few times a second."""

    def __init__(self, progress: Progress | None, stage: str, total: int, unit: str) -> None:
        self._progress, self._line = progress, {"kind": "prepare", "stage": stage, "unit": unit}
        self._total, self._next = total, time.monotonic() + _TELL_SECONDS

    def __call__(self, done: int) -> None:
        """So much is done."""
        if self._progress is not None and (now := time.monotonic()) >= self._next:
            self._next = now + _TELL_SECONDS
            self.say(done)

    def say(self, done: int) -> None:
        """So much is done, said at once."""
        if self._progress is not None:
            self._progress({**self._line, "done": done, "total": self._total})


class Corpus:
    """Documents (none empty, no NUL, no lone surrogate) in the order of their sources, and notes on the
    reading.

    It has been read once when it is made: `characters`, `bytes` (of UTF-8) and `sha256` are known, and for
    each document its length in characters (`lengths`, int64) and the start of its sha256 (`digests`, the
    first 8 bytes as a big-endian number, uint64); `counts` says how many documents each source gave.
    `places` says for each where it is from, and its bytes, if that was asked for. `replaced` counts the
    invalid UTF-8 sequences, NUL characters and lone surrogates that became U+FFFD.
    The text itself comes from `pieces`, and is in memory only if it is at most `HELD_BYTES` long.
    """

    def __init__(
        self,
        sources: Sequence[str],
        *,
        text_field: str,
        max_bytes: int,
        encoding: str,
        spool: Path | None,
    ) -> None:
        self.sources = tuple(sources)
        self.characters = self.bytes = self.replaced = 0
        self.notes: tuple[str, ...] = ()
        self.counts: tuple[int, ...] = ()
        self.places: list[tuple[str, int]] | None = None
        self._text_field, self._max_bytes, self._encoding = text_field, max_bytes, encoding
        self._lengths, self._digests = array("q"), array("Q")
        self._held: list[Piece] | None = []
        own = OwnOutput()
        named = [source for source in sources if not source.startswith("corpus:")]
        streams = [source for source in dict.fromkeys(named) if is_stream(source)]
        self._files = {source: find_files(source, own) for source in named if source not in streams}
        self._left_out = own.note()
        self._kept = {source: keep(source, spool) for source in streams}
        for kept in self._kept.values():
            weakref.finalize(self, kept.close)

    @classmethod
    def read(
        cls,
        sources: Sequence[str],
        *,
        text_field: str = "text",
        max_bytes: int = 4_000_000,
        encoding: str = DEFAULT,
        places: bool = False,
        notes: Callable[[str], None] | None = None,
        progress: Progress | None = None,
        spool: Path | None = None,
    ) -> Corpus:
        """Read every source: a file, a folder, a glob, `-` (standard input) or `corpus:python`.

        A text file, also gzipped, is one document; so is each line of a .jsonl and each row of a .parquet,
        whose text is in `text_field`. `encoding` is that of files without a byte-order mark, `max_bytes`
        limits `corpus:python`. `notes` is called with every note.
        `spool`: the folder for the temporary file that keeps a pipe too large for memory. Raises
        `UserError` for a source that is missing or broken, and when no text is left.
        """
        corpus = cls(sources, text_field=text_field, max_bytes=max_bytes, encoding=encoding, spool=spool)
        corpus.places = [] if places else None
        corpus._scan(progress)
        if not corpus._lengths:
            shown = ", ".join(f"'{source}'" for source in sources)
            said = "; ".join(corpus.notes) or "nothing was named"
            raise UserError(f"the corpus {shown} holds no text: {said}")
        if notes is not None:
            for note in corpus.notes:
                notes(note)
        return corpus

    @property
    def lengths(self) -> np.ndarray:
        """Characters of each document, int64."""
        return np.frombuffer(self._lengths, np.int64)

    @property
    def digests(self) -> np.ndarray:
        """The first 8 bytes of each document's sha256, uint64."""
        return np.frombuffer(self._digests, np.uint64)

    @cached_property
    def documents(self) -> tuple[str, ...]:
        """All of it in memory: for texts that fit."""
        documents, begun = [], []
        for text, _, last in self.pieces():
            begun.append(text)
            if last:
                documents.append("".join(begun))
                begun.clear()
        return tuple(documents)

    def pieces(self) -> Iterator[Piece]:
        """The text once more, in the same pieces; `UserError` at its end if it is not what it was."""
        if self._held is not None:
            yield from self._held
            return
        digest = Digest()
        for _, piece in self._read(Reader(self._text_field, self._encoding)):
            digest(piece)
            yield piece
        if digest.content() != self.sha256:
            raise UserError(
                f"the text changed while it was read ({', '.join(self.sources)}): run the command again"
            )

    def _scan(self, progress: Progress | None) -> None:
        """The first reading."""
        reader, digest = Reader(self._text_field, self._encoding), Digest()
        stage = Stage(progress, "reading the text", self._size_on_disk() if progress else 0, "B")
        counts, length, before = dict.fromkeys(self.sources, 0), 0, 0
        for source, piece in self._read(reader):
            stage(reader.read)
            length += len(piece.text)
            self.bytes += len(piece.utf8)
            ended = digest(piece)
            if ended is not None:
                self._lengths.append(length)
                self._digests.append(int.from_bytes(ended[:8], "big"))
                self.characters += length
                counts[source] += 1
                if self.places is not None:
                    self.places.append((reader.place, self.bytes - before))
                length, before = 0, self.bytes
            if self._held is not None:
                self._held.append(piece)
                if self.bytes > HELD_BYTES:
                    self._held = None
        self.sha256, self.counts = digest.content(), tuple(counts.values())
        self.replaced = reader.replaced
        self.notes = (*filter(None, [self._left_out]), *reader.notes())

    def _read(self, reader: Reader) -> Iterator[tuple[str, Piece]]:
        """(source, piece) of everything; a source that is named twice is read once."""
        for source in dict.fromkeys(self.sources):
            for piece in self._source(reader, source):
                yield source, piece
            reader.end_source()

    def _source(self, reader: Reader, source: str) -> Iterator[Piece]:
        if source in self._kept:
            kept = self._kept[source]
            kept.seek(0)
            name = "standard input" if source == STDIN else source
            yield from reader.stream(name, kept, partial(_from_start, kept))
        elif source == EMBEDDED:
            yield from reader.stdlib(self._max_bytes)
        elif source.startswith("corpus:"):
            raise unknown("embedded corpus", source, [EMBEDDED])
        else:
            files = self._files[source]
            for path in files:
                yield from reader.file(path, alone=len(files) == 1)

    def _size_on_disk(self) -> int:
        """Bytes that the reading will go through, for a progress bar."""
        files = [path for paths in self._files.values() for path in paths]
        size = sum(_size(path) for path in files)
        return size + sum(kept.seek(0, 2) for kept in self._kept.values())


class Joined:
    """A training text and the validation text of its own, one after the other."""

    def __init__(self, train: Corpus, valid: Corpus) -> None:
        self._corpora = train, valid
        self.characters, self.bytes = train.characters + valid.characters, train.bytes + valid.bytes
        self.lengths = np.concatenate([train.lengths, valid.lengths])
        self.sha256 = f"{train.sha256} {valid.sha256}"

    def pieces(self) -> Iterator[Piece]:
        """The texts once more."""
        for corpus in self._corpora:
            yield from corpus.pieces()


class Digest:
    """sha256 of each document, and over these in order: equal only for equal documents in equal order."""

    def __init__(self) -> None:
        self._documents, self._open = hashlib.sha256(), hashlib.sha256()

    def __call__(self, piece: Piece) -> bytes | None:
        """Take the next piece; the document's sha256 if it ends with it."""
        self._open.update(piece.utf8)
        if not piece.last:
            return None
        ended = self._open.digest()
        self._documents.update(ended)
        self._open = hashlib.sha256()
        return ended

    def content(self) -> str:
        """sha256 in hex over the digests of the documents so far."""
        return self._documents.hexdigest()


def _from_start(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while block := file.read(BLOCK):
        yield block


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
