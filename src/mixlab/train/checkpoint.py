"""Checkpoints: folders that are whole or absent, whose every byte is accounted for, without pickle.

    checkpoints/step-0000400/
      model.safetensors      parameters and buffers          (an n-gram: the files it saves itself)
      training.safetensors   optimizer state, random state, parameters that serve training alone
      training.json          counters, data cursor, random states of Python and numpy
      metrics.jsonl          the record up to this step
      manifest.json          sha256 and size of each of the others, and its own sha256

A checkpoint is written into a hidden folder beside its place, fsynced, and renamed. One that was damaged
since is found by its hashes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typing_extensions import TypedDict

from mixlab.errors import UserError
from mixlab.model.weights import StoredTensors, assign, without_aliases
from mixlab.records import DIGITS, read_json
from mixlab.train.files import fsync, sha256, write_text

FORMAT = 1
MODEL, TENSORS, SCALARS, RECORD, MANIFEST = (
    "model.safetensors",
    "training.safetensors",
    "training.json",
    "metrics.jsonl",
    "manifest.json",
)
PREFIX = "step-"
DAMAGED = "damaged-"

Read = TypeVar("Read")


class FileFacts(TypedDict):
    """What a manifest says of a file."""

    sha256: str
    bytes: int


class Manifest(TypedDict):
    """manifest.json; sha256 is of the rest of it."""

    format: int
    step: int
    files: dict[str, FileFacts]
    sha256: str


class DamagedError(UserError):
    """A checkpoint that is not what was written; the message names the file."""


def name_of(step: int) -> str:
    """The folder's name; seven digits sort in order up to ten million steps, and beyond by number."""
    return f"{PREFIX}{step:07d}"


def step_of(path: Path) -> int:
    """The step a checkpoint folder is named for; -1 if it is not one."""
    digits = path.name.removeprefix(PREFIX)
    named = path.name.startswith(PREFIX) and digits.isascii() and digits.isdigit() and len(digits) < DIGITS
    return int(digits) if named else -1


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders in RUN/checkpoints, newest first; whether they are whole is not looked at."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and step_of(path) >= 0]
    return sorted(found, key=step_of, reverse=True)


