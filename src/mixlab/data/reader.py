"""Documents out of files, a piece at a time, and, by kind, what deserves a sentence."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar, cast

from mixlab.data.charsets import DEFAULT, likely, lines_beyond_ascii, plain_name, wide
from mixlab.data.columns import is_rows, read_column
from mixlab.data.embedded import read_stdlib
from mixlab.data.formats import (
    BLOCK,
    Decoder,
    LongestLine,
    Piece,
    Recoded,
    json_rows,
    looks_binary,
    whole_gzip,
)
from mixlab.data.sources import resolved, spelled
from mixlab.errors import UserError

# A line longer than this is no prose: minified code, one-line JSON, base64. It is kept, and said.
LONG_LINE = 1_000_000

MOST_LOST = 0.001
"""Share of the bytes of a source, and of a file, that may be replaced, beside one stray.

A sound text that was damaged has fewer, and of one in another encoding every letter beyond ASCII is lost: 1%
of Italian, 4% of French, 80% of Russian, 0.3% of English with typographic quotes."""

_SENTENCES = {
    "empty": "left out {n} empty {files} ({first})",
    "binary": "left out {n} binary {files} ({first}): there are NUL bytes near the start",
    "tiny": "{n} {files} of a single byte ({first})",
    "long": f"{{n}} {{files}} with a line of more than {LONG_LINE:,} bytes ({{first}}), kept whole",
    "repeated": "read {n} {files} once although named twice ({first})",
    "rows": "left out {rows} rows without text in {n} {files} ({first})",
    "unreadable": "left out {n} {files} that cannot be read ({first})",
    "invalid": "replaced {replaced} invalid {encoding} or NUL characters by U+FFFD in {n} {files} ({first})",
    "utf8": "{n} {files} that could be UTF-8 ({first}) read as {encoding}, as data.encoding says",
}


def _bearable(size: int) -> float:
    """Bytes that may be lost of so many."""
    return 1 + MOST_LOST * size


T = TypeVar("T")
Blocks = Callable[[], Iterable[bytes]]
"""A text's bytes from its start."""


class Lossy(NamedTuple):
    """A text of which `lost` bytes of `size` could not be decoded; sound: as of `Decoder`."""

    lost: int
    size: int
    sound: int
    again: Blocks

    @property
    def foreign(self) -> bool:
        """Whether it is in another encoding by itself: most of what is beyond ASCII is lost."""
        return self.lost > max(self.sound, _bearable(self.size))


