"""From a `[data]` section to token files: read, split, tokenize, cache, and say what was done."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixlab.data.charsets import DEFAULT
from mixlab.data.config import DataConfig
from mixlab.data.corpus import EMBEDDED, Corpus, Joined, Progress, Stage
from mixlab.data.preparation import Notes, Preparation, Said
from mixlab.data.sampling import sample
from mixlab.data.split import Split, split_documents
from mixlab.data.stretches import sides
from mixlab.data.text_counts import count_words
from mixlab.data.tokenizer import Tokenizer, learn_tokenizer
from mixlab.data.tokens import TokenFile, check_length
from mixlab.errors import UserError

if TYPE_CHECKING:
    from mixlab.data.batches import Batches

# Raised whenever the same text, split and tokenizer would give other tokens or another layout on disk.
FORMAT_VERSION = 2

BY_KEY = "(data.valid_tokens)"
"""How the sentence on a sample ends: it names the key that asks for it."""


@dataclass(frozen=True)
class Dataset:
    """Tokens to train on, tokens to validate on, the tokenizer that made both, `facts` (see docs/data.md),
    and how training draws from them."""

    train: TokenFile
    valid: TokenFile
    tokenizer: Tokenizer
    facts: dict[str, Any]
    weights: tuple[float, ...] = ()
    packing: str = "stream"
    all_valid: TokenFile | None = None

    @property
    def whole(self) -> TokenFile:
        """The whole validation text, of which `valid` may be a sample."""
        return self.all_valid or self.valid

    def batches(self, *, context: int, batch_size: int, seed: int) -> Batches:
        """The training batches."""
        from mixlab.data.batches import Batches

        return Batches(
            self.train,
            context=context,
            batch_size=batch_size,
            seed=seed,
            packing=self.packing,
            weights=self.weights,
        )


def prepare(
    config: DataConfig,
    *,
    context: int = 0,
    cache_dir: Path | str | None = None,
    tokenizer: Tokenizer | None = None,
    notes: Notes | None = None,
    progress: Progress | None = None,
    processes: int | None = None,
    look: bool = False,
) -> Dataset:
    """Read the text, split it, and give both sides as tokens, from the cache when the same text was prepared
    before.

    With `config.valid` nothing is split: that is the validation text, and what it shares with the training
    text is said. A `tokenizer` that is given is used; otherwise one is made of the kind `config` names, from
    the training side alone. `notes` is called with every sentence worth showing; they are also in
    `facts["notes"]`. `progress`: see `mixlab.data.corpus.Progress`. processes: how many encode; by default as
    many as are worth it. look: nothing is written; a long text that is not in the cache yet is given as an
    estimate, with a note (see `mixlab.data.survey`), to be looked at and not to be trained on.

    The next call resumes one that was killed. Raises `UserError` for a broken source, a text too short to
    split, or a training side shorter than `context` + 1 tokens, and `RunFailed` where the disk does not hold
    the tokens of a large text.
    """
    said, work = Said(notes), Preparation(cache_dir, progress, processes, look=look)
    corpus = work.read(config.sources, said, config)
    own = work.read(config.valid, said, config) if config.valid else None
    counts = corpus.counts if config.weights else (len(corpus.lengths),)
    split = _split(corpus, counts, config)
    identity = tokenizer.hash if tokenizer else _recipe(config)
    by_source = f" of each source {counts}" if config.weights else ""
    rule = f"split {config.valid_fraction!r}" if own is None else "own"
    text = corpus if own is None else Joined(corpus, own)
    key = _key(text, identity, f"{rule}{by_source}")

    def learn(pieces: Iterable[tuple[str, bool]], characters: int) -> Tokenizer:
        return tokenizer or learn_tokenizer(
            config.tokenizer, pieces, characters=characters, vocab_size=config.vocab_size
        )

    def make() -> Tokenizer:
        stage = work.stage(f"learning the {config.tokenizer} tokenizer", corpus.characters, "characters")
        return learn(_training_side(corpus, split, stage), int(split.cuts.sum()))

    cuts, parts = split.cuts, counts
    if own is not None:
        cuts, parts = np.concatenate([cuts, np.zeros_like(own.lengths)]), (*counts, len(own.lengths))
    tokenizer, files = work.tokens(key, ("train", "valid"), text, cuts, parts, make, said, learn)
    names = _short_names(config.sources) if config.weights else ()
    files = {
        side: _with_parts(file, () if own and side == "valid" else names) for side, file in files.items()
    }
    for part in files["train"].each():
        whose = f" of '{part.name}'" if part.name else ""
        check_length(f"the training part of the text{whose}", part.stop - part.start, context)
    aside = {"valid_fraction": config.valid_fraction}
    if own is not None:
        aside = {} if look else work.compared(corpus, own, said)
    facts = _facts(corpus, tokenizer, said) | {"split": split.rule, **aside}
    for side, file in files.items():
        facts[f"{side}_documents"] = file.num_documents
        facts[f"{side}_bytes"] = file.num_bytes
        facts[f"{side}_tokens"] = len(file) - 1
    facts["tokens"] = facts["train_tokens"] + facts["valid_tokens"]
    if config.weights:
        facts["mixture"] = _mixture(files, config.weights)
    return scored(files, tokenizer, facts, config, notes, look=look)


def scored(
    files: Mapping[str, TokenFile],
    tokenizer: Tokenizer,
    facts: dict[str, Any],
    config: DataConfig,
    notes: Notes | None,
    look: bool = False,
) -> Dataset:
    """The dataset of two sides, with as much of the validation text as `config` lets evaluations score; that
    is said, unless they are only to be looked at."""
    facts = {**facts, "notes": [said for said in facts["notes"] if not said.endswith(BY_KEY)]}
    valid = sample(files["valid"], config.valid_tokens, tokenizer)
    if valid is not files["valid"] and not look:
        most = valid.scored or len(valid) - 1
        whose = "of the validation text" if config.valid else "kept aside"
        how = "in evenly spread windows" if valid.scored else f"{valid.num_documents:,} whole documents"
        sentence = (
            f"evaluations score {most:,} of the {facts['valid_tokens']:,} tokens {whose}, {how} {BY_KEY}"
        )
        facts["notes"].append(sentence)
        if notes is not None:
            notes(sentence)
    valid = replace(valid, apart=config.packing == "documents")
    return Dataset(files["train"], valid, tokenizer, facts, config.weights, config.packing, files["valid"])


def prepare_single(
    sources: Sequence[str],
    tokenizer: Tokenizer,
    *,
    context: int = 0,
    text_field: str = "text",
    max_bytes: int = 4_000_000,
    encoding: str = DEFAULT,
    by_document: bool = False,
    cache_dir: Path | str | None = None,
    notes: Notes | None = None,
    progress: Progress | None = None,
    processes: int | None = None,
) -> tuple[TokenFile, dict[str, Any]]:
    """The whole text of `sources` as one token file, without a split, and its facts: for evaluation.

    The facts have the text's "words" and "lines" (`mixlab.data.text_counts`) and, with `by_document`, under
    "places" a list of where each document is from and its bytes. Other arguments and errors as of `prepare`.
    """
    said, work = Said(notes), Preparation(cache_dir, progress, processes)
    config = DataConfig(sources=tuple(sources), text_field=text_field, max_bytes=max_bytes, encoding=encoding)
    corpus = work.read(config.sources, said, config, places=by_document)
    key = _key(corpus, tokenizer.hash, "whole")
    counts = (len(corpus.lengths),)
    _, files = work.tokens(key, ("text",), corpus, corpus.lengths, counts, lambda: tokenizer, said)
    file = _with_parts(files["text"], ())
    check_length("the text", len(file), context)
    facts = _facts(corpus, tokenizer, said) | {"split": "none", "tokens": len(file) - 1}
    facts |= count_words(corpus.pieces())._asdict()
    return file, facts | ({"places": corpus.places} if by_document else {})


def _training_side(corpus: Corpus, split: Split, behind: Stage) -> Iterator[tuple[str, bool]]:
    """(text, whether its document ends) of the training side."""
    done = 0
    for _, side, text, ended in sides(corpus.pieces(), split.cuts):
        done += len(text)
        behind(done)
        if side == 0:
            yield text, ended


def _with_parts(file: TokenFile, names: Sequence[str]) -> TokenFile:
    """The file with its parts named; with none where it is no mixture."""
    # A validation text of its own comes after the named ones.
    parts = (replace(part, name=name) for part, name in zip(file.parts, names, strict=False))
    return replace(file, parts=tuple(parts))


def _short_names(sources: Sequence[str]) -> list[str]:
    """The last name of each source's path where that tells them apart, else the whole."""
    short = [Path(source).name or source for source in sources]
    return short if len(set(short)) == len(short) else list(sources)


