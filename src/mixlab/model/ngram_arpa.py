"""ARPA text files: the form in which n-gram tools (KenLM, SRILM, IRSTLM) exchange back-off models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TextIO

import numpy as np

from mixlab.errors import UserError
from mixlab.model.ngram_estimate import Floats, Level

# log10 of "never": what SRILM writes for <s>, which is context and is never predicted.
NEVER = "-99"


def write_arpa(
    path: str | Path, levels: Sequence[Level], *, vocab_size: int, words: Sequence[str] | None = None
) -> None:
    """Write the levels 1..order as an ARPA file: log10 probabilities with 9 digits, more than float32 keeps.

    words: one word for each token id, by default w0, w1, ...; a word has no white space and stands for one id
    only.

    A token may be named "</s>" or "<unk>": its entry is then an ordinary token's, with that token's
    probability (for a model trained on sentences that each end with one token, naming it "</s>" gives the
    file KenLM itself would). Of these two, a name that no token has is listed because readers want it, with
    log10 probability -99: the model knows no such event, so the distribution over its own tokens still sums
    to one, a reader that scores an end of sentence or an unknown word gets -99, and one that adds no </s>
    gets the model's scores. <s> is -99 with its true back-off, so a reader that begins a sentence with <s>
    scores as `NGram.log_prob` does.

    Raises UserError for words that do not fit the vocabulary or a path that cannot be written.
    """
    names = _names(words, vocab_size)
    base = vocab_size + 1
    extra = [special for special in ("<unk>", "</s>") if special not in names[:-1]]
    try:
        with Path(path).open("w", encoding="utf-8") as file:
            sizes = [base + len(extra), *(len(level.keys) for level in levels[1:])]
            file.write("\\data\\\n" + "".join(f"ngram {k}={size}\n" for k, size in enumerate(sizes, start=1)))
            grams = names
            for k, level in enumerate(levels, start=1):
                file.write(f"\n\\{k}-grams:\n")
                prob: Iterable[str] = _log10(level.log_prob)
                if k == 1:
                    file.writelines(f"{NEVER}\t{special}\n" for special in extra)
                    prob = chain(prob, [NEVER])
                else:
                    prefixes = (level.keys // base).tolist()
                    lasts = (level.keys % base).tolist()
                    grams = [f"{grams[p]} {names[w]}" for p, w in zip(prefixes, lasts, strict=True)]
                _write_section(file, prob, grams, level.back_off[:-1])
            file.write("\n\\end\\\n")
    except OSError as error:
        raise UserError(f"the ARPA file cannot be written to {path}: {error.strerror}") from None


def _names(words: Sequence[str] | None, vocab_size: int) -> list[str]:
    """The words of the ids 0..vocab_size - 1 and, last, <s>, checked."""
    names = [f"w{i}" for i in range(vocab_size)] if words is None else list(words)
    if len(names) != vocab_size:
        raise UserError(f"{len(names)} words for a vocabulary of {vocab_size}: each token id needs one word")
    for i, word in enumerate(names):
        if len(word.split()) != 1 or word.split()[0] != word:
            raise UserError(
                f"the word of token {i}, {word!r}, is empty or has white space: ARPA files cannot hold it"
            )
    names.append("<s>")
    twice = [word for word, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"the word '{twice[0]}' stands for two tokens: each token id needs a word of its own")
    return names


def _log10(natural: Floats) -> Iterable[str]:
    """Natural logarithms as ARPA's log10 text; never above 0, which readers refuse."""
    return (f"{value:.9g}" for value in (np.minimum(natural, 0.0) / np.log(10) + 0.0).tolist())


def _write_section(file: TextIO, prob: Iterable[str], grams: Sequence[str], back_off: Floats) -> None:
    """One line an n-gram: log10 probability, words and, below the top order, log10 back-off."""
    if len(back_off):
        lines = zip(prob, grams, _log10(back_off), strict=True)
        file.writelines(f"{p}\t{gram}\t{weight}\n" for p, gram, weight in lines)
    else:
        file.writelines(f"{p}\t{gram}\n" for p, gram in zip(prob, grams, strict=True))
