"""A corpus: documents read from whatever text a person has, and what there is to say about the reading."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from mixlab.data.reader import Reader
from mixlab.data.sources import find_files
from mixlab.errors import UserError, unknown

EMBEDDED = "corpus:python"


@dataclass(frozen=True)
class Corpus:
    """Documents (none empty, no NUL, no lone surrogate) in the order of their sources, and notes on the
    reading.

    `replaced` counts the invalid UTF-8 sequences, NUL characters and lone surrogates that became U+FFFD.
    """

    documents: tuple[str, ...]
    sources: tuple[str, ...] = ()
    replaced: int = 0
    notes: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        sources: Sequence[str],
        *,
        text_field: str = "text",
        max_bytes: int = 4_000_000,
        notes: Callable[[str], None] | None = None,
    ) -> Corpus:
        """Read every source: a file, a folder, a glob, `-` (standard input) or `corpus:python`.

        A text file, also gzipped, is one document; so is each line of a .jsonl and each row of a .parquet,
        whose text is in `text_field`. `max_bytes` limits `corpus:python`. `notes` is called with every note.
        Raises `UserError` for a source that is missing or broken, and when no text is left.
        """
        reader = Reader(text_field)
        for source in dict.fromkeys(sources):
            _read_source(reader, source, max_bytes)
        said = tuple(reader.notes())
        if not reader.documents:
            shown = ", ".join(f"'{source}'" for source in sources)
            raise UserError(f"the corpus {shown} holds no text: {'; '.join(said) or 'nothing was named'}")
        if notes is not None:
            for note in said:
                notes(note)
        return cls(tuple(reader.documents), tuple(sources), reader.replaced, said)

    @cached_property
    def digests(self) -> tuple[bytes, ...]:
        """sha256 of each document's UTF-8 bytes, 32 bytes each."""
        return tuple(hashlib.sha256(document.encode()).digest() for document in self.documents)

    @cached_property
    def sha256(self) -> str:
        """sha256 in hex over the digests in order: equal only for equal documents in equal order."""
        return hashlib.sha256(b"".join(self.digests)).hexdigest()


def _read_source(reader: Reader, source: str, max_bytes: int) -> None:
    if source == "-":
        reader.add_bytes("standard input", sys.stdin.buffer.read())
    elif source == EMBEDDED:
        reader.add_stdlib(max_bytes)
    elif source.startswith("corpus:"):
        raise unknown("embedded corpus", source, [EMBEDDED])
    else:
        files = find_files(source)
        for path in files:
            reader.add_file(path, alone=len(files) == 1)
