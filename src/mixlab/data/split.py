"""Which text is for training and which for validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixlab.errors import UserError

# With few documents, or one that outweighs the others, hashing may give a share far from the one asked for.
# Beyond this factor of the odds (0.1 asked for: a share below 0.027 or above 0.31) every document is cut
# instead.
TOLERATED_FACTOR = 4.0


@dataclass(frozen=True)
class Split:
    """How many characters of each document, from its start, are for training (the rest is for validation),
    int64, and the sentence that says how that was decided. Neither side is empty."""

    cuts: np.ndarray
    rule: str


def split_documents(lengths: np.ndarray, digests: np.ndarray, valid_fraction: float) -> Split:
    """Split by content, never by order; equal documents land on the same side.

    - One document: its last `valid_fraction` of characters is the validation side, to the character the usual
      split of Tiny Shakespeare (the first int(0.9 n) / the rest).
    - More: a document is for validation when its sha256, read as a number in [0, 1), is below
      `valid_fraction`.
    - More, but that leaves a side empty or shares (in characters) whose odds are beyond `TOLERATED_FACTOR` of
      the asked ones: the last `valid_fraction` of every document.

    lengths: characters of each document, int64. digests: the first 8 bytes of its sha256 as a big-endian
    number, uint64. Raises `UserError` when there are too few characters to split.
    """
    if len(lengths) > 1:
        cuts = np.where(digests < np.uint64(int(valid_fraction * 2**64)), 0, lengths)
        if _is_near(cuts, lengths, valid_fraction):
            hashes = f"({valid_fraction:g} of the hashes for validation)"
            return Split(cuts, f"whole documents, by the hash of their content {hashes}")
    return _by_tail(lengths, valid_fraction)


def _is_near(cuts: np.ndarray, lengths: np.ndarray, valid_fraction: float) -> bool:
    train = int(cuts.sum())
    valid = int(lengths.sum()) - train
    if not (train and valid):
        return False
    odds, asked = valid / train, valid_fraction / (1 - valid_fraction)
    # In odds rather than shares, so that both ends are tolerated alike for any fraction.
    return asked / TOLERATED_FACTOR <= odds <= asked * TOLERATED_FACTOR


def _by_tail(lengths: np.ndarray, valid_fraction: float) -> Split:
    # At least one character of each document is kept aside, however small the fraction.
    cuts = np.minimum(((1.0 - valid_fraction) * lengths).astype(np.int64), lengths - 1)
    if not cuts.any():
        n = int(lengths.sum())
        raise UserError(
            f"the text holds only {n} character{'s' * (n != 1)}, too few to keep {valid_fraction:g} of it "
            "aside for validation: give a longer text"
        )
    whose = "every document (whole ones would leave the sides too uneven)"
    whose = whose if len(lengths) > 1 else "the text"
    return Split(cuts, f"the last {valid_fraction:g} of {whose}, in characters, for validation")
