"""What text to learn from, how to cut it into tokens, and how much of it to keep aside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from mixlab.data.charsets import DEFAULT, check_codec
from mixlab.data.sources import spelled
from mixlab.errors import UserError, unknown

TOKENIZERS = ("byte", "char", "bpe")

Packing = Literal["stream", "documents"]
PACKINGS: tuple[str, ...] = get_args(Packing)

# Token 0 and the 256 bytes: with fewer, some text could not be written at all.
SMALLEST_BPE = 257


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The `[data]` section of a run.

    `sources`: files, folders, globs, `-` (standard input) or `corpus:python`. `valid`: none, or sources of
    which validation has its text; nothing is then kept aside of the others. `weights`: none, or one for each
    of `sources`, the proportions in which training draws from them. `vocab_size` is for `bpe` only,
    `max_bytes` for `corpus:python` only, `text_field` for .jsonl and .parquet only. `encoding` is that of
    files without a byte-order mark. `valid_fraction` is the share of the text that is kept aside for
    validation. An evaluation scores at most `valid_tokens` (0: all). `packing`: see
    `mixlab.data.batches.Batches`. Raises `UserError` for a value that cannot work.
    """

    sources: tuple[str, ...] = ("corpus:python",)
    valid: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    tokenizer: str = "byte"
    vocab_size: int = 4096  # about 4 bytes a token on a few MB of text; larger tables starve in small models
    valid_fraction: float = 0.1  # the usual share for texts of a few MB (Tiny Shakespeare: first 90 % / rest)
    valid_tokens: int = (
        4_000_000  # all of it for texts up to 40 MB; the loss's standard error is then below 0.2%
    )
    packing: Packing = "stream"
    max_bytes: int = 4_000_000  # enough text for a five-minute comparison on two cores
    text_field: str = "text"
    encoding: str = DEFAULT

    def __post_init__(self) -> None:
        for key in ("sources", "valid"):
            named = getattr(self, key)
            named = (named,) if isinstance(named, str) else named
            object.__setattr__(self, key, tuple(map(spelled, named)))
        if not self.sources:
            raise UserError("no text was named: give a file, a folder, a glob, '-' or 'corpus:python'")
        if self.valid:
            self._check_valid()
        if self.weights:
            self._check_weights()
        if self.packing not in PACKINGS:
            raise unknown("packing", self.packing, PACKINGS)
        if self.valid_tokens < 0:
            raise UserError(f"valid_tokens is {self.valid_tokens}; it must be 0 (all) or a number of tokens")
        if self.tokenizer not in TOKENIZERS:
            raise unknown("tokenizer", self.tokenizer, TOKENIZERS)
        if self.tokenizer == "bpe" and self.vocab_size < SMALLEST_BPE:
            raise UserError(
                f"vocab_size is {self.vocab_size}, but a byte-level BPE needs at least {SMALLEST_BPE} "
                "(the 256 bytes and the end of a document)"
            )
        if not 0.0 < self.valid_fraction < 1.0:
            raise UserError(
                f"valid_fraction is {self.valid_fraction}; it must lie between 0 and 1, "
                "both left out (0.1 is usual)"
            )
        check_codec(self.encoding)
        if self.max_bytes < 1:
            raise UserError(f"max_bytes is {self.max_bytes}; it must be at least 1 (4000000 is the default)")

    def _check_valid(self) -> None:
        """UserError for a validation text that would be kept aside too, or that only one side can read."""
        if self.valid_fraction != DataConfig.valid_fraction:
            raise UserError(
                f"valid names a validation text, and valid_fraction ({self.valid_fraction}) would keep one "
                "aside: give one of them"
            )
        if "-" in self.valid and "-" in self.sources:
            raise UserError("'-' is named as a text and in valid: standard input can be one of them")

    def _check_weights(self) -> None:
        """UserError unless there is a positive weight for each source, and each is named once."""
        given, wanted = len(self.weights), len(self.sources)
        if given != wanted:
            raise UserError(
                f"weights has {given} number{'s'[: given != 1]} for {wanted} source{'s'[: wanted != 1]}: "
                "give one for each source, in their order"
            )
        wrong = next((weight for weight in self.weights if not 0 < weight < math.inf), None)
        if wrong is not None:
            raise UserError(
                f"weights holds {wrong:g}; each must be a positive number "
                "(leave out a source that is to have none)"
            )
        twice = next((source for source in self.sources if self.sources.count(source) > 1), None)
        if twice is not None:
            raise UserError(f"'{twice}' is named twice: with weights, name each source once")
