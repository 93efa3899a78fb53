"""The run folder: which file is where, whose run it holds, and what may change when it is resumed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from mixlab.config import parse, read_toml, to_mapping, to_toml
from mixlab.data import Dataset
from mixlab.data.tokenizer import Tokenizer
from mixlab.errors import UserError
from mixlab.imports import check_imported, providers
from mixlab.records import read_json
from mixlab.train.auto import fill, recorded
from mixlab.train.config import HORIZONS, RunConfig
from mixlab.train.files import disk_errors, hold, write_text

# A resumed run may go on for longer, look more often and keep more; anything else would make it another run.
LENGTH = tuple(f"train.{name}" for name in HORIZONS)
LOOKING = (
    "train.eval_every", "train.evaluations", "train.watch_every", "train.sinks", "train.sinks_optional",
)  # fmt: skip
MACHINE = ("train.device", "train.threads")
"""These may change too, as another machine has others; a run's last bits follow them, so that it is told."""

BESIDE_LENGTH = ("name", *LOOKING, "train.checkpoint", "train.recompute", *MACHINE)
MAY_CHANGE = (*LENGTH, *BESIDE_LENGTH)

MOST_TEXTS = 100
"""So often may one batch hold the training text, whole."""

Changes = dict[str, tuple[Any, Any]]
"""Dotted key -> what it was and what it is to be, None where it is not set."""


class Described(Protocol):
    """What a run folder holds of its text: a Dataset's, or that there is none."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """What data.json is to say."""
        ...


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
        """UserError if a run is here already, or anything else that is not hidden."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: the output of a run is a folder")
        files = (self.config, self.environment, self.tokenizer, self.data, self.metrics, self.checkpoints)
        taken = next((file for file in files if file.exists()), None)
        learned = self.metrics.exists() or (self.checkpoints.exists() and not is_empty(self.checkpoints))
        if taken is not None and not self.config.exists() and not learned:
            raise UserError(
                f"{self.path} holds {taken.name} but no {self.config.name}: what is left of a run that was "
                "killed as it began, or somebody else's; remove it, or choose another output folder"
            )
        if taken is not None:
            raise UserError(
                f"{self.path} already holds a run ({taken.name}): resume it, or choose another output folder"
            )
        strange = next((p for p in self.path.glob("*") if not p.name.startswith(".")), None)
        if strange is not None:
            raise UserError(
                f"{self.path} holds other files ({strange.name}): choose a new or an empty folder"
            )

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the folder for this process; UserError if another one writes to it."""
        return hold(self.path, "run")

    def read_config(self) -> RunConfig:
        """The saved RunConfig; UserError if there is none, or if it needs a part that was not imported.

        Where an older mixlab left open what "auto" came to, it is filled in from the run's other files.
        """
        if not self.config.is_file():
            raise UserError(f"{self.path} is not a run: it has no {self.config.name}")
        tables = read_toml(self.config)
        with self._about_config():
            config = parse(RunConfig, tables)
        check_imported(self._recorded_imports(), str(self.path))
        with self._about_config():
            config.validate()
        return recorded(config, self.environment, self.metrics)

    @contextlib.contextmanager
    def _about_config(self) -> Iterator[None]:
        """Inside, a UserError names the config's file."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{self.config}: {error}") from None

    def _recorded_imports(self) -> Any:
        """What `write_start` noted of the parts' origins; None where the file is missing or damaged."""
        try:
            return read_json(self.environment, dict[str, Any]).get("imports")
        except UserError:
            return None  # a part that is missing is then merely unknown

    def check_same(self, config: RunConfig, dataset: Dataset, *, force: bool = False) -> Changes:
        """What differs from the config and the text that the run here was begun with.

        UserError if anything does, unless `force`; another tokenizer is an error in any case.
        """
        facts = read_json(self.data, dict[str, Any])
        kept = facts.get("tokenizer")
        expected = kept.get("hash") if isinstance(kept, Mapping) else None
        check_tokenizer(dataset.tokenizer, expected, self, self.path)
        changes = changed(self.read_config(), config)
        for key in ("sha256", "train_tokens", "valid_sha256", "valid_tokens"):
            if key in facts and facts[key] != dataset.facts.get(key):
                changes[f"text.{key}"] = facts[key], dataset.facts.get(key)
        check_allowed(self.path, changes, config, force=force)
        return changes

    def write_start(self, config: RunConfig, dataset: Described, environment: Mapping[str, Any]) -> None:
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


