"""The corpus every machine carries: the source of the running interpreter's own standard library."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from pathlib import Path

from mixlab.errors import UserError

# Tests (repetitive), installed packages (not the standard library), build folders, and generated text that is
# data rather than writing: character tables (encodings), installer schemas (msilib), the escaped manual
# (pydoc_data). tkinter, idlelib, turtledemo, lib2to3, distutils, ensurepip and venv are left out because
# distributions ship them separately or not at all, and the same Python should give the same text wherever it
# was built.
_TESTS = ("test", "tests", "idle_test")
_NOT_SOURCE = ("__pycache__", "site-packages", "dist-packages", "lib-dynload", "__phello__")
_TABLES = ("encodings", "msilib", "pydoc_data")
_OPTIONAL = ("tkinter", "idlelib", "turtledemo", "lib2to3", "distutils", "ensurepip", "venv")
LEFT_OUT_FOLDERS = frozenset((*_TESTS, *_NOT_SOURCE, *_TABLES, *_OPTIONAL))
LEFT_OUT_FILES = frozenset(
    ["html/entities.py", "stringprep.py", "sitecustomize.py", "usercustomize.py", "turtle.py"]
)


def stdlib_folder() -> Path:
    """Where the running interpreter keeps its standard library."""
    return Path(sysconfig.get_path("stdlib"))


def stdlib_files(root: Path) -> list[tuple[str, int]]:
    """(path below `root` with forward slashes, bytes) of every source file in use, sorted by path."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [d for d in folders if d not in LEFT_OUT_FOLDERS and not d.startswith(("config-", "."))]
        for name in files:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            # _sysconfigdata_* is written by the build and differs from machine to machine.
            if (
                name.endswith(".py")
                and not name.startswith("_sysconfigdata")
                and relative not in LEFT_OUT_FILES
            ):
                found.append((relative, path.stat().st_size))
    return sorted(found)


def choose(files: list[tuple[str, int]], max_bytes: int) -> list[str]:
    """Whole files in the order of their path's hash, each taken if it still fits in `max_bytes`; sorted by
    path.

    The hash is of the path, not of the content, so that two releases of Python give nearly the same
    selection.
    """
    chosen, total = [], 0
    for name, size in sorted(files, key=lambda file: hashlib.sha256(file[0].encode()).digest()):
        if total + size <= max_bytes:
            chosen.append(name)
            total += size
    return sorted(chosen)


def read_stdlib(max_bytes: int) -> list[tuple[str, bytes]]:
    """(name, content) of the slice of at most `max_bytes` bytes; `UserError` where there is no source or no
    room."""
    root = stdlib_folder()
    files = stdlib_files(root) if root.is_dir() else []
    if not files:
        raise UserError(
            f"this Python carries no source of its standard library in '{root}': give a text of your own"
        )
    chosen = choose(files, max_bytes)
    if not any((root / name).stat().st_size for name in chosen):
        raise UserError(
            f"max_bytes is {max_bytes}, less than any file of corpus:python: 4000000 is the default"
        )
    return [(name, (root / name).read_bytes()) for name in chosen]
