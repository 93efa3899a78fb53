"""Texts from .parquet files and `datasets` folders, through the libraries of the `data` extra."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mixlab.errors import UserError, nearest

ROWS = 1024
"""Rows that are decoded at a time."""

Batch = tuple[list[str], int]
"""Some rows' texts, and how many bytes of the source are behind them."""


def is_rows(path: Path) -> bool:
    """Whether `path` is a source of these kinds: a parquet file, or a folder (of `datasets`)."""
    return path.name.lower().endswith(".parquet") or path.is_dir()


def read_column(path: Path, text_field: str) -> Iterator[Batch]:
    """The strings of column `text_field` in order, null as "", some rows at a time.

    Raises `UserError` when the library, the column or the file is at fault.
    """
    try:
        yield from _read_parquet(path, text_field) if path.is_file() else _read_dataset(path, text_field)
    except ImportError as error:
        raise UserError(
            f"reading '{path}' needs the package '{error.name}': pip install 'mixlab[data]'"
        ) from None


def _read_parquet(path: Path, text_field: str) -> Iterator[Batch]:
    import pyarrow
    import pyarrow.parquet

    size, done = path.stat().st_size, 0
    try:
        # Neither read ahead nor mapped: what is held is a page of the one column, not a row group.
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            _check_column(path, text_field, file.schema_arrow.names)
            total = max(1, file.metadata.num_rows)
            for batch in file.iter_batches(ROWS, columns=[text_field]):
                texts = _strings(path, text_field, batch.column(0).to_pylist(), done)
                done += len(texts)
                yield texts, size * done // total
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"'{path}' is not a readable parquet file: {error}") from None


def _read_dataset(path: Path, text_field: str) -> Iterator[Batch]:
    import datasets

    try:
        loaded: Any = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' is not a readable datasets folder: {error}") from None
    for part in loaded.values() if isinstance(loaded, dict) else [loaded]:
        _check_column(path, text_field, part.column_names)
        yield _strings(path, text_field, part[text_field], 0), 0


def _check_column(path: Path, text_field: str, names: Iterable[str]) -> None:
    if text_field not in names:
        raise UserError(f"'{path}' has no column '{text_field}': {nearest(text_field, names)}")


def _strings(path: Path, text_field: str, values: Iterable[Any], before: int) -> list[str]:
    texts = []
    for row, value in enumerate(values, before):
        if value is not None and not isinstance(value, str):
            raise UserError(f"'{path}', row {row}: '{text_field}' is {type(value).__name__}, not text")
        texts.append(value or "")
    return texts
