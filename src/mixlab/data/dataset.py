"""From a `[data]` section to token files: read, split, tokenize, cache, and say what was done."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mixlab.data.building import Building, Memory, Sink, learnt_before
from mixlab.data.config import DataConfig
from mixlab.data.corpus import EMBEDDED, Corpus, Progress, Stage
from mixlab.data.split import Split, split_documents
from mixlab.data.stretches import OtherText, fill, processes_for, sides, stretches
from mixlab.data.tokenizer import Tokenizer, learn_tokenizer
from mixlab.data.tokens import Count, TokenCache, TokenFile, default_cache_dir
from mixlab.errors import RunFailed, UserError

# Raised whenever the same text, split and tokenizer would give other tokens or another layout on disk.
FORMAT_VERSION = 2

IN_MEMORY = 1 << 28
"""Bytes of text whose tokens may stay in memory where the cache cannot be written."""

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
    progress: Progress | None = None,
    processes: int | None = None,
) -> Dataset:
    """Read the text, split it, and give both sides as tokens, from the cache when the same text was prepared
    before.

    A `tokenizer` that is given is used; otherwise one is made of the kind `config` names, from the training
    side alone. `notes` is called with every sentence worth showing; they are also in `facts["notes"]`.
    `progress`: see `mixlab.data.corpus.Progress`. processes: how many encode; by default as many as are worth
    it. A call that was killed is gone on with by the next one. Raises `UserError` for a broken source, a text
    too short to split, or a training side shorter than `context` + 1 tokens, and `RunFailed` where there is
    no room for the tokens of a large text.
    """
    said, work = _Said(notes), _Work(cache_dir, progress, processes)
    corpus = work.read(config.sources, config.text_field, config.max_bytes, said)
    split = split_documents(corpus.lengths, corpus.digests, config.valid_fraction)
    identity = tokenizer.hash if tokenizer else _recipe(config)
    key = _key(corpus, identity, f"split {config.valid_fraction!r}")

    def make() -> Tokenizer:
        stage = work.stage(f"learning the {config.tokenizer} tokenizer", corpus.characters, "characters")
        return tokenizer or learn_tokenizer(
            config.tokenizer,
            _training_side(corpus, split, stage),
            characters=int(split.cuts.sum()),
            vocab_size=config.vocab_size,
        )

    tokenizer, files = work.tokens(key, ("train", "valid"), corpus, split.cuts, make, said)
    _check_length("the training part of the text", files["train"], context)
    facts = _facts(corpus, tokenizer, said) | {"split": split.rule, "valid_fraction": config.valid_fraction}
    for side, file in files.items():
        facts[f"{side}_documents"] = file.num_documents
        facts[f"{side}_bytes"] = file.num_bytes
        facts[f"{side}_tokens"] = len(file) - 1
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
    progress: Progress | None = None,
    processes: int | None = None,
) -> tuple[TokenFile, dict[str, Any]]:
    """The whole text of `sources` as one token file, without a split, and its facts: for evaluation.

    Arguments and errors as of `prepare`.
    """
    said, work = _Said(notes), _Work(cache_dir, progress, processes)
    corpus = work.read(sources, text_field, max_bytes, said)
    key = _key(corpus, tokenizer.hash, "whole")
    _, files = work.tokens(key, ("text",), corpus, corpus.lengths, lambda: tokenizer, said)
    _check_length("the text", files["text"], context)
    facts = _facts(corpus, tokenizer, said) | {"split": "none", "tokens": len(files["text"]) - 1}
    return files["text"], facts


class _Said:
    """Passes notes on and keeps them."""

    def __init__(self, notes: Notes | None) -> None:
        self.sentences: list[str] = []
        self._notes = notes

    def __call__(self, sentence: str) -> None:
        self.sentences.append(sentence)
        if self._notes is not None:
            self._notes(sentence)


class _Work:
    """What preparing takes, and whom it tells."""

    def __init__(
        self, cache_dir: Path | str | None, progress: Progress | None, processes: int | None
    ) -> None:
        self.cache = TokenCache(Path(cache_dir) if cache_dir is not None else default_cache_dir())
        self.progress, self.processes = progress, processes

    def read(self, sources: Sequence[str], text_field: str, max_bytes: int, said: _Said) -> Corpus:
        """The corpus, read once."""
        return Corpus.read(
            sources,
            text_field=text_field,
            max_bytes=max_bytes,
            notes=said,
            progress=self.progress,
            spool=self.cache.root,
        )

    def stage(self, name: str, total: int, unit: str) -> Stage:
        """A stage that tells `progress`."""
        return Stage(self.progress, name, total, unit)

    def tokens(
        self,
        key: str,
        names: tuple[str, ...],
        corpus: Corpus,
        cuts: np.ndarray,
        make: Callable[[], Tokenizer],
        said: _Said,
    ) -> tuple[Tokenizer, dict[str, TokenFile]]:
        """Each side as a token file, out of the cache or into it; in memory, with a note, where it cannot be
        written."""

        def build(folder: Path) -> None:
            tokenizer = learnt_before(folder) or make()
            with Building(folder, names, 1, tokenizer) as building:
                self.fill(building, corpus, cuts)
                building.finish()

        try:
            tokenizer, arrays, counts = self.cache.obtain(key, build, self._waiting)
        except OSError as error:
            reason = error.strerror or str(error)
            if corpus.bytes > IN_MEMORY:
                raise RunFailed(
                    f"the tokens of this text ({corpus.bytes / 1e9:.1f} GB) cannot be written to the cache "
                    f"'{self.cache.root}' ({reason}): make room there, or name another folder in MIXLAB_CACHE"
                ) from None
            said(f"the tokens stay in memory: the cache '{self.cache.root}' cannot be written ({reason})")
            tokenizer = make()
            memory = Memory(names, 1, tokenizer)
            self.fill(memory, corpus, cuts)
            arrays, counts = memory.arrays(), memory.counts
        unknown = sum(count.unknown for parts in counts.values() for count in parts)
        if unknown:
            said(
                f"{unknown} characters are not in the tokenizer's vocabulary and count as one unknown "
                "character: bits per byte come out too low, and a byte or bpe tokenizer would have none"
            )
        return tokenizer, {name: _token_file(arrays[name], counts[name]) for name in names}

    def fill(self, sink: Sink, corpus: Corpus, cuts: np.ndarray) -> None:
        """Encode the corpus into `sink`."""
        tokenizer = sink.tokenizer
        processes = self.processes or processes_for(tokenizer, corpus.characters)
        behind = self.stage("encoding the text", corpus.characters, "characters")
        for _ in range(2):
            stream = stretches(corpus.pieces(), cuts, [len(corpus.lengths)], tokenizer.cut)
            try:
                fill(sink, stream, tokenizer, processes=processes, behind=behind)
                return
            except OtherText:  # the text changed under an earlier process, which was then killed
                sink.restart()

    def _waiting(self) -> None:
        self.stage("waiting for another process that prepares this text", 0, "").say(0)


def _training_side(corpus: Corpus, split: Split, behind: Stage) -> Iterator[tuple[str, bool]]:
    """(text, whether its document ends) of the training side."""
    done = 0
    for _, side, text, ended in sides(corpus.pieces(), split.cuts):
        done += len(text)
        behind(done)
        if side == 0:
            yield text, ended


def _token_file(tokens: np.ndarray, parts: Sequence[Count]) -> TokenFile:
    return TokenFile(tokens, sum(part.bytes for part in parts), sum(part.documents for part in parts))


def _recipe(config: DataConfig) -> str:
    """What determines the tokenizer once the training text is given."""
    if config.tokenizer == "bpe":
        return f"bpe {config.vocab_size} {version('tokenizers')}"
    return config.tokenizer


def _key(corpus: Corpus, identity: str, split: str) -> str:
    parts = {"version": FORMAT_VERSION, "content": corpus.sha256, "tokenizer": identity, "split": split}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _check_length(what: str, file: TokenFile, context: int) -> None:
    if len(file) < context + 1:
        raise UserError(
            f"{what} is {len(file)} tokens long, fewer than the context of {context} + 1: "
            f"give a longer text or a context of at most {len(file) - 1}"
        )


def _facts(corpus: Corpus, tokenizer: Tokenizer, said: _Said) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "sources": list(corpus.sources),
        "documents": len(corpus.lengths),
        "bytes": corpus.bytes,
        "characters": corpus.characters,
        "sha256": corpus.sha256,
        "replaced": corpus.replaced,
        "notes": list(said.sentences),
        "tokenizer": {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "hash": tokenizer.hash},
    }
    if EMBEDDED in corpus.sources:
        facts["python"] = platform.python_version()
    return facts
