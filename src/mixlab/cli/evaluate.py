"""`mixlab evaluate`: how well a run predicts a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from mixlab.cli.options import Encoding, Imports, Json, Run

if TYPE_CHECKING:
    from mixlab.train.evaluate import Evaluation


def evaluate(
    run: Run,
    text: Annotated[
        list[str], typer.Argument(metavar="TEXT", help="Files, folders, globs, '-' or corpus:python.")
    ],
    encoding: Encoding = None,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Score a text with a trained run.

    Bits per byte, perplexity per token, and the loss by position in the context, in the run's precision: the
    validation text gives what training recorded of it.

    mixlab evaluate runs/transformer my.txt
    """
    from dataclasses import asdict

    from mixlab.cli.console import note, print_json
    from mixlab.cli.preparing import Evaluating, Preparing
    from mixlab.data import prepare_single
    from mixlab.data.charsets import DEFAULT
    from mixlab.train.run import open_run

    opened = open_run(run, notes=note)
    with Preparing() as progress:
        tokens, facts = prepare_single(
            text,
            opened.tokenizer,
            context=1,
            text_field=opened.config.data.text_field,
            encoding=encoding or DEFAULT,
            notes=note,
            progress=progress,
        )
    with Evaluating() as evaluating:
        result = opened.evaluate(tokens, progress=evaluating)
    if as_json:
        print_json({"run": str(run), "text": facts, **asdict(result)})
    else:
        print(describe(result))


def describe(result: Evaluation) -> str:
    """The result as text: the three numbers, then the loss after 1, 2, 4, ... tokens of context."""
    from mixlab.cli.console import table

    losses = result.loss_by_position
    rows = [[f"{n}", f"{losses[n - 1]:.3f}"] for n in powers(len(losses))]
    return "\n".join(
        [
            f"bits per byte         {result.bits_per_byte:.4f}",
            f"perplexity per token  {result.perplexity:.3f}",
            f"tokens, bytes         {result.tokens}, {result.bytes}",
            "",
            table(["tokens before", "nats per token"], rows),
        ]
    )


def powers(last: int) -> Sequence[int]:
    """1, 2, 4, ... up to and including `last`."""
    return sorted({2**k for k in range(last.bit_length())} | {last}) if last else []
