"""`mixlab report`: one offline HTML page from runs or a comparison."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from typing_extensions import TypedDict

from mixlab.cli.options import Imports, Json
from mixlab.errors import UserError
from mixlab.records import checked, read_json

COMPARISON = "comparison.json"
PER_RUN, SAMPLING = 3.0, 15.0
"""Seconds that a run's sample may take, and all of them: of many runs the last ones go without."""


class Comparison(TypedDict):
    """What a page cannot do without."""

    results: list[dict[str, Any]]


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders, or a comparison's folder.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Default: report.html in the folder, or here for several."),
    ] = None,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Write one offline HTML page about runs.

    Table, curves, samples and facts; each run's best checkpoint writes a sample for it.

    mixlab report runs/transformer runs/gru
    """
    from mixlab.cli.console import print_json
    from mixlab.report import write_report
    from mixlab.report.joined import merge

    folders = [run_folder(path) for path in runs]
    until = time.monotonic() + SAMPLING
    found = [read(folder, sample_seconds=min(PER_RUN, until - time.monotonic())) for folder in folders]
    comparison = merge(found, folders)
    path = write_report(comparison, out or (folders[0] if len(folders) == 1 else Path()) / "report.html")
    if as_json:
        print_json({"report": str(path), "results": len(comparison["results"])})
    else:
        print(path)


def run_folder(path: Path) -> Path:
    """The run that a checkpoint folder lies in; any other path as it is."""
    return path.parent.parent if path.parent.name == "checkpoints" else path


def read(folder: Path, *, sample_seconds: float = 0.0) -> dict[str, Any]:
    """The comparison in a comparison's folder, or a run as a comparison of one; UserError for neither.

    sample_seconds: for how long a run may write a sample.
    """
    from mixlab.report import from_run

    file = folder / COMPARISON
    if not file.is_file():
        return from_run(folder, sample_seconds=sample_seconds)
    found = read_json(file, object)
    try:
        comparison = checked(found, Comparison)
    except ValueError as error:
        raise UserError(f"{file} is not a comparison ({error})") from None
    return {**comparison, "folder": str(folder)}
