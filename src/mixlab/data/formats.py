"""From bytes to text, a block at a time: encodings, gzip and JSON lines, and a sentence for broken bytes."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mixlab.data.charsets import DEFAULT, WIDE, marked, plain_name
from mixlab.errors import UserError, nearest

BLOCK = 1 << 19
"""Bytes read at a time; no line inside one is longer than what counts as a long line."""

MAX_ROW = 1 << 28
"""Bytes of the longest JSON line: a row is decoded whole, at about four times its size."""

_STATELESS: dict[str, Callable[..., tuple[str, int]]] = {
    "utf-8": codecs.utf_8_decode,
    "utf-16-le": codecs.utf_16_le_decode,
    "utf-16-be": codecs.utf_16_be_decode,
    "utf-32-le": codecs.utf_32_le_decode,
    "utf-32-be": codecs.utf_32_be_decode,
}
_UNITS = {"utf-16-le": "<u2", "utf-16-be": ">u2", "utf-32-le": "<u4", "utf-32-be": ">u4"}
_UNWANTED = re.compile("[\0\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
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

    In `encoding`, unless a byte-order mark says UTF-8, UTF-16 or UTF-32; the mark is dropped. Invalid
    sequences become U+FFFD, as do NULs; `invalid` and `replaced` (with the NULs) count them. size: bytes so
    far. sound: bytes of the other characters beyond ASCII in UTF-8, less one each. also_utf8: whether a text
    in another encoding is, so far, UTF-8 beyond ASCII too.
    """

    def __init__(self, encoding: str = DEFAULT) -> None:
        self.invalid = self.replaced = self.size = self.sound = 0
        self._encoding, self._rest, self._begun = plain_name(encoding), b"", False
        self._decode: Callable[..., tuple[str, int]] = codecs.utf_8_decode
        self._utf8: codecs.IncrementalDecoder | None = None
        self._beyond_ascii = False

    @property
    def also_utf8(self) -> bool:
        """Whether a text in another encoding is, so far, UTF-8 beyond ASCII too."""
        return self._utf8 is not None and self._beyond_ascii

    def __call__(self, block: bytes, *, final: bool) -> tuple[str, bytes]:
        """The text that is whole with `block`, and its UTF-8; the first block has at least 4 bytes, unless it
        is the only one."""
        self.size += len(block)
        if not self._begun:
            block = self._begin(block)
        if self._utf8 is not None:
            self._try_utf8(block, final)
        block = self._rest + block if self._rest else block
        text, used = self._decode(block, "replace", final)
        self._rest, raw = block[used:], block[:used] if used < len(block) else block
        is_utf8 = self._encoding == DEFAULT
        if _REPLACEMENT not in text and "\0" not in text:
            utf8 = raw if is_utf8 else text.encode("utf-8", "replace")
            self.sound += len(utf8) - len(text)
            return text, utf8
        invalid, nuls = text.count(_REPLACEMENT) - self._genuine(raw), text.count("\0")
        self.invalid, self.replaced = self.invalid + invalid, self.replaced + invalid + nuls
        text = text.replace("\0", _REPLACEMENT)
        utf8 = text.encode("utf-8", "replace")
        self.sound += len(utf8) - len(text) - (len(_REPLACEMENT_BYTES) - 1) * text.count(_REPLACEMENT)
        return text, utf8

    def _begin(self, block: bytes) -> bytes:
        """Settle the encoding; the block without a mark."""
        self._begun = True
        mark, named = marked(block)
        self._encoding = named or self._encoding
        if self._encoding in _STATELESS:
            self._decode = _STATELESS[self._encoding]
        else:
            whole = codecs.getincrementaldecoder(self._encoding)("replace")
            # UTF-7 and escapes can spell surrogates.
            self._decode = lambda data, errors, final: (_encodable(whole.decode(data, final)), len(data))
            self._utf8 = codecs.getincrementaldecoder(DEFAULT)()
        return block[len(mark) :]

    def _try_utf8(self, block: bytes, final: bool) -> None:
        assert self._utf8 is not None
        self._beyond_ascii = self._beyond_ascii or not block.isascii()
        try:
            self._utf8.decode(block, final)
        except UnicodeDecodeError:
            self._utf8 = None

    def _genuine(self, raw: bytes) -> int:
        """How many U+FFFD stand in the bytes themselves."""
        if self._encoding == DEFAULT:
            return raw.count(_REPLACEMENT_BYTES)
        unit = _UNITS.get(self._encoding)
        if unit is None:
            return 0
        whole = len(raw) // np.dtype(unit).itemsize * np.dtype(unit).itemsize
        return int(np.count_nonzero(np.frombuffer(raw[:whole], unit) == ord(_REPLACEMENT)))


class Recoded(io.RawIOBase):
    """A file in any encoding, read as UTF-8 through `decoder`."""

    def __init__(self, file: BinaryIO, decoder: Decoder) -> None:
        self._file, self._decoder = file, decoder
        self._rest, self._ended = memoryview(b""), False

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes into `buffer`; how many."""
        while not self._rest and not self._ended:
            block = self._file.read(BLOCK)
            self._ended = not block
            self._rest = memoryview(self._decoder(block, final=self._ended)[1])
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def decode_text(data: bytes) -> tuple[str, int]:
    """`data` as clean text, and how many characters of it are replacements: see `Decoder`."""
    decoder = Decoder()
    return decoder(data, final=True)[0], decoder.replaced


def clean_text(text: str) -> tuple[str, int]:
    """`text` with NULs and lone surrogates as U+FFFD, and how many."""
    if "\0" not in text and is_encodable(text):
        return text, 0
    return _UNWANTED.subn(_REPLACEMENT, text)


def _encodable(text: str) -> str:
    return text if is_encodable(text) else _SURROGATE.sub(_REPLACEMENT, text)


def is_encodable(text: str) -> bool:
    """Whether `text` is free of lone surrogates, the only characters that UTF-8 cannot write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def looks_binary(data: bytes, encoding: str = DEFAULT, probe: int = 8192) -> bool:
    """Whether there is a NUL in the first `probe` bytes (git's test and number) of what is in no encoding
    that has them."""
    wide = (marked(data)[1] or plain_name(encoding)) in WIDE
    return not wide and b"\0" in data[:probe]


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
    """(clean text, replacements) of field `text_field` of every line that is not blank, null as "".

    `file` is whole UTF-8, see `Recoded`. Raises `UserError` with the line's number for a line that is no JSON
    object, lacks the text or is longer than `MAX_ROW`.
    """
    number = 0
    while line := file.readline(MAX_ROW + 1):
        number += 1
        if len(line) > MAX_ROW:
            raise UserError(
                f"'{where}', line {number}: longer than {MAX_ROW >> 20} MiB, and a row is held whole: "
                "put such a text into a file of its own"
            )
        line = line.removeprefix(codecs.BOM_UTF8)  # of a file that was joined to the one before
        if line.strip():
            yield _json_row(f"'{where}', line {number}", line, text_field)


# What a number is does not matter, and Python refuses to read one of more than 4300 digits.
_JSON = json.JSONDecoder(parse_int=lambda digits: 0)


def _json_row(where: str, line: bytes, text_field: str) -> tuple[str, int]:
    try:
        row: Any = _JSON.decode(line.decode())
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
    if value is None:
        return "", 0
    if not isinstance(value, str):
        raise UserError(f"{where}: field '{text_field}' is {type(value).__name__}, not text")
    return clean_text(value)
