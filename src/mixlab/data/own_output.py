"""What mixlab itself wrote, told by what is in it: no text to learn from, and it grows while one learns."""

from __future__ import annotations

import os
from pathlib import Path

from mixlab.data.tokens import default_cache_dir

RUN, COMPARISON, REPORT, CACHE = "run folder", "comparison folder", "report", "cache folder"

# Every run has these from its start; the list leaves out its config, which comes last.
RUN_FILES = ("tokenizer.json", "data.json", "environment.json")
COMPARISON_FILE, COMPARISON_MARK = "plan.json", b'"format": "mixlab-comparison'
REPORT_ENDINGS, REPORT_MARK = (".html", ".htm"), b'<meta name="generator" content="mixlab'

COMPARISON_TEXTS = ".mixlab-comparison"
"""A file in the folder of texts that a comparison keeps, which is there before its plan is."""

_HEAD = 512
"""Bytes from the start of a file among which its mark is."""


class OwnOutput:
    """Tells mixlab's own output from texts, and keeps what was `left_out`: kind -> paths."""

    def __init__(self) -> None:
        self.left_out: dict[str, dict[str, None]] = {}
        self._cache = os.path.realpath(default_cache_dir())
        self._folders: dict[str, str] = {}

    def leave_out(self, path: Path, kind: str) -> bool:
        """Whether `path` is of a `kind` of output (of none where that is ""); it is then remembered."""
        if kind:
            self.left_out.setdefault(kind, {})[str(path)] = None
        return bool(kind)

    def folder(self, path: Path) -> str:
        """The kind of output that a folder is, or ""."""
        name = str(path)
        if name not in self._folders:
            self._folders[name] = self._kind(path)
        return self._folders[name]

    def file(self, path: Path) -> str:
        """The kind of output that a file is, or ""."""
        is_page = path.name.lower().endswith(REPORT_ENDINGS)
        return REPORT if is_page and REPORT_MARK in _head(path) else ""

    def note(self) -> str:
        """One sentence that counts and names what was left out, or ""."""
        if not self.left_out:
            return ""
        return f"left out what mixlab wrote: {self.counted()}"

    def counted(self) -> str:
        """How many of each kind were left out, and the first by name."""
        each = []
        for kind, paths in self.left_out.items():
            others = " and others" if len(paths) > 1 else ""
            each.append(f"{len(paths)} {kind}{'s'[: len(paths) != 1]} ('{next(iter(paths))}'{others})")
        return ", ".join(each)

    def _kind(self, path: Path) -> str:
        if all((path / name).is_file() for name in RUN_FILES):
            return RUN
        if (path / COMPARISON_TEXTS).is_file() or COMPARISON_MARK in _head(path / COMPARISON_FILE):
            return COMPARISON
        return CACHE if os.path.realpath(path) == self._cache else ""


def _head(path: Path) -> bytes:
    """The first bytes of a file; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError:
        return b""
