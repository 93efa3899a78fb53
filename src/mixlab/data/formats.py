"""From bytes to text, a block at a time: encodings, gzip and JSON lines, and a sentence for broken bytes."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mixlab.errors import UserError, nearest

BLOCK = 1 << 19
"""Bytes read at a time; no line inside one is longer than what counts as a long line."""

MAX_ROW = 1 << 28
"""Bytes of the longest JSON line: a row is decoded whole, at about four times its size."""

_UTF8_MARK = codecs.BOM_UTF8
_UTF16 = {codecs.BOM_UTF16_LE: codecs.utf_16_le_decode, codecs.BOM_UTF16_BE: codecs.utf_16_be_decode}
_UNWANTED = re.compile("[\0\ud800-\udfff]")
_REPLACEMENT = "\ufffd"
_REPLACEMENT_BYTES = _REPLACEMENT.encode()


class Piece(NamedTuple):
    """Some clean text of a document, the same as UTF-8, and whether the document ends with it.

    Clean: no NUL (it means the end of a document) and no lone surrogates (no UTF-8).
    """

    text: str
    utf8: bytes
    last: bool


class Decoder:
    """The bytes of one text, block by block, as clean text.

    UTF-8 unless a byte-order mark says UTF-16; the mark is dropped. Invalid sequences become U+FFFD, as do
    NULs; `replaced` counts them.
    """

    def __init__(self) -> None:
        self.replaced = 0
        self._rest = b""
        self._utf16: Callable[..., tuple[str, int]] | None = None
        self._begun = False

    def __call__(self, block: bytes, *, final: bool) -> tuple[str, bytes]:
        """The text that is whole with `block`, and its UTF-8; the first block has at least 3 bytes, unless it
        is the only one."""
        if not self._begun:
            self._begun = True
            self._utf16 = _UTF16.get(block[:2])
            block = block[2:] if self._utf16 else block.removeprefix(_UTF8_MARK)
        block = self._rest + block if self._rest else block
        decode = self._utf16 or codecs.utf_8_decode
        text, used = decode(block, "replace", final)
        self._rest, raw = block[used:], block[:used] if used < len(block) else block
        if _REPLACEMENT not in text and "\0" not in text and not self._utf16:
            return text, raw
        self.replaced += text.count(_REPLACEMENT) - self._genuine(raw) + text.count("\0")
        text = text.replace("\0", _REPLACEMENT)
        return text, text.encode()

    def _genuine(self, raw: bytes) -> int:
        """How many U+FFFD stand in the bytes themselves."""
        if self._utf16 is None:
            return raw.count(_REPLACEMENT_BYTES)
        order = "<u2" if self._utf16 is codecs.utf_16_le_decode else ">u2"
        return int(np.count_nonzero(np.frombuffer(raw[: len(raw) // 2 * 2], order) == ord(_REPLACEMENT)))


def decode_text(data: bytes) -> tuple[str, int]:
    """`data` as clean text, and how many characters of it are replacements: see `Decoder`."""
    decoder = Decoder()
    return decoder(data, final=True)[0], decoder.replaced


def clean_text(text: str) -> tuple[str, int]:
    """`text` with NULs and lone surrogates as U+FFFD, and how many."""
    if "\0" not in text and is_encodable(text):
        return text, 0
    return _UNWANTED.subn(_REPLACEMENT, text)


def is_encodable(text: str) -> bool:
    """Whether `text` is free of lone surrogates, the only characters that UTF-8 cannot write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def looks_binary(data: bytes, probe: int = 8192) -> bool:
    """Whether there is a NUL in the first `probe` bytes (git's test and number) of what is not UTF-16."""
    return b"\0" in data[:probe] and data[:2] not in _UTF16


class LongestLine:
    """Bytes in the longest line of a text that comes in blocks of at most `BLOCK`, where it exceeds that."""

    def __init__(self) -> None:
        self.found = 0
        self._open = 0

    def __call__(self, block: bytes) -> None:
        """Take note of the next block."""
        first = block.find(b"\n")
        if first < 0:
            self._open += len(block)
        else:
            self.found = max(self.found, self._open + first)
            self._open = len(block) - block.rfind(b"\n") - 1
        self.found = max(self.found, self._open)


@contextmanager
def whole_gzip(where: str) -> Iterator[None]:
    """UserError naming `where` if the gzip file that is read inside is broken or cut off."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"'{where}' is not a whole gzip file: {error}") from None


def json_rows(where: str, file: BinaryIO, text_field: str) -> Iterator[tuple[str, int]]:
    """(clean text, replacements) of field `text_field` of every line that is not blank.

    Raises `UserError` with the line's number for a line that is no JSON object, lacks the text or is longer
    than `MAX_ROW`.
    """
    number = 0
    while line := file.readline(MAX_ROW + 1):
        number += 1
        if len(line) > MAX_ROW:
            raise UserError(
                f"'{where}', line {number}: longer than {MAX_ROW >> 20} MiB, and a row is held whole: "
                "put such a text into a file of its own"
            )
        line = line.removeprefix(_UTF8_MARK) if number == 1 else line
        if line.strip():
            yield _json_row(f"'{where}', line {number}", line, text_field)


def _json_row(where: str, line: bytes, text_field: str) -> tuple[str, int]:
    # A NUL here is left to the JSON reader, which refuses it; only the encoding is mended.
    source = line.decode("utf-8", "replace")
    invalid = 0 if _REPLACEMENT not in source else source.count(_REPLACEMENT) - line.count(_REPLACEMENT_BYTES)
    try:
        row: Any = json.loads(source)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({getattr(error, 'msg', 'nested too deeply')})") from None
    if not isinstance(row, dict):
        raise UserError(
            f'{where}: expected an object such as {{"{text_field}": "..."}}, found {type(row).__name__}'
        )
    if text_field not in row:
        raise UserError(
            f"{where}: no field '{text_field}' (data.text_field): "
            f"{nearest(text_field, row) if row else 'it is empty'}"
        )
    value = row[text_field]
    if not isinstance(value, str):
        raise UserError(f"{where}: field '{text_field}' is {type(value).__name__}, not text")
    text, unwanted = clean_text(value)
    return text, invalid + unwanted
