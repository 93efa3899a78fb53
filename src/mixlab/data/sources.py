"""From what a person typed to the files it names: paths, folders and globs."""

from __future__ import annotations

import difflib
import errno
import glob
import os
import re
import stat
from pathlib import Path

from mixlab.data.own_output import OwnOutput
from mixlab.errors import UserError

# Marks of a folder written by `datasets.Dataset.save_to_disk`: it is one source, not a folder of texts.
DATASET_MARKS = (("dataset_dict.json",), ("dataset_info.json", "state.json"))

# What lies beside the .parquet files of a dataset and is no text of it.
BESIDE_PARQUET = ("README.md", "dataset_infos.json", "dataset_info.json")

DESCRIPTORS = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
"""Beginnings of paths of files that a process was given open, as by `<(...)` of a shell."""


def spelled(source: str) -> str:
    """A path that any file can hold: bytes of a name that are not UTF-8 as `\\xff`."""
    try:
        source.encode()
    except UnicodeEncodeError:
        return os.fsencode(source).decode("utf-8", "backslashreplace")
    return source


def as_path(source: str) -> Path:
    """The path that a source names, `spelled` or not, with `~` for the home folder."""
    path = Path(source).expanduser()
    if "\\x" not in source or path.exists():
        return path
    name = re.sub(rb"\\x([89a-f][0-9a-f])", lambda m: bytes.fromhex(m[1].decode()), os.fsencode(path))
    return Path(os.fsdecode(name))


def find_files(source: str, own: OwnOutput | None = None) -> list[Path]:
    """The files that `source` names, in sorted order.

    A folder gives every file below it except hidden ones (a leading dot), `__pycache__` and what mixlab wrote
    (runs, comparisons, reports, its cache), which `own` remembers; a folder saved by the `datasets` library
    stands for itself; a pattern with `*`, `?` or `[` gives what it matches (`**` crosses folders). Raises
    `UserError` when nothing is there, naming the nearest name that exists, and for output of mixlab that is
    named by itself.
    """
    own = own or OwnOutput()
    try:
        path = as_path(source)
        if path.exists():
            _check_kind(path)
            return _below(path, own, named=True)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        shown = source if len(source) <= 60 else source[:60] + "..."
        raise UserError(f"'{shown}' cannot be opened as a path: {reason}") from None
    if glob.has_magic(source):
        return _matching(str(path), own)
    raise missing_path(path)


def _check_kind(path: Path) -> None:
    """UserError for what has no text in it or no end."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISFIFO(mode)):
        kind = "socket" if stat.S_ISSOCK(mode) else "device"
        raise UserError(f"'{path}' is a {kind}, not a text: name a file, a folder or a pipe")


def is_dataset_folder(path: Path) -> bool:
    """Whether `path` is a folder written by the `datasets` library."""
    return any(all((path / name).is_file() for name in names) for names in DATASET_MARKS)


def resolved(path: Path, folders: dict[str, str]) -> str:
    """Where `path` really is; `folders` keeps what is known of folders, whose links are followed once."""
    text, parent = str(path), str(path.parent)
    if os.path.islink(text):  # noqa: PTH114 - a hundred thousand files take half the time so
        return os.path.realpath(text)
    if parent not in folders:
        folders[parent] = os.path.realpath(parent)
    return os.path.join(folders[parent], path.name)  # noqa: PTH118


def missing_path(path: Path) -> UserError:
    """The error for a path that does not exist: where it breaks off and the nearest name there."""
    if str(path).startswith(DESCRIPTORS):
        number = path.name
        return UserError(
            f"'{path}' was open for an earlier command only: give this one the same text again, "
            f"as in {number}<FILE"
        )
    if path.is_symlink():
        return UserError(
            f"'{path}' is a link to '{path.readlink()}', which {_why_dead(path)}: name the text itself"
        )
    parent, child = path.parent, path
    while not parent.exists() and parent != parent.parent:
        parent, child = parent.parent, parent
    try:
        names = [entry.name for entry in parent.iterdir()]
    except OSError:
        names = []
    close = difflib.get_close_matches(child.name, names, n=1, cutoff=0.5)
    # A file of the same stem under another ending is what people most often mean.
    close = close or [n for n in sorted(names) if Path(n).stem == child.stem][:1]
    where = "" if child == path else f": there is no '{child}'"
    hint = f" (did you mean '{parent / close[0]}'?)" if close else ""
    return UserError(f"no file or folder '{path}'{where}{hint}")


def _why_dead(link: Path) -> str:
    try:
        link.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "leads back to it"
    return "does not exist"


def _matching(pattern: str, own: OwnOutput) -> list[Path]:
    """The files that a pattern matches, sorted by path."""
    found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - patterns may be absolute
    matches = [path for path in map(Path, found) if "__pycache__" not in path.parts]
    depth = next((n for n, part in enumerate(Path(pattern).parts) if glob.has_magic(part)), 0)
    matches = [path for path in matches if not _is_output(path, own, depth)]
    # A folder matched by `**` is listed beside its own files; only a pattern that matches nothing but
    # folders means the folders themselves.
    files = [path for path in matches if path.is_file()]
    files = files or [file for path in matches for file in _below(path, own)]
    if not files:
        but = f" but what mixlab wrote: {own.counted()}" if own.left_out else ""
        raise UserError(f"no file matches '{pattern}'{but}")
    return files


def _is_output(path: Path, own: OwnOutput, depth: int) -> bool:
    """Whether `path`, or a folder that it is in and that has more than `depth` parts, is mixlab's output."""
    parents = [folder for folder in reversed(path.parents) if len(folder.parts) > depth]
    folders = [*parents, *([path] if path.is_dir() else [])]
    return any(own.leave_out(folder, own.folder(folder)) for folder in folders) or own.leave_out(
        path, own.file(path)
    )


def _below(path: Path, own: OwnOutput, *, named: bool = False) -> list[Path]:
    """`path` itself when it is one source, else the visible files below it, sorted by path; `named`: it is
    what a person typed."""
    is_folder = path.is_dir()
    kind = own.folder(path) if is_folder else own.file(path)
    if named and kind:
        raise UserError(f"'{path}' is a {kind} that mixlab wrote, not a text: name the text itself")
    if own.leave_out(path, kind):
        return []
    if not is_folder or is_dataset_folder(path):
        return [path]
    found: list[Path] = []
    for folder, folders, files in os.walk(path):
        here = Path(folder)
        kept = sorted(d for d in folders if not d.startswith(".") and d != "__pycache__")
        found.extend(here / d for d in kept if is_dataset_folder(here / d))
        kept = [d for d in kept if not is_dataset_folder(here / d)]
        folders[:] = [d for d in kept if not own.leave_out(here / d, own.folder(here / d))]
        seen = [here / f for f in sorted(files) if not f.startswith(".") and (here / f).is_file()]
        found.extend(file for file in seen if not own.leave_out(file, own.file(file)))
    if any(file.suffix.lower() == ".parquet" for file in found):
        found = [file for file in found if file.name not in BESIDE_PARQUET]
    if not found:
        but = f" but what mixlab wrote: {own.counted()}" if own.left_out else " (hidden ones are left out)"
        raise UserError(f"the folder '{path}' holds no files{but}")
    return sorted(found, key=lambda file: file.parts)
