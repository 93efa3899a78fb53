"""`mixlab report`: one offline HTML page from runs or a comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mixlab.cli.options import Imports, Json
from mixlab.errors import UserError

COMPARISON = "comparison.json"


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

    Table, curves, samples and facts.

    mixlab report runs/transformer runs/gru
    """
    from mixlab.cli.console import print_json
    from mixlab.report import write_report
    from mixlab.report.joined import merge

    folders = [run_folder(path) for path in runs]
    comparison = merge([read(folder) for folder in folders], folders)
    path = write_report(comparison, out or (folders[0] if len(folders) == 1 else Path()) / "report.html")
    if as_json:
        print_json({"report": str(path), "results": len(comparison["results"])})
    else:
        print(path)


def run_folder(path: Path) -> Path:
    """The run that a checkpoint folder lies in; any other path as it is."""
    return path.parent.parent if path.parent.name == "checkpoints" else path


def read(folder: Path) -> dict[str, Any]:
    """The comparison in a comparison's folder, or a run as a comparison of one; UserError for neither."""
    from mixlab.report import from_run

    file = folder / COMPARISON
    if not file.is_file():
        return from_run(folder)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged: it is not JSON ({error})") from None
    if not isinstance(found, dict) or not isinstance(found.get("results"), list):
        raise UserError(f"{file} is not a comparison: it has no list of results")
    return found
