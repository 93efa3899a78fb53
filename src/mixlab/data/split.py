"""Which text is for training and which for validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixlab.errors import UserError

# With few documents, or one that outweighs the others, hashing may give a share far from the one asked for.
# Beyond this factor of the odds (0.1 asked for: a share below 0.027 or above 0.31) every document is cut
# instead.
TOLERATED_FACTOR = 4.0


@dataclass(frozen=True)
class Split:
    """The two sides, neither empty, and the sentence that says how they were made."""

    train: tuple[str, ...]
    valid: tuple[str, ...]
    rule: str


def split_documents(documents: Sequence[str], digests: Sequence[bytes], valid_fraction: float) -> Split:
    """Split by content, never by order; equal documents land on the same side.

    - One document: its last `valid_fraction` of characters is the validation side, to the character the usual
      split of Tiny Shakespeare (the first int(0.9 n) / the rest).
    - More: a document is for validation when its sha256, read as a number in [0, 1), is below
      `valid_fraction`.
    - More, but that leaves a side empty or shares (in characters) whose odds are beyond `TOLERATED_FACTOR` of
      the asked ones: the last `valid_fraction` of every document.

    `digests` are the documents' sha256, 32 bytes each. Raises `UserError` when there are too few characters
    to split.
    """
    if len(documents) > 1:
        split = _by_hash(documents, digests, valid_fraction)
        if _is_near(split, valid_fraction):
            return split
    return _by_tail(documents, valid_fraction)


def _by_hash(documents: Sequence[str], digests: Sequence[bytes], valid_fraction: float) -> Split:
    limit = int(valid_fraction * 2**64)
    sides: tuple[list[str], list[str]] = ([], [])
    for document, digest in zip(documents, digests, strict=True):
        sides[int.from_bytes(digest[:8], "big") < limit].append(document)
    rule = f"whole documents, by the hash of their content ({valid_fraction:g} of the hashes for validation)"
    return Split(tuple(sides[0]), tuple(sides[1]), rule)


def _is_near(split: Split, valid_fraction: float) -> bool:
    if not (split.train and split.valid):
        return False
    train, valid = (sum(map(len, side)) for side in (split.train, split.valid))
    odds, asked = valid / train, valid_fraction / (1 - valid_fraction)
    # In odds rather than shares, so that both ends are tolerated alike for any fraction.
    return asked / TOLERATED_FACTOR <= odds <= asked * TOLERATED_FACTOR


def _by_tail(documents: Sequence[str], valid_fraction: float) -> Split:
    # At least one character of each document is kept aside, however small the fraction.
    cuts = [min(int((1.0 - valid_fraction) * len(document)), len(document) - 1) for document in documents]
    train = tuple(document[:cut] for document, cut in zip(documents, cuts, strict=True) if cut)
    valid = tuple(document[cut:] for document, cut in zip(documents, cuts, strict=True))
    if not train:
        n = sum(map(len, documents))
        raise UserError(
            f"the text holds only {n} character{'s' * (n != 1)}, too few to keep {valid_fraction:g} of it "
            "aside for validation: give a longer text"
        )
    whose = "every document (whole ones would leave the sides too uneven)"
    whose = whose if len(documents) > 1 else "the text"
    return Split(train, valid, f"the last {valid_fraction:g} of {whose}, in characters, for validation")
