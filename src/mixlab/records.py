"""Reading what a file says: JSON as a value of a known shape, or one sentence on what is wrong with it."""

from __future__ import annotations

import codecs
import json
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from mixlab.errors import UserError

T = TypeVar("T")

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

DIGITS = 300
"""Most digits of a whole number: a float takes 308, and no counter comes near."""

DEPTH = 100
"""Deepest nesting of lists and tables: far above any of ours, far below what Python's own functions bear."""


def parse_json(text: str | bytes) -> Any:
    """The value that JSON text says, of bytes in any UTF; ValueError for all that cannot be read."""
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text))
    try:
        value = json.loads(text.removeprefix("\ufeff"), parse_int=_whole_number)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"its values nest deeper than {DEPTH}") from None
    if text.count("[") + text.count("{") > DEPTH and _is_deep(value):
        raise ValueError(f"its values nest deeper than {DEPTH}")
    return value


def _whole_number(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"it has a number of {len(digits):,} digits")
    return int(digits)


def _is_deep(value: Any) -> bool:
    """Whether lists and tables nest deeper than DEPTH."""
    level = [value]
    for _ in range(DEPTH):
        level = (
            [
                inner
                for outer in level
                for inner in (outer.values() if isinstance(outer, dict) else outer)
                if isinstance(inner, dict | list)
            ]
            if all(isinstance(outer, dict | list) for outer in level)
            else []
        )
        if not level:
            return False
    return True


def parse_toml(text: str | bytes) -> dict[str, Any]:
    """The tables of a TOML text, of bytes in UTF-8 or, with a byte-order mark, in UTF-16; ValueError for all
    that cannot be read: TOMLDecodeError for what is not TOML."""
    if isinstance(text, bytes):
        text = text.decode("utf-16" if text.startswith(UTF16_MARKS) else "utf-8-sig")
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # of all that it says only this is Python's own
        raise ValueError("it has a number of more than 4,300 digits") from None
    except RecursionError:
        raise ValueError("its values nest deeper than any key does") from None


def checked(value: Any, shape: type[T]) -> T:
    """`value` itself if it is of the type `shape` (a TypedDict, which may have more keys; `dict[str, int]`);
    ValueError says where it is not. Nothing is converted."""
    from pydantic import ValidationError

    try:
        _adapter(cast(Any, shape)).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
    return value  # type: ignore[no-any-return]


@cache
def _adapter(shape: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def read_json(path: Path, shape: type[T]) -> T:
    """The value of a JSON file, of the type `shape`; UserError if the file is missing or not that."""
    try:
        return checked(parse_json(path.read_bytes()), shape)
    except (OSError, ValueError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise UserError(f"{path} is missing or damaged ({reason})") from None
