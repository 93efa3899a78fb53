"""A comparison's folder: what is where, whose comparison it is, which results are finished."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NotRequired

from annotated_types import Ge, Lt
from typing_extensions import TypedDict

from mixlab.compare.plan import Entry, Plan
from mixlab.compare.worker import RESULT
from mixlab.config import parse, to_mapping
from mixlab.data.config import DataConfig
from mixlab.data.own_output import COMPARISON_TEXTS
from mixlab.data.streams import STDIN, is_stream, opened
from mixlab.errors import UserError
from mixlab.records import read_json
from mixlab.train.config import RunConfig
from mixlab.train.files import disk_errors, hold, write_text
from mixlab.train.folder import MACHINE, differences
from mixlab.train.metrics import strict

FORMAT = "mixlab-comparison-1"
SHOWN = 5
"""Differing keys that a message names."""

BLOCK = 1 << 20
"""Bytes of standard input that are held at a time."""


class Budget(TypedDict):
    """What is read of a plan's budget."""

    steps: Annotated[int, Ge(1), Lt(2**63)]
    minutes: NotRequired[float]


class SavedPlan(TypedDict):
    """What is read of plan.json."""

    format: str
    budget: Budget
    runs: dict[str, dict[str, Any]]


class Result(TypedDict):
    """What is read of a result.json, but for the report."""

    model: str
    seed: int
    status: str
    reason: str
    parameters: int
    bits_per_byte: float | None
    tokens: int
    tokens_per_second: float | None
    seconds: float
    flops_per_token: int
    decode_ms_per_token: float | None
    state_bytes: int
    peak_memory_bytes: int
    config: dict[str, Any]