def is_empty(path: Path) -> bool:
    """Whether it is a folder with nothing in it."""
    return path.is_dir() and next(path.iterdir(), None) is None


def resolve(config: RunConfig, dataset: Dataset) -> RunConfig:
    """The config with what follows from the text (vocabulary, epochs) and from kinds spelled out.

    UserError for batches that hold the text many times over, which is hardly meant and may never end.
    """
    if config.model is None:
        return config
    tokens = len(dataset.train) - 1
    if config.train.batch_tokens > MOST_TEXTS * tokens:
        raise UserError(
            f"train.batch_tokens is {config.train.batch_tokens:,}, more than {MOST_TEXTS} times the "
            f"{tokens:,} tokens of the training text"
        )
    train = config.train.spelled_out().for_text(tokens)
    return replace(config, model=replace(config.model, vocab_size=dataset.tokenizer.vocab_size), train=train)


def differences(old: Any, new: Any, path: str = "") -> Changes:
    """Dotted paths at which two nested mappings differ, sorted, and both values."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return {} if old == new else {path: (old, new)}
    found: Changes = {}
    for key in sorted({*old, *new}):
        found |= differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    return found


def changed(begun: RunConfig, config: RunConfig) -> Changes:
    """What `config` would make another run of one that was begun with `begun`, and what of MACHINE differs.

    What `begun` leaves to the machine was never said: it is no difference.
    """
    begun = replace(begun, train=fill(begun.train, config.train))
    found = differences(to_mapping(begun), to_mapping(config))
    return {
        key: both for key, both in found.items() if key.startswith(MACHINE) or not key.startswith(MAY_CHANGE)
    }


def check_allowed(where: Path, changes: Changes, config: RunConfig, *, force: bool) -> None:
    """UserError for a resume with `config` that would change what the run or checkpoint `where` is.

    It says every difference and the two ways on; with `force` only what would need another tokenizer is one.
    """
    learned = ("data.tokenizer", "data.vocab_size") if config.data.tokenizer == "bpe" else ("data.tokenizer",)
    others = {key: both for key, both in changes.items() if key in learned}
    if others:
        raise UserError(
            f"{where} was made with another tokenizer: {listed(others)}; a resumed run keeps its own, which "
            "its weights are for: leave it as it was, or start a new run"
        )
    refused = {key: both for key, both in changes.items() if not key.startswith(MACHINE)}
    if refused and not force:
        *most, last = BESIDE_LENGTH
        raise UserError(
            f"{where} was made with another config or text: {listed(refused)}; leave them as they were, or "
            "go on with the new values by --force-config "
            f"(only the length, {', '.join(most)} and {last} may change without)"
        )


def listed(changes: Changes) -> str:
    """Each key with both its values."""
    return ", ".join(f"{key} ({_shown(was)}, now {_shown(now)})" for key, (was, now) in changes.items())


def _shown(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def check_tokenizer(tokenizer: Tokenizer, expected: str | None, folder: RunFolder, made: Path) -> None:
    """UserError if a run's tokenizer is not, by its hash, what `made` was made with (None: unknown)."""
    if expected not in (None, tokenizer.hash):
        raise UserError(
            f"{folder.tokenizer} is not the tokenizer that {made} was made with: its tokens would mean other "
            "text; put the run's own back"
        )
