"""What text to learn from, how to cut it into tokens, and how much of it to keep aside."""

from __future__ import annotations

from dataclasses import dataclass

from mixlab.errors import UserError, unknown

TOKENIZERS = ("byte", "char", "bpe")

# Token 0 and the 256 bytes: with fewer, some text could not be written at all.
SMALLEST_BPE = 257


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The `[data]` section of a run.

    `sources`: files, folders, globs, `-` (standard input) or `corpus:python`. `vocab_size` is for `bpe` only,
    `max_bytes` for `corpus:python` only, `text_field` for .jsonl and .parquet only. `valid_fraction` is the
    share of the text that is kept aside for validation. Raises `UserError` for a value that cannot work.
    """

    sources: tuple[str, ...] = ("corpus:python",)
    tokenizer: str = "byte"
    vocab_size: int = 4096  # about 4 bytes a token on a few MB of text; larger tables starve in small models
    valid_fraction: float = 0.1  # the usual share for texts of a few MB (Tiny Shakespeare: first 90 % / rest)
    max_bytes: int = 4_000_000  # enough text for a five-minute comparison on two cores
    text_field: str = "text"

    def __post_init__(self) -> None:
        if isinstance(self.sources, str):
            object.__setattr__(self, "sources", (self.sources,))
        if not self.sources:
            raise UserError("no text was named: give a file, a folder, a glob, '-' or 'corpus:python'")
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
        if self.max_bytes < 1:
            raise UserError(f"max_bytes is {self.max_bytes}; it must be at least 1 (4000000 is the default)")
