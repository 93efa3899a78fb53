"""`mixlab evaluate`: how well a run predicts a text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixlab.cli.options import Encoding, Imports, Json, Run
from mixlab.errors import UserError

if TYPE_CHECKING:
    from mixlab.train.evaluate import Evaluation

MOST_DOCUMENTS = 50
"""Documents in the table at most: more do not fit a screen."""


def evaluate(
    run: Run,
    text: Annotated[
        list[str], typer.Argument(metavar="TEXT", help="Files, folders, globs, '-' or corpus:python.")
    ],
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens between windows, which overlap if fewer than the context.", metavar="N"),
    ] = None,
    per_document: Annotated[
        bool, typer.Option("--per-document", help="Each document's bits per byte too, the worst first.")
    ] = False,
    encoding: Encoding = None,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Score a text with a trained run.

    Bits per byte, perplexity per token and per word, and the loss by position in the context, in the run's
    precision: the validation text gives what training recorded of it.

    Windows of the run's context follow one another. With --stride N each begins N tokens after the one
    before, so that all tokens but the first ones have context - N tokens or more before them; each counts
    once. That takes context / N times as long.

    mixlab evaluate runs/transformer my.txt
    """
    from mixlab.cli.console import note, print_json
    from mixlab.cli.preparing import Evaluating, Preparing
    from mixlab.data import prepare_single
    from mixlab.data.charsets import DEFAULT
    from mixlab.train.run import open_run

    opened = open_run(run, notes=note)
    if stride is not None and not 1 <= stride <= opened.context:
        raise UserError(f"--stride is {stride}; it must be from 1 to {opened.context}, the run's context")
    with Preparing() as progress:
        tokens, facts = prepare_single(
            text,
            opened.tokenizer,
            context=1,
            text_field=opened.config.data.text_field,
            encoding=encoding or DEFAULT,
            by_document=per_document,
            notes=note,
            progress=progress,
        )
    with Evaluating() as evaluating:
        result = opened.evaluate(tokens, stride=stride, by_document=per_document, progress=evaluating)
    documents = _documents(result, facts.pop("places", []))
    if as_json:
        print_json({"run": str(run), "text": facts, **_numbers(result, facts, documents)})
    else:
        print(describe(result, facts, documents))


def _numbers(
    result: Evaluation, facts: Mapping[str, Any], documents: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The result as JSON has it."""
    from dataclasses import asdict

    numbers = asdict(result)
    if numbers.pop("nats_by_document") is not None:
        numbers["documents"] = documents
    words, lines = facts["words"], facts["lines"]
    return {
        **numbers,
        "words": words,
        "lines": lines,
        "perplexity_per_word": result.perplexity_per(words) if words else None,
        "perplexity_per_word_and_line_end": result.perplexity_per(words + lines) if words else None,
    }


def _documents(result: Evaluation, places: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """Each document's name, bytes (its end is one) and bits per byte, the worst first."""
    found = [
        {"document": name, "bytes": size + 1, "bits_per_byte": nats / math.log(2) / (size + 1)}
        for (name, size), nats in zip(places, result.nats_by_document or [], strict=True)
    ]
    return sorted(found, key=lambda one: -one["bits_per_byte"])


def describe(
    result: Evaluation, facts: Mapping[str, Any], documents: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The result as text: the numbers, the loss after 1, 2, 4, ... tokens of context, and the documents."""
    from mixlab.cli.console import table

    losses, words, lines = result.loss_by_position, facts["words"], facts["lines"]
    rows = [[f"{n}", f"{losses[n - 1]:.3f}"] for n in powers(len(losses))]
    shown = [
        f"bits per byte         {result.bits_per_byte:.4f}",
        f"perplexity per token  {result.perplexity:.3f}",
        *(_by_words(result, words, lines) if words else ()),
        f"tokens, bytes         {result.tokens}, {result.bytes}",
        f"windows               {result.context} tokens, {_steps(result)}",
        "",
        table(["tokens before", "nats per token"], rows),
    ]
    if documents:
        cells = [
            [one["document"], str(one["bytes"]), f"{one['bits_per_byte']:.4f}"]
            for one in documents[:MOST_DOCUMENTS]
        ]
        shown += ["", table(["document", "bytes", "bits per byte"], cells)]
        more = len(documents) - len(cells)
        shown += [f"and {more} more, all of them with --json"] if more else []
    return "\n".join(shown)


def _by_words(result: Evaluation, words: int, lines: int) -> list[str]:
    """Perplexity per word, without and with line ends."""
    ends = "the end of 1 line" if lines == 1 else f"the ends of {lines} lines"
    return [
        f"perplexity per word   {result.perplexity_per(words):.5g} ({words} word{'s' * (words != 1)})",
        f"  with line ends      {result.perplexity_per(words + lines):.5g} (and {ends})",
    ]


def _steps(result: Evaluation) -> str:
    """How the windows follow one another."""
    if result.stride == result.context:
        return "one after the other"
    return f"{result.stride} apart: {result.context - result.stride} tokens or more before each but the first"


def powers(last: int) -> Sequence[int]:
    """1, 2, 4, ... up to and including `last`."""
    return sorted({2**k for k in range(last.bit_length())} | {last}) if last else []
