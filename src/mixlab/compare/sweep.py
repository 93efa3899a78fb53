"""`--grid KEY=V1,V2`: each model at each point of a product of values, as runs with names of their own."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixlab.config import toml_value
from mixlab.errors import UserError

MOST_RUNS = 200
"""Largest number of runs in a sweep: more take days at any budget, and no table or figure holds them."""

MOST_CHARACTERS = 80
"""Longest part of a folder name: file systems take 255 bytes, and more is added to it."""

SECTIONS = ("model", "train", "ngram")

LOOKS = {
    "train.eval_every": "it changes how often a run is evaluated, not what it learns",
    "train.watch_every": "it changes what is recorded of a run, not what it learns",
    "train.sinks": "it changes where a run's numbers go, not what it learns",
}


@dataclass(frozen=True)
class Axis:
    """A key and the values that it is to take, as they were written."""

    key: str
    texts: tuple[str, ...]

    @property
    def values(self) -> list[Any]:
        """The values that the texts spell."""
        return [toml_value(text) for text in self.texts]


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its values by key, the overrides that set them, and what they add to a name."""

    values: Mapping[str, Any]
    overrides: tuple[str, ...] = ()
    shown: str = ""
    folder: str = ""


def axes(grid: Sequence[str], owned: Mapping[str, str], overrides: Sequence[str]) -> list[Axis]:
    """The axes of `--grid` options.

    owned: keys that nobody may set, and why. overrides: those of `--set`, which may not set the same key.
    Raises UserError for what is malformed, given twice, or not for a sweep.
    """
    found = [_axis(option) for option in grid]
    set_keys = {override.partition("=")[0].strip() for override in overrides}
    for axis in found:
        why = {**owned, **LOOKS}.get(axis.key)
        if axis.key.partition(".")[0] == "data":
            why = "the text is the same for all models"
        if why is not None:
            raise UserError(f"--grid {axis.key}: {why}")
        if axis.key.partition(".")[0] not in SECTIONS:
            raise UserError(f"--grid {axis.key}: a swept key begins with {'., '.join(SECTIONS)}.")
        if [other.key for other in found].count(axis.key) > 1:
            raise UserError(f"--grid {axis.key} is given twice: list all its values in one")
        if axis.key in set_keys:
            raise UserError(f"--grid {axis.key}: --set gives that key one value; leave one of them out")
    return found


def _axis(option: str) -> Axis:
    key, equals, text = option.partition("=")
    key, texts = key.strip(), _split(text)
    if not equals or not all(step.strip() for step in key.split(".")) or not all(texts):
        raise UserError(f"--grid {option}: write KEY=V1,V2, such as train.optimizer.lr=0.005,0.01,0.02")
    axis = Axis(key, texts)
    for value in axis.values:
        if axis.values.count(value) > 1:
            raise UserError(f"--grid {key}: {value} is listed twice")
    return axis


def _split(text: str) -> tuple[str, ...]:
    """What stands between the commas that are in no bracket and no quotes."""
    found, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 0:
            found.append("")
            continue
        found[-1] += character
    return tuple(one.strip() for one in found)


def points(every: Sequence[Axis], counted: bool) -> list[Point]:
    """The product of the axes that concern a neural model or an n-gram; one without values if none does."""
    own = [axis for axis in every if (axis.key.partition(".")[0] == "ngram") == counted]
    if not own:
        return [Point({})]
    names = short_names([axis.key for axis in own])
    found, taken = [], set()
    for texts in itertools.product(*(axis.texts for axis in own)):
        pairs = list(zip(names, texts, strict=True))
        folder = _shortened("-".join(f"{name}={_safe(text)}" for name, text in pairs))
        if folder in taken:  # values that differ only in what no folder's name may have
            folder += f"-{_digest(str(texts))}"
        taken.add(folder)
        found.append(
            Point(
                {axis.key: toml_value(text) for axis, text in zip(own, texts, strict=True)},
                tuple(f"{axis.key}={text}" for axis, text in zip(own, texts, strict=True)),
                f"[{','.join(f'{name}={text}' for name, text in pairs)}]",
                f"-{folder}",
            )
        )
    return found


def short_names(keys: Sequence[str]) -> list[str]:
    """The last components of each key, as many as tell it from the others."""
    names = []
    for key in keys:
        words = key.split(".")
        for length in range(1, len(words) + 1):
            name = ".".join(words[-length:])
            if sum(other == name or other.endswith(f".{name}") for other in keys) == 1:
                break
        names.append(name)
    return names


def _safe(text: str) -> str:
    """`text` as a part of a folder's name."""
    return re.sub(r"[^\w.+=-]+", "-", "".join(text.split()), flags=re.ASCII).strip("-.")


def _shortened(name: str) -> str:
    return name if len(name) <= MOST_CHARACTERS else f"{name[:MOST_CHARACTERS]}-{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def check_size(runs: int) -> None:
    """UserError if a sweep comes to more runs than anyone wants to wait for."""
    if runs > MOST_RUNS:
        raise UserError(
            f"--grid: these values, models and seeds come to {runs:,} runs, more than {MOST_RUNS}: "
            "sweep fewer values at a time"
        )
