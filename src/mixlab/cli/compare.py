"""`mixlab compare`: several models at one budget on one text, as a table and a report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixlab.cli.options import Encoding, Imports, Json, Overrides, Text, Valid, count
from mixlab.errors import RunFailed, UserError
from mixlab.signals import INTERRUPTED

if TYPE_CHECKING:
    from mixlab.compare.bands import Bands, Verdict
    from mixlab.compare.request import Request


def compare(
    text: Text = None,
    models: Annotated[
        str | None,
        typer.Option(
            help="Presets and .toml files, with commas between; or 'all'. Default: ngram,window,rnn,gru,"
            "lstm,transformer.",
            metavar="A,B,...",
        ),
    ] = None,
    budget: Annotated[
        str, typer.Option(help="Parameters of each neural model.", metavar="params=N")
    ] = "params=1M",
    steps: Annotated[str | None, typer.Option(help="Train each for this many steps ...", metavar="N")] = None,
    tokens: Annotated[str | None, typer.Option(help="... or tokens, such as 2M ...", metavar="N")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="... or as many tokens as let all finish in M minutes.", metavar="M")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each neural model.", metavar="K")] = 1,
    context: Annotated[int, typer.Option(help="Tokens of context.", metavar="N")] = 256,
    batch_size: Annotated[int, typer.Option(help="Rows of that length a step.", metavar="N")] = 8,
    tokenizer: Annotated[str, typer.Option(help="byte, char or bpe.", metavar="KIND")] = "byte",
    valid: Valid = None,
    encoding: Encoding = None,
    overrides: Overrides = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            help="Train each model with each of these values, such as train.optimizer.lr=0.005,0.01,0.02; "
            "may be repeated, for all combinations.",
            metavar="KEY=V1,V2,...",
        ),
    ] = None,
    check_bands: Annotated[
        bool, typer.Option("--check-bands", help="Check each loss against the band it should lie in.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The comparison's folder. Default: comparison, or comparison-bands with --check-bands.",
            metavar="DIR",
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Where the report goes; by default into DIR.", metavar="FILE.html")
    ] = None,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Train several models at one budget on one text, and compare them.

    The same number of parameters, the same tokens in the same order, the same measurements. The same command
    goes on where an interrupted one stopped.

    mixlab compare my.txt --models ngram,gru,transformer --tokens 2M

    --check-bands runs every preset that has a band, at the default budget, and ends with status 1 if a loss
    is outside its band.
    """
    horizon = {
        "steps": None if steps is None else count(steps, "--steps"),
        "tokens": None if tokens is None else count(tokens, "--tokens"),
        "minutes": minutes,
    }
    bands = _bands() if check_bands else None
    if bands is not None and models is None:
        models = ",".join(bands.models)
    data = {"sources": text, "valid": valid, "tokenizer": tokenizer, "encoding": encoding}
    request = _request(
        data, overrides or (), models, params=parameters(budget), seeds=seeds, context=context,
        batch_size=batch_size, grid=tuple(grid or ()), imports=tuple(imports or ()), **horizon,
    )  # fmt: skip
    out = out or Path("comparison-bands" if check_bands else "comparison")
    path = report or out / "report.html"
    check_report(path)
    if bands is not None:
        bands.check(request, out)
    comparison = _work(request, out)
    verdicts = None if bands is None else bands.verdicts(comparison, request.models)
    _finish(comparison, path, verdicts, as_json=as_json)


def parameters(budget: str) -> int:
    """The number in "params=1M" or "1M"; UserError for anything else."""
    key, equals, value = budget.partition("=")
    if not equals:
        key, value = "params", budget
    if key.strip() != "params":
        raise UserError(f"--budget: '{key.strip()}' is no budget: write params=1M, or just 1M")
    return count(value, "--budget")


def check_report(path: Path) -> None:
    """UserError, before anything is trained, if the report cannot be written there."""
    from mixlab.report import check_place

    if path.is_dir():
        raise UserError(f"--report {path} is a folder: name a file, such as {path / 'report.html'}")
    check_place(path)


def _request(
    data: Mapping[str, Any],
    overrides: Sequence[str],
    models: str | None,
    **budget: Any,
) -> Request:
    """The request; `--set data.key=value` goes to the text, the rest to every model. data: options that stand
    for keys of that table."""
    from mixlab.compare.request import DEFAULT_MODELS, Request
    from mixlab.config import apply_overrides, parse
    from mixlab.data.config import DataConfig
    from mixlab.data.sources import spelled

    of_data = [override for override in overrides if override.strip().startswith("data.")]
    given = {key: value for key, value in data.items() if value}
    for key in {"sources", "valid"} & given.keys():
        given[key] = list(map(spelled, given[key]))
    chosen = parse(DataConfig, apply_overrides({"data": given}, of_data)["data"], where="data")
    names = DEFAULT_MODELS if models is None else tuple(filter(None, map(str.strip, models.split(","))))
    rest = tuple(override for override in overrides if override not in of_data)
    return Request(models=names, data=chosen, overrides=rest, **budget).validate()


def _work(request: Request, out: Path) -> dict[str, Any]:
    from mixlab.cli.comparison import ComparisonProgress
    from mixlab.cli.console import note
    from mixlab.compare.runner import Stopped
    from mixlab.compare.runner import compare as work

    command = shlex.join(["mixlab", *sys.argv[1:]])
    try:
        with ComparisonProgress() as progress:
            return work(request, out, command=command, progress=progress)
    except Stopped as stop:
        note(str(stop))
        raise typer.Exit(INTERRUPTED) from None


def _bands() -> Bands:
    from mixlab.compare.bands import read_bands

    return read_bands()


def _finish(
    comparison: Mapping[str, Any], path: Path, verdicts: Sequence[Verdict] | None, *, as_json: bool
) -> None:
    """Table or JSON to stdout, the report to its file; RunFailed, after all that, if a model failed or its
    loss is outside its band."""
    from mixlab.cli.comparison import print_bands, print_comparison
    from mixlab.cli.console import note, print_json
    from mixlab.report import write_report

    if as_json:
        print_json(comparison if verdicts is None else {**comparison, "bands": list(map(asdict, verdicts))})
    else:
        print_comparison(comparison)
        if verdicts is not None:
            print_bands(verdicts)
    note(f"the report is {write_report(comparison, path)}")
    wrong = []
    outside = [verdict.model for verdict in verdicts or () if verdict.verdict == "outside"]
    if outside:
        are = "losses are outside their bands" if len(outside) > 1 else "losses is outside its band"
        wrong.append(f"{len(outside)} of {len(verdicts or ())} {are} ({', '.join(outside)})")
    failed = [r for r in comparison["results"] if r["status"] == "failed"]
    if failed:
        names = ", ".join(dict.fromkeys(str(result["model"]) for result in failed))
        total = len(comparison["results"])
        wrong.append(f"{len(failed)} of {total} runs failed ({names}); the same command tries them again")
    if wrong:
        raise RunFailed("; ".join(wrong))