class Reader:
    """Yields the pieces of one file after another; afterwards `replaced` and `notes()` say what was read.

    `read`: bytes on disk that are behind it. `place`: where the document is from that is being read.
    """

    def __init__(self, text_field: str, encoding: str = DEFAULT) -> None:
        self.replaced = 0
        self.read = 0
        self.place = ""
        self._text_field, self._encoding = text_field, encoding
        self._size, self._lossy = 0, dict[str, Lossy]()
        self._seen: set[str] = set()
        self._folders: dict[str, str] = {}
        self._kinds: dict[str, dict[str, None]] = {}
        self._empty_rows = 0

    def file(self, path: Path, *, alone: bool) -> Iterator[Piece]:
        """The documents of one file; `alone` is a file named by itself, for which being unreadable is an
        error, not a note."""
        name = spelled(str(path))
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
                yield from self.stream(name, file, partial(_blocks_of, path))
            except OSError as error:
                raise UserError(f"'{name}' cannot be read to its end: {error.strerror or error}") from None

    def stream(self, name: str, file: BinaryIO, again: Blocks) -> Iterator[Piece]:
        """The documents of an open file, by the name's endings: .gz, .jsonl and .ndjson, else one text."""
        before, kind = self.read, name.lower()
        content = _content(name, file)
        with whole_gzip(name):
            if kind.removesuffix(".gz").endswith((".jsonl", ".ndjson")):
                head = content.read(BLOCK)
                content.seek(0)
                if looks_binary(head, self._encoding) and wide(head):
                    self._lost(name, Lossy(len(head), len(head), 0, again))
                    return
                decoder = Decoder(self._encoding)
                recoded = cast(BinaryIO, io.BufferedReader(Recoded(content, decoder), BLOCK))
                rows = json_rows(name, recoded, self._text_field)
                yield from self._rows(name, self._placed(rows, file, before))
                self._decoded(name, decoder, again)
            else:
                yield from self._text(name, self._placed(_blocks(content), file, before), again)

    def end_source(self) -> None:
        """Forget what was lost of the source that ends here.

        UserError if it was more than MOST_LOST, or if a file of it is in another encoding, however small.
        """
        lossy, size = self._lossy, self._size
        self._lossy, self._size = {}, 0
        if sum(one.lost for one in lossy.values()) <= _bearable(size):
            lossy = {name: one for name, one in lossy.items() if one.foreign}
        if not lossy:
            return
        name = max(lossy, key=lambda name: lossy[name].lost)
        one, others = lossy[name], f" (and {len(lossy) - 1} more)" if len(lossy) > 1 else ""
        what = "UTF-8" if plain_name(self._encoding) == DEFAULT else self._encoding
        found = encoding_of(one)
        hint = (
            f"it reads as {found}: give --encoding {found} (data.encoding), or convert it to UTF-8"
            if found
            else "name its encoding with --encoding (data.encoding), or leave it out if it is no text"
        )
        share = max(one.lost / one.size, 0.0001)
        raise UserError(f"'{name}'{others} is not {what}, {share:.2%} of its bytes would be lost: {hint}")

    def stdlib(self, max_bytes: int) -> Iterator[Piece]:
        """The embedded corpus, a document a file."""
        for name, data in read_stdlib(max_bytes):
            if data:  # empty __init__.py files are no news there
                yield from self._text(name, _blocks(io.BytesIO(data)), partial(iter, [data]))
                self.read += len(data)

    def notes(self) -> Iterator[str]:
        """One sentence for each kind of thing worth saying."""
        encoding = "UTF-8" if plain_name(self._encoding) == DEFAULT else self._encoding
        for kind, names in self._kinds.items():
            first = f"'{next(iter(names))}'" + (" and others" if len(names) > 1 else "")
            files = "file" if len(names) == 1 else "files"
            yield _SENTENCES[kind].format(
                n=len(names),
                files=files,
                first=first,
                replaced=self.replaced,
                rows=self._empty_rows,
                encoding=encoding,
            )

    def _placed(self, items: Iterable[T], file: BinaryIO, before: int) -> Iterator[T]:
        """The same items, with `read` kept up to where the file is."""
        for item in items:
            self.read = before + file.tell()
            yield item

    def _text(self, name: str, blocks: Iterable[bytes], again: Blocks) -> Iterator[Piece]:
        """The content of one text file as one document, or a note why not."""
        decoder, longest, size, self.place = Decoder(self._encoding), LongestLine(), 0, name
        held: tuple[str, bytes] | None = None  # until the next shows whether it was the last
        for block, final in _with_last(blocks):
            if not size and looks_binary(block, self._encoding):
                self._say("binary", name)
                if wide(block):
                    self._lost(name, Lossy(len(block), len(block), 0, again))
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
        self._decoded(name, decoder, again)
        yield Piece(*held, last=True)

    def _columns(self, path: Path) -> Iterator[Piece]:
        before = self.read
        for rows, behind in read_column(path, self._text_field):
            self.read = before + behind
            yield from self._rows(str(path), rows)

    def _rows(self, name: str, rows: Iterable[tuple[str, int]]) -> Iterator[Piece]:
        for number, (text, replaced) in enumerate(rows, 1):
            if text:
                self.place = f"{name}, row {number}"
                self._replaced(name, replaced)
                yield Piece(text, text.encode(), last=True)
            else:
                self._empty_rows += 1
                self._say("rows", name)

    def _replaced(self, name: str, count: int) -> None:
        if count:
            self.replaced += count
            self._say("invalid", name)

    def _decoded(self, name: str, decoder: Decoder, again: Blocks) -> None:
        """Take note of how a text was decoded."""
        self._size += decoder.size
        self._replaced(name, decoder.replaced)
        if decoder.invalid:
            self._lost(name, Lossy(decoder.invalid, decoder.size, decoder.sound, again))
        if decoder.also_utf8:
            self._say("utf8", name)

    def _lost(self, name: str, lossy: Lossy) -> None:
        self._lossy[name] = lossy

    def _say(self, kind: str, name: str) -> None:
        self._kinds.setdefault(kind, {})[name] = None


def encoding_of(text: Lossy) -> str:
    """The likeliest encoding in which the text loses no more than MOST_LOST; "" if there is none."""
    head = next(iter(text.again()), b"")
    named = [] if looks_binary(head) else likely(lines_beyond_ascii(text.again()))
    for name in filter(None, [wide(head), *named]):
        decoder = Decoder(name)
        for block, final in _with_last(text.again()):
            decoder(block, final=final)
        if decoder.invalid <= _bearable(decoder.size):
            return name
    return ""


def _content(name: str, file: BinaryIO) -> BinaryIO:
    """What is in the file, which by its name may be gzipped."""
    if name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    return file


def _blocks_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from _blocks(_content(path.name, file))


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
