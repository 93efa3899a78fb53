"""`mixlab generate`: text from a run, as it is made."""

from __future__ import annotations

import sys
from itertools import chain
from typing import Annotated

import typer

from mixlab.cli.options import Imports, Json, Run
from mixlab.cli.streams import is_gone
from mixlab.opened import MAX_TOKENS, TEMPERATURE


def generate(
    run: Run,
    prompt: Annotated[str, typer.Option(help="What the text begins with.", metavar="TEXT")] = "",
    max_tokens: Annotated[int, typer.Option(help="Stop after this many tokens.", metavar="N")] = MAX_TOKENS,
    temperature: Annotated[
        float, typer.Option(help="0: always the likeliest; 1: as learned.", metavar="T")
    ] = TEMPERATURE,
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
    import mixlab
    from mixlab.cli.console import note, print_json
    from mixlab.decode import check_precision, check_sampling

    check_sampling(temperature, top_k, top_p)  # before the run is looked for
    check_precision(dtype)
    chunks = mixlab.open(run, notes=note).stream(
        prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        dtype=dtype,
    )
    if as_json:
        text, drawn = "".join(chunks), len(chunks.ids)
        print_json({"prompt": prompt, "text": text, "tokens": drawn, "ended": chunks.ended, "seed": seed})
        return
    for chunk in chain([prompt], chunks):
        sys.stdout.write(chunk)
        sys.stdout.flush()
        if is_gone(sys.stdout):
            return
    sys.stdout.write("\n")
    if chunks.ended:
        sys.stdout.flush()
        note(f"the model ended the document after {len(chunks.ids)} tokens")