@dataclass(frozen=True)
class ComparisonFolder:
    """The paths of one comparison."""

    path: Path

    @property
    def plan(self) -> Path:
        """What was begun here."""
        return self.path / "plan.json"

    @property
    def comparison(self) -> Path:
        """The results so far."""
        return self.path / "comparison.json"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    def run(self, entry: Entry) -> Path:
        """The folder of one run."""
        return self.path / "runs" / entry.label

    def log(self, entry: Entry) -> Path:
        """What one run's process said on stderr."""
        return self.path / "runs" / f"{entry.label}.log"

    def check_usable(self) -> None:
        """UserError for a file, or a folder that holds something else under the names a comparison writes."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: the output of a comparison is a folder")
        if self.plan.exists():
            return
        names = ("runs", "config.toml", "metrics.jsonl", "checkpoints", "comparison.json", "report.html")
        taken = next((name for name in names if (self.path / name).exists()), None)
        if taken is not None:
            raise UserError(f"{self.path} already holds something else ({taken}): choose another --out")

    def locked(self) -> AbstractContextManager[None]:
        """Hold the folder for this process; UserError if another one compares in it."""
        return hold(self.path, "comparison")

    def saved_plan(self) -> dict[str, Any] | None:
        """The plan that was begun here; None if there is none, UserError if it is damaged."""
        if not self.plan.exists():
            return None
        try:
            saved = read_json(self.plan, SavedPlan)
            if saved["format"] != FORMAT:
                raise UserError(f"{self.plan} is of another version")
        except UserError as error:
            raise UserError(f"{error}: choose another --out, or remove {self.path}") from None
        return dict(saved)

    def begin(self, plan: Plan, corpus: Mapping[str, Any]) -> None:
        """Claim the folder for `plan`, or check that it is this comparison's already.

        Models and seeds may have been added since; anything else makes it another comparison: UserError.
        """
        new = {"format": FORMAT, **_plain(plan.to_dict()), "corpus": corpus_marks(corpus)}
        saved = self.saved_plan()
        if saved is not None:
            saved = _as_now(saved) | ({} if "machine" in saved else {"machine": new.get("machine")})
            runs = {label: config for label, config in new["runs"].items() if label in saved["runs"]}
            settings = {key: value for key, value in new.items() if key != "runs"}
            begun = {key: value for key, value in saved.items() if key != "runs"}
            keys = list(differences(begun, settings) or _differing(saved["runs"], runs))
            if keys:
                more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
                raise UserError(
                    f"{self.path} holds another comparison; these differ: {', '.join(keys[:SHOWN])}{more} "
                    f"(choose another --out, or remove {self.path})"
                )
        with disk_errors(f"to {self.path}", failure=UserError):
            (self.path / "runs").mkdir(parents=True, exist_ok=True)
            write_text(self.plan, json.dumps(new, indent=1) + "\n")

    def result(self, entry: Entry) -> dict[str, Any] | None:
        """The finished result of a run, if it has one and its config is the entry's."""
        try:
            result = read_json(self.run(entry) / RESULT, Result)
        except UserError:
            return None
        config = {entry.label: _plain(to_mapping(entry.config))}
        made = {entry.label: _written_now(RunConfig, result["config"])}
        return None if _differing(made, config) else dict(result)

    def prepare_run(self, entry: Entry) -> bool:
        """Whether the run was begun and can be resumed; what a process killed earlier left goes.

        UserError, and nothing goes, if a process still writes the run: that of a command that was killed.
        """
        run = self.run(entry)
        if not run.exists():
            return False
        with hold(run, "run"):
            begun = (run / "config.toml").is_file()
            if not begun:
                shutil.rmtree(run)
        return begun

    def write(self, comparison: Mapping[str, Any]) -> None:
        """Replace comparison.json."""
        with disk_errors(f"to {self.path}"):
            text = json.dumps(strict(dict(comparison)), allow_nan=False, ensure_ascii=False)
            write_text(self.comparison, text.encode("utf-8", "replace").decode() + "\n")

    @contextmanager
    def spooled(self, sources: Sequence[str], stdin: BinaryIO | None) -> Iterator[tuple[str, ...]]:
        """The sources with '-' (`stdin`, if that is given) and every pipe replaced by a file here, for each
        run to read again.

        If a UserError comes out of the body, files that are new are taken away again.
        """
        texts = self.path / "text"
        new = [folder for folder in (texts, self.path) if not folder.exists()]
        kept: dict[str, str] = {}
        try:
            if any(map(is_stream, sources)):
                new[:0] = self._mark(texts / COMPARISON_TEXTS)
            for source in filter(is_stream, sources):
                given = contextlib.nullcontext(stdin) if source == STDIN and stdin else opened(source)
                with given as stream:
                    path, is_new = self._spool(texts, source, stream)
                kept[source] = str(path)
                new[:0] = [path] if is_new else []
            yield tuple(kept.get(source, source) for source in sources)
        except UserError:
            with contextlib.suppress(OSError):  # a folder that is not empty stays
                for path in new:
                    path.rmdir() if path.is_dir() else path.unlink()
            raise

    def _mark(self, mark: Path) -> list[Path]:
        """Mark the folder of texts as a comparison's own; the mark, if it is new."""
        if mark.exists():
            return []
        with disk_errors(f"to {self.path}", failure=UserError):
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        return [mark]

    def _spool(self, texts: Path, source: str, stream: BinaryIO) -> tuple[Path, bool]:
        """The file in `texts` that holds the stream, named by its content, and whether it is new."""
        digest = hashlib.sha256()
        with disk_errors(f"to {self.path}", failure=UserError):
            texts.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=texts, delete=False) as file:
                while block := stream.read(BLOCK):
                    digest.update(block)
                    file.write(block)
            found = re.search(r"\.(jsonl|ndjson)(\.gz)?$|\.gz$", source.lower())
            kind = "stdin" if source == STDIN else "pipe"
            path = texts / f"{kind}-{digest.hexdigest()[:12]}{found[0] if found else '.txt'}"
            is_new = not path.exists()
            Path(file.name).replace(path)
        return path, is_new


def corpus_marks(corpus: Mapping[str, Any]) -> dict[str, Any]:
    """What tells one prepared text from another; `valid_sha256` is of a validation text of its own."""
    keys = ("sha256", "train_tokens", "valid_sha256", "valid_tokens")
    return {key: corpus[key] for key in keys if corpus.get(key) is not None}


def _as_now(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A saved plan as this version would have written it: an older one knows fewer keys."""
    runs = {label: _written_now(RunConfig, config) for label, config in plan["runs"].items()}
    return {**plan, "runs": runs, "data": _written_now(DataConfig, plan.get("data"))}


def _written_now(cls: type, tables: Any) -> Any:
    """A saved config with the keys that came since, at their defaults; as it is where it is none now."""
    if not isinstance(tables, Mapping):
        return tables
    try:
        return _plain(to_mapping(parse(cls, tables)))
    except UserError:
        return tables


def _differing(begun: Mapping[str, Any], runs: Mapping[str, Any]) -> list[str]:
    """Keys at which the configs of runs differ, but for what another machine may change, and for a precision
    that an older mixlab left to each start of a run."""
    found = differences(begun, runs, "runs")
    open_then = {key for key, (was, _) in found.items() if key.endswith("train.dtype") and was == "auto"}
    return [key for key in found if not key.endswith(MACHINE) and key not in open_then]


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value))
