"""A prepared text handed to another process: where its token files are, so that nothing is read twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mixlab.data.config import DataConfig
from mixlab.data.dataset import Dataset, scored
from mixlab.data.preparation import Notes
from mixlab.data.tokenizer import load_tokenizer
from mixlab.data.tokens import Part, TokenFile


def hand(dataset: Dataset) -> dict[str, Any] | None:
    """What `take` needs, JSON-able; None for a text whose tokens are in memory alone."""
    sides = {"train": dataset.train, "valid": dataset.whole}
    if not all(isinstance(file.tokens, np.memmap) for file in sides.values()):
        return None
    return {
        "facts": dataset.facts,
        "sides": {name: _place(file) for name, file in sides.items()},
    }


def take(handed: Mapping[str, Any], config: DataConfig, *, notes: Notes | None = None) -> Dataset:
    """The text as `prepare` gives it, of `config` or of one that differs in `valid_tokens` alone.

    The cache is not checked again: whoever handed it has just done so. Raises OSError if it is gone.
    """
    files = {name: _file(place) for name, place in handed["sides"].items()}
    tokenizer = load_tokenizer(Path(handed["sides"]["train"]["path"]).parent)
    return scored(files, tokenizer, dict(handed["facts"]), config, notes)


def _place(file: TokenFile) -> dict[str, Any]:
    return {
        "path": str(file.tokens.filename),  # type: ignore[attr-defined]
        "num_bytes": file.num_bytes,
        "num_documents": file.num_documents,
        "parts": [asdict(part) for part in file.parts],
    }


def _file(place: Mapping[str, Any]) -> TokenFile:
    tokens = np.load(place["path"], mmap_mode="r")
    parts = tuple(Part(**part) for part in place["parts"])
    return TokenFile(tokens, place["num_bytes"], place["num_documents"], parts)
