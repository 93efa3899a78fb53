"""A model of one's own as a run folder, which every command that reads a run takes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixlab.data import ByteTokenizer
from mixlab.data.tokenizer import Tokenizer
from mixlab.errors import UserError
from mixlab.model.language_model import LanguageModel
from mixlab.model.ngram import NGram, NGramConfig
from mixlab.model.weights import hollow_model
from mixlab.records import read_json
from mixlab.train import checkpoint, diagnose, machine
from mixlab.train.config import RunConfig, TrainConfig
from mixlab.train.files import check_name, disk_errors, write_text
from mixlab.train.folder import RunFolder
from mixlab.train.metrics import MetricsLog

NO_TEXT: list[str] = []
"""The sources of a run that was saved from Python; those of a training are at least one."""


def save(model: LanguageModel | NGram, path: Path | str, *, tokenizer: Tokenizer | None = None) -> Path:
    """Write a model as a run folder: `mixlab.open`, `generate`, `evaluate` and `report` take it.

    path: a new or an empty folder. tokenizer: what the model's token ids mean; for a vocabulary of 256 bytes
    are meant where none is given. Returns the folder.
    Raises UserError for a folder that holds something, a tokenizer of another size than the model's
    vocabulary, and weights that are not finite or not those of the model's config.
    """
    if not isinstance(model, LanguageModel | NGram):
        raise UserError(f"save takes a LanguageModel or an NGram, got {type(model).__name__}")
    tokenizer = _fitting(tokenizer, model.vocab_size)
    folder = RunFolder(_path(path))
    folder.check_free()
    if isinstance(model, LanguageModel):
        _check_weights(model)
    config = _config(folder.path.resolve().name, model)
    with folder.locked():
        folder.check_free()
        folder.write_start(config, _NoText(tokenizer), machine.environment(None))
        step = 0 if isinstance(model, LanguageModel) else 1  # an n-gram is counted in one
        with disk_errors(f"to {folder.path}"):
            saved = checkpoint.save(folder.checkpoints, step, lambda to: _write(model, to, tokenizer))
            log = MetricsLog(folder.metrics)
            log.write(_end(model, step, saved))
            log.close()
    return folder.path


def check_trained(folder: RunFolder) -> None:
    """UserError for a run that was saved from Python: there is no text and no optimizer state to resume."""
    try:
        facts = read_json(folder.data, dict[str, Any])
    except UserError:
        return  # what reads it next says what is wrong
    if facts.get("sources") == NO_TEXT:
        raise UserError(
            f"{folder.path} was saved from Python: it holds a model, but no text and no optimizer state to "
            "resume with; train it in Python (mixlab.open(RUN).model) and save it again, or start a new run"
        )


def _path(path: Any) -> Path:
    try:
        folder = Path(path)
    except TypeError:
        raise UserError(f"a run is saved to the path of a folder, not to {type(path).__name__}") from None
    check_name(folder)
    return folder


def _fitting(tokenizer: Tokenizer | None, vocab_size: int) -> Tokenizer:
    """The tokenizer, by default bytes; UserError if its tokens are not as many as the model's."""
    if tokenizer is None:
        if vocab_size != ByteTokenizer.vocab_size:
            raise UserError(
                f"a model with a vocabulary of {vocab_size} is saved with its tokenizer: give tokenizer=... "
                f"(only {ByteTokenizer.vocab_size} tokens are taken for bytes)"
            )
        return ByteTokenizer()
    if isinstance(tokenizer, type) or not isinstance(tokenizer, Tokenizer):
        given = repr(tokenizer) if isinstance(tokenizer, str | type) else type(tokenizer).__name__
        raise UserError(
            f"tokenizer: expected a tokenizer of mixlab.data, such as ByteTokenizer() or mixlab.open(RUN)'s, "
            f"got {given}"
        )
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model a vocabulary of {vocab_size}: "
            "give the one that the model was trained with"
        )
    return tokenizer


def _check_weights(model: LanguageModel) -> None:
    """UserError for weights that could not be read back: of other shapes than the config's, without values or
    not finite."""
    expected = {name: tuple(t.shape) for name, t in hollow_model(model.config).state_dict().items()}
    found = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise UserError(
                f"the model is not what its config says, so it could not be read back: {name} has the shape "
                f"{found.get(name, 'none')}, by the config {expected.get(name, 'none')}"
            )
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise UserError(
            "the model is on the meta device, without values: build or load it on a device that has"
        )
    if bad := diagnose.bad_parameter(model):
        raise UserError(f"parameter {bad} is not finite: a model that has diverged is not saved")


def _config(name: str, model: LanguageModel | NGram) -> RunConfig:
    if isinstance(model, NGram):
        return RunConfig(name=name, ngram=NGramConfig(order=model.order))
    context = model.config.context
    # Never run, but valid; dtype is what evaluations compute in.
    train = TrainConfig(steps=1, batch_tokens=max(TrainConfig.batch_tokens, context), dtype="float32")
    return RunConfig(name=name, model=model.config, train=train)


@dataclass(frozen=True)
class _NoText:
    """Stands in for the text of a run that has none."""

    tokenizer: Tokenizer

    @property
    def facts(self) -> dict[str, Any]:
        """What data.json says."""
        made_by = self.tokenizer
        about = {"kind": made_by.kind, "vocab_size": made_by.vocab_size, "hash": made_by.hash}
        return {"sources": NO_TEXT, "notes": ["saved from Python: no text is recorded"], "tokenizer": about}


def _write(model: LanguageModel | NGram, path: Path, tokenizer: Tokenizer) -> None:
    """The files of the checkpoint."""
    if isinstance(model, NGram):
        model.save(path)
    else:
        checkpoint.save_model(model, path / checkpoint.MODEL)
    write_text(path / checkpoint.SCALARS, json.dumps({"tokenizer": tokenizer.hash}, indent=1) + "\n")


def _end(model: LanguageModel | NGram, step: int, saved: Path) -> dict[str, Any]:
    """The one line of the record."""
    return {
        "kind": "end",
        "step": step,
        "tokens": 0,
        "seconds": 0.0,
        "flops": 0,
        "status": "done",
        "message": "saved from Python",
        "parameters": sum(model.parameters_by_component().values()),
        "checkpoint": str(saved),
    }
