"""Gathers documents from files and, by kind, what deserves a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from mixlab.data.columns import read_column
from mixlab.data.embedded import read_stdlib
from mixlab.data.formats import clean_text, decode_text, gunzip, json_rows, longest_line, looks_binary
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


class Reader:
    """Adds files one by one; afterwards `documents`, `replaced` and `notes()` say what was read."""

    def __init__(self, text_field: str) -> None:
        self.documents: list[str] = []
        self.replaced = 0
        self._text_field = text_field
        self._seen: set[Path] = set()
        self._kinds: dict[str, dict[str, None]] = {}
        self._empty_rows = 0

    def add_file(self, path: Path, *, alone: bool) -> None:
        """Read one file; `alone` is a file named by itself, for which being unreadable is an error, not a
        note."""
        resolved = path.resolve()
        if resolved in self._seen:
            self._say("repeated", str(path))
            return
        self._seen.add(resolved)
        name = path.name.lower()
        if path.is_dir() or name.endswith(".parquet"):
            self._add_rows(str(path), (clean_text(text) for text in read_column(path, self._text_field)))
            return
        try:
            data = path.read_bytes()
        except OSError as error:
            if alone:
                raise UserError(f"'{path}' cannot be read: {error.strerror}") from None
            self._say("unreadable", str(path))
            return
        if name.endswith(".gz") and data:
            data, name = gunzip(str(path), data), name.removesuffix(".gz")
        if name.endswith((".jsonl", ".ndjson")) and data:
            self._add_rows(str(path), json_rows(str(path), data, self._text_field))
        else:
            self.add_bytes(str(path), data)

    def add_bytes(self, name: str, data: bytes) -> None:
        """Add the content of one text file as one document, or note why not."""
        if data and looks_binary(data):
            self._say("binary", name)
            return
        text, replaced = decode_text(data)
        if not text:
            self._say("empty", name)
            return
        if len(data) == 1:
            self._say("tiny", name)
        if len(data) > LONG_LINE and longest_line(data) > LONG_LINE:
            self._say("long", name)
        self._add(name, text, replaced)

    def add_stdlib(self, max_bytes: int) -> None:
        """Add the embedded corpus, a document a file."""
        for name, data in read_stdlib(max_bytes):
            if data:  # empty __init__.py files are no news there
                self.add_bytes(name, data)

    def notes(self) -> Iterator[str]:
        """One sentence for each kind of thing worth saying."""
        for kind, names in self._kinds.items():
            first = f"'{next(iter(names))}'" + (" and others" if len(names) > 1 else "")
            files = "file" if len(names) == 1 else "files"
            yield _SENTENCES[kind].format(n=len(names), files=files, first=first, replaced=self.replaced)
        if self._empty_rows:
            yield f"left out {self._empty_rows} rows without text"

    def _add_rows(self, name: str, rows: Iterable[tuple[str, int]]) -> None:
        for text, replaced in rows:
            if text:
                self._add(name, text, replaced)
            else:
                self._empty_rows += 1

    def _add(self, name: str, text: str, replaced: int) -> None:
        self.documents.append(text)
        if replaced:
            self.replaced += replaced
            self._say("invalid", name)

    def _say(self, kind: str, name: str) -> None:
        self._kinds.setdefault(kind, {})[name] = None
