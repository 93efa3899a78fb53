"""From bytes to text: encodings, gzip and JSON lines, each with its sentence when the bytes are broken."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from mixlab.errors import UserError, nearest

_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_UNWANTED = re.compile("[\0\ud800-\udfff]")
_REPLACEMENT = "\ufffd"


def clean_text(text: str) -> tuple[str, int]:
    """`text` with NUL (it means the end of a document) and lone surrogates (no UTF-8) as U+FFFD, and how
    many."""
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


def decode_text(data: bytes) -> tuple[str, int]:
    """`data` as clean text, and how many characters of it are replacements.

    UTF-8 unless a byte-order mark says UTF-16; the mark is dropped. Invalid sequences become U+FFFD, as do
    NULs.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text, invalid = data.decode(encoding), 0
    except UnicodeDecodeError:
        text = data.decode(encoding, "replace")
        genuine = data.count(_REPLACEMENT.encode("utf-8" if encoding.startswith("utf-8") else "utf-16-le"))
        invalid = max(1, text.count(_REPLACEMENT) - genuine)
    text, unwanted = clean_text(text)
    return text, invalid + unwanted


def looks_binary(data: bytes, probe: int = 8192) -> bool:
    """Whether there is a NUL in the first `probe` bytes (git's test and number) of what is not UTF-16."""
    return b"\0" in data[:probe] and not data.startswith((b"\xff\xfe", b"\xfe\xff"))


def longest_line(data: bytes) -> int:
    """Bytes in the longest line of `data`."""
    ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n"))
    return int(np.diff(ends, prepend=-1, append=len(data)).max()) - 1


def gunzip(where: str, data: bytes) -> bytes:
    """The content of a gzip file; `UserError` naming `where` when it is broken or cut off."""
    try:
        return gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"'{where}' is not a whole gzip file: {error}") from None


def json_rows(where: str, data: bytes, text_field: str) -> Iterator[tuple[str, int]]:
    """(clean text, replacements) of field `text_field` of every line that is not blank.

    Raises `UserError` with the line's number for a line that is no JSON object or lacks the text.
    """
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield _json_row(f"'{where}', line {number}", line, text_field)


def _json_row(where: str, line: bytes, text_field: str) -> tuple[str, int]:
    # A NUL here is left to the JSON reader, which refuses it; only the encoding is mended.
    source = line.decode("utf-8", "replace")
    invalid = (
        0 if _REPLACEMENT not in source else source.count(_REPLACEMENT) - line.count(_REPLACEMENT.encode())
    )
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
            f"{where}: no field '{text_field}': {nearest(text_field, row) if row else 'it is empty'}"
        )
    value = row[text_field]
    if not isinstance(value, str):
        raise UserError(f"{where}: field '{text_field}' is {type(value).__name__}, not text")
    text, unwanted = clean_text(value)
    return text, invalid + unwanted
