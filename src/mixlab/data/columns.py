"""Texts from .parquet files and `datasets` folders, through the libraries of the `data` extra."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mixlab.errors import UserError, nearest


def read_column(path: Path, text_field: str) -> list[str]:
    """The strings of column `text_field`, in order; `UserError` when the library, the column or the file is
    at fault."""
    try:
        return _read_parquet(path, text_field) if path.is_file() else _read_dataset(path, text_field)
    except ImportError as error:
        raise UserError(
            f"reading '{path}' needs the package '{error.name}': pip install 'mixlab[data]'"
        ) from None


def _read_parquet(path: Path, text_field: str) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names
        _check_column(path, text_field, names)
        table = pyarrow.parquet.read_table(path, columns=[text_field])
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"'{path}' is not a readable parquet file: {error}") from None
    return _strings(path, text_field, table.column(text_field).to_pylist())


def _read_dataset(path: Path, text_field: str) -> list[str]:
    import datasets

    try:
        loaded: Any = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' is not a readable datasets folder: {error}") from None
    texts: list[str] = []
    for part in loaded.values() if isinstance(loaded, dict) else [loaded]:
        _check_column(path, text_field, part.column_names)
        texts += _strings(path, text_field, part[text_field])
    return texts


def _check_column(path: Path, text_field: str, names: Iterable[str]) -> None:
    if text_field not in names:
        raise UserError(f"'{path}' has no column '{text_field}': {nearest(text_field, names)}")


def _strings(path: Path, text_field: str, values: Iterable[Any]) -> list[str]:
    texts = []
    for row, value in enumerate(values):
        if value is not None and not isinstance(value, str):
            raise UserError(f"'{path}', row {row}: '{text_field}' is {type(value).__name__}, not text")
        texts.append(value or "")
    return texts
