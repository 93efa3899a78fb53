"""Samples for a page: a short prompt, and a continuation that ends where a reader would end it."""

from __future__ import annotations

import itertools
import re
import time
from typing import Any

from mixlab.data import TokenFile
from mixlab.data.tokenizer import Tokenizer
from mixlab.decode.generate import generate
from mixlab.model.scorer import Scorer

MOST_TOKENS = 400
TEMPERATURE = 0.8
"""A little below 1, where text of an undertrained model is at its most readable."""

PROMPT = 40
"""Characters of a prompt: a few words, so that what a reader sees is the model's."""

KEPT = 0.6
"""Share of a sample without an end of a document that stays at least when it is cut at a natural end."""

SENTENCE = re.compile(r"""[.!?…]["'”’)\]]*(?=\s)|\n""")


def sample(
    scorer: Scorer,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    seed: int,
    most: int = MOST_TOKENS,
    seconds: float | None = None,
) -> dict[str, Any]:
    """The text after `prompt` that the model writes, up to the end of a document, else of a sentence or word.

    prompt: '' starts a line. most: tokens. seconds: about the longest that it may take; it ends early then.
    """
    end = tokenizer.end
    tokens = [int(token) for token in tokenizer.encode(prompt or "\n")] or [end or 0]
    until = None if seconds is None else time.monotonic() + seconds
    ids: list[int] = []
    ended = False
    for token in generate(scorer, tokens, max_tokens=most, temperature=TEMPERATURE, seed=seed):
        ended = token == end
        if ended or (until is not None and time.monotonic() > until):
            break
        ids.append(token)
    text = tokenizer.decode(ids)
    text = text if ended else whole(text)
    return {"prompt": prompt, "text": text, "temperature": TEMPERATURE, "seed": seed}


def whole(text: str) -> str:
    """`text` up to its last natural end: of a sentence or line, else of a word, in its last part; unchanged
    where there is none."""
    least = int(KEPT * len(text))
    ends = [match.end() for match in SENTENCE.finditer(text) if match.end() >= least]
    if ends:
        return text[: ends[-1]].rstrip()
    cut = max(text.rfind(" "), text.rfind("\t"))
    return text[:cut].rstrip() if cut >= max(1, least) else text


def prompt_of(file: TokenFile, tokenizer: Tokenizer, characters: int = PROMPT) -> str:
    """The beginning of a line from the middle of a text, whole words of one document: to sample after."""
    middle = max(1, len(file) // 2)
    chunk = [int(token) for token in file.tokens[middle : middle + 16 * characters]]
    ends = [-1, *(i for i, token in enumerate(chunk) if token == tokenizer.end), len(chunk)]
    start, end = max(itertools.pairwise(ends), key=lambda pair: pair[1] - pair[0])
    text = tokenizer.decode(chunk[start + 1 : end]).strip("\ufffd")
    if start < 0:  # it began inside a line, maybe inside a word
        line = text.partition("\n")[2].strip()
        text = line or text.partition(" ")[2].strip() or text
    text = text.lstrip("\n")
    head = text[:characters]
    if len(text) > characters and not text[characters].isspace():
        head = re.sub(r"\s+\S*$", "", head) or head
    return head.rstrip()