def save(folder: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Make `folder`/step-STEP of the files that `write` puts in the folder it is given; returns its path.

    Until the last rename nothing that existed is touched; OSError (a full disk) leaves the earlier
    checkpoints whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name_of(step)
    temporary = folder / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        write(temporary)
        files = {path.name: _facts(path) for path in sorted(temporary.iterdir())}
        manifest = {"format": FORMAT, "step": step, "files": files}
        for name in files:
            fsync(temporary / name)
        manifest["sha256"] = _digest(manifest)
        write_text(temporary / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        _put_in_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync(folder)
    return target


def _digest(manifest: Mapping[str, Any]) -> str:
    """Hash of what a manifest says, its own hash left out."""
    said = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _facts(path: Path) -> dict[str, Any]:
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def _put_in_place(temporary: Path, target: Path) -> None:
    """Rename; a folder of that name (an n-gram that was counted before) makes way first."""
    if not target.exists():
        temporary.rename(target)
        return
    replaced = target.with_name(f".{target.name}.{os.getpid()}.old")
    target.rename(replaced)
    temporary.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)


def verify(path: Path) -> Manifest:
    """The manifest of a checkpoint; DamagedError names the first file that is not as it was written."""
    manifest_path = path / MANIFEST
    try:
        manifest = read_json(manifest_path, Manifest)
    except UserError as error:
        if not manifest_path.exists():
            raise DamagedError(f"{manifest_path} is missing: {path} is not a whole checkpoint") from None
        raise DamagedError(f"{error}: it is not a checkpoint's manifest") from None
    if manifest["sha256"] != _digest(manifest):
        raise DamagedError(f"{manifest_path} is damaged: its sha256 is not the one it was written with")
    if manifest["format"] != FORMAT:
        raise UserError(f"{manifest_path} has format {manifest['format']}; this mixlab reads format {FORMAT}")
    if step_of(path) not in (-1, manifest["step"]):
        raise DamagedError(f"{path} is not what its name says: it was written as step {manifest['step']}")
    for name, facts in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise DamagedError(f"{file} is missing from the checkpoint")
        size = file.stat().st_size
        if size != facts["bytes"]:
            raise DamagedError(
                f"{file} is damaged: it has {size} bytes and was written with {facts['bytes']}"
            )
        if sha256(file) != facts["sha256"]:
            raise DamagedError(f"{file} is damaged: its sha256 is not the one it was written with")
    return manifest


def scalars(path: Path) -> dict[str, Any]:
    """The training.json of a checkpoint; UserError if it cannot be read."""
    return read_json(path / SCALARS, dict[str, Any])


@contextlib.contextmanager
def loading(path: Path) -> Iterator[None]:
    """Inside, what a whole checkpoint at `path` holds and this run cannot take is a UserError."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {_last_line(error)}"
        raise UserError(f"{path} does not hold what this run continues from ({reason})") from None


def first_whole(candidates: list[Path], notes: Callable[[str], None]) -> Path:
    """The first of `candidates` that verifies; each damaged one before it is a note.

    UserError, naming the damaged file of each, if none is left.
    """
    problems: list[DamagedError] = []
    for path in candidates:
        try:
            verify(path)
        except DamagedError as error:
            problems.append(error)
            continue
        for problem in problems:
            notes(f"{problem}; using {path} in its place")
        return path
    raise UserError(f"{'; '.join(map(str, problems))}; no other checkpoint is left")


def prune(folder: Path, *, keep: int, best: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and that of step `best`, and a killed writer's rests."""
    for path in list_checkpoints(folder)[keep:]:
        if step_of(path) != best:
            # Renamed first: a folder that is half deleted must not look like a damaged checkpoint.
            doomed = path.rename(path.with_name(f".{path.name}.{os.getpid()}.gone"))
            shutil.rmtree(doomed, ignore_errors=True)
    sweep(folder)


def sweep(folder: Path) -> None:
    """Delete the hidden folders that a writer killed midway left in RUN/checkpoints.

    One that had made way for a checkpoint that never came is put back.
    """
    for path in folder.glob(f".{PREFIX}*") if folder.is_dir() else ():
        target = path.with_name(path.name[1:].partition(".")[0])
        if path.suffix == ".old" and not target.exists():
            path.rename(target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def set_aside(path: Path) -> None:
    """Rename a damaged checkpoint, so that it no longer counts as one; nothing of it is deleted."""
    aside = path.with_name(DAMAGED + path.name)
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{DAMAGED}{path.name}-{number}")
    path.rename(aside)


def save_model(model: nn.Module, path: Path) -> None:
    """The state dict as safetensors; tensors that share memory (a tied head) are stored once."""
    save_tensors(model_tensors(model), path)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, contiguous; tensors that share memory come once."""
    return {name: tensor.contiguous() for name, tensor in without_aliases(model)[0].items()}


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file; OSError where that fails (a full disk)."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # it names the system's error by number alone
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code) if number else _last_line(error), str(path)) from None


def load_model(model: nn.Module, path: Path) -> None:
    """Put the tensors of a safetensors file into `model`; UserError where names or shapes do not fit.

    They are read into the memory of its own tensors; those of a hollow model get memory of theirs.
    """
    stored = _reading(path, StoredTensors, path)
    own, aliases = without_aliases(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    if shapes != {name: stored.shape(name) for name in stored}:
        _load_as_it_fits(model, path, set(aliases))
        return
    for name, tensor in own.items():
        if tensor.is_floating_point() != stored.dtype(name).is_floating_point:
            raise UserError(f"{path} does not fit the run's config: {name} is {stored.dtype(name)}")
    hollow = [name for name, tensor in own.items() if tensor.is_meta]
    for name in own.keys() - set(hollow):
        _reading(path, stored.read_into, name, own[name])
    assign(model, {name: _reading(path, stored.__getitem__, name).to(own[name].dtype) for name in hollow})


def _load_as_it_fits(model: nn.Module, path: Path, aliases: set[str]) -> None:
    """As the model's own modules put tensors of other names or shapes into themselves, if any do."""
    try:
        tensors = load_tensors(path)
        hollow = any(tensor.is_meta for tensor in model.state_dict().values())
        missing, unexpected = (
            assign(model, tensors) if hollow else model.load_state_dict(tensors, strict=False)
        )
    except RuntimeError as error:
        raise UserError(f"{path} does not fit the run's config: {_last_line(error)}") from None
    wrong = sorted((set(missing) - aliases) | set(unexpected))
    if wrong:
        raise UserError(f"{path} does not fit the run's config: {', '.join(wrong)} is in only one of the two")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file; DamagedError if it is not one."""
    return _reading(path, load_file, path)


def _reading(path: Path, read: Callable[..., Read], *arguments: Any) -> Read:
    """What `read` gives; DamagedError if the file at `path` is no safetensors file."""
    try:
        return read(*arguments)
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{path} cannot be read as safetensors: {_last_line(error)}") from None


def training_only(model: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter that serves training alone: the model's state dict leaves it out."""
    kept = model.state_dict().keys()
    return {name: p.detach() for name, p in model.named_parameters() if name not in kept}


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[-1].strip()
