"""Texts from .parquet files and `datasets` folders, through the libraries of the `data` extra."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mixlab.data.formats import clean_text, decode_text
from mixlab.data.sources import is_dataset_folder
from mixlab.errors import UserError, nearest

ROWS = 1024
"""Rows that are decoded at a time."""

Batch = tuple[list[tuple[str, int]], int]
"""(clean text, replacements) of some rows, and how many bytes of the source are behind them."""


def is_rows(path: Path) -> bool:
    """Whether `path` is a source of these kinds: a parquet file, or a folder (of `datasets`)."""
    return path.name.lower().endswith(".parquet") or path.is_dir()


def read_column(path: Path, text_field: str) -> Iterator[Batch]:
    """The strings of column `text_field` in order, null as "", some rows at a time.

    Raises `UserError` when the library, the column or the file is at fault.
    """
    read = _read_dataset if is_dataset_folder(path) else _read_parquet
    try:
        yield from read(path, text_field)
    except ImportError as error:
        raise UserError(
            f"reading '{path}' needs the package '{error.name}': pip install 'mixlab[data]'"
        ) from None


def _read_parquet(path: Path, text_field: str) -> Iterator[Batch]:
    import pyarrow
    import pyarrow.parquet

    try:
        size, done = path.stat().st_size, 0
        # Neither read ahead nor mapped: what is held is a page of the one column, not a row group.
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            _check_column(path, text_field, file.schema_arrow.names)
            total = max(1, file.metadata.num_rows)
            for batch in file.iter_batches(ROWS, columns=[text_field]):
                texts = _texts(path, text_field, batch.column(0), done)
                done += len(texts)
                yield texts, size * done // total
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"'{path}' is not a readable parquet file: {_first_line(error)}") from None


def _read_dataset(path: Path, text_field: str) -> Iterator[Batch]:
    import datasets
    import pyarrow

    try:
        loaded: Any = datasets.load_from_disk(str(path))
        behind = 0
        for part in loaded.values() if isinstance(loaded, dict) else [loaded]:
            _check_column(path, text_field, part.column_names)
            done = 0
            for file in map(Path, (file["filename"] for file in part.cache_files)):
                # By hand, not through the library's memory map, whose pages would add up to the whole.
                with pyarrow.OSFile(str(file)) as source, pyarrow.ipc.open_stream(source) as reader:
                    for batch in reader:
                        column = batch.column(batch.schema.get_field_index(text_field))
                        for start in range(0, len(column), ROWS):
                            texts = _texts(path, text_field, column.slice(start, ROWS), done)
                            done += len(texts)
                            yield texts, behind
                behind += file.stat().st_size
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"'{path}' is not a readable datasets folder: {_first_line(error)}") from None


def _check_column(path: Path, text_field: str, names: Iterable[str]) -> None:
    if text_field not in names:
        raise UserError(
            f"'{path}' has no column '{text_field}' (data.text_field): {nearest(text_field, names)}"
        )


def _texts(path: Path, text_field: str, column: Any, before: int) -> list[tuple[str, int]]:
    """(clean text, replacements) of an array of strings; `before`: rows in front of it."""
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:  # a writer that did not check what it wrote
        import pyarrow

        values = column.cast(pyarrow.large_binary()).to_pylist()
        return [decode_text(value) if value else ("", 0) for value in values]
    for row, value in enumerate(values, before):
        if value is not None and not isinstance(value, str):
            raise UserError(f"'{path}', row {row}: '{text_field}' is {type(value).__name__}, not text")
    return [clean_text(value or "") for value in values]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
