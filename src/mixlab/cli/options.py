"""Arguments and options that several verbs share, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixlab.errors import UserError

SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12, "p": 10**15}


def count(text: str, what: str) -> int:
    """A whole number as people write it: "2M", "500k", "1e6", "1_000_000"; UserError names `what`."""
    cleaned = text.strip().lower().replace("_", "").replace(",", "")
    suffix = cleaned[-1:] if cleaned[-1:] in SUFFIXES else ""
    try:
        value = float(cleaned.removesuffix(suffix)) * SUFFIXES[suffix]
        if value < 1 or value != int(value):
            raise ValueError
    except (ValueError, OverflowError):
        raise UserError(
            f"{what}: '{text}' is not a whole number of 1 or more, such as 500k, 2M or 1000000"
        ) from None
    return int(value)


def numbers(text: str, what: str) -> list[float]:
    """Numbers with commas between: "3,1"; UserError names `what`."""
    try:
        return [float(item) for item in text.split(",")]
    except ValueError:
        raise UserError(f"{what}: '{text}' is no list of numbers, such as 3,1") from None


def import_parts(modules: list[str] | None) -> list[str] | None:
    """The callback of `--import`: see `mixlab.imports.import_parts`."""
    from mixlab import imports

    imports.import_parts(modules or ())
    return modules


Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        callback=import_parts,
        help="Import a module or a .py file first, so that the parts it registers can be used.",
    ),
]
Text = Annotated[
    list[str] | None,
    typer.Argument(metavar="TEXT", help="Files, folders, globs, '-' or corpus:python (the default)."),
]
Encoding = Annotated[
    str | None,
    typer.Option(help="Encoding of texts that are not UTF-8, such as cp1251 or gb18030.", metavar="NAME"),
]
Valid = Annotated[
    list[str] | None,
    typer.Option(help="Validate on this text, and keep nothing of TEXT aside; repeatable.", metavar="FILE"),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a checkpoint folder in it.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a config key, such as train.optimizer.lr=3e-4."),
]