def _mixture(files: Mapping[str, TokenFile], weights: Sequence[float]) -> list[dict[str, Any]]:
    """What each source of a mixture is: its share of training, and its part of each side."""
    facts = []
    for n, weight in enumerate(weights):
        fact: dict[str, Any] = {"source": files["train"].parts[n].name, "share": weight / sum(weights)}
        for side, file in files.items():
            if not file.parts:
                continue  # a validation text of its own
            part = file.parts[n]
            fact[f"{side}_documents"] = part.num_documents
            fact[f"{side}_bytes"] = part.num_bytes
            fact[f"{side}_tokens"] = part.stop - part.start - 1
        facts.append(fact)
    return facts


def _split(corpus: Corpus, counts: Sequence[int], config: DataConfig) -> Split:
    """The split of the whole; in a mixture of each source by itself, for each has both sides."""
    unsplit = Split(corpus.lengths, "none: the validation text is one of its own")
    if not config.weights:
        if config.valid:
            return unsplit
        return split_documents(corpus.lengths, corpus.digests, config.valid_fraction)
    ends, found = np.cumsum([0, *counts]).tolist(), []
    for source, start, stop in zip(config.sources, ends, ends[1:], strict=False):
        if start == stop:
            said = "; ".join(corpus.notes)
            raise UserError(
                f"the source '{source}' holds no text of its own, and it has a weight"
                + (f": {said}" if said else "")
            )
        if config.valid:
            continue
        try:
            found.append(
                split_documents(corpus.lengths[start:stop], corpus.digests[start:stop], config.valid_fraction)
            )
        except UserError as error:
            raise UserError(f"'{source}': {error}") from None
    if config.valid:
        return unsplit
    rules = dict.fromkeys(split.rule for split in found)
    return Split(np.concatenate([split.cuts for split in found]), "of each source " + "; or ".join(rules))


def _recipe(config: DataConfig) -> str:
    """What determines the tokenizer once the training text is given."""
    if config.tokenizer == "bpe":
        return f"bpe {config.vocab_size} {version('tokenizers')}"
    return config.tokenizer


def _key(corpus: Corpus | Joined, identity: str, split: str) -> str:
    parts = {"version": FORMAT_VERSION, "content": corpus.sha256, "tokenizer": identity, "split": split}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _facts(corpus: Corpus, tokenizer: Tokenizer, said: Said) -> dict[str, Any]:
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
