"""Arguments and options that several verbs share, and how their values are read."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from mixlab.errors import UserError

SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


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


def import_parts(modules: list[str] | None) -> list[str] | None:
    """Import each module (`my_package.my_part`) or file (`my_part.py`), so that its parts register.

    The current folder is searched too. Raises UserError when there is no such module or file; an error inside
    it is its author's to see, traceback and all.
    """
    for name in modules or ():
        if name.endswith(".py"):
            _import_file(Path(name))
            continue
        if "" not in sys.path:
            sys.path.append("")  # last: a file here must not shadow an installed package
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if name != missing and not name.startswith(f"{missing}."):
                raise
            raise UserError(
                f"--import {name}: there is no module '{missing}' here or among the installed packages"
            ) from None
    return modules


def _import_file(path: Path) -> None:
    """Import a file under its own name; a second import of the same file finds it there."""
    from importlib.util import module_from_spec, spec_from_file_location

    if path.stem in sys.modules:
        return
    spec = spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"--import {path}: no such file")
    module = module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise


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
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a checkpoint folder in it.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a config key, such as train.optimizer.lr=3e-4."),
]
