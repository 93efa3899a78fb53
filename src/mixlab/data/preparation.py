"""The steps of preparing a text: read, compare with a validation text, tokenize into the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixlab.data.building import Building, Memory, Sink, learnt_before
from mixlab.data.config import DataConfig
from mixlab.data.corpus import Corpus, Joined, Progress, Stage
from mixlab.data.overlap import overlap
from mixlab.data.stretches import OtherText, fill, processes_for, stretches
from mixlab.data.survey import LOOKED, Learn, estimate
from mixlab.data.tokenizer import Tokenizer
from mixlab.data.tokens import Count, Entry, Part, TokenCache, TokenFile, default_cache_dir
from mixlab.errors import RunFailed

IN_MEMORY = 1 << 28
"""Bytes of text whose tokens may stay in memory where the cache cannot be written."""

Notes = Callable[[str], None]


class Said:
    """Passes notes on and keeps them."""

    def __init__(self, notes: Notes | None) -> None:
        self.sentences: list[str] = []
        self._notes = notes

    def __call__(self, sentence: str) -> None:
        """Take a note."""
        self.sentences.append(sentence)
        if self._notes is not None:
            self._notes(sentence)


class Preparation:
    """One call of `prepare`: where tokens are cached, who is told of progress, how many processes encode.

    look: nothing is written.
    """

    def __init__(
        self,
        cache_dir: Path | str | None,
        progress: Progress | None,
        processes: int | None,
        *,
        look: bool = False,
    ) -> None:
        self.cache = TokenCache(Path(cache_dir) if cache_dir is not None else default_cache_dir())
        self.progress, self.processes, self.look = progress, processes, look

    def read(self, sources: Sequence[str], said: Said, config: DataConfig, *, places: bool = False) -> Corpus:
        """The corpus, read once; config: how. places: whether to keep where each document is from."""
        return Corpus.read(
            sources,
            text_field=config.text_field,
            max_bytes=config.max_bytes,
            encoding=config.encoding,
            places=places,
            notes=said,
            progress=self.progress,
            spool=None if self.look else self.cache.root,
        )

    def compared(self, train: Corpus, valid: Corpus, said: Said) -> dict[str, Any]:
        """Metadata of a separate validation text; notes what it shares with the training text."""
        behind = self.stage(
            "looking for the validation text in the training text", train.characters, "characters"
        )
        shared = overlap(train, valid, self.cache.root.parent, behind)
        if sentence := shared.sentence():
            said(sentence)
        return {
            "valid_sources": list(valid.sources),
            "valid_sha256": valid.sha256,
            "valid_overlap": shared.share,
            "valid_documents_in_training": shared.equal,
        }

    def stage(self, name: str, total: int, unit: str) -> Stage:
        """A stage that tells `progress`."""
        return Stage(self.progress, name, total, unit)

    def tokens(
        self,
        key: str,
        names: tuple[str, ...],
        corpus: Corpus | Joined,
        cuts: np.ndarray,
        sources: Sequence[int],
        make: Callable[[], Tokenizer],
        said: Said,
        learn: Learn | None = None,
    ) -> tuple[Tokenizer, dict[str, TokenFile]]:
        """Each side as a token file, out of the cache or into it; in memory, with a note, where it cannot be
        written. sources: how many documents each has; with several, they are the files' parts. learn: what
        an estimate takes its tokenizer from, where this only looks."""

        def build(folder: Path) -> None:
            tokenizer = learnt_before(folder) or make()
            with Building(folder, names, len(sources), tokenizer) as building:
                self.fill(building, corpus, cuts, sources)
                building.finish()

        def held() -> Entry:
            tokenizer = make()
            memory = Memory(names, len(sources), tokenizer)
            self.fill(memory, corpus, cuts, sources)
            return Entry(tokenizer, memory.arrays(), memory.counts)

        try:
            if not self.look:
                entry = self.cache.obtain(key, build, self._waiting)
            elif (found := self.cache.load(key)) is None and corpus.characters > LOOKED and learn is not None:
                said(
                    f"lengths are estimated from the first {LOOKED:,} of {corpus.characters:,} characters: "
                    "this text is not in the cache yet, and nothing is written"
                )
                return estimate(corpus, cuts, sources, names, learn)
            else:
                entry = found or held()
        except OSError as error:
            reason = error.strerror or str(error)
            if corpus.bytes > IN_MEMORY:
                raise RunFailed(
                    f"the tokens of this text ({corpus.bytes / 1e9:.1f} GB) cannot be written to the cache "
                    f"'{self.cache.root}' ({reason}): make room there, or name another folder in MIXLAB_CACHE"
                ) from None
            said(f"the tokens stay in memory: the cache '{self.cache.root}' cannot be written ({reason})")
            entry = held()
        tokenizer, arrays, counts = entry
        unknown = sum(count.unknown for parts in counts.values() for count in parts)
        if unknown:
            said(
                f"{unknown} characters are not in the tokenizer's vocabulary and count as one unknown "
                "character: bits per byte come out too low, and a byte or bpe tokenizer would have none"
            )
        return tokenizer, {name: _token_file(arrays[name], counts[name]) for name in names}

    def fill(self, sink: Sink, corpus: Corpus | Joined, cuts: np.ndarray, sources: Sequence[int]) -> None:
        """Encode the corpus into `sink`."""
        tokenizer = sink.tokenizer
        processes = self.processes or processes_for(tokenizer, corpus.characters)
        behind = self.stage("encoding the text", corpus.characters, "characters")
        for _ in range(2):
            stream = stretches(corpus.pieces(), cuts, sources, tokenizer.cut)
            try:
                fill(sink, stream, tokenizer, processes=processes, behind=behind)
                return
            except OtherText:  # the text changed under an earlier process, which was then killed
                sink.restart()

    def _waiting(self) -> None:
        self.stage("waiting for another process that prepares this text", 0, "").say(0)


def _token_file(tokens: np.ndarray, counts: Sequence[Count]) -> TokenFile:
    """The file of a side, with a part, still without a name, for each source."""
    ends = np.cumsum([0, *(count.tokens for count in counts)]).tolist()
    parts = tuple(
        Part("", start, stop + 1, count.bytes, count.documents)
        for start, stop, count in zip(ends, ends[1:], counts, strict=False)
    )
    return TokenFile(
        tokens, sum(count.bytes for count in counts), sum(count.documents for count in counts), parts
    )
