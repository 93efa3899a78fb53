"""The run folder: which file is where, whose run it holds, and what may change when it is resumed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixlab.config import parse, read_toml, to_mapping, to_toml
from mixlab.data import Dataset
from mixlab.errors import UserError
from mixlab.imports import check_imported, providers
from mixlab.train.config import HORIZONS, RunConfig
from mixlab.train.files import disk_errors, write_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# A resumed run may go on for longer, look more often and keep more; anything else would make it another run.
LENGTH = tuple(f"train.{name}" for name in HORIZONS)
LOOKING = ("train.eval_every", "train.watch_every", "train.sinks", "train.sinks_optional")
MAY_CHANGE = ("name", *LENGTH, *LOOKING, "train.checkpoint")


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved RunConfig."""
        return self.path / "config.toml"

    @property
    def environment(self) -> Path:
        """Versions and the machine, as of the latest start."""
        return self.path / "environment.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer."""
        return self.path / "tokenizer.json"

    @property
    def data(self) -> Path:
        """Facts about the text."""
        return self.path / "data.json"

    @property
    def metrics(self) -> Path:
        """The record of the run."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def check_free(self) -> None:
        """UserError if anything that a run would write is here already."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: the output of a run is a folder")
        files = (self.config, self.environment, self.tokenizer, self.data, self.metrics, self.checkpoints)
        taken = next((file for file in files if file.exists()), None)
        if taken is not None:
            raise UserError(
                f"{self.path} already holds a run ({taken.name}): resume it, or choose another output folder"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; UserError if another one writes to it.

        The system releases the lock with the process, however it ends. Where it has no such locks
        (Windows), two processes are not told apart.
        """
        with disk_errors(f"to {self.path}", failure=UserError):
            self.path.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            yield
            return
        handle = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.path} is in use: another process is writing this run; wait for it or stop it"
                ) from None
            yield
        finally:
            os.close(handle)

    def read_config(self) -> RunConfig:
        """The saved RunConfig; UserError if there is none, or if it needs a part that was not imported."""
        if not self.config.is_file():
            raise UserError(f"{self.path} is not a run: it has no {self.config.name}")
        config = parse(RunConfig, read_toml(self.config))
        check_imported(self._recorded_imports(), str(self.path))
        return config

    def _recorded_imports(self) -> Any:
        """What `write_start` noted of the parts' origins; None where the file is missing or damaged."""
        try:
            return read_json(self.environment).get("imports")
        except UserError:
            return None  # a part that is missing is then merely unknown

    def check_same(self, config: RunConfig, dataset: Dataset) -> None:
        """UserError naming what differs, if the run that was begun here had another config or text."""
        saved = self.read_config()
        keys = [
            key for key in differing(to_mapping(saved), to_mapping(config)) if not key.startswith(MAY_CHANGE)
        ]
        if keys:
            raise UserError(
                f"{self.path} was begun with another config; these keys differ: {', '.join(keys)} "
                "(only length, evaluations and checkpoints of a run may change when it is resumed)"
            )
        facts = read_json(self.data)
        for key in ("sha256", "train_tokens", "valid_tokens"):
            if key in facts and facts[key] != dataset.facts.get(key):
                raise UserError(f"the text is not the one that {self.path} was begun with ({key} differs)")

    def write_start(self, config: RunConfig, dataset: Dataset, environment: Mapping[str, Any]) -> None:
        """Write what says what this run is, the config last, so that a folder with a config is complete.

        UserError for a place that cannot be written.
        """
        facts = {**environment, "imports": providers(config.model)}
        with disk_errors(f"to {self.path}", failure=UserError):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            dataset.tokenizer.save(self.path)
            write_text(self.data, json.dumps(dataset.facts, indent=1) + "\n")
            write_text(self.environment, json.dumps(facts, indent=1) + "\n")
            write_text(self.config, to_toml(config))


def resolve(config: RunConfig, dataset: Dataset) -> RunConfig:
    """The config with what follows from the text (vocabulary, epochs) and from kinds spelled out."""
    if config.model is None:
        return config
    train = config.train.spelled_out().for_text(len(dataset.train) - 1)
    return replace(config, model=replace(config.model, vocab_size=dataset.tokenizer.vocab_size), train=train)


def differing(old: Any, new: Any, path: str = "") -> list[str]:
    """Dotted paths at which two nested mappings differ, sorted."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [] if old == new else [path]
    keys = sorted({*old, *new})
    below = [(f"{path}.{key}" if path else key, old.get(key), new.get(key)) for key in keys]
    return [found for where, a, b in below for found in differing(a, b, where)]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a run folder; UserError if it cannot be read as one."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is missing or damaged ({error})") from None
