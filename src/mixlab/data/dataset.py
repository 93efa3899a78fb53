"""From a `[data]` section to token files: read, split, tokenize, cache, and say what was done."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mixlab.data.config import DataConfig
from mixlab.data.corpus import EMBEDDED, Corpus
from mixlab.data.split import split_documents
from mixlab.data.tokenizer import Tokenizer, make_tokenizer
from mixlab.data.tokens import TokenCache, TokenFile, default_cache_dir
from mixlab.errors import UserError

# Raised whenever the same text, split and tokenizer would give other tokens or another layout on disk.
FORMAT_VERSION = 1

Notes = Callable[[str], None]


@dataclass(frozen=True)
class Dataset:
    """Tokens to train on, tokens to validate on, the tokenizer that made both, and `facts` (see
    docs/data.md)."""

    train: TokenFile
    valid: TokenFile
    tokenizer: Tokenizer
    facts: dict[str, Any]


def prepare(
    config: DataConfig,
    *,
    context: int = 0,
    cache_dir: Path | str | None = None,
    tokenizer: Tokenizer | None = None,
    notes: Notes | None = None,
) -> Dataset:
    """Read the text, split it, and give both sides as tokens, from the cache when the same text was prepared
    before.

    A `tokenizer` that is given is used; otherwise one is made of the kind `config` names, from the training
    side alone. `notes` is called with every sentence worth showing; they are also in `facts["notes"]`. Raises
    `UserError` for a broken source, a text too short to split, or a training side shorter than `context` + 1
    tokens.
    """
    said = _Said(notes)
    corpus = Corpus.read(config.sources, text_field=config.text_field, max_bytes=config.max_bytes, notes=said)
    split = split_documents(corpus.documents, corpus.digests, config.valid_fraction)
    sides = {"train": split.train, "valid": split.valid}
    identity = tokenizer.hash if tokenizer else _recipe(config)
    key = _key(corpus, identity, f"split {config.valid_fraction!r}")

    def make() -> Tokenizer:
        return tokenizer or make_tokenizer(config.tokenizer, split.train, vocab_size=config.vocab_size)

    tokenizer, files = _tokens(key, sides, make, cache_dir, said)
    _check_length("the training part of the text", files["train"], context)
    facts = _facts(corpus, tokenizer, said) | {"split": split.rule, "valid_fraction": config.valid_fraction}
    for side, documents in sides.items():
        facts[f"{side}_documents"] = len(documents)
        facts[f"{side}_bytes"] = files[side].num_bytes
        facts[f"{side}_tokens"] = len(files[side]) - 1
    facts["tokens"] = facts["train_tokens"] + facts["valid_tokens"]
    return Dataset(files["train"], files["valid"], tokenizer, facts)


def prepare_single(
    sources: Sequence[str],
    tokenizer: Tokenizer,
    *,
    context: int = 0,
    text_field: str = "text",
    max_bytes: int = 4_000_000,
    cache_dir: Path | str | None = None,
    notes: Notes | None = None,
) -> tuple[TokenFile, dict[str, Any]]:
    """The whole text of `sources` as one token file, without a split, and its facts: for evaluation.

    Raises `UserError` like `prepare`.
    """
    said = _Said(notes)
    corpus = Corpus.read(sources, text_field=text_field, max_bytes=max_bytes, notes=said)
    key = _key(corpus, tokenizer.hash, "whole")
    _, files = _tokens(key, {"text": corpus.documents}, lambda: tokenizer, cache_dir, said)
    _check_length("the text", files["text"], context)
    return files["text"], _facts(corpus, tokenizer, said) | {
        "split": "none",
        "tokens": len(files["text"]) - 1,
    }


class _Said:
    """Passes notes on and keeps them."""

    def __init__(self, notes: Notes | None) -> None:
        self.sentences: list[str] = []
        self._notes = notes

    def __call__(self, sentence: str) -> None:
        self.sentences.append(sentence)
        if self._notes is not None:
            self._notes(sentence)


def _recipe(config: DataConfig) -> str:
    """What determines the tokenizer once the training text is given."""
    if config.tokenizer == "bpe":
        return f"bpe {config.vocab_size} {version('tokenizers')}"
    return config.tokenizer


def _key(corpus: Corpus, identity: str, split: str) -> str:
    parts = {"version": FORMAT_VERSION, "content": corpus.sha256, "tokenizer": identity, "split": split}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _tokens(
    key: str,
    sides: Mapping[str, Sequence[str]],
    make: Callable[[], Tokenizer],
    cache_dir: Path | str | None,
    said: _Said,
) -> tuple[Tokenizer, dict[str, TokenFile]]:
    """Each side as a token file, out of the cache or into it; in memory, with a note, where it cannot be
    written."""
    cache = TokenCache(Path(cache_dir) if cache_dir is not None else default_cache_dir())
    entry = cache.load(key)
    if entry is not None:
        tokenizer, arrays = entry
    else:
        tokenizer = make()
        arrays = {name: tokenizer.encode_documents(documents) for name, documents in sides.items()}
        arrays = _stored(cache, key, tokenizer, arrays, said)
    unknown = sum(tokenizer.count_unknown(array) for array in arrays.values())
    if unknown:
        said(
            f"{unknown} characters are not in the tokenizer's vocabulary and count as one unknown character: "
            "bits per byte come out too low, and a byte or bpe tokenizer would have none"
        )
    return tokenizer, {name: TokenFile(arrays[name], _num_bytes(sides[name])) for name in sides}


def _stored(
    cache: TokenCache, key: str, tokenizer: Tokenizer, arrays: dict[str, np.ndarray], said: _Said
) -> dict[str, np.ndarray]:
    try:
        return cache.store(key, tokenizer, arrays)
    except OSError as error:
        reason = error.strerror or str(error)
        said(f"the tokens stay in memory: the cache '{cache.root}' cannot be written ({reason})")
        return arrays


def _num_bytes(documents: Sequence[str]) -> int:
    return sum(len(document.encode()) for document in documents) + len(documents)


def _check_length(what: str, file: TokenFile, context: int) -> None:
    if len(file) < context + 1:
        raise UserError(
            f"{what} is {len(file)} tokens long, fewer than the context of {context} + 1: "
            f"give a longer text or a context of at most {len(file) - 1}"
        )


def _facts(corpus: Corpus, tokenizer: Tokenizer, said: _Said) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "sources": list(corpus.sources),
        "documents": len(corpus.documents),
        "bytes": _num_bytes(corpus.documents) - len(corpus.documents),
        "characters": sum(map(len, corpus.documents)),
        "sha256": corpus.sha256,
        "replaced": corpus.replaced,
        "notes": list(said.sentences),
        "tokenizer": {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "hash": tokenizer.hash},
    }
    if EMBEDDED in corpus.sources:
        facts["python"] = platform.python_version()
    return facts
