"""Documents out of files, a piece at a time, and, by kind, what deserves a sentence."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from mixlab.data.columns import is_rows, read_column
from mixlab.data.embedded import read_stdlib
from mixlab.data.formats import (
    BLOCK,
    Decoder,
    LongestLine,
    Piece,
    json_rows,
    looks_binary,
    whole_gzip,
)
from mixlab.data.sources import resolved
from mixlab.errors import UserError

# A line longer than this is no prose: minified code, one-line JSON, base64. It is kept, and said.
LONG_LINE = 1_000_000

_SENTENCES = {
    "empty": "left out {n} empty {files} ({first})",
    "binary": "left out {n} binary {files} ({first}): there are NUL bytes near the start",
    "tiny": "{n} {files} of a single byte ({first})",
    "long": f"{{n}} {{files}} with a line of more than {LONG_LINE:,} bytes ({{first}}), kept whole",
    "repeated": "read {n} {files} once although named twice ({first})",
    "unreadable": "left out {n} {files} that cannot be read ({first})",
    "invalid": "replaced {replaced} invalid UTF-8 or NUL characters by U+FFFD in {n} {files} ({first})",
}


T = TypeVar("T")


class Reader:
    """Yields the pieces of one file after another; afterwards `replaced` and `notes()` say what was read.

    `read`: bytes on disk that are behind it.
    """

    def __init__(self, text_field: str) -> None:
        self.replaced = 0
        self.read = 0
        self._text_field = text_field
        self._seen: set[str] = set()
        self._folders: dict[str, str] = {}
        self._kinds: dict[str, dict[str, None]] = {}
        self._empty_rows = 0

    def file(self, path: Path, *, alone: bool) -> Iterator[Piece]:
        """The documents of one file; `alone` is a file named by itself, for which being unreadable is an
        error, not a note."""
        name = str(path)
        real = resolved(path, self._folders)
        if real in self._seen:
            self._say("repeated", name)
            return
        self._seen.add(real)
        if is_rows(path):
            yield from self._columns(path)
            return
        try:
            file = path.open("rb")
        except OSError as error:
            if alone:
                raise UserError(f"'{name}' cannot be read: {error.strerror}") from None
            self._say("unreadable", name)
            return
        with file:
            try:
                yield from self.stream(name, file)
            except OSError as error:
                raise UserError(f"'{name}' cannot be read to its end: {error.strerror or error}") from None

    def stream(self, name: str, file: BinaryIO) -> Iterator[Piece]:
        """The documents of an open file, by the name's endings: .gz, .jsonl and .ndjson, else one text."""
        before, kind = self.read, name.lower()
        content = file
        if kind.endswith(".gz"):
            content, kind = cast(BinaryIO, gzip.GzipFile(fileobj=file)), kind.removesuffix(".gz")
        with whole_gzip(name):
            if kind.endswith((".jsonl", ".ndjson")):
                rows = json_rows(name, content, self._text_field)
                yield from self._rows(name, self._placed(rows, file, before))
            else:
                yield from self._text(name, self._placed(_blocks(content), file, before))

    def stdlib(self, max_bytes: int) -> Iterator[Piece]:
        """The embedded corpus, a document a file."""
        for name, data in read_stdlib(max_bytes):
            if data:  # empty __init__.py files are no news there
                yield from self._text(name, _blocks(io.BytesIO(data)))
                self.read += len(data)

    def notes(self) -> Iterator[str]:
        """One sentence for each kind of thing worth saying."""
        for kind, names in self._kinds.items():
            first = f"'{next(iter(names))}'" + (" and others" if len(names) > 1 else "")
            files = "file" if len(names) == 1 else "files"
            yield _SENTENCES[kind].format(n=len(names), files=files, first=first, replaced=self.replaced)
        if self._empty_rows:
            yield f"left out {self._empty_rows} rows without text"

    def _placed(self, items: Iterable[T], file: BinaryIO, before: int) -> Iterator[T]:
        """The same items, with `read` kept up to where the file is."""
        for item in items:
            self.read = before + file.tell()
            yield item

    def _text(self, name: str, blocks: Iterable[bytes]) -> Iterator[Piece]:
        """The content of one text file as one document, or a note why not."""
        decoder, longest, size = Decoder(), LongestLine(), 0
        held: tuple[str, bytes] | None = None  # until the next shows whether it was the last
        for block, final in _with_last(blocks):
            if not size and looks_binary(block):
                self._say("binary", name)
                return
            size += len(block)
            longest(block)
            text, utf8 = decoder(block, final=final)
            if text:
                if held is not None:
                    yield Piece(*held, last=False)
                held = text, utf8
        if held is None:
            self._say("empty", name)
            return
        if size == 1:
            self._say("tiny", name)
        if longest.found > LONG_LINE:
            self._say("long", name)
        self._replaced(name, decoder.replaced)
        yield Piece(*held, last=True)

    def _columns(self, path: Path) -> Iterator[Piece]:
        before = self.read
        for rows, behind in read_column(path, self._text_field):
            self.read = before + behind
            yield from self._rows(str(path), rows)

    def _rows(self, name: str, rows: Iterable[tuple[str, int]]) -> Iterator[Piece]:
        for text, replaced in rows:
            if text:
                self._replaced(name, replaced)
                yield Piece(text, text.encode(), last=True)
            else:
                self._empty_rows += 1

    def _replaced(self, name: str, count: int) -> None:
        if count:
            self.replaced += count
            self._say("invalid", name)

    def _say(self, kind: str, name: str) -> None:
        self._kinds.setdefault(kind, {})[name] = None


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block


def _with_last(blocks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Each block, and whether it is the last; a single empty one where there are none."""
    before: bytes | None = None
    for block in blocks:
        if before is not None:
            yield before, False
        before = block
    yield before or b"", True
