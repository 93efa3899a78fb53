"""What a checkpoint says of the run that made it, and what of it a run with another config can go on with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixlab.config import parse, to_mapping
from mixlab.data import Dataset
from mixlab.errors import UserError
from mixlab.train import checkpoint
from mixlab.train.config import RunConfig
from mixlab.train.folder import Changes, RunFolder, changed, check_tokenizer, listed
from mixlab.train.metrics import read_metrics

ANOTHER_OPTIMIZER = ("train.optimizer.kind", "train.optimizer.options")
ANOTHER_TEXT = ("text.", "data.", "model.context")
"""Beginnings of keys: with these, what the optimizer remembers or the place in the text means nothing."""


def identity(config: RunConfig, dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint's JSON holds of its run."""
    return {
        "config": to_mapping(config),
        "tokenizer": dataset.tokenizer.hash,
        "text": dataset.facts.get("sha256"),
    }


def changed_since(path: Path, folder: RunFolder, config: RunConfig, dataset: Dataset) -> Changes:
    """What differs in `config` and the text from those that the checkpoint at `path` was made with.

    What the record says was changed by force at this checkpoint is settled. UserError for a tokenizer that is
    not the checkpoint's. A checkpoint of an older mixlab does not say: the folder's word is taken.
    """
    scalars = checkpoint.scalars(path)
    check_tokenizer(dataset.tokenizer, scalars.get("tokenizer"), folder, path)
    if "config" not in scalars:
        return {}
    settled = {
        key: now
        for line in read_metrics(folder.metrics, "config")
        if line["step"] == checkpoint.step_of(path)
        for key, (_, now) in line["changes"].items()
    }
    try:
        made_with = parse(RunConfig, scalars["config"])
    except UserError as error:
        raise UserError(f"{path / checkpoint.SCALARS}: config: {error}") from None
    found = changed(made_with, config)
    text = scalars.get("text")
    if text not in (None, dataset.facts.get("sha256")):
        found["text.sha256"] = text, dataset.facts.get("sha256")
    return {key: (was, now) for key, (was, now) in found.items() if settled.get(key, was) != now}


def afresh(changes: Changes) -> set[str]:
    """What cannot be gone on with: "optimizer", its memory, and "batches", the place in the text."""
    found = {"optimizer": ANOTHER_OPTIMIZER, "batches": ANOTHER_TEXT}
    return {what for what, keys in found.items() if any(key.startswith(keys) for key in changes)}


@contextlib.contextmanager
def fitting(path: Path, changes: Changes) -> Iterator[None]:
    """Inside, weights of the checkpoint at `path` that do not fit are put down to the model's changes."""
    model = {key: both for key, both in changes.items() if key.startswith("model.")}
    try:
        yield
    except UserError as error:
        if not model:
            raise
        raise UserError(
            f"the weights in {path} do not fit {listed(model)}, even by force: leave that as it was, or "
            f"start a new run ({error})"
        ) from None


def beginnings(changes: Changes) -> str:
    """A clause for a person on what begins afresh."""
    names = {"optimizer": "the optimizer's memory", "batches": "the text"}
    begun = [names[what] for what in sorted(afresh(changes))]
    return f"; {' and '.join(begun)} begin{'s'[: len(begun) == 1]} afresh" if begun else ""
