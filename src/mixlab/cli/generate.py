"""`mixlab generate`: text from a run, as it is made."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Annotated

import typer

from mixlab.cli.options import Imports, Json, Run
from mixlab.cli.streams import is_gone


def generate(
    run: Run,
    prompt: Annotated[str, typer.Option(help="What the text begins with.", metavar="TEXT")] = "",
    max_tokens: Annotated[int, typer.Option(help="Stop after this many tokens.", metavar="N")] = 400,
    # 0.8 trims the tail of unlikely tokens that a small model gets wrong; 1 samples the model as it is.
    temperature: Annotated[
        float, typer.Option(help="0: always the likeliest; 1: as learned.", metavar="T")
    ] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Choose among the K likeliest.", metavar="K")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Choose among the likeliest that sum to P.", metavar="P")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same text.", metavar="S")] = 0,
    dtype: Annotated[
        str, typer.Option(help="How weights are read: float32, float16 (faster) or auto.", metavar="TYPE")
    ] = "auto",
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Continue a prompt with a trained run.

    Ends before --max-tokens where the model ends the document.

    mixlab generate runs/transformer --prompt "def main("
    """
    from mixlab.cli.console import note, print_json
    from mixlab.decode import check_precision, check_sampling, precision, stream_text
    from mixlab.decode import generate as continue_from
    from mixlab.train.run import open_run

    check_sampling(temperature, top_k, top_p)  # before the seconds that loading takes
    check_precision(dtype)
    opened = open_run(run, notes=note)
    tokenizer = opened.tokenizer
    # What ends a document starts the next: the text before every prompt.
    ends = [] if tokenizer.end is None else [tokenizer.end]
    encoded = tokenizer.encode(prompt)
    tokens = [*ends, *(int(token) for token in encoded)]
    if unknown := tokenizer.count_unknown(encoded):
        note(
            f"{unknown} of the prompt's characters {'is' if unknown == 1 else 'are'} not in the tokenizer's "
            "vocabulary: the model reads one unknown character instead of each"
        )
    scorer = opened.load()
    ids = continue_from(
        scorer,
        tokens,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=ends,
        note=note,
        dtype=precision(scorer, dtype),
    )
    drawn: list[int] = []
    pieces = stream_text(tokenizer, remembered(ids, drawn))
    if as_json:
        text = "".join(pieces)
        ended = len(drawn) < max_tokens
        print_json({"prompt": prompt, "text": text, "tokens": len(drawn), "ended": ended, "seed": seed})
        return
    for piece in chain([prompt], pieces):
        sys.stdout.write(piece)
        sys.stdout.flush()
        if is_gone(sys.stdout):
            return
    sys.stdout.write("\n")
    if len(drawn) < max_tokens:
        sys.stdout.flush()
        note(f"the model ended the document after {len(drawn)} tokens")


def remembered(ids: Iterable[int], drawn: list[int]) -> Iterator[int]:
    """Pass `ids` on and append each to `drawn`."""
    for token in ids:
        drawn.append(token)
        yield token
